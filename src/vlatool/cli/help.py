"""Lays out the help: the most used options on one screen, or all options by group."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from vlatool.cli.options import OUTPUT_HELP, OutputOptions

if TYPE_CHECKING:
    from vlatool.cli.keys import Key

HelpRow = tuple[str, str]

HELP_ALL = "--help-all"
# Options that commands share; `vlatool --help` lists them once.
SHARED_HELP: Sequence[HelpRow] = (
    ("-h, --help[-all]", "Show the most used options of a command, or all."),
    ("--keys", "List its configuration keys, types and defaults."),
    ("-p NAME, -c FILE", "Presets, then YAML files, then --set KEY=VALUE."),
    *OUTPUT_HELP,
)
_SHARED = frozenset({"preset", "config", "set_", "compat", "keys"})
_REST: HelpRow = (HELP_ALL, "Show all options, also the common ones.")
_OPTION_COLUMN = 34
# What a description says of a key without a value, which is its default.
_NO_VALUE = re.compile(r"; (null|empty)(:| uses| means| takes|(?= \w+s\b)) ")


def is_help(args: Iterable[str]) -> bool:
    """True if an argument asks for the help."""
    return not {"--help", "-h", HELP_ALL}.isdisjoint(args)


def listed_rows(
    names: Sequence[str], keys: Mapping[str, HelpRow], declared: Mapping[str, HelpRow]
) -> list[HelpRow]:
    """Rows of `--help`: the named options in their order, or all options of this command alone."""
    rows = {**keys, **declared}
    if not names:
        names = [name for name in rows if name not in _SHARED]
    listed = [rows[name] for name in names if name in rows]
    return [*listed, _REST]


def declared_rows(params: Iterable[Any], ctx: Any) -> dict[str, HelpRow]:
    """Rows of the options that Typer parses, by name, without `--help`."""
    rows: dict[str, HelpRow] = {}
    for param in params:
        if param.param_type_name != "option" or is_help(param.opts):
            continue
        record = param.get_help_record(ctx)  # None for a hidden option
        if record:
            rows[param.name] = (record[0], record[1])
    return rows


def write_rows(formatter: Any, title: str, rows: Sequence[HelpRow]) -> None:
    """Writes a group of rows; nothing without rows. Lines end between words, not at hyphens."""
    if not rows:
        return
    column = min(max(len(option) for option, _ in rows), _OPTION_COLUMN)
    formatter.write(f"\n{title}:\n")
    for option, text in rows:
        lines = wrap(text, max(formatter.width - column - 4, 10), break_on_hyphens=False)
        if len(option) > column or not lines:
            lines = ["", *lines]
        formatter.write(f"  {option:<{column}}  {lines[0]}".rstrip() + "\n")
        for line in lines[1:]:
            formatter.write(f"  {'':<{column}}  {line}\n")


def write_examples(formatter: Any, examples: Sequence[str]) -> None:
    """Writes command lines; long ones continue on the next line."""
    if not examples:
        return
    formatter.write("\nExamples:\n")
    for example in examples:
        line = " "
        for part in re.split(r" (?=-|[\w.]+=)", example):
            if len(line) + len(part) + 3 > formatter.width + 2 and line.strip():
                formatter.write(f"{line} \\\n")
                line = "     "
            line += f" {part}"
        formatter.write(f"{line}\n")


def key_row(key: "Key", values: Sequence[str], *, is_short: bool) -> HelpRow:
    """Row of a key; with `is_short`, a switch that is off shows only how to turn it on."""
    name = key.name.replace("_", "-")
    if key.is_switch and key.default == "false" and is_short:
        return f"--{name}", _description(replace(key, default=""), values)
    if key.is_switch:
        return f"--[no-]{name}", _description(key, values)
    if key.name == "output":
        return "-o, --output PATH", _description(key, values)
    # Descriptions call a whole number N.
    metavar = "NAME" if values else re.sub(r"\bint\b", "N", key.type_text)
    return f"--{name} {metavar}".rstrip(), _description(key, values)


def argument_row(name: str, key: "Key", values: Sequence[str]) -> HelpRow:
    """Row of an argument, with its name in the usage line and its known values."""
    known = key.type_text if "|" in key.type_text else ""
    return f"{name.strip('[]')} {known}".strip(), _description(key, values)


def _description(key: "Key", values: Sequence[str]) -> str:
    parts = [key.description if key.default else _NO_VALUE.sub("; default: ", key.description)]
    if values:
        parts.append(f"One of {', '.join(values)}.")
    if key.default:
        parts.append(f"[{key.default}]")
    return " ".join(parts).lstrip()


def help_text(text: str, ctx: Any) -> str:
    """Help text, in a JSON document with `--json`."""
    options = ctx.find_object(OutputOptions)
    if options is None or not options.json:
        return text
    from vlatool.cli.output import to_json

    return to_json({"help": text})
