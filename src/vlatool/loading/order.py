"""Order of samples: a pure function of sizes, weights, seed and position.

The state of a run is one integer, the number of consumed positions. A run can resume at any
position: no file is opened and nothing is replayed. Permutations have random access and are equal
on all machines and for all numpy versions.

`SampleOrder.refs` maps positions to samples. Consecutive positions belong to different lanes. In a
mixture a pattern says which data set each position of a lane takes. A `_Stream` is the endless
order of one data set: its spans of consecutive samples are permuted in each epoch and cut into one
segment for each lane, and within a segment the samples of a group are permuted.
Source: reference/order 1-5, 12.

Legend of numbers: n position in the run, L lanes, k index within a lane, N samples of a data set,
g index of a sample in the endless order of its data set.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlatool.errors import ConfigError, DataError
from vlatool.events import counted
from vlatool.loading.base import DataSet, LoadingConfig, SampleRef

# Number of samples of a lane over which the shares of a mixture are exact.
PATTERN = 10_000
# Size of the table cache. The spans of 600 million samples in groups of 500 take 20 MB per epoch.
_CACHE_BYTES = 1 << 27

T = TypeVar("T", bound=Sequence[Any])


@dataclass(frozen=True)
class OrderOptions:
    """Options that determine the order, besides the sizes of the shards."""

    seed: int = 42  # seed of every permutation
    lanes: int = 64  # number of interleaved streams; a power of two
    group: int = 500  # number of consecutive samples of a lane that are permuted
    # shuffle shards and samples; if False, samples are in stored order, in one lane
    shuffle: bool = True
    # weight of each data set in the mixture; empty: each sample occurs equally often
    weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, config: LoadingConfig, seed: int) -> "OrderOptions":
        """Options of a section `data`."""
        return cls(
            seed=seed,
            lanes=config.lanes,
            group=max(1, config.shuffle_buffer_size),
            shuffle=config.shuffle,
            weights=tuple(config.dataset_weighting),
        )


class SingleEpoch(NamedTuple):
    """The positions before any data set starts its second epoch."""

    positions: int  # number of positions; no two of them have the same sample
    dataset: str  # name of the data set that starts its second epoch first


class _Pattern(NamedTuple):
    """Which data set each of `PATTERN` samples of a lane is from."""

    column: NDArray[np.int64]  # index of the data set, among those in use
    ranks: NDArray[np.int64]  # number of earlier samples of that data set in the pattern


class SampleOrder:
    """Map from position to sample; picklable.

    Of the data sets only the sizes of their shards affect the order.
    """

    def __init__(self, datasets: Sequence[DataSet], options: OrderOptions) -> None:
        self.options = options
        self.lanes = options.lanes if options.shuffle else 1
        self.size = sum(dataset.size for dataset in datasets)
        self._tables = TableCache()
        self._streams: list[_Stream] = []
        self._counts: list[int] = []  # samples of each stream in a pattern
        if not options.weights:
            numbered = list(enumerate(datasets))
            self._streams.append(_Stream(numbered, options, self._tables))
            return
        counts = _mixture_counts(datasets, options.weights)
        for index, count in enumerate(counts):
            if count:
                self._streams.append(_Stream([(index, datasets[index])], options, self._tables))
                self._counts.append(count)

    def refs(self, positions: Iterable[int]) -> list[SampleRef]:
        """References of the samples at some positions; takes about 10 microseconds each."""
        if len(self._streams) == 1:
            return [self._streams[0].ref(n) for n in positions]
        return [self._mixed_ref(n) for n in positions]

    def _mixed_ref(self, n: int) -> SampleRef:
        k, lane = divmod(n, self.lanes)
        number, at = divmod(k, PATTERN)
        pattern = self._pattern(lane, number)
        index = int(pattern.column[at])
        k = number * self._counts[index] + int(pattern.ranks[at])
        return self._streams[index].ref(k * self.lanes + lane)

    def _pattern(self, lane: int, number: int) -> _Pattern:
        """The number-th pattern of a lane."""

        def make() -> _Pattern:
            if not self.options.shuffle:
                column = spaced_pattern(self._counts)
            else:
                in_order = np.repeat(np.arange(len(self._counts)), self._counts)
                key = (self.options.seed, "mixture", lane, number)
                column = in_order[permutation(PATTERN, *key)]
            return _Pattern(column, _ranks(column, self._counts))

        return self._tables.get(("pattern", lane, number), make)

    def first_epoch(self) -> SingleEpoch:
        """Positions before any data set starts its second epoch; takes about 50 ms per data set."""
        if len(self._streams) == 1:
            stream = self._streams[0]
            return SingleEpoch(stream.size, stream.name)
        candidates: list[SingleEpoch] = []
        for index, stream in enumerate(self._streams):
            for lane in range(self.lanes):
                number, rank = divmod(stream.second_epoch_start(lane), self._counts[index])
                column = self._pattern(lane, number).column
                at = int(np.flatnonzero(column == index)[rank])
                position = (number * PATTERN + at) * self.lanes + lane
                candidates.append(SingleEpoch(position, stream.name))
        return min(candidates)

    def shards_in_use(self) -> int:
        """Estimated number of shards that all ranks together read at the same time."""
        return sum(stream.shards_in_use() for stream in self._streams)


def check_single_epoch(order: SampleOrder, positions: int) -> None:
    """Raises an error if a data set starts a second epoch within the first `positions`
    positions.
    """
    possible, name = order.first_epoch()
    if positions > possible:
        raise DataError(
            f"{name}: a second epoch would start after {counted(possible, 'sample')} of the run, "
            f"the budget is {positions}",
            hint="set data.allow_multiple_epochs to true, or lower the budget",
            code="data.no_samples",
            details={"dataset": name, "possible": possible, "wanted": positions},
        )


def _mixture_counts(datasets: Sequence[DataSet], weights: Sequence[float]) -> list[int]:
    """Number of samples of each data set in a pattern; 0 only if the weight is 0. Source:
    reference/order 2.
    """
    if len(weights) != len(datasets) or min(weights) < 0 or sum(weights) <= 0:
        raise ConfigError(
            f"data.dataset_weighting is {list(weights)} for {len(datasets)} data sets",
            hint="give each data set a weight of at least 0, and one of them more than 0",
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
                hint="raise its weight, or remove the data set from the config",
                code="config.invalid_value",
                details={"key": "data.dataset_weighting", "dataset": dataset.name},
            )
    return counts


def largest_remainder(weights: Sequence[float], total: int) -> list[int]:
    """Integer counts in proportion to the weights; their sum is `total`."""
    sum_of_weights = sum(weights)
    exact = [total * weight / sum_of_weights for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (counts[i] - exact[i], i))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def spaced_pattern(counts: Sequence[int]) -> NDArray[np.int64]:
    """Pattern that has `counts[i]` entries of each source i, evenly spaced."""
    column = np.repeat(np.arange(len(counts)), counts)
    places = [(np.arange(count) + 0.5) / max(count, 1) for count in counts]
    return column[np.argsort(np.concatenate(places), kind="stable")]


def _ranks(column: NDArray[np.int64], counts: Sequence[int]) -> NDArray[np.int64]:
    """Number of equal entries before each entry of a pattern."""
    order = np.argsort(column, kind="stable")
    starts = np.cumsum([0, *counts])[:-1]
    result = np.empty_like(column)
    result[order] = np.arange(len(column)) - np.repeat(starts, counts)
    return result


class _Epoch(NamedTuple):
    """The spans in the order of one epoch, and the segment of that order that each lane reads. A
    span is at most `group` consecutive samples of one shard.
    """

    spans: NDArray[np.int64]  # int64 [P], the spans in the order of the epoch
    stops: NDArray[np.int64]  # int64 [P], number of samples up to the end of each of these spans
    starts: Sequence[int]  # first sample of the segment of each lane
    firsts: Sequence[int]  # index within the lane of that sample
    lengths: Sequence[int]  # number of samples in the segment of each lane


class _Stream:
    """Endless order of the samples of one or more data sets, shuffled together."""

    def __init__(
        self, datasets: Sequence[tuple[int, DataSet]], options: OrderOptions, tables: "TableCache"
    ) -> None:
        self.name = ", ".join(dataset.name for _, dataset in datasets)
        self._id = datasets[0][0]
        self._options = options
        self._tables = tables
        self._lanes = options.lanes if options.shuffle else 1
        self._lane_order = bit_reversed(self._lanes)
        counts = [len(dataset.sizes) for _, dataset in datasets]
        owners = np.repeat([index for index, _ in datasets], counts)
        shards = np.concatenate([np.arange(count) for count in counts])
        lengths = np.concatenate([dataset.sizes for _, dataset in datasets])
        self._num_shards = int((lengths > 0).sum())
        self.size = int(lengths.sum())
        if self.size == 0:
            raise DataError(
                f"{self.name}: the data set has no samples",
                hint="preprocess the data again, or remove the data set from the config",
                code="data.no_samples",
            )
        # Of each span: data set, shard, first sample, number of samples.
        longest = options.group if options.shuffle else self.size
        spans = -(-lengths // longest)
        rows = np.repeat(np.arange(len(lengths)), spans)
        numbers = np.arange(len(rows)) - np.repeat(np.cumsum(spans) - spans, spans)
        self._owners = owners[rows]
        self._shards = shards[rows]
        self._offsets = numbers * longest
        self._lengths = np.minimum(lengths[rows] - self._offsets, longest)

    def ref(self, g: int) -> SampleRef:
        """Reference of the g-th sample of the endless order."""
        number = g // self.size
        lane = g % self._lanes
        epoch = self._tables.get(("epoch", self._id, number), lambda: self._build_epoch(number))
        at = g // self._lanes - epoch.firsts[lane]
        if self._options.shuffle:
            at = self._shuffled(at, epoch.lengths[lane], number, lane)
        at += epoch.starts[lane]
        rank = int(epoch.stops.searchsorted(at, "right"))
        span = int(epoch.spans[rank])
        length = int(self._lengths[span])
        sample = int(self._offsets[span]) + at - int(epoch.stops[rank]) + length
        return SampleRef(int(self._owners[span]), int(self._shards[span]), sample)

    def _build_epoch(self, number: int) -> _Epoch:
        """The spans of an epoch in order, divided into the segments of the lanes. Source:
        reference/order 3.
        """
        spans = np.arange(len(self._lengths))
        if self._options.shuffle and len(spans) > 1:
            spans = permutation(len(spans), self._options.seed, "blocks", self._id, number)
        firsts: list[int] = []
        lengths: list[int] = []
        for lane in range(self._lanes):
            first = self._first_of_epoch(number, lane)
            firsts.append(first)
            lengths.append(self._first_of_epoch(number + 1, lane) - first)
        ordered = np.asarray(lengths, np.int64)[self._lane_order]
        starts = np.empty_like(ordered)
        starts[self._lane_order] = np.cumsum(ordered) - ordered
        stops = np.cumsum(self._lengths[spans])
        return _Epoch(spans, stops, starts.tolist(), firsts, lengths)

    def _first_of_epoch(self, epoch: int, lane: int) -> int:
        """Index within a lane of its first sample of an epoch."""
        return -((lane - epoch * self.size) // self._lanes)

    def _shuffled(self, at: int, length: int, epoch: int, lane: int) -> int:
        """Index before shuffling of the `at`-th sample of a segment; both are in one group. Source:
        reference/order 4.
        """
        group, within = divmod(at, self._options.group)
        start = group * self._options.group
        count = min(self._options.group, length - start)
        if count == 1:
            return at
        key = (self._options.seed, "group", self._id, epoch, lane, group)
        (order,) = self._tables.get(key, lambda: (permutation(count, *key),))
        return start + int(order[within])

    def second_epoch_start(self, lane: int) -> int:
        """Index within a lane of its first sample of the second epoch."""
        return max(0, self._first_of_epoch(1, lane))

    def shards_in_use(self) -> int:
        """Estimated number of shards that the lanes read at the same time."""
        if not self._options.shuffle:
            return 1
        mean = self.size / self._num_shards
        return min(self._num_shards, round(self._lanes * (self._options.group / mean + 1)))


class TableCache:
    """LRU cache of tables, bounded in bytes; pickled without its content."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()  # with their sizes
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
            _, (_, removed) = self._tables.popitem(last=False)
            self._bytes -= removed
        return table


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
