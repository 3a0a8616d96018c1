"""`vlatool eval open-loop` and `vlatool eval rollout`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vlatool.cli.config_command import ConfigSpec, SuggestingGroup, config_command
from vlatool.cli.options import CONTEXT, ConfigOpt, KeysOpt, PresetOpt, SetOpt
from vlatool.cli.session import command

if TYPE_CHECKING:
    from vlatool.config.base import ConfigModel

app = typer.Typer(
    cls=SuggestingGroup,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


def _open_loop_schema(args: Sequence[str]) -> "type[ConfigModel]":
    del args
    from vlatool.workflows.evaluate import OpenLoopConfig

    return OpenLoopConfig


def _rollout_schema(args: Sequence[str]) -> "type[ConfigModel]":
    del args
    from vlatool.workflows.evaluate import RolloutConfig

    return RolloutConfig


OPEN_LOOP = ConfigSpec(
    _open_loop_schema, short={"-o": "output"}, positionals=("checkpoint", "data")
)
ROLLOUT = ConfigSpec(_rollout_schema, short={"-o": "output"}, positionals=("checkpoint",))
CheckpointArg = Annotated[str | None, typer.Argument()]
DataArg = Annotated[str | None, typer.Argument()]


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
    context_settings=CONTEXT,
)
def open_loop(
    ctx: typer.Context,
    checkpoint: CheckpointArg = None,
    data: DataArg = None,
    preset: PresetOpt = None,
    config: ConfigOpt = None,
    set_: SetOpt = None,
    keys: KeysOpt = False,
) -> None:
    """Compare predicted with recorded actions, beside simple baselines."""
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
    context_settings=CONTEXT,
)
def rollout(
    ctx: typer.Context,
    checkpoint: CheckpointArg = None,
    preset: PresetOpt = None,
    config: ConfigOpt = None,
    set_: SetOpt = None,
    keys: KeysOpt = False,
) -> None:
    """Let a policy act in a Gymnasium environment and count its successes."""
    with command(ctx) as run:
        from vlatool.workflows import evaluate as workflow

        settings = run.config(workflow.RolloutConfig, checkpoint=checkpoint)
        run.finish(workflow.rollout(settings, reporter=run.reporter))
