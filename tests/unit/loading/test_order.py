"""The order of samples. Source: reference/order 1-5, 12."""

import pickle
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from vlatool.errors import ConfigError, DataError
from vlatool.loading.base import DataSet, SampleRef, ShardInfo
from vlatool.loading.order import (
    PATTERN,
    OrderOptions,
    SampleOrder,
    TableCache,
    bit_reversed,
    check_single_epoch,
    largest_remainder,
    permutation,
)

COUNTS = (1, 7, 100, 4122)
EPOCHS = 3


def even(total: int, shards: int) -> list[int]:
    return [total // shards + (index < total % shards) for index in range(shards)]


def uneven(total: int, shards: int) -> list[int]:
    """Sizes that differ widely; some shards are empty if there are few samples."""
    cuts = np.sort(np.random.default_rng(total + shards).integers(0, total + 1, shards - 1))
    return np.diff([0, *cuts, total]).tolist()


def dataset(sizes: Sequence[int], name: str = "data") -> DataSet:
    return DataSet(name, tuple(ShardInfo(Path(str(i)), size) for i, size in enumerate(sizes)))


def order_of(*sizes: Sequence[int], **options: Any) -> SampleOrder:
    datasets = [dataset(row, f"data {number}") for number, row in enumerate(sizes)]
    return SampleOrder(datasets, OrderOptions(**options))


def every(*sizes: Sequence[int]) -> set[SampleRef]:
    """All samples of some data sets."""
    return {
        SampleRef(number, shard, sample)
        for number, row in enumerate(sizes)
        for shard, size in enumerate(row)
        for sample in range(size)
    }


@pytest.mark.parametrize("total", COUNTS)
@pytest.mark.parametrize("split", [even, uneven])
@pytest.mark.parametrize("shards", [1, 3, 101])
def test_every_n_positions_contain_each_sample_once(total: int, split: Any, shards: int) -> None:
    sizes = split(total, shards)
    refs = order_of(sizes).refs(range(EPOCHS * total))

    for start in range(0, EPOCHS * total, total):
        assert set(refs[start : start + total]) == every(sizes)


def test_several_data_sets_without_weights_are_one_and_each_epoch_has_its_order() -> None:
    sizes = even(331, 7), uneven(90, 4), [1]
    refs = order_of(*sizes).refs(range(EPOCHS * 422))

    epochs = [refs[start : start + 422] for start in range(0, EPOCHS * 422, 422)]
    assert [set(epoch) for epoch in epochs] == [every(*sizes)] * EPOCHS
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS
    assert order_of(*sizes, seed=1).refs(range(422)) != epochs[0]


@pytest.mark.parametrize("lanes", [1, 2, 64, 1024])
@pytest.mark.parametrize("group", [1, 3, 500])
def test_lanes_and_groups_of_any_size_keep_all_samples(lanes: int, group: int) -> None:
    sizes = uneven(777, 9)
    refs = order_of(sizes, lanes=lanes, group=group).refs(range(2 * 777))

    assert set(refs[:777]) == set(refs[777:]) == every(sizes)


def test_refs_do_not_depend_on_earlier_calls() -> None:
    order = order_of(uneven(4101, 11), uneven(500, 3), weights=(3, 1))
    positions = [614_000_000, 5, 70_000, 4, 614_000_000, 12_345_678_901]

    assert order.refs(positions) == [
        pickle.loads(pickle.dumps(order)).refs([position])[0] for position in positions
    ]


def test_without_shuffle_position_n_is_sample_n() -> None:
    sizes = uneven(100, 5)
    refs = order_of(sizes, shuffle=False).refs(range(250))

    assert refs == [sorted(every(sizes))[n % 100] for n in range(250)]


def test_batch_comes_from_as_many_shards_as_there_are_lanes() -> None:
    refs = order_of([100] * 640, group=50).refs(range(64))

    assert len({ref.shard for ref in refs}) > 55


def test_lane_stays_within_a_group_of_neighbors() -> None:
    """The group limits the distance of a sample: 64 lanes read few shards at a time."""
    order = order_of([100] * 1000, group=100)
    shards = {ref.shard for ref in order.refs(range(64 * 100))}
    assert len(shards) <= order.shards_in_use() == 128

    # The lanes of one large shard do not read it in stored order.
    refs = order_of([6400], lanes=4, group=100).refs(range(4))
    assert [ref.sample // 1600 for ref in refs] != [0, 2, 1, 3]


@pytest.mark.parametrize(("sizes", "shuffle", "shards"), [([10] * 8, True, 8), ([10], False, 1)])
def test_shards_in_use_are_never_more_than_there_are(
    sizes: list[int], shuffle: bool, shards: int
) -> None:
    assert order_of(sizes, shuffle=shuffle).shards_in_use() == shards


# ranks


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_global_batches_are_equal_for_every_world_size(world: int) -> None:
    order = order_of(uneven(4122, 13))
    batch, accumulation = 24 // world, 2
    whole = order.refs(range(10 * 48))

    for step in range(10):
        positions = [
            rank + world * i
            for rank in range(world)
            for i in range(step * accumulation * batch, (step + 1) * accumulation * batch)
        ]
        assert sorted(order.refs(positions)) == sorted(whole[48 * step : 48 * (step + 1)])


def test_few_shards_are_read_by_two_ranks() -> None:
    sizes = [2 * index + 2 for index in range(100)] + [266]
    ranks: dict[int, set[int]] = {}
    for position, ref in enumerate(order_of(sizes).refs(range(10366))):
        ranks.setdefault(ref.shard, set()).add(position % 8)

    shared = Counter(map(len, ranks.values()))
    assert sum(sizes) == 10366
    assert max(shared) == 2
    assert shared[2] <= 8


# mixtures


@pytest.mark.parametrize("shuffle", [True, False])
def test_shares_of_a_mixture_are_exact_over_every_pattern(shuffle: bool) -> None:
    order = order_of([50] * 20, [30] * 10, weights=(3, 1), lanes=2, shuffle=shuffle)
    lanes = order.lanes

    for start in range(0, 3 * lanes * PATTERN, lanes * PATTERN):
        refs = order.refs(range(start, start + lanes * PATTERN))
        for lane in range(lanes):
            assert Counter(ref.dataset for ref in refs[lane::lanes]) == {0: 7500, 1: 2500}


def test_each_data_set_of_a_mixture_has_its_own_epochs() -> None:
    order = order_of([50] * 6, [7], weights=(1, 1), lanes=1)
    refs = order.refs(range(6000))

    for number, sizes in enumerate(([50] * 6, [7])):
        drawn = [ref for ref in refs if ref.dataset == number]
        size = sum(sizes)
        for start in range(0, len(drawn) - size, size):
            epoch = {SampleRef(0, *ref[1:]) for ref in drawn[start : start + size]}
            assert epoch == every(sizes)


def test_mixture_is_even_and_a_zero_weight_excludes_a_data_set() -> None:
    refs = order_of([100], [10], [100], weights=(1, 0, 1)).refs(range(6400))

    assert {ref.dataset for ref in refs} == {0, 2}
    # 100 draws of a fair coin have a standard deviation of 5.
    counts = [sum(ref.dataset for ref in refs[start : start + 100]) for start in range(6300)]
    assert 2 * 20 < min(counts) <= max(counts) < 2 * 80


@pytest.mark.parametrize("weights", [(0, 0), (1, -1), (1,), (1, 1e-5)])
def test_weights_that_match_no_data_raise_an_error(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        order_of([10], [10], weights=weights)
    # A share that rounds to zero is named.
    assert weights != (1, 1e-5) or caught.value.details["dataset"] == "data 1"
    with fails("data.no_samples"):
        order_of([0, 0])


# epochs


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ([[40, 2], [100]], {}),
        ([[40, 2], [100]], {"shuffle": False}),
        ([[5000], [900, 5]], {"weights": (3, 1)}),
        ([[5000], [900, 5]], {"weights": (3, 1), "shuffle": False}),
        ([[20_000], [6_000], [3]], {"weights": (3, 1, 0)}),
    ],
)
def test_end_of_the_first_epoch_is_exact(sizes: list[list[int]], options: dict[str, Any]) -> None:
    order = order_of(*sizes, **options)

    possible, name = order.first_epoch()

    drawn: Counter[tuple[int, int]] = Counter()
    repeated: list[int] = []
    refs = order.refs(range(possible + 1))
    for position, ref in enumerate(refs):
        number, lane = ref.dataset if "weights" in options else 0, position % order.lanes
        size = sum(sizes[number]) if "weights" in options else order.size
        repeated += [number] if drawn[number, lane] * order.lanes + lane >= size else []
        drawn[number, lane] += 1
    assert len(set(refs[:possible])) == possible
    assert len(repeated) == 1
    assert f"data {repeated[0]}" in name


@pytest.mark.parametrize("sizes", [([900], [50]), ([900], [5])])
def test_budget_that_repeats_a_sample_raises_an_error_and_one_less_does_not(
    sizes: tuple[list[int], list[int]],
) -> None:
    order = order_of(*sizes, weights=(1, 1))
    possible, name = order.first_epoch()
    # Of 64 lanes some, or most, have no sample in the first epoch.
    assert (possible < 64, name) == (True, "data 1")

    check_single_epoch(order, possible)
    with pytest.raises(DataError) as caught:
        check_single_epoch(order, possible + 1)
    assert caught.value.details == {"dataset": name, "possible": possible, "wanted": possible + 1}


# speed and tables


def test_distant_position_needs_no_replay() -> None:
    """Replaying 614 million positions would take an hour."""
    order = order_of([1000] * 10_000)
    started = time.monotonic()

    order.refs([614_000_000_000])

    assert time.monotonic() - started < 5


def test_table_cache_is_bounded() -> None:
    cache = TableCache()
    for number in range(100):
        cache.get(number, lambda: (np.zeros(1 << 20),))

    assert len(cache._tables) == 15  # of 8 MiB each, and 128 MiB in all


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((1, 1, 1), [4, 3, 3]), ((3, 1), [8, 2]), ((1, 0), [10, 0]), ((2, 2, 1), [4, 4, 2])],
)
def test_largest_remainder_returns_integers(weights: tuple[float, ...], counts: list[int]) -> None:
    assert largest_remainder(weights, 10) == counts


# golden values: another order would change every resumed run


def test_first_permutations() -> None:
    assert permutation(10, 42, "blocks", 0, 0).tolist() == [7, 4, 8, 0, 1, 2, 9, 6, 5, 3]
    assert permutation(10, 42, "group", 0, 0).tolist() == [4, 5, 1, 6, 8, 9, 0, 3, 2, 7]
    assert bit_reversed(8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]  # lanes of one rank are adjacent


def test_first_refs() -> None:
    keys = {"lanes": 4, "group": 3}
    refs = order_of([5, 4, 3], [6], **keys).refs(range(5))
    assert [tuple(ref) for ref in refs] == [
        *((0, 2, 2), (0, 1, 2), (0, 0, 2), (1, 0, 1), (0, 2, 0)),
    ]
    refs = order_of([5, 4, 3], [6], **keys, weights=(3, 1)).refs([0, 1, 2, 614_000_000])
    assert [tuple(ref) for ref in refs] == [(0, 2, 2), (0, 0, 4), (0, 0, 0), (1, 0, 3)]
