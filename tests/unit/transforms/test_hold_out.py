"""Which episodes are held out."""

import pytest

from vlatool.transforms.hold_out import held_out, split_of


def tasks(count: int, task: str = "", start: int = 0) -> dict[str, str]:
    return {f"episode_{number:04d}": task for number in range(start, start + count)}


def test_adding_episodes_moves_none() -> None:
    before = held_out(tasks(300), 0.1, seed=0)
    after = held_out(tasks(900), 0.1, seed=0)
    assert before == after & tasks(300).keys()


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_the_share_is_that_of_many_episodes(share: float) -> None:
    chosen = held_out(tasks(4000), share, seed=3)
    assert len(chosen) / 4000 == pytest.approx(share, abs=0.02)


def test_a_task_with_five_episodes_has_one_held_out() -> None:
    rows = tasks(5, "five") | tasks(4, "four", start=100) | tasks(5, "others", start=200)
    chosen = held_out(rows, 1e-9, seed=0)
    assert sorted(rows[name] for name in chosen) == ["five", "others"]


def test_one_episode_is_held_out_of_few() -> None:
    assert len(held_out(tasks(3), 1e-9, seed=0)) == 1


def test_a_share_of_zero_holds_out_none() -> None:
    assert held_out(tasks(50), 0.0, seed=0) == frozenset()


def test_the_seed_chooses_others() -> None:
    assert held_out(tasks(100), 0.1, seed=0) != held_out(tasks(100), 0.1, seed=1)


@pytest.mark.parametrize(
    ("name", "split"), [("Train", "train"), ("valid", "val"), ("test", "val"), ("20_percent", "")]
)
def test_names_of_splits(name: str, split: str) -> None:
    assert split_of(name) == split
