"""`vlatool export`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.options import TextArg, command_app
from vlatool.cli.session import command

app = command_app()
SPEC = ConfigSpec(
    schema_at("vlatool.workflows.export:ExportConfig"),
    short={"-o": "output"},
    positionals=("source",),
)


@app.command(
    cls=config_command(
        SPEC,
        "SOURCE",
        "vlatool export libero/tokens --output libero/TiToken",
        "vlatool export libero-packed --output libero-samples --absolute",
        "vlatool export runs/pick --output published",
    ),
)
def export(ctx: typer.Context, source: TextArg = None) -> None:
    """Convert codes, packed samples (stored as arrays) or a trained policy to another layout."""
    with command(ctx) as run:
        from vlatool.workflows import export as workflow

        settings = run.config(workflow.ExportConfig, source=source)
        run.finish(workflow.export(settings, reporter=run.reporter))
