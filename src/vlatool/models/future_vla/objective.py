"""Loss of FUTURE-VLA: cross entropy of the answer, by segment.

Legend of shapes: M labelled tokens. Source: reference/future-vla-model 3.1.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, StepContext
from vlatool.models.future_vla.batch import NO_LABEL, SEGMENTS

if TYPE_CHECKING:
    from vlatool.models.future_vla.config import SegmentWeights

_INPUTS = ("input_ids", "position_ids", "images")


class AnswerObjective(Objective):
    """Cross entropy of each token of the answer, weighted by its segment."""

    def __init__(self, weights: "SegmentWeights") -> None:
        self._weights = [0.0, *(getattr(weights, name) for name in SEGMENTS.values())]

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",))}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """The weighted sum over labelled tokens; the count is the sum of their weights."""
        del optimizer
        inputs = {name: batch[name] for name in _INPUTS if name in batch}
        losses, hits = ctx.parts["model"].answer_losses(**inputs, labels=batch["labels"])
        segments = batch["segments"][:, 1:][batch["labels"][:, 1:] != NO_LABEL].long()
        weights = losses.new_tensor(self._weights)[segments]
        return Loss(
            total=(losses * weights).sum(),
            count=weights.sum(),
            sums={
                "loss": _by_segment(losses.detach(), segments),
                "hits": _by_segment(hits, segments),
                "count": _by_segment(torch.ones_like(hits), segments),
            },
        )

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        del phase, count
        rows = (sums[name].tolist() for name in ("loss", "hits", "count"))
        metrics: dict[str, float] = {}
        for name, loss, hits, number in zip(SEGMENTS.values(), *rows, strict=True):
            if number:
                metrics |= {f"loss/{name}": loss / number, f"accuracy/{name}": hits / number}
        return metrics


def _by_segment(values: Tensor, segments: Tensor) -> Tensor:
    """Sums [3] of values [M] over the tokens of each segment."""
    sums = torch.zeros(1 + len(SEGMENTS), dtype=torch.float64, device=values.device)
    return sums.index_add(0, segments, values.double())[1:]
