"""`vlatool stats merge`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.group import SuggestingGroup
from vlatool.cli.options import TextsArg, command_app
from vlatool.cli.session import command

app = command_app(SuggestingGroup)
SPEC = ConfigSpec(
    schema_at("vlatool.workflows.stats_merge:StatsMergeConfig"),
    short={"-o": "output"},
    positionals=("sources",),
)


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
)
def merge(ctx: typer.Context, sources: TextsArg = None) -> None:
    """Take the statistics of several data sets together."""
    with command(ctx) as run:
        from vlatool.workflows import stats_merge as workflow

        settings = run.config(workflow.StatsMergeConfig, sources=sources)
        run.finish(workflow.stats_merge(settings, reporter=run.reporter))
