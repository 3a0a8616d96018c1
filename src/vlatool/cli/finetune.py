"""`vlatool finetune`."""

import typer

from vlatool.cli.config_command import config_command
from vlatool.cli.options import NprocOpt, command_app
from vlatool.cli.ranks import on_ranks, one_voice
from vlatool.cli.session import command
from vlatool.cli.train import print_config_if_requested
from vlatool.cli.training_options import (
    BUDGET,
    INIT_FROM,
    RESOLVING,
    RUN,
    SWITCHES,
    training_spec,
)

app = command_app()
SPEC = training_spec({"from": INIT_FROM, "output": RUN, **BUDGET, **SWITCHES, **RESOLVING})

_NO_MODEL_HINT = (
    "use the configuration of the checkpoint: --preset NAME, or --config RUN/config.yaml"
)


@app.command(
    cls=config_command(
        SPEC,
        "",
        "vlatool finetune --from runs/first --preset diffusion-policy-tiny --data new -o runs/new",
        "vlatool finetune --from s3://lab/checkpoint_3.pt -p diffusion-policy-bellpepper --data d",
    ),
)
def finetune(
    ctx: typer.Context,
    nproc: NprocOpt = None,
) -> None:
    """Train a model that starts from the weights of a checkpoint."""
    with command(ctx) as run, one_voice(run):
        from vlatool.training.config import TrainConfig

        run.check_model_given(_NO_MODEL_HINT)
        resolved = run.resolved(TrainConfig)
        if print_config_if_requested(run, resolved) or on_ranks(run, nproc):
            return
        from vlatool.workflows import finetune as workflow

        config, typed = resolved.config, resolved.typed
        run.finish(workflow.finetune(config, typed=typed, reporter=run.reporter))
