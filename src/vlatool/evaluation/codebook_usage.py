"""Use of a codebook, and changes of the codes from frame to frame.

Source: reference/titok 5.4. Legend of shapes: B images, K codes of an image, N codebook size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlatool.models.codebook import check_codes

_EPSILON = 1e-8


class FrameIndex(NamedTuple):
    """Position of an image in a sequence of frames.

    Attributes:
        sequence: Name of episode and camera; frames of different sequences are not neighbors.
        number: Frame in the sequence.
    """

    sequence: str
    number: int


@dataclass
class CodebookUsage:
    """Counts that can be summed over ranks, int64.

    Neighboring frames are compared if a rank gets them one after the other.

    Attributes:
        counts: Occurrences of each code [N].
        changes: Changes of each of the K codes from one frame to the next [K].
        pairs: Number of pairs of neighboring frames, scalar.
    """

    counts: Tensor
    changes: Tensor
    pairs: Tensor

    def __post_init__(self) -> None:
        self._last: tuple[FrameIndex, Tensor] | None = None

    @classmethod
    def of(
        cls, codebook_size: int, codes_per_image: int, device: torch.device | None = None
    ) -> "CodebookUsage":
        """Counts of no image, all 0."""
        options: dict[str, Any] = {"dtype": torch.int64, "device": device}
        shapes = ((codebook_size,), (codes_per_image,), ())
        return cls(*(torch.zeros(shape, **options) for shape in shapes))

    def add(self, codes: Tensor, frames: Sequence[FrameIndex] | None = None) -> None:
        """Adds codes int [B, K] of images, and the frame of each if it is known.

        Raises:
            DataError: A code is out of range.
        """
        check_codes(codes, len(self.counts))
        flat = codes.reshape(-1).long()
        self.counts = self.counts + torch.bincount(flat, minlength=len(self.counts))
        if frames is None or not len(codes):
            return
        rows, indices = codes, list(frames)
        if self._last is not None:
            rows, indices = torch.cat([self._last[1], codes]), [self._last[0], *indices]
        self._last = indices[-1], rows[-1:]
        follow = [
            a.sequence == b.sequence and b.number == a.number + 1 for a, b in pairwise(indices)
        ]
        is_next = torch.tensor(follow, dtype=torch.bool, device=codes.device)
        self.changes = self.changes + (rows[1:] != rows[:-1])[is_next].sum(0)
        self.pairs = self.pairs + is_next.sum()

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "CodebookUsage":
        """Counts over all ranks; `reduce` sums a tensor over ranks."""
        return CodebookUsage(*map(reduce, (self.counts, self.changes, self.pairs)))

    def metrics(self) -> dict[str, float]:
        """Metrics of the codes; those of neighboring frames only if there are any.

        Returns:
            codebook_usage, the share of codes that occurred; codebook_entropy in bits, at most
            log2 N; changed_codes, the mean number of the K codes that differ from one frame to the
            next; constant_places, the number of the K codes that never changed.
        """
        total = float(self.counts.sum())
        shares = self.counts.double() / max(total, 1.0)
        metrics = {
            "codebook_usage": float((self.counts > 0).double().mean()),
            "codebook_entropy": float(-(shares * (shares + _EPSILON).log2()).sum()),
        }
        if int(self.pairs):
            metrics["changed_codes"] = float(self.changes.sum()) / float(self.pairs)
            metrics["constant_places"] = float((self.changes == 0).sum())
        return metrics
