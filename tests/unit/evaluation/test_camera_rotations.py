"""Images of an environment that are turned before a policy sees them."""

from typing import Any, ClassVar

import numpy as np

from tests.builders.toy_policy import PushPolicy
from vlatool.episode import CameraView, ObservationSpec
from vlatool.evaluation.config import ActionMap, RolloutConfig
from vlatool.evaluation.controllers import KeyMap


class SeeingPolicy(PushPolicy):
    """Policy with a camera and no field."""

    sees: ClassVar[Any] = ObservationSpec(cameras={"front": CameraView(offsets=(0,))})


def test_cameras_are_mirrored_and_turned_clockwise() -> None:
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    config = RolloutConfig(
        action=[ActionMap(field="push")], camera_rotations={"front": 1}, flipped_cameras=["front"]
    )
    turned = KeyMap(SeeingPolicy(), config).state({"front": image}).images["front"]
    np.testing.assert_array_equal(turned, np.rot90(image[::-1], k=-1))
