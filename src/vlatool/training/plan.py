"""Arithmetic of a run: steps, micro-batches, the steps at which checkpoints are written.

Source: lbm-training 3.2, A.2, with checkpoints at exact steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vlatool.errors import DataError, UsageError
from vlatool.training.config import TrainConfig


@dataclass(frozen=True)
class TrainPlan:
    """What a run will do.

    Attributes:
        total_steps: Optimizer steps.
        global_batch: Samples per step over all processes.
        micro_batch: Samples per process and micro-batch.
        accumulation: Micro-batches per step and process.
        checkpoint_steps: Steps after which a checkpoint is written; the last is `total_steps`.
        unused_samples: Part of the sample budget that does not fill a step.
    """

    total_steps: int
    global_batch: int
    micro_batch: int
    accumulation: int
    checkpoint_steps: tuple[int, ...]
    unused_samples: int


def make_plan(config: TrainConfig, sizes: Sequence[int], world_size: int) -> TrainPlan:
    """The plan of a run on data sets of the given sizes.

    Raises:
        UsageError: No budget, or one too small; batch sizes that do not fit the processes.
        DataError: The budget needs more samples than there are, and epochs may not repeat.
    """
    h = config.hparams
    per_step = world_size * h.per_gpu_batch_size
    if h.global_batch_size % per_step:
        raise UsageError(
            f"hparams.global_batch_size {h.global_batch_size} is no multiple of {per_step} "
            f"({world_size} processes of {h.per_gpu_batch_size})",
            hint="change hparams.global_batch_size or hparams.per_gpu_batch_size",
            code="usage.batch_size",
        )
    samples = _budget(config, sum(sizes))
    steps = samples // h.global_batch_size
    if steps == 0:
        raise UsageError(
            f"a budget of {samples} samples does not fill one step of {h.global_batch_size}",
            hint="raise the budget or lower hparams.global_batch_size",
            code="usage.budget_too_small",
        )
    if not config.data.allow_multiple_epochs:
        _check_one_epoch(config, sizes, samples)
    return TrainPlan(
        total_steps=steps,
        global_batch=h.global_batch_size,
        micro_batch=h.per_gpu_batch_size,
        accumulation=h.global_batch_size // per_step,
        checkpoint_steps=_checkpoint_steps(config, steps),
        unused_samples=samples - steps * h.global_batch_size,
    )


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


def _check_one_epoch(config: TrainConfig, sizes: Sequence[int], samples: int) -> None:
    if config.num_epochs is not None and config.num_epochs > 1:
        samples = sum(sizes) + 1
    weights = config.data.dataset_weighting or [float(size) for size in sizes]
    for size, weight, name in zip(sizes, weights, config.data.dataset_manifest, strict=True):
        needed = samples * weight / sum(weights)
        if needed > size:
            raise DataError(
                f"the budget takes about {needed:.0f} samples from {name}, which has {size}",
                hint="set data.allow_multiple_epochs true, or lower the budget",
                code="data.too_few_samples",
            )


def _checkpoint_steps(config: TrainConfig, steps: int) -> tuple[int, ...]:
    if config.save_every_n_steps is not None:
        regular = range(config.save_every_n_steps, steps + 1, config.save_every_n_steps)
        return tuple(sorted({*regular, steps}))
    count = config.num_checkpoints
    chosen = {round(index * steps / count) for index in range(1, count + 1)}
    return tuple(sorted(step for step in chosen if step > 0))
