"""`vlatool version`."""

import platform
from typing import Any

import typer

from vlatool import __version__
from vlatool.cli.config_command import plain_command
from vlatool.cli.options import command_app
from vlatool.cli.session import command

app = command_app()


class VersionResult:
    """Versions for a bug report."""

    def document(self) -> dict[str, Any]:
        """Versions by name."""
        return {
            "version": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        }

    def text(self) -> str:
        """One line of text."""
        return f"vlatool {__version__} (Python {platform.python_version()})"


@app.command(cls=plain_command("vlatool version", "vlatool version --json"))
def version(ctx: typer.Context) -> None:
    """Print the versions of vlatool and Python."""
    with command(ctx) as run:
        run.finish(VersionResult())
