"""Training that continues from the checkpoint of another run, ours or a published one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter, counted
from vlatool.jobs.differences import differences_text
from vlatool.jobs.record import read_record
from vlatool.models.published import PublishedProgress
from vlatool.models.trained import ProgressOrigin, locate_progress
from vlatool.training.checkpoints import load_checkpoint, restore_optimizer
from vlatool.training.config import TrainConfig
from vlatool.training.identity import identity_keys, run_differences
from vlatool.training.scatter import scatter
from vlatool.training.state import TrainState

# Options that are expected to differ from those of the earlier run.
_OF_EACH_RUN = ("init_from", "init_weights_only", "init_except", *TrainConfig.exclusive[0])


def restore_progress(origin: ProgressOrigin, config: TrainConfig, state: TrainState) -> list[str]:
    """Restores weights, averages, optimizers and position of another run. Collective.

    Args:
        origin: Checkpoint to continue from.
        config: Configuration of the new run.
        state: Placed state of the new run.

    Returns:
        Messages for the user.

    Raises:
        DataError: A file is broken, or does not match the model.
        UsageError: The global batch differs, so the position would be another one.
    """
    model_type = config.model_type
    if origin.model_type != model_type.name:
        raise DataError(
            f"{origin.text}: has model type {origin.model_type!r}, expected {model_type.name!r}",
            hint="continue with the configuration that the checkpoint was trained with",
            code="data.checkpoint_mismatch",
        )
    notes: list[str] = []
    if origin.checkpoint is not None:
        load_checkpoint(origin.local_checkpoint(), state)
    else:
        paths = origin.local_files()
        progress = model_type.layout.open_progress(config.model, state.modules, paths)
        _restore_published(progress, state)
        state.samples = progress.step * config.hparams.global_batch_size
        notes += progress.notes
    batch = config.hparams.global_batch_size
    if state.samples != state.step * batch:
        raise UsageError(
            f"{origin.text}: read {counted(state.samples, 'sample')} in "
            f"{counted(state.step, 'step')}, which is not "
            f"hparams.global_batch_size={batch} per step",
            hint="continue with the global batch of that run, or take only its weights: "
            "init_weights_only: true",
            code="usage.batch_size",
        )
    return [*notes, f"continuing after step {state.step} of {origin.text}"]


def report_differences(
    config: TrainConfig, fingerprint: Mapping[str, Any], reporter: Reporter
) -> None:
    """Warns if a run that this one continues was trained with other options or data.

    Args:
        config: Configuration of the new run.
        fingerprint: As for `resume.open_run`.
        reporter: Receives the warning.
    """
    if config.init_from is None or config.init_weights_only:
        return
    origin = locate_progress(config.init_from, averaged=config.ema.enabled)
    record = None if origin.checkpoint is None else read_record(origin.checkpoint.parent.parent)
    if record is None:
        return
    before = record.options
    equal = {key: before.get(key) for key in _OF_EACH_RUN}
    before, now = {**before, **equal}, {**identity_keys(config), **fingerprint, **equal}
    unversioned = config.model_copy(update={"overwrite": True})
    if differences := run_differences(before, now, unversioned):
        reporter.warn(
            "continued_with_other_options",
            f"{config.init_from}: was trained with other options or data, so this run does not end "
            f"as that one would have: {differences_text(differences)}",
        )


def check_budget(state: TrainState, total_steps: int, location: str) -> None:
    """Raises UsageError if there is nothing left to train after a checkpoint.

    Args:
        state: Restored state.
        total_steps: Budget of the new run.
        location: Checkpoint that was restored.
    """
    if state.step >= total_steps:
        raise UsageError(
            f"{location}: is at step {state.step}, and the budget is "
            f"{counted(total_steps, 'step')}",
            hint="the budget counts all steps from the first on: raise it",
            code="usage.budget_too_small",
        )


def _restore_published(progress: PublishedProgress, state: TrainState) -> None:
    for name, part in state.parts.items():
        if part.saved:
            scatter(progress.weights[name], part.module.state_dict())
    for name, average in state.averages.items():
        scatter(progress.averages[name], average.weights)
        average.updates = progress.num_averaged
    for name, optimizer in state.optimizers.items():
        restore_optimizer(_saved_form(progress.moments[name], state, optimizer), state, optimizer)
    state.step = progress.step


def _saved_form(
    moments: Mapping[str, Mapping[str, Tensor]], state: TrainState, optimizer: Optimizer
) -> dict[str, Any]:
    """State of an optimizer as checkpoints hold it, with the options of this run."""
    parameters = nn.ModuleDict(dict(state.modules)).named_parameters()
    names = {id(parameter): name for name, parameter in parameters}
    groups = [
        {**group, "params": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    used = [name for group in groups for name in group["params"]]
    return {"state": {name: dict(moments[name]) for name in used}, "param_groups": groups}
