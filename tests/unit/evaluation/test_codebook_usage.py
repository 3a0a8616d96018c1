"""Which codes occur, and which change from frame to frame."""

import pytest
import torch

from vlatool.errors import DataError
from vlatool.evaluation.codebook_usage import CodebookUsage, FrameIndex

CODES = torch.tensor([[0, 1, 2], [0, 3, 2], [0, 3, 1], [7, 7, 7]])


def test_usage_and_entropy_are_of_all_codes_that_occurred() -> None:
    use = CodebookUsage.of(8, 2)
    use.add(torch.tensor([[0, 1], [2, 3]]))
    figures = use.metrics()
    assert figures["codebook_usage"] == 0.5
    assert figures["codebook_entropy"] == pytest.approx(2, abs=1e-6)
    assert "changed_codes" not in figures


def test_changes_are_counted_between_neighboring_frames_only() -> None:
    use = CodebookUsage.of(8, 3)
    use.add(CODES, [FrameIndex("a", 0), FrameIndex("a", 1), FrameIndex("a", 3), FrameIndex("b", 4)])
    assert int(use.pairs) == 1
    assert use.metrics()["changed_codes"] == 1
    assert use.metrics()["constant_places"] == 2


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
    names = iter(("counts", "changes", "pairs"))

    def reduce(own: torch.Tensor) -> torch.Tensor:
        name = next(names)
        return sum((getattr(one, name) for one in ranks), torch.zeros_like(own))

    figures = ranks[0].reduced(reduce).metrics()
    assert figures["changed_codes"] == 2
    assert figures["codebook_usage"] == 5 / 8


def test_code_that_the_book_has_not_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        CodebookUsage.of(7, 3).add(CODES)
    assert caught.value.code == "data.code_out_of_range"
