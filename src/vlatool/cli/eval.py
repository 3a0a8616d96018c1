"""`vlatool eval open-loop` and `vlatool eval rollout`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.group import SuggestingGroup
from vlatool.cli.options import TextArg, command_app
from vlatool.cli.session import command

app = command_app(SuggestingGroup)
OPEN_LOOP = ConfigSpec(
    schema_at("vlatool.workflows.evaluate:OpenLoopConfig"),
    short={"-o": "output"},
    positionals=("checkpoint", "data"),
)
ROLLOUT = ConfigSpec(
    schema_at("vlatool.workflows.evaluate:RolloutConfig"),
    short={"-o": "output"},
    positionals=("checkpoint",),
    presets=("rollouts",),
)


@app.callback()
def evaluate() -> None:
    """Evaluate a checkpoint: open-loop on data, or in an environment."""


@app.command(
    "open-loop",
    cls=config_command(
        OPEN_LOOP,
        "CHECKPOINT DATA",
        "vlatool eval open-loop runs/bin data-held",
        "vlatool eval open-loop runs/bin data-held --output errors --json > errors.json",
    ),
)
def open_loop(ctx: typer.Context, checkpoint: TextArg = None, data: TextArg = None) -> None:
    """Compare predicted with recorded actions, next to simple baselines."""
    with command(ctx) as run:
        from vlatool.workflows import evaluate as workflow

        settings = run.config(workflow.OpenLoopConfig, checkpoint=checkpoint, data=data)
        run.finish(workflow.open_loop(settings, reporter=run.reporter))


@app.command(
    cls=config_command(
        ROLLOUT,
        "CHECKPOINT",
        "vlatool eval rollout runs/bin --env vlatool/PickPlace-v0 --episodes 50",
        "vlatool eval rollout runs/bin --env vlatool/PickPlace-v0 --seed 7 -o rollouts --json",
    ),
)
def rollout(ctx: typer.Context, checkpoint: TextArg = None) -> None:
    """Run a policy in a Gymnasium environment and count its successes."""
    with command(ctx) as run:
        from vlatool.workflows import evaluate as workflow

        settings = run.config(workflow.RolloutConfig, checkpoint=checkpoint)
        run.finish(workflow.rollout(settings, reporter=run.reporter))
