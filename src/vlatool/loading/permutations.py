"""Reproducible permutations with random access, equal on all machines and for all numpy versions.

Source: reference/order 2-4, 12.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

# Number of samples of a lane over which the shares of a mixture are exact.
PATTERN = 10_000
# Size of the table cache. The spans of 600 million samples in groups of 500 take 20 MB per epoch.
_CACHE_BYTES = 1 << 27

T = TypeVar("T", bound=Sequence[Any])


def permutation(count: int, *key: object) -> NDArray[np.int64]:
    """Returns a permutation [count] that depends on the key only.

    It sorts the raw words of a Philox generator, because the result of `Generator.permutation` may
    change between releases of numpy.
    """
    return np.argsort(_philox(key).random_raw(count), kind="stable").astype(np.int64)


def keyed_generator(*key: object) -> np.random.Generator:
    """Returns a generator with a state that depends on the key only."""
    return np.random.Generator(_philox(key))


def _philox(key: Sequence[object]) -> np.random.Philox:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64))


def bit_reversed(count: int) -> NDArray[np.int64]:
    """Integers 0 to count - 1 in bit-reversed order; `count` is a power of two."""
    order = np.zeros(1, np.int64)
    while len(order) < count:
        order = np.concatenate([2 * order, 2 * order + 1])
    return order


def spaced_pattern(counts: Sequence[int]) -> NDArray[np.int64]:
    """Pattern that has `counts[i]` entries of each source i, evenly spaced."""
    column = np.repeat(np.arange(len(counts)), counts)
    parts = [(np.arange(count) + 0.5) / max(count, 1) for count in counts]
    return column[np.argsort(np.concatenate(parts), kind="stable")]


def ranks(column: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
    """Number of equal entries before each entry of a pattern."""
    order = np.argsort(column, kind="stable")
    starts = np.cumsum([0, *counts])[:-1]
    result = np.empty_like(column)
    result[order] = np.arange(len(column)) - np.repeat(starts, counts)
    return result


def largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """Integer counts in proportion to the weights; their sum is `total`."""
    whole = sum(weights)
    exact = [total * weight / whole for weight in weights]
    counts = [int(value) for value in exact]
    order = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


class TableCache:
    """LRU cache of tables, bounded in bytes; pickled without its content."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (TableCache, ())

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Returns the table of a key, a tuple of arrays; calls `make` if it is not cached."""
        cached = self._tables.get(key)
        if cached is not None:
            self._tables.move_to_end(key)
            return cached[0]
        table = make()
        size = sum(part.nbytes for part in table if isinstance(part, np.ndarray)) + 200
        self._tables[key] = (table, size)
        self._bytes += size
        while self._bytes > _CACHE_BYTES and len(self._tables) > 2:
            self._bytes -= self._tables.popitem(last=False)[1][1]
        return table
