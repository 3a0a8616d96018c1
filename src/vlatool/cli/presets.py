"""`vlatool presets`."""

import typer

from vlatool.cli.config_command import plain_command
from vlatool.cli.options import JsonLinesOpt, command_app
from vlatool.cli.session import command

app = command_app()


@app.command(
    cls=plain_command("vlatool presets", "vlatool presets --jsonl | head -3"),
)
def presets(ctx: typer.Context, jsonl: JsonLinesOpt = False) -> None:
    """List the presets."""
    with command(ctx, jsonl=jsonl) as run:
        from vlatool.workflows import catalog

        run.finish(catalog.presets())
