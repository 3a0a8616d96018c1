"""`vlatool decode`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.options import TextArg, command_app
from vlatool.cli.session import command

app = command_app()
SPEC = ConfigSpec(
    schema_at("vlatool.tokens.config:DecodeConfig"),
    short={"-o": "output"},
    positionals=("codes",),
)


@app.command(
    cls=config_command(
        SPEC,
        "CODES",
        "vlatool decode libero/TiToken --tokenizer runs/titok-stage2 --output drawn",
        "vlatool decode libero/tokens/episode_000000.npz --tokenizer runs/titok-stage2 -o drawn",
    ),
)
def decode(ctx: typer.Context, codes: TextArg = None) -> None:
    """Decode the codes of a visual tokenizer to images."""
    with command(ctx) as run:
        from vlatool.workflows import decode as workflow

        settings = run.config(workflow.DecodeConfig, codes=codes)
        run.finish(workflow.decode(settings, reporter=run.reporter))
