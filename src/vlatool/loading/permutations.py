"""Permutations that are the same on every machine and with every numpy, and found without a walk.

Source: reference/order 2-4, 12.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

# Shares of a mixture are exact over so many samples of a lane.
PATTERN = 10_000
# The pieces of 600 million samples in groups of 500 take 20 MB per epoch.
_KEPT_BYTES = 1 << 27

T = TypeVar("T", bound=Sequence[Any])


def permutation(count: int, *key: object) -> NDArray[np.int64]:
    """A permutation [count] that the key alone decides.

    The raw words of a Philox generator are sorted: `Generator.permutation` may give another result
    in another release of numpy.
    """
    return np.argsort(_philox(key).random_raw(count), kind="stable").astype(np.int64)


def keyed_generator(*key: object) -> np.random.Generator:
    """A generator that the key alone decides."""
    return np.random.Generator(_philox(key))


def _philox(key: Sequence[object]) -> np.random.Philox:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64))


def bit_reversed(count: int) -> NDArray[np.int64]:
    """0 to count - 1, a power of two, ordered by their bits read backwards."""
    order = np.zeros(1, np.int64)
    while len(order) < count:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def spaced_pattern(counts: Sequence[int]) -> NDArray[np.int64]:
    """Which of several sources comes when: `counts[i]` times source i, each evenly spread."""
    column = np.repeat(np.arange(len(counts)), counts)
    parts = [(np.arange(count) + 0.5) / max(count, 1) for count in counts]
    return column[np.argsort(np.concatenate(parts), kind="stable")]


def ranks(column: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
    """How many equal entries stand before each entry of a pattern."""
    order = np.argsort(column, kind="stable")
    starts = np.cumsum([0, *counts])[:-1]
    found = np.empty_like(column)
    found[order] = np.arange(len(column)) - np.repeat(starts, counts)
    return found


def largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """Whole counts in proportion to the weights, whose sum is `total`."""
    whole = sum(weights)
    exact = [total * weight / whole for weight in weights]
    counts = [int(one) for one in exact]
    order = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


class TableCache:
    """The tables that were used last, up to a number of bytes; pickled empty."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (TableCache, ())

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The table of a key: arrays, made where it is not kept."""
        found = self._tables.get(key)
        if found is not None:
            self._tables.move_to_end(key)
            return found[0]
        table = make()
        size = sum(part.nbytes for part in table if isinstance(part, np.ndarray)) + 200
        self._tables[key] = (table, size)
        self._bytes += size
        while self._bytes > _KEPT_BYTES and len(self._tables) > 2:
            self._bytes -= self._tables.popitem(last=False)[1][1]
        return table
