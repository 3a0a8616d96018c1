"""Learning rate schedules. Source: reference/training 3.2."""

import math
from collections.abc import Iterator

from vlatool.config.base import Violation
from vlatool.training.config import HParams


def learning_rate(h: HParams, step: int, total_steps: int, peak: float | None = None) -> float:
    """Learning rate of the next update.

    Args:
        h: The schedule.
        step: Number of completed updates.
        total_steps: Number of updates of the run.
        peak: Peak rate of an optimizer with its own rate; final and minimum rates scale with it.
    """
    if peak is None:
        return _rate(h, step, total_steps)
    scale = 0.0 if h.lr == 0 else peak / h.lr
    minimum_rates = {
        "lr_cooldown_end": h.lr_cooldown_end * scale,
        "force_min_lr": h.force_min_lr * scale,
    }
    return _rate(h.model_copy(update={"lr": peak, **minimum_rates}), step, total_steps)


def _rate(h: HParams, step: int, total_steps: int) -> float:
    warmup = to_steps(h.warmup, total_steps)
    if step < warmup:
        return h.lr * (step + 1) / warmup
    if h.lr_scheduler == "const":
        return h.lr
    if h.lr_scheduler == "cosine":
        rate = _cosine(h, step - warmup, total_steps - warmup)
        return max(h.force_min_lr, rate)
    decay = to_steps(h.decay, total_steps)
    start = total_steps - decay
    return h.lr if step < start else _cosine(h, step - start, decay)


def to_steps(value: float, total_steps: int) -> int:
    """Number of steps; a value below 1 is a fraction of all steps."""
    return int(value * total_steps) if value < 1 else int(value)


def schedule_violations(h: HParams, total_steps: int) -> Iterator[Violation]:
    """Violation for a warm-up as long as the run, with which the peak rate is never reached."""
    warmup = to_steps(h.warmup, total_steps)
    if warmup >= total_steps > 1:
        yield Violation(
            ("hparams.warmup",),
            f"hparams.warmup is {warmup} steps, but the run has {total_steps}: the peak rate is "
            "never reached; a fraction below 1, such as 0.05, works for every run",
            code="usage.warmup_too_long",
        )


def _cosine(h: HParams, step: int, length: int) -> float:
    progress = min(max(step / length, 0.0), 1.0) if length > 0 else 1.0
    return h.lr_cooldown_end + 0.5 * (h.lr - h.lr_cooldown_end) * (1 + math.cos(math.pi * progress))
