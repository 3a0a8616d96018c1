import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlatool.transforms.windows import Padding, WindowSpec, image_frames, make_windows

WIDE_OPEN = {"max_padding_left": 1000, "max_padding_right": 1000}


def bits(*runs: tuple[int, int]) -> list[bool]:
    """Runs of (value, length) spelled out."""
    return [bool(value) for value, length in runs for _ in range(length)]


# Source: formats/lbm-preprocessing 4, P = 1, F = 14, L = 124
GOLDEN_MASKS = [
    (0, bits((0, 16)), bits((0, 1), (1, 15))),
    (1, bits((1, 1), (0, 15)), bits((0, 1), (1, 15))),
    (110, bits((1, 1), (0, 15)), bits((0, 1), (1, 14), (0, 1))),
    (115, bits((1, 1), (0, 15)), bits((0, 1), (1, 9), (0, 6))),
    (123, bits((1, 1), (0, 15)), bits((0, 1), (1, 1), (0, 14))),
]


@pytest.mark.parametrize(("anchor", "past", "future"), GOLDEN_MASKS)
def test_masks_equal_the_published_vectors(
    anchor: int, past: list[bool], future: list[bool]
) -> None:
    windows = make_windows(124, WindowSpec(1, 14, **WIDE_OPEN))

    assert windows.past_mask[anchor].tolist() == past
    assert windows.future_mask[anchor].tolist() == future


def test_padding_limit_keeps_the_published_count_of_anchors() -> None:
    windows = make_windows(124, WindowSpec(1, 14, max_padding_left=1, max_padding_right=12))

    assert len(windows.anchors) == 122
    assert windows.dropped_padding == 2
    assert windows.anchors.tolist() == list(range(122))


def test_zero_padding_zeroes_only_padded_rows_of_a_copy_and_keeps_text_and_calibration() -> None:
    windows = make_windows(3, WindowSpec(1, 1, padding="zero", **WIDE_OPEN))
    values = np.arange(1.0, 4.0)[:, None]
    assert windows.cut(values)[..., 0].tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 0]]
    assert values.tolist() == [[1], [2], [3]]
    assert windows.cut_edge_padded(np.arange(3)).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 2]]

    windows = make_windows(2, WindowSpec(1, 0, padding="zero", **WIDE_OPEN))
    assert windows.cut(np.array(["a", "b"])).tolist() == [["a", "a"], ["a", "b"]]


@pytest.mark.parametrize(("padding", "mode"), [("copy", "edge"), ("reflect", "reflect")])
@given(frames=st.integers(1, 12), past=st.integers(0, 6), future=st.integers(0, 6), data=st.data())
def test_padding_equals_numpy_pad_of_the_unpadded_rows(
    padding: Padding, mode: str, frames: int, past: int, future: int, data: st.DataObject
) -> None:
    anchor = data.draw(st.integers(0, frames - 1))
    windows = make_windows(frames, WindowSpec(past, future, padding=padding, **WIDE_OPEN))
    rows = np.arange(max(0, anchor - past), min(frames - 1, anchor + future) + 1)
    left, right = max(0, past - anchor), max(0, anchor + future - frames + 1)

    expected = np.pad(rows, (left, right), mode=mode)  # pyright: ignore[reportArgumentType]

    assert windows.rows[anchor].tolist() == expected.tolist()


@given(
    frames=st.integers(1, 40),
    past=st.integers(0, 8),
    future=st.integers(0, 8),
    stride=st.integers(1, 5),
    left=st.integers(0, 8),
    right=st.integers(0, 8),
)
def test_kept_windows_are_those_within_both_padding_limits(
    frames: int, past: int, future: int, stride: int, left: int, right: int
) -> None:
    spec = WindowSpec(past, future, stride, max_padding_left=left, max_padding_right=right)

    windows = make_windows(frames, spec)

    candidates = range(0, frames, stride)
    expected = [a for a in candidates if past - a <= left and a + future - frames + 1 <= right]
    assert windows.anchors.tolist() == expected
    assert windows.dropped_padding == len(candidates) - len(expected)
    assert ((windows.past_mask | windows.future_mask) == windows.valid).all()
    assert not (windows.past_mask & windows.future_mask).any()
    assert (windows.valid.sum(axis=1) + windows.pad_left + windows.pad_right == spec.length).all()


@pytest.mark.parametrize(
    ("anchor", "expected"), [(0, {-1: 0, 0: 0, 3: 3}), (4, {-1: 3, 0: 4, 3: 4})]
)
def test_image_frames_are_clipped_to_the_episode(anchor: int, expected: dict[int, int]) -> None:
    assert image_frames(anchor, (-1, 0, 3), 5) == expected
