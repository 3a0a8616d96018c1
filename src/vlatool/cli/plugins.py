"""`vlatool plugins`."""

import typer

from vlatool.cli.config_command import plain_command
from vlatool.cli.options import JsonLinesOpt, command_app
from vlatool.cli.session import command

app = command_app()


@app.command(cls=plain_command("vlatool plugins", "vlatool plugins --json"))
def plugins(ctx: typer.Context, jsonl: JsonLinesOpt = False) -> None:
    """List dataset formats and model types, with their origin."""
    with command(ctx, jsonl=jsonl) as run:
        from vlatool.workflows import catalog

        run.finish(catalog.plugins())
