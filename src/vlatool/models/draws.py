"""Randomness with a row per sample, the same however a step's batch is cut."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class RowDraws:
    """Draws for the whole global batch and takes the rows of one micro-batch.

    Each micro-batch begins with a generator in the same state, so the n-th call of any of them
    draws the same numbers; a process pays for the rows of the others, which is little beside a
    network. Rows beyond `total` come round again: a fake batch may have more than there are.
    """

    def __init__(self, generator: torch.Generator, rows: Sequence[int], total: int) -> None:
        """Prepares draws.

        Args:
            generator: In the state of the step; its device is that of the draws.
            rows: Place of each sample within the global batch.
            total: Samples in the global batch.
        """
        self._generator = generator
        self._total = total
        self._rows = [row % total for row in rows]
        start, stop = (self._rows[0], self._rows[-1] + 1) if self._rows else (0, 0)
        stride = max(1, self._rows[1] - start) if len(self._rows) > 1 else 1
        self._slice = slice(start, stop, stride)
        self._is_regular = list(range(start, stop, stride)) == self._rows

    def normal(self, *shape: int) -> Tensor:
        """Standard normal, float32 [B, *shape]."""
        return self._taken(torch.randn, (), shape)

    def uniform(self, *shape: int) -> Tensor:
        """In [0, 1), float32 [B, *shape]."""
        return self._taken(torch.rand, (), shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """In [0, high), int64 [B, *shape]."""
        return self._taken(torch.randint, (high,), shape)

    def _taken(
        self, draw: Callable[..., Tensor], bounds: tuple[int, ...], shape: tuple[int, ...]
    ) -> Tensor:
        device = self._generator.device
        drawn = draw(*bounds, (self._total, *shape), generator=self._generator, device=device)
        if self._is_regular:
            return drawn[self._slice]
        return drawn[torch.tensor(self._rows, dtype=torch.int64).to(device)]
