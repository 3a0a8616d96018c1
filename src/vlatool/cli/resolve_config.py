"""`vlatool resolve-config`."""

from typing import Annotated

import typer

from vlatool.cli.config_command import config_command
from vlatool.cli.options import command_app
from vlatool.cli.output import JsonResult
from vlatool.cli.session import command
from vlatool.cli.training_options import BUDGET, INIT_FROM, RESOLVING, training_spec

app = command_app()
SPEC = training_spec({"from": INIT_FROM, **BUDGET, **RESOLVING})
FileOpt = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the YAML to FILE, atomically."),
]
ExplainOpt = Annotated[bool, typer.Option("--explain", help="Show the origin of each value.")]
DeriveOpt = Annotated[
    bool, typer.Option("--derive", help="Read the data and add the values derived from them.")
]
# Accepted and ignored, so that the arguments of `train` can be used unchanged.
ProcessesOpt = Annotated[int | None, typer.Option("--nproc", hidden=True)]
SchemaOpt = Annotated[bool, typer.Option("--schema", help="Print the JSON Schema instead.")]


@app.command(
    "resolve-config",
    cls=config_command(
        SPEC,
        "",
        "vlatool resolve-config --preset diffusion-policy-tiny --explain",
        "vlatool resolve-config -c job.yaml --hparams.lr 3e-4 --output resolved.yaml",
    ),
)
def resolve_config(
    ctx: typer.Context,
    explain: ExplainOpt = False,
    derive: DeriveOpt = False,
    schema: SchemaOpt = False,
    output: FileOpt = None,
    nproc: ProcessesOpt = None,
) -> None:
    """Print the exact configuration that a run would use."""
    del nproc
    with command(ctx) as run:
        from vlatool.training.config import TrainConfig
        from vlatool.workflows import resolve_config as workflow

        if schema:
            run.finish(JsonResult(run.schema(TrainConfig).model_json_schema()))
            return
        result = workflow.resolve_config(
            run.resolved(TrainConfig),
            explain=explain,
            output=output,
            derive=derive,
            reporter=run.reporter,
        )
        run.finish(result)
