"""`vlatool encode`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.options import NprocOpt, TextArg, command_app
from vlatool.cli.ranks import on_ranks, one_voice
from vlatool.cli.session import command

app = command_app()
SPEC = ConfigSpec(
    schema_at("vlatool.tokens.config:EncodeConfig"),
    short={"-o": "output"},
    positionals=("data",),
)


@app.command(
    cls=config_command(
        SPEC,
        "A",
        "vlatool encode libero --tokenizer runs/titok-stage2",
        "vlatool encode libero --tokenizer runs/titok-stage2 --layout packed --nproc 8",
    ),
)
def encode(ctx: typer.Context, data: TextArg = None, nproc: NprocOpt = None) -> None:
    """Encode images to the codes of a visual tokenizer."""
    with command(ctx) as run, one_voice(run):
        from vlatool.workflows import encode as workflow

        settings = run.config(workflow.EncodeConfig, data=data)
        if on_ranks(run, nproc):
            return
        run.finish(workflow.encode(settings, reporter=run.reporter))
