"""`vlatool verify`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vlatool.cli.config_command import ConfigSpec, config_command
from vlatool.cli.options import (
    CONTEXT,
    ConfigOpt,
    JsonLinesOpt,
    KeysOpt,
    PresetOpt,
    SetOpt,
    command_app,
)
from vlatool.cli.session import command

if TYPE_CHECKING:
    from vlatool.config.base import ConfigModel

app = command_app()


def _schema(args: Sequence[str]) -> "type[ConfigModel]":
    del args
    from vlatool.workflows.verify import VerifyConfig

    return VerifyConfig


SPEC = ConfigSpec(_schema, positionals=("location",))
LocationArg = Annotated[str | None, typer.Argument()]


@app.command(
    cls=config_command(
        SPEC,
        "LOCATION",
        "vlatool verify my_dataset",
        "vlatool verify raw --full --json | jq .codes",
    ),
    context_settings=CONTEXT,
)
def verify(
    ctx: typer.Context,
    location: LocationArg = None,
    preset: PresetOpt = None,
    config: ConfigOpt = None,
    set_: SetOpt = None,
    keys: KeysOpt = False,
    jsonl: JsonLinesOpt = False,
) -> None:
    """Check whether an output, a run or a source is whole and consistent."""
    with command(ctx, jsonl=jsonl) as run:
        from vlatool.workflows import verify as workflow

        settings = run.config(workflow.VerifyConfig, location=location)
        run.finish_rows(workflow.verify(settings, reporter=run.reporter))
