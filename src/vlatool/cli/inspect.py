"""`vlatool inspect`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.options import TextArg, command_app
from vlatool.cli.session import command

app = command_app()
SPEC = ConfigSpec(schema_at("vlatool.workflows.inspect:InspectConfig"), positionals=("location",))


@app.command(
    cls=config_command(
        SPEC,
        "LOCATION",
        "vlatool inspect raw --html raw.html",
        "vlatool inspect runs/bin --json | jq .kind",
    ),
)
def inspect(ctx: typer.Context, location: TextArg = None) -> None:
    """Show the contents of a source, a data folder or a run."""
    with command(ctx) as run:
        from vlatool.workflows import inspect as workflow

        settings = run.config(workflow.InspectConfig, location=location)
        run.finish(workflow.inspect(settings, reporter=run.reporter))
