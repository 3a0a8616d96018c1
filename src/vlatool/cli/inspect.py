"""`vlatool inspect`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vlatool.cli.config_command import ConfigSpec, config_command
from vlatool.cli.options import CONTEXT, ConfigOpt, KeysOpt, PresetOpt, SetOpt, command_app
from vlatool.cli.session import command

if TYPE_CHECKING:
    from vlatool.config.base import ConfigModel

app = command_app()


def _schema(args: Sequence[str]) -> "type[ConfigModel]":
    del args
    from vlatool.workflows.inspect import InspectConfig

    return InspectConfig


SPEC = ConfigSpec(_schema, positionals=("location",))
LocationArg = Annotated[str | None, typer.Argument()]


@app.command(
    cls=config_command(
        SPEC,
        "LOCATION",
        "vlatool inspect raw --html raw.html",
        "vlatool inspect runs/bin --json | jq .kind",
    ),
    context_settings=CONTEXT,
)
def inspect(
    ctx: typer.Context,
    location: LocationArg = None,
    preset: PresetOpt = None,
    config: ConfigOpt = None,
    set_: SetOpt = None,
    keys: KeysOpt = False,
) -> None:
    """Show what is in a source, a data folder or a run."""
    with command(ctx) as run:
        from vlatool.workflows import inspect as workflow

        settings = run.config(workflow.InspectConfig, location=location)
        run.finish(workflow.inspect(settings, reporter=run.reporter))
