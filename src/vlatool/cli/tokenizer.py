"""`vlatool tokenizer fit-fast`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.group import SuggestingGroup
from vlatool.cli.options import TextsArg, command_app
from vlatool.cli.session import command

app = command_app(SuggestingGroup)
FIT_FAST = ConfigSpec(
    schema_at("vlatool.workflows.fit_fast:FitFastConfig"),
    short={"-o": "output"},
    positionals=("sources",),
)


@app.callback()
def tokenizer() -> None:
    """Make tokenizers: fit one for actions."""


@app.command(
    "fit-fast",
    cls=config_command(
        FIT_FAST,
        "DATA...",
        "vlatool tokenizer fit-fast windows --output fast --profile libero",
        "vlatool tokenizer fit-fast data-a data-b --output fast --vocab-size 2048 --limit 50000",
    ),
)
def fit_fast(ctx: typer.Context, sources: TextsArg = None) -> None:
    """Fit a FAST action tokenizer on the action chunks of training data."""
    with command(ctx) as run:
        from vlatool.workflows import fit_fast as workflow

        settings = run.config(workflow.FitFastConfig, sources=sources)
        run.finish(workflow.fit_fast(settings, reporter=run.reporter))
