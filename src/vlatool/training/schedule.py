"""Learning rate by completed steps. Source: reference/training 3.2."""

import math
from collections.abc import Iterator

from vlatool.config.base import Violation
from vlatool.training.config import HParams


def learning_rate(h: HParams, step: int, total_steps: int, peak: float | None = None) -> float:
    """The rate of the next update after `step` completed ones, of `total_steps` in all.

    Args:
        h: The schedule.
        step: Updates done.
        total_steps: Updates in all.
        peak: Peak rate of an optimizer that has its own; the others scale with it.
    """
    if peak is None:
        return _rate(h, step, total_steps)
    scale = 0.0 if h.lr == 0 else peak / h.lr
    ends = {"lr_cooldown_end": h.lr_cooldown_end * scale, "force_min_lr": h.force_min_lr * scale}
    return _rate(h.model_copy(update={"lr": peak, **ends}), step, total_steps)


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
    """A number of steps from one, or from a share of all steps when below 1."""
    return int(value * total_steps) if value < 1 else int(value)


def schedule_violations(h: HParams, total_steps: int) -> Iterator[Violation]:
    """That the peak rate is never reached: warm-up is as long as the run."""
    warmup = to_steps(h.warmup, total_steps)
    if warmup >= total_steps > 1:
        yield Violation(
            ("hparams.warmup",),
            f"hparams.warmup is {warmup} steps, the run has {total_steps}: the peak rate is never "
            "reached; a share below 1, such as 0.05, fits every run",
            code="usage.warmup_too_long",
        )


def _cosine(h: HParams, step: int, length: int) -> float:
    progress = min(max(step / length, 0.0), 1.0) if length > 0 else 1.0
    return h.lr_cooldown_end + 0.5 * (h.lr - h.lr_cooldown_end) * (1 + math.cos(math.pi * progress))
