"""`vlatool train`."""

from pathlib import Path
from typing import Annotated

import typer

from vlatool.cli.config_command import config_command
from vlatool.cli.options import NprocOpt, command_app
from vlatool.cli.ranks import on_ranks, one_voice
from vlatool.cli.session import command
from vlatool.cli.training_options import BUDGET, RUN, SWITCHES, training_spec

app = command_app()
SPEC = training_spec({"output": RUN, **BUDGET, **SWITCHES})
ResolveOpt = Annotated[str | None, typer.Option("--resolve-configs", hidden=True)]
ResolveToOpt = Annotated[str | None, typer.Option("--resolve-configs-path", hidden=True)]


@app.command(
    cls=config_command(
        SPEC,
        "",
        "vlatool train --preset diffusion-policy-tiny --data data --output runs/first",
        "vlatool train -p diffusion-policy-tiny --data data --num-epochs 3 --nproc 2",
    ),
)
def train(
    ctx: typer.Context,
    nproc: NprocOpt = None,
    resolve_configs: ResolveOpt = None,
    resolve_configs_path: ResolveToOpt = None,
) -> None:
    """Train a model."""
    with command(ctx) as run, one_voice(run):
        from vlatool.training.config import TrainConfig

        if resolve_configs_path or (resolve_configs or "").lower() in ("true", "yes", "on", "1"):
            from vlatool.workflows.resolve_config import resolve_config

            target = resolved_file(resolve_configs_path)
            resolved = run.resolved(TrainConfig)
            run.finish(resolve_config(resolved, output=target, reporter=run.reporter))
            return
        config = run.config(TrainConfig)
        if on_ranks(run, nproc):
            return
        from vlatool.workflows import train as workflow

        run.finish(workflow.train(config, reporter=run.reporter))


def resolved_file(folder: str | None) -> str | None:
    """Where the published option writes: `resolved_config.yaml` in the folder."""
    return str(Path(folder, "resolved_config.yaml")) if folder else None
