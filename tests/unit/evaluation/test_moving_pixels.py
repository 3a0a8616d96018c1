"""PSNR of the pixels that differ from the frame before."""

import pytest
import torch

from vlatool.evaluation.image_metrics import FrameIndex, MovingPixels

FRAMES = [FrameIndex("a", 0), FrameIndex("a", 1), FrameIndex("a", 3), FrameIndex("b", 4)]


def images() -> torch.Tensor:
    """Three frames of a block that moves to the right, and a frame of another episode."""
    frames = torch.full((4, 3, 4, 4), 100, dtype=torch.uint8)
    for number in range(3):
        frames[number, 0, 1, number] = 200
    return frames


def same(values: torch.Tensor) -> torch.Tensor:
    return values


@pytest.mark.parametrize("size", [1, 2, 4])
def test_error_is_of_pixels_that_moved_since_the_frame_before(size: int) -> None:
    sums, table = MovingPixels.of(), torch.full((4, 3, 4, 4), 100, dtype=torch.uint8)
    for start in range(0, 4, size):
        stop = start + size
        sums.add(images()[start:stop], table[start:stop], FRAMES[start:stop])

    assert int(sums.count) == 2  # of frame 1: where the block is, and where it was
    error = torch.tensor(100.0**2 / 3 / 2)
    expected = 10 * (255**2 / error).log10()
    assert sums.metrics(same)["psnr_of_moving_pixels"] == pytest.approx(float(expected))


def test_change_below_the_noise_of_a_camera_is_no_motion() -> None:
    sums, frames = MovingPixels.of(), torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    frames[1] += 25
    sums.add(frames, frames, FRAMES[:2])

    assert sums.metrics(same) == {}
