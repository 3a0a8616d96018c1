"""Sizes of images that a policy accepts."""

import numpy as np
import pytest

from tests.builders.errors import fails
from vlatool.episode import CameraView, ObservationSpec
from vlatool.evaluation.control import ImageSizes

# Recorded with 96 x 128 pixels (height, width), turned, and resized to 64 x 48.
TURNED = CameraView(size=(64, 48), recorded=((96, 128),), quarter_turns=1)


def apply(shape: tuple[int, int], *, is_turned: bool = False) -> list[str]:
    """Messages on an image of a shape (height, width)."""
    messages: list[str] = []
    sizes = ImageSizes(ObservationSpec({"front": TURNED}), messages.append)
    sizes.apply("front", np.zeros((*shape, 3), np.uint8), is_turned=is_turned)
    return messages


@pytest.mark.parametrize("shape", [(96, 128), (48, 64)])
def test_images_of_a_turned_camera_are_accepted_as_it_sees_them(shape: tuple[int, int]) -> None:
    assert apply(shape) == []


@pytest.mark.parametrize("shape", [(64, 48), (128, 96)])
def test_images_that_are_turned_already_are_refused(shape: tuple[int, int]) -> None:
    with fails("data.mismatch"):
        apply(shape)


def test_training_images_are_accepted() -> None:
    assert apply((64, 48), is_turned=True) == []
