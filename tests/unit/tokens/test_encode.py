"""Split of an episode into batches."""

import pytest

from vlatool.tokens.encode import even_batches


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [(0, 4, []), (4, 4, [4]), (5, 4, [2, 3]), (260, 64, [52] * 5), (3, 1, [1, 1, 1])],
)
def test_batches_of_an_episode_are_few_and_nearly_equal(
    count: int, most: int, sizes: list[int]
) -> None:
    batches = even_batches(count, most)
    assert [len(batch) for batch in batches] == sizes
    assert [index for batch in batches for index in batch] == list(range(count))
