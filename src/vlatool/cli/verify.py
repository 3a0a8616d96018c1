"""`vlatool verify`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.options import JsonLinesOpt, TextArg, command_app
from vlatool.cli.session import command

app = command_app()
SPEC = ConfigSpec(schema_at("vlatool.workflows.verify:VerifyConfig"), positionals=("location",))


@app.command(
    cls=config_command(
        SPEC,
        "LOCATION",
        "vlatool verify my_dataset",
        "vlatool verify raw --full --json | jq .codes",
    ),
)
def verify(ctx: typer.Context, location: TextArg = None, jsonl: JsonLinesOpt = False) -> None:
    """Check that an output, a run or a source is complete and consistent."""
    with command(ctx, jsonl=jsonl) as run:
        from vlatool.workflows import verify as workflow

        settings = run.config(workflow.VerifyConfig, location=location)
        run.finish(workflow.verify(settings, reporter=run.reporter))
