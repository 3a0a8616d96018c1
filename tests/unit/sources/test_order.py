from pathlib import Path

import pytest

from vlatool.episode import EpisodeRef
from vlatool.errors import DataError
from vlatool.sources.order import checked_ids


@pytest.mark.parametrize(
    "ids",
    [["a", "a"], ["../../x"], ["a b"], [""], ["a\n"]],
    ids=["twice", "path", "space", "empty", "line"],
)
def test_ids_that_would_mix_episodes_are_refused(ids: list[str]) -> None:
    refs = [EpisodeRef(one, Path(f"/raw/{n}"), "/raw") for n, one in enumerate(ids)]

    with pytest.raises(DataError) as caught:
        checked_ids(refs)

    assert caught.value.code == "data.bad_episode_id"


def test_good_ids_pass() -> None:
    refs = [EpisodeRef(one, Path(one), "/raw") for one in ("a", "A-1_b")]

    assert checked_ids(refs) == refs
