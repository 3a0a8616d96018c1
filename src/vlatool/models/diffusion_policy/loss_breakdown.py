"""Whose part of the loss is how large: that of each action field, that of each data set.

Legend of shapes: B samples, R noise draws per sample, T action steps, A width of an action, S data
sets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlatool.artifacts.manifest import NAME as MANIFEST
from vlatool.artifacts.shard_folder import SHARDS_NAME

_BY_DIMENSION = "error_by_dimension"
_BY_DATASET = "loss_by_dataset"
_COUNTS = "count_by_dataset"


@dataclass(frozen=True)
class LossBreakdown:
    """Adds up parts of a loss, and tells their means.

    Attributes:
        fields: Action field to its width, in order; empty: no parts are told.
        training: Locations of the data sets; one alone has no part.
        held_out: Locations of the held-out data sets.
    """

    fields: Mapping[str, int] = field(default_factory=dict[str, int])
    training: Sequence[str] = ()
    validation: Sequence[str] = ()

    def sums(
        self, error: Tensor, mask: Tensor, dataset: Tensor | None, *, training: bool
    ) -> dict[str, Tensor]:
        """Sums for `models.base.Loss`, of a fixed shape each.

        Args:
            error: Squared error [B * R, T, A], zero where it does not count.
            mask: bool [B * R, T, 1], where it counts.
            dataset: int64 [B], the data set of each sample; None where batches do not say.
            training: False of held-out data.
        """
        if not self.fields:
            return {}
        error = error.detach()
        found = {_BY_DIMENSION: error.sum(dim=(0, 1))}
        size = len(self.training if training else self.validation)
        if size > 1 and dataset is not None:
            rows = dataset.repeat_interleave(len(error) // len(dataset))
            zeros = torch.zeros(size, dtype=error.dtype, device=error.device)
            counts = mask.sum(dim=(1, 2)).to(error.dtype) * error.shape[-1]
            found[_BY_DATASET] = zeros.index_add(0, rows, error.sum(dim=(1, 2)))
            found[_COUNTS] = zeros.index_add(0, rows, counts)
        return found

    def metrics(
        self, sums: Mapping[str, Tensor], count: float, *, training: bool
    ) -> dict[str, float]:
        """Mean squared errors: `action_error/FIELD`, and `loss/DATA SET` of those that were seen.

        Args:
            sums: Of several micro-batches.
            count: Elements that were counted in them.
            training: False of held-out data.
        """
        found: dict[str, float] = {}
        if _BY_DIMENSION in sums:
            steps = count / max(sum(self.fields.values()), 1)
            parts = sums[_BY_DIMENSION].split(list(self.fields.values()))
            for (name, width), part in zip(self.fields.items(), parts, strict=True):
                found[f"action_error/{name}"] = float(part.sum()) / (steps * width)
        if _BY_DATASET in sums:
            labels = dataset_labels(self.training if training else self.validation)
            seen = zip(labels, sums[_BY_DATASET].tolist(), sums[_COUNTS].tolist(), strict=True)
            found |= {f"loss/{label}": total / number for label, total, number in seen if number}
        return found


def dataset_labels(locations: Sequence[str]) -> list[str]:
    """Short names that tell data sets apart: as many of their last folders as that takes."""
    parts = [list(_parts(location)) for location in locations]
    for depth in range(1, max(map(len, parts), default=0) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{'/'.join(part[-1:])}#{number}" for number, part in enumerate(parts, 1)]


def _parts(location: str) -> Iterator[str]:
    """The folders above a data set's manifest."""
    folders = location.removesuffix(MANIFEST).replace("\\", "/").split("/")
    names = [folder for folder in folders if folder]
    return iter(names[:-1] if len(names) > 1 and names[-1] == SHARDS_NAME else names)
