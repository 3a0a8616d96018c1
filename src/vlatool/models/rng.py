"""Randomness with a row per sample, the same however a step's batch is cut."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows that are drawn together: a process pays for those of the others in its chunks, which is
# little beside a network.
CHUNK = 64


@dataclass(frozen=True)
class _Chunk:
    """A generator, how many rows it draws at once, and which of them are wanted."""

    generator: torch.Generator
    size: int
    rows: list[int]


class PerSampleRng:
    """Draws whole chunks of the global batch and takes the rows of one micro-batch.

    Each micro-batch begins with generators in the same state, so the n-th call of any of them draws
    the same numbers. Rows beyond `total` come round again: a fake batch may have more than there
    are.
    """

    def __init__(
        self, seeded: Callable[[int], torch.Generator], rows: Sequence[int], total: int
    ) -> None:
        """Prepares draws.

        Args:
            seeded: Number of a chunk to a generator in the state of the step; its device is that
                of the draws.
            rows: Place of each sample within the global batch, ascending.
            total: Samples in the global batch.
        """
        self._chunks = [
            _Chunk(seeded(number), min(CHUNK, total - number * CHUNK), chosen)
            for number, chosen in _by_chunk([row % total for row in rows])
        ]

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
        found: list[Tensor] = []
        for one in self._chunks:
            device = one.generator.device
            whole = (one.size, *shape)
            drawn = draw(*bounds, whole, generator=one.generator, device=device)
            found.append(drawn[_selection(one.rows, device)])
        return found[0] if len(found) == 1 else torch.cat(found)


def _by_chunk(rows: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Runs of rows of one chunk, in order: number of the chunk, rows within it."""
    chosen: list[int] = []
    number = -1
    for row in rows:
        if row // CHUNK != number and chosen:
            yield number, chosen
            chosen = []
        number = row // CHUNK
        chosen.append(row % CHUNK)
    if chosen or not rows:
        yield max(number, 0), chosen


def _selection(rows: list[int], device: torch.device) -> slice | Tensor:
    """An index of the rows; a slice where they are evenly spaced, which copies nothing."""
    stride = max(1, rows[1] - rows[0]) if len(rows) > 1 else 1
    if not rows:
        return slice(0)
    if rows == list(range(rows[0], rows[-1] + 1, stride)):
        return slice(rows[0], rows[-1] + 1, stride)
    return torch.tensor(rows, dtype=torch.int64).to(device)
