"""`vlatool doctor`."""

import typer

from vlatool.cli.config_command import plain_command
from vlatool.cli.options import command_app
from vlatool.cli.session import command

app = command_app()


@app.command(cls=plain_command("vlatool doctor", "vlatool doctor --json"))
def doctor(ctx: typer.Context) -> None:
    """Check the installation and the hardware of this machine."""
    with command(ctx) as run:
        from vlatool.workflows import doctor as workflow

        run.finish(workflow.doctor(reporter=run.reporter))
