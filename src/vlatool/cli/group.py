"""Groups of commands."""

from collections.abc import Iterator
from typing import Any

import typer.core

from vlatool.cli.completion import Completion
from vlatool.cli.config_command import help_text
from vlatool.cli.options import OUTPUT_OPTIONS
from vlatool.errors import UsageError


class SuggestingGroup(typer.core.TyperGroup):
    """Group of commands that suggests the nearest name for an unknown command."""

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
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            yield name, command.get_short_help_str(90) if command else ""

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
