"""Breakdown of the loss by action field and by data set.

Legend of shapes: B samples, R noise draws per sample, T action steps, A width of an action, S data
sets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlatool.artifacts.shards.format import SHARDS_NAME
from vlatool.artifacts.shards.manifest import NAME as MANIFEST

_BY_DIMENSION = "error_by_dimension"
_BY_DATASET = "loss_by_dataset"
_COUNTS = "count_by_dataset"


@dataclass(frozen=True)
class LossBreakdown:
    """Sums of a loss by action field and by data set, and their means.

    Attributes:
        fields: Map from action field to its width, in order; empty: no breakdown.
        training: Locations of the training data sets; a single one has no own metric.
        validation: Locations of the validation data sets.
    """

    fields: Mapping[str, int] = field(default_factory=dict[str, int])
    training: Sequence[str] = ()
    validation: Sequence[str] = ()

    def sums(
        self, error: Tensor, mask: Tensor, dataset: Tensor | None, *, training: bool
    ) -> dict[str, Tensor]:
        """Sums for `models.base.Loss`, each of a fixed shape.

        Args:
            error: Squared error [B * R, T, A], zero where the mask is false.
            mask: bool [B * R, T, 1], true for counted steps.
            dataset: int64 [B], index of the data set of each sample; None if the batch lacks it.
            training: False for validation data.
        """
        if not self.fields:
            return {}
        error = error.detach()
        sums = {_BY_DIMENSION: error.sum(dim=(0, 1))}
        size = len(self.training if training else self.validation)
        if size > 1 and dataset is not None:
            rows = dataset.repeat_interleave(len(error) // len(dataset))
            zeros = torch.zeros(size, dtype=error.dtype, device=error.device)
            counts = mask.sum(dim=(1, 2)).to(error.dtype) * error.shape[-1]
            sums[_BY_DATASET] = zeros.index_add(0, rows, error.sum(dim=(1, 2)))
            sums[_COUNTS] = zeros.index_add(0, rows, counts)
        return sums

    def metrics(
        self, sums: Mapping[str, Tensor], count: float, *, training: bool
    ) -> dict[str, float]:
        """Mean squared errors: `action_error/FIELD`, and `loss/DATA SET` of data sets with samples.

        Args:
            sums: Sums over several micro-batches.
            count: Number of counted elements in them.
            training: False for validation data.
        """
        metrics: dict[str, float] = {}
        if _BY_DIMENSION in sums:
            steps = count / max(sum(self.fields.values()), 1)
            parts = sums[_BY_DIMENSION].split(list(self.fields.values()))
            for (name, width), part in zip(self.fields.items(), parts, strict=True):
                metrics[f"action_error/{name}"] = float(part.sum()) / (steps * width)
        if _BY_DATASET in sums:
            labels = dataset_labels(self.training if training else self.validation)
            rows = zip(labels, sums[_BY_DATASET].tolist(), sums[_COUNTS].tolist(), strict=True)
            metrics |= {f"loss/{label}": total / number for label, total, number in rows if number}
        return metrics


def dataset_labels(locations: Sequence[str]) -> list[str]:
    """Short unique names of data sets: the shortest distinct suffixes of their paths."""
    parts = [list(_parts(location)) for location in locations]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{'/'.join(part[-1:])}#{number}" for number, part in enumerate(parts, 1)]


def _parts(location: str) -> Iterator[str]:
    """The folder names above the manifest of a data set."""
    folders = location.removesuffix(MANIFEST).replace("\\", "/").split("/")
    names = [folder for folder in folders if folder]
    return iter(names[:-1] if len(names) > 1 and names[-1] == SHARDS_NAME else names)
