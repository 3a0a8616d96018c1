"""Which sample comes when: a pure function of sizes, weights, seed and a position.

The state of a run is one integer, the positions consumed; nothing is opened and nothing replayed to
go on from any of them. Source: reference/order 1-5.

Legend of numbers: n position of the run, L lanes, k number within a lane, N samples of a data set,
g number of a sample in the data set's own endless order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vlatool.errors import ConfigError, DataError
from vlatool.loading.base import DataSet, SampleRef
from vlatool.loading.config import LoadingConfig
from vlatool.loading.permutations import (
    PATTERN,
    TableCache,
    bit_reversed,
    spaced_pattern,
    largest_remainder,
    permutation,
    ranks,
)


@dataclass(frozen=True)
class OrderOptions:
    """What decides the order besides the sizes.

    Attributes:
        seed: Of every permutation.
        lanes: Places of the data that are read at once; a power of two.
        group: How far a sample may travel in its lane.
        shuffle: Else stored order, in one lane.
        weights: Share of each data set; empty: all are one, each sample equally often.
    """

    seed: int = 42
    lanes: int = 64
    group: int = 500
    shuffle: bool = True
    weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: LoadingConfig, seed: int) -> "OrderOptions":
        """As a data section says."""
        weights = tuple(config.dataset_weighting)
        group = max(1, config.shuffle_buffer_size)
        return cls(seed, config.lanes, group, config.shuffle, weights)


class SingleEpoch(NamedTuple):
    """How far a run gets before a data set begins its second epoch.

    Attributes:
        positions: Samples that are possible; no two of them are the same.
        dataset: The data set.
    """

    positions: int
    dataset: str


class SampleOrder:
    """Where the sample at each position stands; picklable.

    Args:
        datasets: Sizes count, places do not.
        options: What else decides.

    Raises:
        ConfigError: The weights do not fit the data sets, or the share of one rounds to nothing.
        DataError: A data set has no samples.
    """

    def __init__(self, datasets: Sequence[DataSet], options: OrderOptions) -> None:
        self.options = options
        self.lanes = options.lanes if options.shuffle else 1
        self.size = sum(one.size for one in datasets)
        self._kept = TableCache()
        if not options.weights:
            numbered = list(enumerate(datasets))
            self._streams = [_Stream(numbered, options, self._kept)]
            self._counts = [PATTERN]
            return
        counts = _shares(datasets, options.weights)
        chosen = [index for index, count in enumerate(counts) if count]
        self._streams = [_Stream([(i, datasets[i])], options, self._kept) for i in chosen]
        self._counts = [counts[index] for index in chosen]

    def refs(self, positions: Iterable[int]) -> list[SampleRef]:
        """Where the samples at some positions stand; about 10 microseconds each."""
        if len(self._streams) == 1:
            return [self._streams[0].ref(n) for n in positions]
        return [self._mixed(n) for n in positions]

    def first_epoch(self) -> SingleEpoch:
        """Positions before any data set begins again, computed; some 50 ms per data set."""
        if len(self._streams) == 1:
            stream = self._streams[0]
            return SingleEpoch(stream.size, stream.name)
        found = (
            SingleEpoch(self._position(index, lane, stream.second_epoch_start(lane)), stream.name)
            for index, stream in enumerate(self._streams)
            for lane in range(self.lanes)
        )
        return min(found)

    def shards_in_use(self) -> int:
        """About how many blocks are read at the same time by all processes together."""
        return sum(stream.shards_in_use() for stream in self._streams)

    def _mixed(self, n: int) -> SampleRef:
        k, lane = divmod(n, self.lanes)
        pattern, at = divmod(k, PATTERN)
        column, rank = self._pattern(lane, pattern)
        index = int(column[at])
        k = pattern * self._counts[index] + int(rank[at])
        return self._streams[index].ref(k * self.lanes + lane)

    def _position(self, index: int, lane: int, k: int) -> int:
        """The position of the k-th sample of a data set in a lane."""
        pattern, rank = divmod(k, self._counts[index])
        column, _ = self._pattern(lane, pattern)
        at = int(np.flatnonzero(column == index)[rank])
        return (pattern * PATTERN + at) * self.lanes + lane

    def _pattern(self, lane: int, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Data set of each entry of a pattern, and how many of that data set stand before it."""

        def make() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            if self.options.shuffle:
                column = np.repeat(np.arange(len(self._counts)), self._counts)
                column = column[permutation(PATTERN, self.options.seed, "mixture", lane, number)]
            else:
                column = spaced_pattern(self._counts)
            return column, ranks(column, self._counts)

        return self._kept.get(("pattern", lane, number), make)


class _Epoch(NamedTuple):
    """How the pieces stand in one epoch, and which part of them each lane owns.

    Attributes:
        pieces: int64 [P], which piece comes when.
        ends: int64 [P], samples up to the end of each, in that order.
        starts: Where the run of each lane begins.
        firsts: Number in the lane of its first sample.
        lengths: Samples of its run.
    """

    spans: NDArray[np.int64]
    ends: NDArray[np.int64]
    starts: Sequence[int]
    firsts: Sequence[int]
    lengths: Sequence[int]


class _Stream:
    """Data sets whose blocks stand together: the g-th sample of their endless order."""

    def __init__(
        self, datasets: Sequence[tuple[int, DataSet]], options: OrderOptions, assets: TableCache
    ) -> None:
        self.name = ", ".join(one.name for _, one in datasets)
        self._id = datasets[0][0]
        self._options = options
        self._kept = assets
        self._lanes = options.lanes if options.shuffle else 1
        self._turns = bit_reversed(self._lanes)
        sizes = [[block.size for block in one.shards] for _, one in datasets]
        owners = np.repeat([index for index, _ in datasets], [len(one) for one in sizes])
        blocks = np.concatenate([np.arange(len(one)) for one in sizes])
        lengths = np.concatenate([np.asarray(one, np.int64) for one in sizes])
        self._blocks = int((lengths > 0).sum())
        self.size = int(lengths.sum())
        if self.size == 0:
            raise DataError(
                f"{self.name}: the data hold no samples",
                hint="preprocess them again, or leave them out",
                code="data.no_samples",
            )
        self._owners, self._numbers, self._offsets, self._lengths = _split_shards(
            owners, blocks, lengths, options.group if options.shuffle else self.size
        )

    def ref(self, g: int) -> SampleRef:
        """Where a sample of the endless order stands."""
        number, lane = g // self.size, g % self._lanes
        epoch = self._epoch(number)
        at = g // self._lanes - epoch.firsts[lane]
        if self._options.shuffle:
            at = self._shuffled(at, epoch.lengths[lane], number, lane)
        at += epoch.starts[lane]
        turn = int(epoch.ends.searchsorted(at, "right"))
        piece = int(epoch.spans[turn])
        length = int(self._lengths[piece])
        index = int(self._offsets[piece]) + at - int(epoch.ends[turn]) + length
        return SampleRef(int(self._owners[piece]), int(self._numbers[piece]), index)

    def second_epoch_start(self, lane: int) -> int:
        """The number in a lane of its first sample of the second epoch."""
        return max(0, -((lane - self.size) // self._lanes))

    def shards_in_use(self) -> int:
        """Blocks that the lanes read at the same time."""
        if not self._options.shuffle:
            return 1
        mean = self.size / self._blocks
        return min(self._blocks, round(self._lanes * (self._options.group / mean + 1)))

    def _shuffled(self, at: int, length: int, epoch: int, lane: int) -> int:
        """Where the `at`-th sample of a run comes from, within its group. Source: reference/order 4."""
        group, within = divmod(at, self._options.group)
        start = group * self._options.group
        count = min(self._options.group, length - start)
        if count == 1:
            return at
        key = (self._options.seed, "group", self._id, epoch, lane, group)
        (order,) = self._kept.get(key, lambda: (permutation(count, *key),))
        return start + int(order[within])

    def _epoch(self, number: int) -> _Epoch:
        return self._kept.get(("epoch", self._id, number), lambda: self._made(number))

    def _made(self, number: int) -> _Epoch:
        """Pieces in their order, cut into the runs of the lanes. Source: reference/order 3."""
        pieces = np.arange(len(self._lengths))
        if self._options.shuffle and len(pieces) > 1:
            pieces = permutation(len(pieces), self._options.seed, "blocks", self._id, number)
        firsts, nexts = (self._firsts(one) for one in (number, number + 1))
        lengths = [after - before for before, after in zip(firsts, nexts, strict=True)]
        in_turn = np.asarray(lengths, np.int64)[self._turns]
        starts = np.empty_like(in_turn)
        starts[self._turns] = np.cumsum(in_turn) - in_turn
        ends = np.cumsum(self._lengths[pieces])
        return _Epoch(pieces, ends, starts.tolist(), firsts, lengths)

    def _firsts(self, epoch: int) -> list[int]:
        """For each lane the number in it of its first sample of an epoch."""
        start = epoch * self.size
        return [-((lane - start) // self._lanes) for lane in range(self._lanes)]


def check_single_epoch(order: SampleOrder, positions: int) -> None:
    """Makes sure that no data set begins a second epoch in a run of so many positions.

    Raises:
        DataError: One does; names the data set and says how many positions are possible.
    """
    possible, name = order.first_epoch()
    if positions > possible:
        raise DataError(
            f"{name} would begin a second epoch after {possible} samples of the run, "
            f"the budget is {positions}",
            hint="set data.allow_multiple_epochs true, or lower the budget",
            code="data.too_few_samples",
            details={"dataset": name, "possible": possible, "wanted": positions},
        )


def _shares(datasets: Sequence[DataSet], weights: Sequence[float]) -> list[int]:
    """Samples of each data set in a pattern; 0 only where the weight is. Source: reference/order 2."""
    if len(weights) != len(datasets) or min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError(
            f"data.dataset_weighting is {list(weights)} for {len(datasets)} data sets",
            hint="give each a weight from 0 on, and one of them more than 0",
            code="config.invalid_value",
            details={"key": "data.dataset_weighting"},
        )
    counts = largest_remainder(weights, PATTERN)
    for dataset, weight, count in zip(datasets, weights, counts, strict=True):
        if weight and not count:
            share = weight / sum(weights)
            raise ConfigError(
                f"data.dataset_weighting: the share of {dataset.name} is {share:g}, less than one "
                f"sample in {PATTERN}",
                hint="give it more, or leave the data set out",
                code="config.invalid_value",
                details={"key": "data.dataset_weighting", "dataset": dataset.name},
            )
    return counts


def _split_shards(
    owners: NDArray[Any], blocks: NDArray[Any], lengths: NDArray[np.int64], longest: int
) -> tuple[NDArray[np.int64], ...]:
    """Data set, block, first sample and length of each piece of at most `longest` samples."""
    counts = -(-lengths // longest)
    block = np.repeat(np.arange(len(lengths)), counts)
    turn = np.arange(len(block)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = turn * longest
    rest = np.minimum(lengths[block] - offsets, longest)
    return owners[block].astype(np.int64), blocks[block].astype(np.int64), offsets, rest
