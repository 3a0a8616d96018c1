import numpy as np
import pytest

from vlatool.world.render import CAMERAS, View
from vlatool.world.scene import COLORS, Scene

SCENE = Scene(
    np.array([0.5, 0.5, 0.25, 0.1]),
    np.array([[0.3, 0.4, 0.045], [0.7, 0.3, 0.045], [0.6, 0.75, 0.045]]),
    np.array([0.35, 0.7]),
)


def block_pixel(view: View, block: int) -> tuple[int, int]:
    """Row and column of the center of a block's upper face, by the published pinhole rule."""
    top = np.append(SCENE.blocks[block] + [0, 0, 0.045], 1.0)
    x, y, z = (np.linalg.inv(view.camera.extrinsics(SCENE)) @ top)[:3]
    focal, center = view.intrinsics[0, 0], view.intrinsics[:2, 2]
    return round(focal * y / z + center[1]), round(focal * x / z + center[0])


@pytest.mark.parametrize("camera", ["scene_right_0", "scene_left_0", "wrist_left_plus"])
@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("size", [(64, 64), (120, 160)])
def test_calibration_points_at_the_pixels_of_a_block(
    camera: str, block: int, size: tuple[int, int]
) -> None:
    view = View(CAMERAS[camera], size)
    pixel = view.draw(SCENE)[block_pixel(view, block)].astype(int)
    assert COLORS[int(pixel.argmax())] == COLORS[block]
    assert pixel.max() - np.median(pixel) > 40
    assert view.measure(SCENE).labels[block_pixel(view, block)] == block + 1


def test_depth_is_the_distance_along_the_optical_axis() -> None:
    view = View(CAMERAS["scene_left_0"], (120, 160))
    top = np.append(SCENE.blocks[1] + [0, 0, 0.045], 1.0)
    expected_mm = 1000 * (np.linalg.inv(view.camera.extrinsics(SCENE)) @ top)[2]
    measured = view.measure(SCENE).depth[block_pixel(view, 1)]
    assert measured == pytest.approx(expected_mm, abs=8)


@pytest.mark.parametrize("name", CAMERAS)
def test_extrinsics_are_rigid(name: str) -> None:
    rotation = CAMERAS[name].extrinsics(SCENE)[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_hand_camera_follows_the_hand() -> None:
    view = View(CAMERAS["wrist_right_minus"], (64, 64))
    moved = Scene(SCENE.gripper + np.array([0.1, 0, 0, 0]), SCENE.blocks, SCENE.bin)
    assert not np.array_equal(view.draw(SCENE), view.draw(moved))


def test_image_does_not_depend_on_the_previous_one() -> None:
    view = View(CAMERAS["scene_right_0"], (64, 64))
    np.testing.assert_array_equal(view.draw(SCENE), view.draw(SCENE))
