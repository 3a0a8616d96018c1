"""Computes the plan of a run: steps, learning rates, checkpoints, validations and images.

Source: reference/training 2.1, 2.2, 3.2.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vlatool.config.base import Violation
from vlatool.errors import UsageError
from vlatool.events import counted
from vlatool.loading.base import DataSet
from vlatool.training.config import HParams, TrainConfig


def learning_rate(h: HParams, step: int, total_steps: int, peak: float | None = None) -> float:
    """Learning rate of the next update."""
    if peak is None:
        return _rate(h, step, total_steps)
    scale = 0.0 if h.lr == 0 else peak / h.lr
    rates = {
        "lr": peak,
        "lr_cooldown_end": h.lr_cooldown_end * scale,
        "force_min_lr": h.force_min_lr * scale,
    }
    return _rate(h.model_copy(update=rates), step, total_steps)


def _rate(h: HParams, step: int, total_steps: int) -> float:
    warmup = to_steps(h.warmup, total_steps)
    if step < warmup:
        return h.lr * (step + 1) / warmup
    if h.lr_scheduler in ("const", "model"):
        return h.lr
    if h.lr_scheduler == "cosine":
        rate = _cosine(h, step - warmup, total_steps - warmup)
        return max(h.force_min_lr, rate)
    decay = to_steps(h.decay, total_steps)
    start = total_steps - decay
    if step < start:
        return h.lr
    return _cosine(h, step - start, decay)


def to_steps(value: float, total_steps: int) -> int:
    """Number of steps; a value below 1 is a fraction of all steps."""
    return int(value * total_steps) if value < 1 else int(value)


WARMUP = 0.05  # share of a run of any length


def schedule_violations(h: HParams, total_steps: int) -> Iterator[Violation]:
    """Violation for a warm-up as long as the run, so that the peak rate is never reached."""
    warmup = to_steps(h.warmup, total_steps)
    if warmup >= total_steps > 1:
        yield Violation(
            ("hparams.warmup",),
            f"hparams.warmup is {counted(warmup, 'step')}, but the run has {total_steps}: the "
            f"peak rate is never reached; add --hparams.warmup {WARMUP}, a fraction of the run",
            code="usage.warmup_too_long",
        )


def _cosine(h: HParams, step: int, length: int) -> float:
    progress = 1.0
    if length > 0:
        progress = min(max(step / length, 0.0), 1.0)
    return h.lr_cooldown_end + 0.5 * (h.lr - h.lr_cooldown_end) * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TrainPlan:
    total_steps: int  # number of optimizer steps
    global_batch: int  # samples per step over all ranks
    micro_batch: int  # samples per rank and micro-batch
    accumulation: int  # micro-batches per step and rank
    # steps after which a checkpoint is written; the last is `total_steps`
    checkpoint_steps: tuple[int, ...]
    unused_samples: int  # samples of the budget that do not fill a step
    validation_steps: tuple[int, ...] = ()  # steps after which validation runs
    image_steps: tuple[int, ...] = ()  # steps after which images are logged
    rollout_steps: tuple[int, ...] = ()  # steps of the checkpoints that are rolled out

    @cached_property
    def event_steps(self) -> frozenset[int]:
        """Steps after which a checkpoint, a validation or images are due."""
        return frozenset((*self.checkpoint_steps, *self.validation_steps, *self.image_steps))


def make_plan(config: TrainConfig, datasets: Sequence[DataSet], world_size: int) -> TrainPlan:
    h = config.hparams
    samples_at_once = micro_batch(h, world_size)
    samples = budget_samples(config, sum(dataset.size for dataset in datasets))
    steps = samples // h.global_batch_size
    if steps == 0:
        raise UsageError(
            f"a budget of {counted(samples, 'sample')} is less than one step of "
            f"{h.global_batch_size}",
            hint="raise the budget or lower hparams.global_batch_size",
            code="usage.bad_value",
        )
    checkpoints = _checkpoint_steps(config, steps)
    image_steps = checkpoints
    if config.images_every_n_steps is not None:
        image_steps = _multiples(config.images_every_n_steps, steps)
    validation_steps = ()
    if config.validates:
        every = config.val_every_n_checkpoints
        validation_steps = checkpoints[every - 1 :: every]
        if config.val_every_n_steps is not None:
            validation_steps = _multiples(config.val_every_n_steps, steps)
    rollout_steps = ()
    if config.eval is not None:
        every = config.eval_every_n_checkpoints
        rollout_steps = checkpoints[every - 1 :: every]
    return TrainPlan(
        total_steps=steps,
        global_batch=h.global_batch_size,
        micro_batch=samples_at_once,
        accumulation=h.global_batch_size // (world_size * samples_at_once),
        checkpoint_steps=checkpoints,
        validation_steps=validation_steps,
        image_steps=image_steps,
        rollout_steps=rollout_steps,
        unused_samples=samples - steps * h.global_batch_size,
    )


def _multiples(interval: int, steps: int) -> tuple[int, ...]:
    """Multiples of an interval up to the last step."""
    return tuple(range(interval, steps + 1, interval))


def budget_extension(
    config: TrainConfig, datasets: Sequence[DataSet], world_size: int, before: Mapping[str, Any]
) -> str:
    """Message about a larger budget; empty if it is not larger."""
    earlier = config.model_copy(update=dict(before))
    old_steps = make_plan(earlier, datasets, world_size).total_steps
    new_steps = make_plan(config, datasets, world_size).total_steps
    if new_steps <= old_steps:
        return ""
    message = f"the budget increased from {old_steps} to {new_steps} steps"
    old_rate = learning_rate(config.hparams, old_steps, old_steps)
    new_rate = learning_rate(config.hparams, old_steps, new_steps)
    if old_rate == new_rate:
        return message
    return (
        f"{message}; the {config.hparams.lr_scheduler} schedule is recomputed: the learning "
        f"rate after step {old_steps} changes from {old_rate:g} to {new_rate:g}"
    )


def micro_batch(h: HParams, world_size: int) -> int:
    """Samples per rank and micro-batch."""
    if h.per_gpu_batch_size is None and h.global_batch_size % world_size == 0:
        return h.global_batch_size // world_size
    per_step = world_size * (h.per_gpu_batch_size or 1)
    if h.per_gpu_batch_size is None or h.global_batch_size % per_step:
        raise UsageError(
            f"hparams.global_batch_size {h.global_batch_size} is not a multiple of {per_step} "
            f"({world_size} processes x {h.per_gpu_batch_size or 1} samples)",
            hint="change hparams.global_batch_size or hparams.per_gpu_batch_size",
            code="usage.bad_value",
        )
    return h.per_gpu_batch_size


def budget_samples(config: TrainConfig, size: int) -> int:
    """Budget of the run in samples."""
    if config.total_train_samples is not None:
        return config.total_train_samples
    if config.num_epochs is not None:
        return config.num_epochs * size
    if config.total_train_steps is not None:
        return config.total_train_steps * config.hparams.global_batch_size
    raise UsageError(
        "you have not said how long to train",
        hint="set --num-epochs, --total-train-steps or --total-train-samples",
        code="usage.missing_key",
    )


def _checkpoint_steps(config: TrainConfig, steps: int) -> tuple[int, ...]:
    if config.save_every_n_steps is not None:
        regular = range(config.save_every_n_steps, steps + 1, config.save_every_n_steps)
        return tuple(sorted({*regular, steps}))
    count = config.num_checkpoints
    evenly_spaced = {round(index * steps / count) for index in range(1, count + 1)}
    return tuple(sorted(evenly_spaced - {0}))
