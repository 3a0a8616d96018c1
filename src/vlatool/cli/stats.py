"""`vlatool stats merge` and `vlatool stats compute`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.group import SuggestingGroup
from vlatool.cli.options import TextArg, TextsArg, command_app
from vlatool.cli.session import command

app = command_app(SuggestingGroup)
COMPUTE = ConfigSpec(
    schema_at("vlatool.workflows.stats_compute:StatsComputeConfig"),
    short={"-o": "output"},
    positionals=("data",),
)
SPEC = ConfigSpec(
    schema_at("vlatool.workflows.stats_merge:StatsMergeConfig"),
    short={"-o": "output"},
    positionals=("sources",),
)


@app.callback()
def stats() -> None:
    """Merge statistics of data sets, or compute missing ones."""


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
    """Merge the statistics of several data sets."""
    with command(ctx) as run:
        from vlatool.workflows import stats_merge as workflow

        settings = run.config(workflow.StatsMergeConfig, sources=sources)
        run.finish(workflow.stats_merge(settings, reporter=run.reporter))


@app.command(
    "compute",
    cls=config_command(
        COMPUTE,
        "DATA",
        "vlatool stats compute published/shards",
        "vlatool stats compute published/shards --output stats/published.json --workers 8",
    ),
)
def compute(ctx: typer.Context, data: TextArg = None) -> None:
    """Compute the statistics of shards without statistics."""
    with command(ctx) as run:
        from vlatool.workflows import stats_compute as workflow

        settings = run.config(workflow.StatsComputeConfig, data=data)
        run.finish(workflow.stats_compute(settings, reporter=run.reporter))
