"""Setup of a run, in this order: build, load, place, optimizers, averages, restore."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vlatool.loading.base import DatasetInfo
from vlatool.models.base import Objective
from vlatool.models.trained import existing_weights
from vlatool.plugins import check_names
from vlatool.training.checkpoints import load_checkpoint, unsaved_digests
from vlatool.training.config import TrainConfig
from vlatool.training.optim import build_optimizer
from vlatool.training.placement import PlacedParts
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState, WeightAverage


@dataclass(frozen=True)
class TrainSetup:
    """Training state, placed parts and objective of a run."""

    state: TrainState
    placed: PlacedParts
    objective: Objective


def set_up(
    config: TrainConfig, info: DatasetInfo, runtime: Runtime, checkpoint: Path | None
) -> TrainSetup:
    """Sets up a new run, or a run at a checkpoint. Collective.

    Raises:
        DataError: The checkpoint or the initial weights are broken or do not match the model.
    """
    model_type, h = config.model_type, config.hparams
    torch.manual_seed(h.seed)
    parts = model_type.build(config.model)
    restored = {name for name, part in parts.items() if part.saved and checkpoint is not None}
    has_init = checkpoint is None and config.init_from is not None
    skipped = {*restored, *(["model"] if has_init else [])}
    model_type.load(config.model, parts, [name for name in parts if name not in skipped])
    if checkpoint is None and config.init_from is not None:
        model_type.load_init(
            config.model, parts, existing_weights(config.init_from), config.init_except
        )
    unsaved = unsaved_digests(parts)
    placed = PlacedParts(parts, runtime.placement(config), model_type)
    objective = model_type.objective(config.model, config.data, info, parts)
    check_names(f"objective {type(objective).__name__!r}", "objective", type(objective))
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
    return TrainSetup(state, placed, objective)
