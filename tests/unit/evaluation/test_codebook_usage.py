"""Use of a codebook and changes of codes from frame to frame."""

import pytest
import torch

from tests.builders.errors import fails
from vlatool.evaluation.image_metrics import CodebookUsage, FrameIndex

CODES = torch.tensor([[0, 1, 2], [0, 3, 2], [0, 3, 1], [7, 7, 7]])


@pytest.mark.parametrize(
    ("codes", "share"), [([[5, 6]] * 4, 1.0), ([[0, 1], [2, 1]], 0.75), ([[0, 1], [2, 3]], 0.5)]
)
def test_share_of_the_most_frequent_codes_is_one_if_all_images_have_the_same(
    codes: list[list[int]], share: float
) -> None:
    usage = CodebookUsage.of(8, 2)
    usage.add(torch.tensor(codes))
    values = usage.metrics()
    assert values["frequent_codes"] == share
    assert values["codebook_usage"] == len({*codes[0], *codes[1]}) / 8
    assert "changed_codes" not in values
    if share == 0.5:
        assert values["codebook_entropy"] == pytest.approx(2, abs=1e-6)
    with fails("data.mismatch"):
        CodebookUsage.of(4, 2).add(torch.tensor([[4, 0]]))


def test_changes_are_counted_between_neighboring_frames_only() -> None:
    usage = CodebookUsage.of(8, 3)
    usage.add(
        CODES, [FrameIndex("a", 0), FrameIndex("a", 1), FrameIndex("a", 3), FrameIndex("b", 4)]
    )
    assert int(usage.pairs) == 1
    assert usage.metrics()["changed_codes"] == 1
    assert usage.metrics()["constant_places"] == 2


def test_last_frame_of_a_batch_is_the_neighbor_of_the_next_batch() -> None:
    frames = [FrameIndex("a", number) for number in range(4)]
    whole, parts = CodebookUsage.of(8, 3), CodebookUsage.of(8, 3)
    whole.add(CODES, frames)
    for number, frame in enumerate(frames):
        parts.add(CODES[number : number + 1], [frame])
    assert whole.changes.tolist() == parts.changes.tolist() == [1, 2, 2]
    assert whole.metrics() == parts.metrics()


def test_counts_over_ranks_are_those_of_all_images() -> None:
    ranks = [CodebookUsage.of(8, 3) for _ in range(2)]
    ranks[0].add(CODES[:2], [FrameIndex("a", 0), FrameIndex("a", 1)])
    ranks[1].add(CODES[2:], [FrameIndex("b", 0), FrameIndex("b", 1)])
    names = iter(("by_position", "changes", "pairs"))

    def reduce(own: torch.Tensor) -> torch.Tensor:
        name = next(names)
        return sum((getattr(rank, name) for rank in ranks), torch.zeros_like(own))

    values = ranks[0].reduced(reduce).metrics()
    assert values["changed_codes"] == 2
    assert values["codebook_usage"] == 5 / 8
