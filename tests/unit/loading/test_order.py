"""The order of samples. Source: reference/order 1-5, 12, 13."""

import pickle
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlatool.errors import ConfigError, DataError
from vlatool.loading.base import DataSet, SampleRef, ShardInfo
from vlatool.loading.order import OrderOptions, SampleOrder, check_single_epoch
from vlatool.loading.permutations import (
    PATTERN,
    TableCache,
    bit_reversed,
    largest_remainder,
    permutation,
)

COUNTS = (1, 7, 100, 4101, 4122, 10366)
EPOCHS = 4


def even(total: int, blocks: int) -> list[int]:
    return [total // blocks + (index < total % blocks) for index in range(blocks)]


def uneven(total: int, blocks: int) -> list[int]:
    """Sizes that differ widely; some blocks are empty where there are few samples."""
    cuts = np.sort(np.random.default_rng(total + blocks).integers(0, total + 1, blocks - 1))
    return np.diff([0, *cuts, total]).tolist()


def dataset(sizes: Sequence[int], name: str = "data") -> DataSet:
    return DataSet(name, tuple(ShardInfo(Path(str(i)), size) for i, size in enumerate(sizes)))


def order_of(*sizes: Sequence[int], **options: Any) -> SampleOrder:
    datasets = [dataset(one, f"data {number}") for number, one in enumerate(sizes)]
    return SampleOrder(datasets, OrderOptions(**options))


def every(*sizes: Sequence[int]) -> set[SampleRef]:
    """All samples of some data sets."""
    return {
        SampleRef(number, block, sample)
        for number, one in enumerate(sizes)
        for block, size in enumerate(one)
        for sample in range(size)
    }


@pytest.mark.parametrize("total", COUNTS)
@pytest.mark.parametrize("cut", [even, uneven])
@pytest.mark.parametrize("blocks", [1, 3, 101])
def test_every_n_positions_are_each_sample_once(total: int, cut: Any, blocks: int) -> None:
    sizes = cut(total, blocks)
    places = order_of(sizes).refs(range(EPOCHS * total))

    for start in range(0, EPOCHS * total, total):
        assert set(places[start : start + total]) == every(sizes)


def test_several_data_sets_without_weights_are_one() -> None:
    sizes = even(331, 7), uneven(90, 4), [1]
    places = order_of(*sizes).refs(range(EPOCHS * 422))

    for start in range(0, EPOCHS * 422, 422):
        assert set(places[start : start + 422]) == every(*sizes)


@pytest.mark.parametrize("lanes", [1, 2, 64, 1024])
@pytest.mark.parametrize("group", [1, 3, 500])
def test_lanes_and_groups_of_any_size_lose_no_sample(lanes: int, group: int) -> None:
    sizes = uneven(777, 9)
    places = order_of(sizes, lanes=lanes, group=group).refs(range(2 * 777))

    assert set(places[:777]) == set(places[777:]) == every(sizes)


def test_epochs_have_orders_of_their_own() -> None:
    places = order_of(even(500, 5)).refs(range(1000))

    assert places[:500] != places[500:]


def test_another_seed_gives_another_order() -> None:
    one, other = (order_of(even(500, 5), seed=seed).refs(range(500)) for seed in (1, 2))

    assert one != other


def test_places_do_not_depend_on_what_was_asked_before() -> None:
    order = order_of(uneven(4101, 11), uneven(500, 3), weights=(3, 1))
    asked = [614_000_000, 5, 70_000, 4, 614_000_000, 12_345_678_901]

    assert order.refs(asked) == [
        pickle.loads(pickle.dumps(order)).refs([position])[0] for position in asked
    ]


def test_without_shuffle_position_n_is_sample_n() -> None:
    sizes = uneven(100, 5)
    places = order_of(sizes, shuffle=False).refs(range(250))

    assert places == [sorted(every(sizes))[n % 100] for n in range(250)]


def test_batch_comes_from_as_many_places_as_there_are_lanes() -> None:
    places = order_of([100] * 640, group=50).refs(range(64))

    assert len({place.shard for place in places}) > 55


def test_lane_stays_within_a_group_of_neighbors() -> None:
    """The key says how far a sample may travel: 64 lanes are in few blocks at a time."""
    order = order_of([100] * 1000, group=100)

    blocks = {place.shard for place in order.refs(range(64 * 100))}

    assert len(blocks) <= order.shards_in_use() == 128


@pytest.mark.parametrize(("sizes", "shuffle", "blocks"), [([10] * 8, True, 8), ([10], False, 1)])
def test_shards_in_use_are_never_more_than_there_are(
    sizes: list[int], shuffle: bool, blocks: int
) -> None:
    assert order_of(sizes, shuffle=shuffle).shards_in_use() == blocks


def test_long_block_counts_as_several() -> None:
    """One large block does not make all lanes read it in stored order, one behind the other."""
    places = order_of([6400], lanes=4, group=100).refs(range(4))

    starts = [place.sample // 1600 for place in places]
    assert starts != [0, 2, 1, 3]


# processes


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_global_batches_are_equal_for_every_number_of_processes(world: int) -> None:
    order = order_of(uneven(4122, 13))
    batch, accumulation = 24 // world, 2
    whole = order.refs(range(10 * 48))

    for step in range(10):
        mine = [
            rank + world * i
            for rank in range(world)
            for i in range(step * accumulation * batch, (step + 1) * accumulation * batch)
        ]
        assert sorted(order.refs(mine)) == sorted(whole[48 * step : 48 * (step + 1)])


def test_few_blocks_are_opened_by_two_processes() -> None:
    sizes = [2 * index + 2 for index in range(100)] + [266]
    ranks: dict[int, set[int]] = {}
    for position, place in enumerate(order_of(sizes).refs(range(10366))):
        ranks.setdefault(place.shard, set()).add(position % 8)

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
        places = order.refs(range(start, start + lanes * PATTERN))
        for lane in range(lanes):
            assert Counter(place.dataset for place in places[lane::lanes]) == {0: 7500, 1: 2500}


def test_each_data_set_of_a_mixture_has_epochs_of_its_own() -> None:
    order = order_of([50] * 6, [7], weights=(1, 1), lanes=1)
    places = order.refs(range(6000))

    for number, sizes in enumerate(([50] * 6, [7])):
        drawn = [place for place in places if place.dataset == number]
        size = sum(sizes)
        for start in range(0, len(drawn) - size, size):
            epoch = {SampleRef(0, *place[1:]) for place in drawn[start : start + size]}
            assert epoch == every(sizes)


def test_mixture_is_spread_evenly() -> None:
    places = order_of([100], [100], weights=(1, 1)).refs(range(6400))

    # 100 draws of a fair coin have a standard deviation of 5.
    counts = [sum(place.dataset for place in places[start : start + 100]) for start in range(6300)]
    assert min(counts) > 20
    assert max(counts) < 80


def test_zero_weight_excludes_a_data_set() -> None:
    places = order_of([10], [10], [10], weights=(1, 0, 1)).refs(range(1000))

    assert {place.dataset for place in places} == {0, 2}


def test_share_that_rounds_to_nothing_is_refused_by_name() -> None:
    with pytest.raises(ConfigError) as caught:
        order_of([10], [10], weights=(1, 1e-5))

    assert caught.value.details["dataset"] == "data 1"


@pytest.mark.parametrize("weights", [(0, 0), (1, -1), (1,)])
def test_weights_that_fit_no_data_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError):
        order_of([10], [10], weights=weights)


def test_data_without_samples_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        order_of([0, 0])

    assert caught.value.code == "data.no_samples"


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
    again: list[int] = []
    places = order.refs(range(possible + 1))
    for position, place in enumerate(places):
        number, lane = place.dataset if "weights" in options else 0, position % order.lanes
        size = sum(sizes[number]) if "weights" in options else order.size
        again += [number] if drawn[number, lane] * order.lanes + lane >= size else []
        drawn[number, lane] += 1
    assert len(set(places[:possible])) == possible
    assert len(again) == 1
    assert f"data {again[0]}" in name


def test_lanes_without_a_sample_in_the_first_epoch_begin_with_the_second() -> None:
    """Five samples in 64 lanes: the lanes take part in epochs by turns."""
    possible, name = order_of([900], [5], weights=(1, 1)).first_epoch()

    assert possible < 64
    assert name == "data 1"


def test_run_that_repeats_a_sample_is_refused_and_one_less_is_not() -> None:
    order = order_of([900], [50], weights=(1, 1))
    possible, name = order.first_epoch()

    check_single_epoch(order, possible)
    with pytest.raises(DataError) as caught:
        check_single_epoch(order, possible + 1)

    assert caught.value.details == {"dataset": name, "possible": possible, "wanted": possible + 1}


# speed and tables


def test_far_position_is_found_without_a_walk() -> None:
    """A walk over 614 million positions would take an hour."""
    order = order_of([1000] * 10_000)
    started = time.monotonic()

    order.refs([614_000_000_000])

    assert time.monotonic() - started < 5


def test_tables_that_are_kept_are_bounded() -> None:
    kept = TableCache()
    for number in range(100):
        kept.get(number, lambda: (np.zeros(1 << 20),))

    assert len(kept._tables) == 15  # of 8 MiB each, and 128 MiB in all


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((1, 1, 1), [4, 3, 3]), ((3, 1), [8, 2]), ((1, 0), [10, 0]), ((2, 2, 1), [4, 4, 2])],
)
def test_largest_remainder_gives_whole_counts(
    weights: tuple[float, ...], counts: list[int]
) -> None:
    assert largest_remainder(weights, 10) == counts


def test_lanes_of_one_process_are_neighbors() -> None:
    assert bit_reversed(8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


# golden: another order would change every run that goes on


def test_first_permutations_are_these() -> None:
    assert permutation(10, 42, "blocks", 0, 0).tolist() == [7, 4, 8, 0, 1, 2, 9, 6, 5, 3]
    assert permutation(10, 42, "group", 0, 0).tolist() == [4, 5, 1, 6, 8, 9, 0, 3, 2, 7]


def test_first_places_are_these() -> None:
    order = order_of([5, 4, 3], [6], lanes=4, group=3)
    mixed = order_of([5, 4, 3], [6], lanes=4, group=3, weights=(3, 1))

    assert [tuple(place) for place in order.refs(range(5))] == [
        (0, 2, 2),
        (0, 1, 2),
        (0, 0, 2),
        (1, 0, 1),
        (0, 2, 0),
    ]
    assert [tuple(place) for place in mixed.refs([0, 1, 2, 614_000_000])] == [
        (0, 2, 2),
        (0, 0, 4),
        (0, 0, 0),
        (1, 0, 3),
    ]
