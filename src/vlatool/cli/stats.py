"""`vlatool stats merge`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vlatool.cli.config_command import ConfigSpec, SuggestingGroup, config_command
from vlatool.cli.options import CONTEXT, ConfigOpt, KeysOpt, PresetOpt, SetOpt
from vlatool.cli.session import command

if TYPE_CHECKING:
    from vlatool.config.base import ConfigModel

app = typer.Typer(
    cls=SuggestingGroup,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


def _schema(args: Sequence[str]) -> "type[ConfigModel]":
    del args
    from vlatool.workflows.stats_merge import StatsMergeConfig

    return StatsMergeConfig


SPEC = ConfigSpec(_schema, short={"-o": "output"}, positionals=("sources",))
SourcesArg = Annotated[list[str] | None, typer.Argument()]


@app.callback()
def stats() -> None:
    """Merge the statistics of several data sets."""


@app.command(
    "merge",
    cls=config_command(
        SPEC,
        "DATA...",
        "vlatool stats merge data-a data-b --output merged.json",
        "vlatool stats merge data-a data-b --weights 1,3 > merged.json",
    ),
    context_settings=CONTEXT,
)
def merge(
    ctx: typer.Context,
    sources: SourcesArg = None,
    preset: PresetOpt = None,
    config: ConfigOpt = None,
    set_: SetOpt = None,
    keys: KeysOpt = False,
) -> None:
    """Take the statistics of several data sets together."""
    with command(ctx) as run:
        from vlatool.workflows import stats_merge as workflow

        settings = run.config(workflow.StatsMergeConfig, sources=sources)
        run.finish(workflow.stats_merge(settings, reporter=run.reporter))
