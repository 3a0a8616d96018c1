"""Setup of a run, in this order: build, load, place, optimizers, averages, restore."""

from dataclasses import dataclass
from pathlib import Path

import torch

from vlatool.events import counted
from vlatool.loading.base import DatasetInfo
from vlatool.models.base import Objective
from vlatool.models.progress import locate_progress
from vlatool.models.rng import computes_by_micro_batch, draws_by_micro_batch, draws_by_sample
from vlatool.models.trained import existing_weights
from vlatool.plugins import check_names
from vlatool.training.checkpoints import load_checkpoint, unsaved_digests
from vlatool.training.config import TrainConfig
from vlatool.training.continuation import restore_progress
from vlatool.training.identity import RANDOMNESS
from vlatool.training.optim import build_optimizer
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
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
    """The rule by which networks in training draw random numbers themselves, for the record.

    Empty if they draw none.

    Networks that draw, or compute a loss term, by micro-batch make its size and the number of ranks
    part of the rule.
    """
    with torch.device("meta"):
        parts = config.model_type.build(config.model)
    networks = [part.module for part in parts.values() if part.trained]
    ranks = plan.global_batch // (plan.micro_batch * plan.accumulation)
    split = f"by micro-batch of {counted(plan.micro_batch, 'sample')} on each of {ranks} ranks"
    rules = {
        "by sample": draws_by_sample,
        f"dropout {split}": draws_by_micro_batch,
        f"entropy {split}": computes_by_micro_batch,
    }
    chosen = [rule for rule, applies in rules.items() if any(map(applies, networks))]
    return {RANDOMNESS: ", ".join(chosen)} if chosen else {}


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
    origin = None
    if checkpoint is None and config.init_from is not None and not config.init_weights_only:
        origin = locate_progress(config.init_from, averaged=config.ema.enabled)
    is_restored = checkpoint is not None or origin is not None
    restored = {name for name, part in parts.items() if part.saved and is_restored}
    has_init = not is_restored and config.init_from is not None
    skipped = {*restored, *(["model"] if has_init else [])}
    loaded = [name for name in parts if name not in skipped]
    notes = [*(model_type.load(config.model, parts, loaded) or ())]
    if has_init and config.init_from is not None:
        init = existing_weights(config.init_from)
        notes += model_type.load_init(config.model, parts, init, config.init_except) or ()
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
    elif origin is not None:
        notes += restore_progress(origin, config, state)
    return TrainSetup(state, placed, objective, tuple(notes))
