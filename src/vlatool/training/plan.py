"""Arithmetic of a run: steps, micro-batches, the steps at which checkpoints are written.

Source: reference/training 2.1, 2.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vlatool.errors import UsageError
from vlatool.loading.base import DataSet
from vlatool.training.config import HParams, TrainConfig
from vlatool.training.schedule import learning_rate


@dataclass(frozen=True)
class TrainPlan:
    """What a run will do.

    Attributes:
        total_steps: Optimizer steps.
        global_batch: Samples per step over all processes.
        micro_batch: Samples per process and micro-batch.
        accumulation: Micro-batches per step and process.
        checkpoint_steps: Steps after which a checkpoint is written; the last is `total_steps`.
        validation_steps: Steps after which held-out data are measured.
        image_steps: Steps after which pictures are made.
        unused_samples: Part of the sample budget that does not fill a step.
    """

    total_steps: int
    global_batch: int
    micro_batch: int
    accumulation: int
    checkpoint_steps: tuple[int, ...]
    unused_samples: int
    validation_steps: tuple[int, ...] = ()
    image_steps: tuple[int, ...] = ()

    @cached_property
    def event_steps(self) -> frozenset[int]:
        """Steps after which something else than the next step is done."""
        return frozenset((*self.checkpoint_steps, *self.validation_steps, *self.image_steps))


def make_plan(config: TrainConfig, datasets: Sequence[DataSet], world_size: int) -> TrainPlan:
    """The plan of a run on some data sets.

    Raises:
        UsageError: No budget, or one too small; batch sizes that do not fit the processes.
        DataError: The budget needs more samples than there are, and epochs may not repeat.
    """
    h = config.hparams
    micro_batch = _micro_batch(h, world_size)
    samples = _budget(config, sum(one.size for one in datasets))
    steps = samples // h.global_batch_size
    if steps == 0:
        raise UsageError(
            f"a budget of {samples} samples does not fill one step of {h.global_batch_size}",
            hint="raise the budget or lower hparams.global_batch_size",
            code="usage.budget_too_small",
        )
    checkpoints = _checkpoint_steps(config, steps)
    every = config.images_every_n_steps
    shown = checkpoints if every is None else tuple(range(every, steps + 1, every))
    validated = checkpoints[config.val_every_n_checkpoints - 1 :: config.val_every_n_checkpoints]
    return TrainPlan(
        total_steps=steps,
        global_batch=h.global_batch_size,
        micro_batch=micro_batch,
        accumulation=h.global_batch_size // (world_size * micro_batch),
        checkpoint_steps=checkpoints,
        validation_steps=validated if config.total_val_samples is not None else (),
        image_steps=shown,
        unused_samples=samples - steps * h.global_batch_size,
    )


def budget_extension(
    config: TrainConfig, datasets: Sequence[DataSet], world_size: int, before: Mapping[str, Any]
) -> str:
    """What a larger budget means; empty where it is not larger.

    Args:
        config: With the budget of now.
        datasets: The data.
        world_size: Processes.
        before: The budget keys that the run had.
    """
    earlier = config.model_copy(update=dict(before))
    was, now = (make_plan(one, datasets, world_size).total_steps for one in (earlier, config))
    if now <= was:
        return ""
    rates = [learning_rate(config.hparams, was, total) for total in (was, now)]
    told = f"the budget grew from {was} to {now} steps"
    if rates[0] == rates[1]:
        return told
    return (
        f"{told}; {config.hparams.lr_scheduler} is computed anew: the rate after step {was} was "
        f"{rates[0]:g} and is {rates[1]:g}"
    )


def _micro_batch(h: HParams, world_size: int) -> int:
    """Samples per process and micro-batch."""
    if h.per_gpu_batch_size is None and h.global_batch_size % world_size == 0:
        return h.global_batch_size // world_size
    per_step = world_size * (h.per_gpu_batch_size or 1)
    if h.per_gpu_batch_size is None or h.global_batch_size % per_step:
        raise UsageError(
            f"hparams.global_batch_size {h.global_batch_size} is no multiple of {per_step} "
            f"({world_size} processes of {h.per_gpu_batch_size or 1})",
            hint="change hparams.global_batch_size or hparams.per_gpu_batch_size",
            code="usage.batch_size",
        )
    return h.per_gpu_batch_size


def _budget(config: TrainConfig, size: int) -> int:
    """The budget in samples."""
    if config.total_train_samples is not None:
        return config.total_train_samples
    if config.num_epochs is not None:
        return config.num_epochs * size
    if config.total_train_steps is not None:
        return config.total_train_steps * config.hparams.global_batch_size
    raise UsageError(
        "no budget is given",
        hint="give one of --total-train-samples, --num-epochs, --total-train-steps",
        code="usage.no_budget",
    )


def _checkpoint_steps(config: TrainConfig, steps: int) -> tuple[int, ...]:
    if config.save_every_n_steps is not None:
        regular = range(config.save_every_n_steps, steps + 1, config.save_every_n_steps)
        return tuple(sorted({*regular, steps}))
    count = config.num_checkpoints
    chosen = {round(index * steps / count) for index in range(1, count + 1)}
    return tuple(sorted(step for step in chosen if step > 0))
