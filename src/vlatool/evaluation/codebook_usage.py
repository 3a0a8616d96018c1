"""How the codes of a tokenizer are used, and how much they change from frame to frame.

Source: reference/titok 5.4. Legend of shapes: B pictures, K codes of a picture, N codes of the book.
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
    """Where a picture stands.

    Attributes:
        sequence: Names the recording and camera; frames of different ones are no neighbours.
        number: Of the frame in it.
    """

    sequence: str
    number: int


@dataclass
class CodebookUsage:
    """Counts that add up over ranks, int64.

    Neighbouring frames are compared where they come one after the other on the same rank.

    Attributes:
        counts: How often each code occurred [N].
        changes: How often each place changed from one frame to the next [K].
        pairs: Pairs of neighbouring frames, scalar.
    """

    counts: Tensor
    changes: Tensor
    pairs: Tensor

    def __post_init__(self) -> None:
        self._last: tuple[FrameIndex, Tensor] | None = None

    @classmethod
    def of(cls, size: int, places: int, device: torch.device | None = None) -> "CodebookUsage":
        """No picture yet; N and K."""
        options: dict[str, Any] = {"dtype": torch.int64, "device": device}
        return cls(*(torch.zeros(shape, **options) for shape in ((size,), (places,), ())))

    def add(self, codes: Tensor, frames: Sequence[FrameIndex] | None = None) -> None:
        """Takes in codes int [B, K] of pictures, and where they stand, if that is known.

        Raises:
            DataError: A code is out of range.
        """
        check_codes(codes, len(self.counts))
        flat = codes.reshape(-1).long()
        self.counts = self.counts + torch.bincount(flat, minlength=len(self.counts))
        if frames is None or not len(codes):
            return
        rows, places = codes, list(frames)
        if self._last is not None:
            rows, places = torch.cat([self._last[1], codes]), [self._last[0], *places]
        self._last = places[-1], rows[-1:]
        follow = [
            a.sequence == b.sequence and b.number == a.number + 1 for a, b in pairwise(places)
        ]
        chosen = torch.tensor(follow, dtype=torch.bool, device=codes.device)
        self.changes = self.changes + (rows[1:] != rows[:-1])[chosen].sum(0)
        self.pairs = self.pairs + chosen.sum()

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "CodebookUsage":
        """The counts over all ranks; `reduce` sums a tensor over them."""
        return CodebookUsage(*map(reduce, (self.counts, self.changes, self.pairs)))

    def metrics(self) -> dict[str, float]:
        """Figures of the codes; those of neighbours only where there were some.

        Returns:
            codebook_usage, the share of codes that occurred; codebook_entropy in bits, at most
            log2 N; changed_codes, how many of K differ from one frame to the next on average;
            constant_places, how many of K never did.
        """
        total = float(self.counts.sum())
        shares = self.counts.double() / max(total, 1.0)
        found = {
            "codebook_usage": float((self.counts > 0).double().mean()),
            "codebook_entropy": float(-(shares * (shares + _EPSILON).log2()).sum()),
        }
        if int(self.pairs):
            found["changed_codes"] = float(self.changes.sum()) / float(self.pairs)
            found["constant_places"] = float((self.changes == 0).sum())
        return found
