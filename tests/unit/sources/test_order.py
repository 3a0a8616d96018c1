from pathlib import Path

import pytest

from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.sources.order import checked_refs, select


@pytest.mark.parametrize(
    "ids",
    [["a", "a"], ["../../x"], ["a b"], [""], ["a\n"]],
    ids=["twice", "path", "space", "empty", "line"],
)
def test_ids_that_would_mix_episodes_are_refused(ids: list[str]) -> None:
    refs = [EpisodeRef(one, Path(f"/raw/{n}"), "/raw") for n, one in enumerate(ids)]

    with pytest.raises(DataError) as caught:
        checked_refs(refs)

    assert caught.value.code == "data.bad_episode_id"


def test_good_ids_pass() -> None:
    refs = [EpisodeRef(one, Path(one), "/raw") for one in ("a", "A-1_b")]

    assert checked_refs(refs) == refs


def chosen(wanted: str | None, unwanted: str | None, numbers: range = range(5)) -> list[str]:
    refs = [EpisodeRef(str(n), Path(str(n)), "/raw", number=n) for n in numbers]
    return [ref.id for ref in select(refs, wanted, unwanted)]


@pytest.mark.parametrize(
    ("wanted", "unwanted", "ids"),
    [
        (None, "1,3", ["0", "2", "4"]),
        (None, "1:4", ["0", "4"]),
        ("1:4", "2", ["1", "3"]),
        ("4,1", None, ["1", "4"]),
        (None, None, ["0", "1", "2", "3", "4"]),
    ],
)
def test_excluded_episodes_are_taken_from_the_chosen_ones(
    wanted: str | None, unwanted: str | None, ids: list[str]
) -> None:
    assert chosen(wanted, unwanted) == ids


def test_numbers_of_the_data_set_are_excluded_not_positions() -> None:
    assert chosen(None, "11", range(10, 13)) == ["10", "12"]


@pytest.mark.parametrize(
    ("wanted", "unwanted", "kind", "code"),
    [
        (None, "9", DataError, "data.no_episodes"),
        (None, ":", DataError, "data.no_episodes"),
        ("1", "1", DataError, "data.no_episodes"),
        (None, "x", UsageError, "usage.bad_selection"),
        pytest.param("9" * 5000, None, UsageError, "usage.bad_selection", id="digits"),
    ],
)
def test_selections_that_leave_nothing_or_cannot_be_read_are_refused(
    wanted: str | None, unwanted: str | None, kind: type[VlatoolError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        chosen(wanted, unwanted)
    assert caught.value.code == code
