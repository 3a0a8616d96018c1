"""`vlatool train`."""

from typing import TYPE_CHECKING

import typer

from vlatool.cli.config_command import config_command
from vlatool.cli.options import NprocOpt, command_app
from vlatool.cli.ranks import on_ranks, one_voice
from vlatool.cli.session import Invocation, command
from vlatool.cli.training_options import BUDGET, RESOLVING, RUN, SWITCHES, training_spec

if TYPE_CHECKING:
    from vlatool.config.resolve import Resolved
    from vlatool.training.config import TrainConfig

app = command_app()
SPEC = training_spec({"output": RUN, **BUDGET, **SWITCHES, **RESOLVING})


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
) -> None:
    """Train a model."""
    run_training(ctx, nproc)


def run_training(ctx: typer.Context, nproc: int | None) -> None:
    """Trains a model, or prints the configuration if a published key asks for it."""
    with command(ctx) as run, one_voice(run):
        from vlatool.training.config import TrainConfig

        resolved = run.resolved(TrainConfig)
        if print_config_if_requested(run, resolved) or on_ranks(run, nproc):
            return
        from vlatool.workflows import train as workflow

        config, typed = resolved.config, resolved.typed
        run.finish(workflow.train(config, typed=typed, reporter=run.reporter))


def print_config_if_requested(run: Invocation, resolved: "Resolved[TrainConfig]") -> bool:
    """Prints the configuration if a published key asks for it; True if it did."""
    if not (resolved.config.resolve_configs or resolved.config.resolve_configs_path):
        return False
    from vlatool.workflows.resolve_config import resolve_config

    run.finish(resolve_config(resolved, reporter=run.reporter))
    return True
