"""Best checkpoint of a run: by success in an environment, else by the loss of a validation."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vlatool.artifacts.manifest import Count, Number
from vlatool.pages.text import number_text

BEST = "best.json"
# Last part of the location of the best checkpoint of a run, `RUN/best`.
BEST_NAME = "best"
# Prefixes of the metrics of a validation, and of rollouts.
VALIDATION, EVALUATION = "val/", "eval/"
SUCCESS = f"{EVALUATION}success_rate"
# Losses of a validation, the best one for inference first.
VALIDATION_LOSSES = (f"{VALIDATION}ema/loss", f"{VALIDATION}loss")


@dataclass(frozen=True)
class BestCheckpoint:
    """Values of best.json."""

    step: Count
    metric: str  # name of the metric in metrics.jsonl that it is the best by
    value: Number  # value of the metric at this step

    def text(self) -> str:
        """Step and value, as text."""
        if self.metric == SUCCESS:
            return f"step {self.step}, success {100 * self.value:.0f} %"
        return f"step {self.step}, {self.metric} {number_text(self.value)}"


def choose_best(rows: Iterable[Mapping[str, Any]], steps: Collection[int]) -> BestCheckpoint | None:
    """The best of some checkpoints; None if nothing was measured at any of them.

    By success where one of them has it, else by the validation loss, of averaged weights if there
    are any. Of equal ones it is the latest.
    """
    signs = {SUCCESS: 1, **dict.fromkeys(VALIDATION_LOSSES, -1)}
    measured: dict[str, dict[int, float]] = {metric: {} for metric in signs}
    for row in rows:
        for metric in signs if row["step"] in steps else ():
            value = row.get(metric)
            if isinstance(value, int | float) and math.isfinite(value):
                measured[metric][row["step"]] = float(value)
    for metric, values in measured.items():
        if values:
            step = max(values, key=lambda step: (signs[metric] * values[step], step))
            return BestCheckpoint(step, metric, values[step])
    return None
