"""`vlatool split`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.options import TextArg, command_app
from vlatool.cli.session import command

app = command_app()
SPEC = ConfigSpec(schema_at("vlatool.workflows.split:SplitConfig"), positionals=("shards",))


@app.command(
    cls=config_command(
        SPEC,
        "SHARDS",
        "vlatool split shards --val-ratio 0.01",
        "vlatool split shards --train-output lists/train.txt --val-output lists/val.txt",
    ),
)
def split(ctx: typer.Context, shards: TextArg = None) -> None:
    """Write train and validation lists for image shards."""
    with command(ctx) as run:
        from vlatool.workflows import split as workflow

        settings = run.config(workflow.SplitConfig, shards=shards)
        run.finish(workflow.split(settings, reporter=run.reporter))
