"""Groups of the commands of the table."""

from collections.abc import Iterator
from typing import Any, ClassVar

import typer.core

from vlatool.cli.commands import COMMANDS, GROUPS
from vlatool.cli.completion import Completion
from vlatool.cli.config_command import help_text
from vlatool.cli.options import OUTPUT_OPTIONS, command_app
from vlatool.errors import UsageError


class TableGroup(typer.core.TyperGroup):
    """Commands of the table whose words follow `prefix`; each is built when it is needed."""

    prefix: ClassVar[str] = ""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands and groups, in the order of the table."""
        return list(self._names())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Command or group of a name; `resolve_config` is accepted for `resolve-config`."""
        words = self._names().get(cmd_name.replace("_", "-"), "")
        if words in GROUPS:
            return _group(words)
        if words not in COMMANDS:
            return None
        from vlatool.cli.forms import typer_command

        return typer_command(words, COMMANDS[words])

    def _names(self) -> dict[str, str]:
        """Names of commands and groups to their words."""
        start = f"{self.prefix} ".lstrip()
        names = (words[len(start) :].split()[0] for words in COMMANDS if words.startswith(start))
        return {name: f"{start}{name}" for name in names}

    def get_params(self, ctx: Any) -> list[Any]:
        """Options; none during completion, because reading them makes Typer import pydantic."""
        return [] if ctx.resilient_parsing else super().get_params(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Command named by `args`."""
        if ctx.resilient_parsing or self.get_command(ctx, args[0]) is not None:
            return super().resolve_command(ctx, args)
        from vlatool.plugins import did_you_mean

        raise UsageError(
            f"unknown command {' '.join([ctx.command_path, args[0]])!r}",
            hint=did_you_mean(args[0], self.list_commands(ctx)),
            code="usage.unknown_command",
            details={"command": args[0], "known": self.list_commands(ctx)},
        )

    def get_help(self, ctx: Any) -> str:
        """Help text; a JSON document with `--json`."""
        return help_text(super().get_help(ctx), ctx)

    def summaries(self, ctx: Any) -> Iterator[tuple[str, str]]:
        """Name and summary of each command."""
        for name, words in self._names().items():
            yield name, GROUPS.get(words) or COMMANDS[words].summary

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries(ctx)))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Completions: names of commands, then of options."""
        rows = [(name, text) for name, text in self.summaries(ctx) if name.startswith(incomplete)]
        options = [option for param in self.params for option in param.opts]
        names = [*options, "--help", *OUTPUT_OPTIONS] if incomplete.startswith("-") else []
        matches = [Completion(name) for name in names if name.startswith(incomplete)]
        return [*(Completion(name, text) for name, text in rows), *matches]


def _group(name: str) -> Any:
    def callback() -> None: ...

    callback.__doc__ = GROUPS[name]
    app = command_app(type("Group", (TableGroup,), {"prefix": name}))
    app.callback()(callback)
    group = typer.main.get_command(app)
    group.name = name
    return group
