"""`vlatool build-dataset`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.options import TextArg, command_app
from vlatool.cli.session import command

app = command_app()
SPEC = ConfigSpec(
    schema_at("vlatool.workflows.build_dataset:BuildDatasetConfig"),
    short={"-o": "output"},
    positionals=("data",),
)


@app.command(
    cls=config_command(
        SPEC,
        "A",
        "vlatool build-dataset libero --fast fast --output libero-samples",
        "vlatool build-dataset libero --fast fast --kinds vla --packed -o libero-packed",
    ),
)
def build_dataset(ctx: typer.Context, data: TextArg = None) -> None:
    """Build samples for a language model from windows and codes of their images."""
    with command(ctx) as run:
        from vlatool.workflows import build_dataset as workflow

        settings = run.config(workflow.BuildDatasetConfig, data=data)
        run.finish(workflow.build_dataset(settings, reporter=run.reporter))
