from pathlib import Path

import pytest

from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.recordings.base import checked_refs
from vlatool.recordings.choice import select


@pytest.mark.parametrize(
    "ids",
    [["a", "a"], ["../../x"], ["a b"], [""], ["a\n"]],
    ids=["twice", "path", "space", "empty", "line"],
)
def test_ambiguous_or_invalid_ids_are_rejected(ids: list[str]) -> None:
    refs = [EpisodeRef(ref_id, Path(f"/raw/{n}"), "/raw") for n, ref_id in enumerate(ids)]
    good = [EpisodeRef(ref_id, Path(ref_id), "/raw") for ref_id in ("a", "A-1_b")]

    with pytest.raises(DataError) as caught:
        checked_refs(refs)

    assert caught.value.code == "data.broken"
    assert checked_refs(good) == good


def selected_ids(include: str | None, exclude: str | None, numbers: range = range(5)) -> list[str]:
    refs = [EpisodeRef(str(n), Path(str(n)), "/raw", number=n) for n in numbers]
    return [ref.id for ref in select(refs, include, exclude)]


@pytest.mark.parametrize(
    ("include", "exclude", "ids"),
    [
        (None, "1,3", ["0", "2", "4"]),
        (None, "1:4", ["0", "4"]),
        ("1:4", "2", ["1", "3"]),
        ("4,1", None, ["1", "4"]),
        (None, None, ["0", "1", "2", "3", "4"]),
    ],
)
def test_excluded_episodes_are_removed_from_the_selection(
    include: str | None, exclude: str | None, ids: list[str]
) -> None:
    assert selected_ids(include, exclude) == ids


@pytest.mark.parametrize(
    ("include", "exclude", "kind", "code"),
    [
        (None, "9", DataError, "data.no_episodes"),
        (None, ":", DataError, "data.no_episodes"),
        ("1", "1", DataError, "data.no_episodes"),
        (None, "x", UsageError, "usage.bad_value"),
        pytest.param("9" * 5000, None, UsageError, "usage.bad_value", id="digits"),
    ],
)
def test_empty_or_invalid_selections_are_rejected(
    include: str | None, exclude: str | None, kind: type[VlatoolError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        selected_ids(include, exclude)
    assert caught.value.code == code
