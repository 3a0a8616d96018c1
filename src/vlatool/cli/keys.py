"""Configuration keys on the command line: options, typed values, and the table of `--keys`."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vlatool.cli.options import TypedValue
from vlatool.cli.output import to_json
from vlatool.config.base import ConfigModel, Ignored, Names
from vlatool.config.resolve import STRICT, Override, ReadOptions, chosen_schema, parse_override
from vlatool.config.schema import ANY_NAME, KeyInfo, dotted_keys
from vlatool.errors import UsageError
from vlatool.results import Result

# The `|` between two types, not one inside brackets.
_ALTERNATIVE = re.compile(r" \| (?![^\[]*\])")


@dataclass(frozen=True)
class Key:
    """Configuration key that can be typed as an option."""

    name: str  # option name with underscores: `samples_per_shard`
    path: str  # dotted key in the config: `source.observation_keys`
    is_switch: bool = False  # the option needs no value
    type_text: str = "str"  # type in the help: `int`, `a|b`
    default: str = ""  # default in the help; empty if there is none
    description: str = ""  # description in the help
    group: str = "Keys"  # heading in `--help`


def declared_keys(schema: type[ConfigModel]) -> dict[str, Key]:
    """All keys of a flat config class by option name, including keys of its flat sections."""
    keys: dict[str, Key] = {}
    for info in _typable(schema):
        section, dot, rest = info.key.partition(".")
        name = rest if dot and section in schema.flat_sections else info.key
        if name == "type":  # the type of a section has its name: `--sink lbm`
            name = section
        group = info.group
        if not group and dot:
            group = (schema.model_fields[section].description or "").rstrip(".")
        kinds = _ALTERNATIVE.split(info.type_text)
        keys[name] = Key(
            name=name,
            path=info.key,
            is_switch="bool" in kinds,
            type_text="|".join(_typed_form(kind) for kind in kinds if kind != "null"),
            default=default_text(info.default),
            description=info.description,
            group=group or "Keys",
        )
    return keys


def _typable(schema: type[ConfigModel]) -> list[KeyInfo]:
    """Keys whose complete name is known, so none inside lists or mappings with names of yours."""
    return [info for info in dotted_keys(schema) if ANY_NAME not in info.key.split(".")]


def _typed_form(kind: str) -> str:
    """Form in which a type is typed: `str,...`, `int,int`, `{str: int, ...}`."""
    inner = kind.partition("[")[2].removesuffix("]")
    if kind.startswith(("list[", "set[")) and "[" not in inner:
        return f"{inner.replace(' | ', '|')},..."
    if kind.startswith("tuple[") and "[" not in inner:
        return inner.replace(" ", "")
    if kind.startswith("dict[") and "[" not in inner:
        name, value = inner.split(", ")
        return f"{{{name}: {value}, ...}}"
    return kind


def default_text(value: Any) -> str:
    """Default, spelled as you would type it; empty if there is none."""
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(default_text(item) for item in value)
    return str(value)


def switch_by_name(schema: type[ConfigModel], keys: Mapping[str, Key]) -> dict[str, bool]:
    """The keys, and other programs' names of keys, that are options; True for a switch."""
    switches = {name: key.is_switch for name, key in keys.items()}
    for name, row in schema.NAMES.items():
        if "." in name or name in switches:
            continue
        if isinstance(row, str):
            switches[name] = "=" in row or (row in keys and keys[row].is_switch)
        else:
            switches[name] = isinstance(row, Ignored) and row.is_switch
    return switches


@dataclass
class TypedConfig:
    """The configuration that a command line gives: presets, files and typed values."""

    typed: Sequence[TypedValue]  # values in the order typed
    names: Names = field(default_factory=dict)  # names of keys
    presets: Sequence[str] = ()
    files: Sequence[str] = ()  # YAML files, applied after the presets
    read_options: ReadOptions = STRICT  # options for reading presets and files

    def overrides(self, positionals: Mapping[str, Any]) -> list[Override]:
        """Typed values as overrides: arguments, then keys as typed."""
        result: list[Override] = []
        for name, value in positionals.items():
            if value not in (None, [], ()):
                result.append(Override(name, value, f"command line, argument {name.upper()}"))
        given = {override.key for override in result}
        for typed in self.typed:
            name = typed.key.replace("-", "_")
            key = self.names.get(name, name)
            if key in given:
                by = (f"the argument {str(key).upper()}", typed.option)
                raise UsageError(
                    f"the key {key!r} is given twice: by {by[0]} and by {by[1]}",
                    hint="keep only one of them",
                    code="usage.conflict",
                    details={"key": key, "by": list(by)},
                )
            result.append(parse_override(f"{name}={typed.text}", typed.option))
        return result

    def chosen_schema(self, schema: type[ConfigModel]) -> type[ConfigModel]:
        return chosen_schema(
            schema,
            presets=self.presets,
            files=self.files,
            overrides=self.overrides({}),
            read_options=self.read_options,
        )


@dataclass(frozen=True)
class KeyTable(Result):
    """Result of `--keys`: keys with type, default and description."""

    rows_key: ClassVar[str] = "keys"

    keys: list[Mapping[str, Any]]

    @classmethod
    def of(cls, schema: type[ConfigModel], is_used: Callable[[str], bool]) -> "KeyTable":
        """Keys of a config class, without those that `is_used` leaves out."""
        rows: list[Mapping[str, Any]] = []
        for info in dotted_keys(schema):
            if not is_used(info.key):
                continue
            row = {"key": info.key, "type": info.type_text}
            row |= {"default": info.default, "description": info.description}
            rows.append(row)
        return cls(rows)

    def lines(self) -> Iterator[str]:
        for row in self.keys:
            yield f"{row['key']}: {row['type']} = {to_json(row['default'], indent=None)}"
            if row["description"]:
                yield f"    {row['description']}"
