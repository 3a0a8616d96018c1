"""Setup of a run, in this order: build, load, place, optimizers, averages, restore."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from vlatool.events import counted
from vlatool.loading.base import DatasetInfo
from vlatool.models.base import Objective, Part
from vlatool.models.rng import draws_by_micro_batch
from vlatool.models.trained import existing_weights, locate_progress
from vlatool.training.checkpoints import load_checkpoint, unsaved_digests
from vlatool.training.config import TrainConfig
from vlatool.training.continuation import restore_progress
from vlatool.training.identity import RANDOMNESS
from vlatool.training.optim import build_optimizer
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
from vlatool.training.scatter import tensor_facts, with_facts
from vlatool.training.state import TrainState, WeightAverage


@dataclass(frozen=True)
class TrainSetup:
    """Training state, placed parts and objective of a run.

    Attributes:
        notes: Messages of the model type on loaded weights.
    """

    state: TrainState
    placed: PlacedParts
    objective: Objective
    notes: tuple[str, ...] = ()


def network_randomness(config: TrainConfig, plan: TrainPlan) -> dict[str, str]:
    """The rule by which networks draw random numbers by micro-batch, for the record.

    Its size and the number of ranks are part of the rule. Empty if no network does.
    """
    with torch.device("meta"):
        parts = config.model_type.build(config.model)
    if not any(draws_by_micro_batch(part.module) for part in parts.values() if part.trained):
        return {}
    ranks = plan.global_batch // (plan.micro_batch * plan.accumulation)
    samples = counted(plan.micro_batch, "sample")
    return {RANDOMNESS: f"dropout by micro-batch of {samples} on each of {ranks} ranks"}


def _loaded_parts(
    config: TrainConfig, runtime: Runtime, *, is_restored: bool
) -> tuple[Mapping[str, Part], list[str]]:
    """Parts with their initial weights on rank 0, on the meta device on the others. Collective.

    Args:
        config: Configuration of the run.
        runtime: This rank.
        is_restored: The saved parts get the weights of a checkpoint later.

    Returns:
        The parts, and messages on the loaded weights.
    """
    model_type = config.model_type
    torch.manual_seed(config.hparams.seed)
    with nullcontext() if runtime.is_main else torch.device("meta"):
        parts = model_type.build(config.model)
    notes: list[str] = []
    if runtime.is_main:
        restored = {name for name, part in parts.items() if part.saved and is_restored}
        init = None if is_restored else config.init_from
        skipped = {*restored, *([] if init is None else ["model"])}
        loaded = [name for name in parts if name not in skipped]
        notes += model_type.load(config.model, parts, loaded) or ()
        if init is not None:
            weights = existing_weights(init)
            notes += model_type.load_init(config.model, parts, weights, config.init_except) or ()
    facts = runtime.broadcast({name: tensor_facts(part.module) for name, part in parts.items()})
    if not runtime.is_main:
        for name, part in parts.items():
            with_facts(part.module, facts[name])
    return parts, notes


def set_up(
    config: TrainConfig, info: DatasetInfo, runtime: Runtime, checkpoint: Path | None
) -> TrainSetup:
    """Sets up a new run, or a run at a checkpoint. Collective.

    Raises:
        DataError: The checkpoint or the initial weights are broken or do not match the model.
    """
    model_type, h = config.model_type, config.hparams
    origin = None
    if checkpoint is None and config.init_from is not None and not config.init_weights_only:
        origin = locate_progress(config.init_from, averaged=config.ema.enabled)
    parts, notes = _loaded_parts(
        config, runtime, is_restored=checkpoint is not None or origin is not None
    )
    unsaved = runtime.broadcast(unsaved_digests(parts) if runtime.is_main else None)
    placed = PlacedParts(parts, runtime.placement(config), model_type)
    objective = model_type.objective(config.model, config.data, info, parts)
    modules = {name: part.module for name, part in parts.items()}
    state = TrainState(
        parts=parts,
        optimizers={
            name: build_optimizer(spec, modules, h) for name, spec in objective.optimizers().items()
        },
        averages={
            name: WeightAverage(config.ema, part.module)
            for name, part in parts.items()
            if config.ema.enabled and part.trained and part.averaged and part.saved
        },
        unsaved=unsaved,
    )
    if checkpoint is not None:
        load_checkpoint(checkpoint, state)
    elif origin is not None:
        notes += restore_progress(origin, config, state)
    return TrainSetup(state, placed, objective, tuple(notes))
