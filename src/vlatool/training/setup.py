"""Sets up a run on one rank: build, load, place, optimizers, averages, restore."""

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from vlatool.checkpoints.layout import RunDir
from vlatool.errors import UsageError
from vlatool.events import Reporter, counted
from vlatool.jobs.ownership import differences_text, option_differences
from vlatool.jobs.record import read_record
from vlatool.loading.base import DatasetInfo
from vlatool.models.base import Objective, Part, Policy
from vlatool.models.published import WeightsOrigin
from vlatool.models.trained import with_adapters
from vlatool.storage.lock import Lock
from vlatool.training.checkpoints import load_checkpoint, unsaved_digests
from vlatool.training.config import TrainConfig
from vlatool.training.data import DataStreams
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan
from vlatool.training.resume import WORDS
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState, WeightAverage, tensor_facts, with_facts
from vlatool.training.step import StepContexts, build_optimizer
from vlatool.training.sync import RunSync


class CheckpointRollouts(Protocol):
    """Rollouts of the checkpoints of a run; evaluation defines them."""

    def check(self, policy: Policy) -> None:
        """Raises a VlatoolError if a policy cannot act in the environment."""
        ...

    def __call__(self, checkpoint: Path, output: Path) -> Mapping[str, float]:
        """Rolls out a checkpoint, with its averaged weights if there are any. Returns metrics by
        name; `success_rate` is one of them.
        """
        ...


@dataclass
class Run:
    """A run on this rank. `set_up` adds what it trains."""

    config: TrainConfig  # derived
    info: DatasetInfo  # of the training data
    plan: TrainPlan  # steps, batch sizes, steps of checkpoints, validations and images
    runtime: Runtime
    folder: RunDir
    streams: DataStreams
    typed: Collection[str] = ()  # keys that were given for this run, as for `train`
    # dotted key of the configuration to its origin, without defaults
    origins: Mapping[str, str] = field(default_factory=dict[str, str])
    roll_out: CheckpointRollouts | None = None  # None without the section `eval`
    # copies of the run at other locations; None without any, and on other ranks
    sync: RunSync | None = None
    lock: Lock | None = None  # of the folder, on rank 0
    state: TrainState = field(init=False)
    placed: PlacedParts = field(init=False)
    objective: Objective = field(init=False)

    @property
    def contexts(self) -> StepContexts:
        """Factory of the contexts of the objective."""
        return StepContexts(self.runtime, self.placed, self.config.hparams.seed, self.plan)


# Options that are expected to differ from the earlier run.
_OF_EACH_RUN = ("init_from", "init_weights_only", "init_except", *TrainConfig.exclusive[0])


def restore_progress(origin: WeightsOrigin, config: TrainConfig, state: TrainState) -> list[str]:
    """Restores weights, averages, optimizers and position of another run. Collective; returns
    messages for the user.
    """
    origin.check_type(config.model_type.name, "data.checkpoint_mismatch")
    load_checkpoint(origin.local_checkpoint(), state)
    batch = config.hparams.global_batch_size
    if state.samples != state.step * batch:
        raise UsageError(
            f"{origin.text}: read {counted(state.samples, 'sample')} in "
            f"{counted(state.step, 'step')}, which is not "
            f"hparams.global_batch_size={batch} per step",
            hint="use the global batch of that run, or take only its weights with "
            "init_weights_only: true",
            code="usage.bad_value",
        )
    return [f"continuing after step {state.step} of {origin.text}"]


def report_differences(config: TrainConfig, options: Mapping[str, Any], reporter: Reporter) -> None:
    """Warns if this run continues a run that was trained with other options or data. `options`: of
    the record of this run.
    """
    origin = config.init_progress()
    record = None if origin is None or origin.run is None else read_record(origin.run.root)
    if record is None:
        return
    before = {key: value for key, value in record.options.items() if key not in _OF_EACH_RUN}
    now = {key: value for key, value in options.items() if key not in _OF_EACH_RUN}
    if differences := option_differences(before, now, WORDS):
        reporter.warn(
            "continued_with_other_options",
            f"{config.init_from}: was trained with other options or data, so this run will end "
            f"differently: {differences_text(differences)}",
        )


def report_precision(config: TrainConfig, reporter: Reporter) -> None:
    """Warns of bfloat16 on a processor that does not have it."""
    if config.hparams.precision.startswith("amp") and not _has_bfloat16():
        reporter.warn(
            "slow_precision",
            f"hparams.precision {config.hparams.precision}: this processor has no bfloat16 and "
            "takes several times longer with it; use float32",
        )


def _has_bfloat16() -> bool:
    if torch.accelerator.is_available() or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_budget(state: TrainState, total_steps: int, location: str) -> None:
    """Raises UsageError if there is nothing left to train after a checkpoint."""
    if state.step >= total_steps:
        raise UsageError(
            f"{location}: is already at step {state.step}, but the budget is "
            f"{counted(total_steps, 'step')}",
            hint="raise the budget: it counts all steps, from the first one",
            code="usage.bad_value",
        )


def _loaded_parts(
    config: TrainConfig, runtime: Runtime, *, is_restored: bool
) -> tuple[Mapping[str, Part], list[str]]:
    """Parts with their initial weights on rank 0, on the meta device on the others. Collective;
    `runtime`: this rank; returns the parts, and messages on the loaded weights.
    """
    model_type = config.model_type
    torch.manual_seed(config.hparams.seed)
    with nullcontext() if runtime.is_main else torch.device("meta"):
        parts = model_type.build(config.model)
    notes: list[str] = []
    if runtime.is_main:
        init = None if is_restored else config.init_from
        with_base_weights: list[str] = []
        for name, part in parts.items():
            from_checkpoint = is_restored and part.saved
            from_init = init is not None and name == "model"
            if not (from_checkpoint or from_init):
                with_base_weights.append(name)
        notes += model_type.load(config.model, parts, with_base_weights) or ()
        if init is not None:
            weights = WeightsOrigin.find(init)
            notes += model_type.load_init(config.model, parts, weights, config.init_except) or ()
    with nullcontext() if runtime.is_main else torch.device("meta"):
        parts = with_adapters(model_type, parts, config.lora)
    facts = runtime.broadcast({name: tensor_facts(part.module) for name, part in parts.items()})
    if not runtime.is_main:
        for name, part in parts.items():
            with_facts(part.module, facts[name])
    return parts, notes


def set_up(run: Run, checkpoint: Path | None) -> list[str]:
    """Sets up a new run, or a run at a checkpoint. Collective; returns messages for the user."""
    config = run.config
    runtime = run.runtime
    model_type = config.model_type
    origin = config.init_progress() if checkpoint is None else None
    is_restored = checkpoint is not None or origin is not None
    parts, notes = _loaded_parts(config, runtime, is_restored=is_restored)
    unsaved = runtime.broadcast(unsaved_digests(parts) if runtime.is_main else None)
    run.placed = PlacedParts(parts, runtime.placement(config), model_type)
    run.objective = model_type.objective(config.model, config.data, run.info, parts)
    run.state = state = TrainState(parts, unsaved=unsaved)
    for name, spec in run.objective.optimizers().items():
        state.optimizers[name] = build_optimizer(spec, state.modules, config.hparams)
    for name, part in parts.items():
        if config.ema.enabled and part.trained and part.averaged and part.saved:
            state.averages[name] = WeightAverage(config.ema, part.module)
    if checkpoint is not None:
        load_checkpoint(checkpoint, state)
    elif origin is not None:
        notes += restore_progress(origin, config, state)
    elif not config.init_weights_only:
        notes.append(
            f"{config.init_from}: its weights are used, the state of its optimizer is not: this "
            "is a new training"
        )
    return notes
