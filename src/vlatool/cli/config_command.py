"""The class of all commands: suggestions, examples in the help, and configuration keys as options.

Typer bundles its own Click, whose classes (contexts, formatters, parameters) are private: their
type here is `Any`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

import typer.core

from vlatool.cli import help as cli_help
from vlatool.cli import options as cli_options
from vlatool.cli.commands import COMMANDS, Command
from vlatool.cli.completion import completions
from vlatool.errors import UsageError, VlatoolError

if TYPE_CHECKING:
    from vlatool.cli.keys import CommandLine
    from vlatool.config.base import ConfigModel

TYPED_CONFIG = "vlatool.typed_config"
_ARGS = "vlatool.args"


Body = Callable[[Any, Command, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Form:
    """How a command differs from others on the command line."""

    body: Body  # function of (invocation, command, values) that runs the command
    # Function with further options for Typer as parameters.
    declare: Callable[..., None] = lambda: None
    # Keys of sections are options by their name alone, too; otherwise only as `--a.b`.
    is_flat: bool = True
    # Names of keys (`NAMES` of the config class) that the help lists, and their rows.
    rows: Mapping[str, cli_help.HelpRow] = field(default_factory=dict)
    # Words of an unfinished command line → values of keys that choose its sections.
    choose: Callable[[Sequence[str]], Mapping[str, Any]] = lambda words: {}
    note: str = ""  # last paragraph of the help
    # Keys with known values → `module:function` that returns these.
    values: Mapping[str, str] = field(default_factory=dict)
    # Keys and sections without a meaning here; help, `--keys` and completion leave them out.
    unused_keys: tuple[str, ...] = ()

    def is_used(self, name: str) -> bool:
        """True if a key, or its section, has a meaning for this command."""
        return name.partition(".")[0] not in self.unused_keys


def load(target: str) -> Any:
    """Object at `module:name`; a name may be dotted."""
    module, _, name = target.partition(":")
    return attrgetter(name)(import_module(module))


class VlatoolCommand(typer.core.TyperCommand):
    """A command, whose configuration keys are removed from argv before Typer parses it."""

    row: ClassVar[Command]
    form: ClassVar[Form]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{**named, "context_settings": cli_options.CONTEXT})

    @property
    def usage(self) -> str:
        """Names of the arguments."""
        return " ".join(self.row.arguments.values())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[_ARGS] = list(args)
        if ctx.resilient_parsing:  # completion: `shell_complete` does all the work
            return super().parse_args(ctx, [])
        if not self.row.schema:
            return super().parse_args(ctx, args)
        help_words = [word for word in args if cli_help.is_help([word])]
        line = self._line(ctx, args, lenient=bool(help_words))
        ctx.meta[TYPED_CONFIG] = line
        if help_words:
            return super().parse_args(ctx, help_words)
        if line.unknown:
            from vlatool.withdrawn import withdrawn_hint

            name = line.unknown.lstrip("-").replace("-", "_")
            raise UsageError(
                f"unknown option {line.unknown}",
                hint=withdrawn_hint(name)
                or self._nearest(ctx, name)
                or f"`{ctx.command_path} --help` lists the options",
                code="usage.unknown_option",
                details={"option": line.unknown},
            )
        return super().parse_args(ctx, line.rest)

    def get_params(self, ctx: Any) -> list[Any]:
        """Options of the command; none during completion, because Typer would import pydantic."""
        return [] if ctx.resilient_parsing else super().get_params(ctx)

    def invoke(self, ctx: Any) -> Any:
        if not self.row.schema:
            return super().invoke(ctx)
        from vlatool.cli.keys import KeyTable
        from vlatool.cli.output import write_result
        from vlatool.config.resolve import ReadOptions

        typed: CommandLine = ctx.meta[TYPED_CONFIG]
        values = {name: ctx.params.pop(name, None) for name in cli_options.CONFIG_OPTIONS}
        typed.read_options = ReadOptions(self.row.presets, compat=bool(values["compat"]))
        if not values["keys"]:
            return super().invoke(ctx)
        table = KeyTable.of(typed.chosen_schema(self.form.choose(typed.words)), self.form.is_used)
        return write_result(table, ctx.ensure_object(cli_options.OutputOptions))

    def _declared(self, ctx: Any) -> dict[str, bool]:
        """Options that Typer parses; True if an option takes a value."""
        has_value: dict[str, bool] = {}
        for param in super().get_params(ctx):
            if param.param_type_name != "option":
                continue
            for option in param.opts:
                has_value[option] = not getattr(param, "is_flag", False)
        return has_value

    def _line(self, ctx: Any, args: Sequence[str], *, lenient: bool) -> "CommandLine":
        from vlatool.cli.keys import CommandLine, KeyOptions

        options = KeyOptions(load(self.row.schema), is_flat=self.form.is_flat)
        return CommandLine(args, self._declared(ctx), options, lenient=lenient)

    def _chosen_schema(self, ctx: Any) -> "type[ConfigModel]":
        """Config class of an unfinished command line, with its presets and local files."""
        line = self._line(ctx, ctx.meta[_ARGS], lenient=True)
        words = [word for word in line.words if "://" not in word]  # they could take long
        line.files = [file for file in line.files if "://" not in file]
        try:
            return line.chosen_schema(self.form.choose(words))
        except VlatoolError:  # an unknown name, or a file that cannot be read
            return line.schema

    def _nearest(self, ctx: Any, name: str) -> str:
        """Suggestion for an unknown option; empty if none is near."""
        from vlatool.config.problems import similar_keys

        schema = self._chosen_schema(ctx)
        options = [*self._declared(ctx), *cli_options.OUTPUT_WORDS]
        names = [option[2:].replace("-", "_") for option in options if option.startswith("--")]
        near, note = similar_keys(name, schema, others=[*names, *self.form.rows])
        spelled = [f"--{key if '.' in key else key.replace('_', '-')}" for key in near]
        return f"did you mean {', '.join(spelled)}?" if spelled else note

    # help

    def get_help(self, ctx: Any) -> str:
        return cli_help.help_text(super().get_help(ctx), ctx)

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path, f"{self.usage} [OPTIONS]".strip())

    def format_options(self, ctx: Any, formatter: Any) -> None:
        cli_help.write_examples(formatter, self.row.examples)
        is_complete = cli_help.HELP_ALL in ctx.meta.get(_ARGS, [])
        rows = self._write_arguments(ctx, formatter, is_short=not is_complete)
        declared = cli_help.declared_rows(super().get_params(ctx), ctx)
        if not is_complete:
            keys = {name: row for name, (_, row) in rows.items()}
            listed = cli_help.listed_rows(self.row.options.split(), keys, declared)
            cli_help.write_rows(formatter, "Options", listed)
            return
        groups: dict[str, list[cli_help.HelpRow]] = {}
        for group, row in rows.values():
            groups.setdefault(group, []).append(row)
        groups |= {"Options": list(declared.values()), "Output options": cli_options.OUTPUT_HELP}
        for title, rows_of_group in groups.items():
            cli_help.write_rows(formatter, title, rows_of_group)

    def _write_arguments(
        self, ctx: Any, formatter: Any, *, is_short: bool
    ) -> dict[str, tuple[str, cli_help.HelpRow]]:
        """Writes the arguments; returns the group and the row of each key, by name."""
        if not self.row.schema:
            return {}
        from vlatool.cli.keys import declared_keys

        arguments: list[cli_help.HelpRow] = []
        listed = self.row.options.split()
        rows = {name: ("Run", row) for name, row in self.form.rows.items()}
        for name, key in declared_keys(self._chosen_schema(ctx)).items():
            values = load(self.form.values[name])() if name in self.form.values else ()
            if name in self.row.arguments:
                arguments.append(cli_help.argument_row(self.row.arguments[name], key, values))
            elif self.form.is_used(name) and (not is_short or "." not in name or name in listed):
                rows[name] = (key.group, cli_help.key_row(key, values, is_short=is_short))
        cli_help.write_rows(formatter, "Arguments", arguments)
        return rows

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.form.note:
            formatter.write_paragraph()
            formatter.write_text(self.form.note)
        super().format_epilog(ctx, formatter)

    # completion

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        typed = [word for word in ctx.meta.get(_ARGS, []) if word != "="]  # of bash
        ctx.meta[_ARGS] = typed
        start = f"{ctx.command_path.partition(' ')[2]} "
        below = [words.removeprefix(start) for words in COMMANDS if words.startswith(start)]
        arguments: list[Sequence[str]] = [below] if below else []
        options: dict[str, Sequence[str] | None] = {}
        if self.row.schema:
            known = self._known_values(ctx)
            options = {f"--{name.replace('_', '-')}": values for name, values in known.items()}
            options["-p"] = options["--preset"]
            options["-o"] = options.get("--output", [])
            arguments = [known[name] or () for name in self.row.arguments] or arguments
        for name, has_value in self._declared(ctx).items():
            options.setdefault(name, [] if has_value else None)
        options |= cli_options.OUTPUT_WORDS
        return completions(options, arguments, typed, incomplete)

    def _known_values(self, ctx: Any) -> dict[str, Sequence[str] | None]:
        """Known values of the options of keys outside sections; None for a switch."""
        from vlatool.cli.keys import declared_keys
        from vlatool.config.presets import list_presets
        from vlatool.config.schema import choices

        known: dict[str, Sequence[str] | None] = {name: [] for name in self.form.rows}
        kinds = self.row.presets
        known["preset"] = [preset.name for preset in list_presets() if preset.kind in kinds]
        schema = self._chosen_schema(ctx)
        for name, key in declared_keys(schema).items():
            if self.form.is_used(name) and "." not in name:
                known[name] = None if key.is_switch else choices(schema, key.path)
        for name, target in {**self.form.values, **self.row.suggestions}.items():
            if name in known:
                known[name] = load(target)()
        return known
