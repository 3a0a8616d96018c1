import numpy as np
import pytest

from vlatool.transforms.geometry import project
from vlatool.world.render import CAMERAS, HAND_LABEL, View
from vlatool.world.scene import Scene

K = np.array([[100.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]])


def pose(rotation: list[list[float]], center: list[float]) -> np.ndarray:
    transform = np.eye(4)
    transform[:3, :3] = rotation
    transform[:3, 3] = center
    return transform


SKEWED = K + np.array([[0, 10, 0], [0, 0, 0], [0, 0, 0]])
# Above the origin looking down: camera x = base x, camera y = -base y, camera z = -base z.
DOWN = pose([[1, 0, 0], [0, -1, 0], [0, 0, -1]], [0.0, 0.0, 2.0])
# The camera looks along base x: its x is -base y, its y is -base z, its z is base x.
FORWARD = pose([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], [1.0, 0.0, 0.5])


@pytest.mark.parametrize(
    ("point", "intrinsics", "extrinsics", "expected"),
    [
        ([0.2, -0.4, 2.0], K, np.eye(4), [100 * 0.2 / 2 + 32, 50 * -0.4 / 2 + 24]),
        ([0.1, 0.2, 1.0], K, DOWN, [100 * 0.1 + 32, 50 * -0.2 + 24]),
        ([3.0, 0.4, 0.1], K, FORWARD, [100 * -0.4 / 2 + 32, 50 * 0.4 / 2 + 24]),
        ([0.0, 1.0, 1.0], SKEWED, np.eye(4), [42.0, 74.0]),
    ],
    ids=["unmoved", "down", "forward", "skewed"],
)
def test_extrinsics_are_the_pose_of_the_camera_not_its_inverse(
    point: list[float], intrinsics: np.ndarray, extrinsics: np.ndarray, expected: list[float]
) -> None:
    pixels, visible = project(np.array([point]), intrinsics, extrinsics)
    np.testing.assert_allclose(pixels, [expected], rtol=1e-12)
    assert visible.tolist() == [True]


@pytest.mark.parametrize(
    "point", [[0.0, 0.0, -1.0], [0.1, 0.1, 0.0], [np.nan, 0.0, 1.0], [np.inf, 0.0, 1.0]]
)
def test_point_without_a_projection_is_not_visible(point: list[float]) -> None:
    pixels, visible = project(np.array([point, [0.0, 0.0, 1.0]]), K, np.eye(4))
    assert visible.tolist() == [False, True]
    assert np.isnan(pixels[0]).all()
    np.testing.assert_allclose(pixels[1], [32.0, 24.0], rtol=1e-12)

    pixels, visible = project(np.zeros((0, 3)), K, np.eye(4))
    assert pixels.shape == (0, 2)
    assert visible.shape == (0,)


@pytest.mark.parametrize("name", list(CAMERAS))
@pytest.mark.parametrize("tips", [(0.3, 0.4, 0.1), (0.6, 0.55, 0.05)])
def test_projected_fingers_lie_on_the_imaged_hand(
    name: str, tips: tuple[float, float, float]
) -> None:
    camera = CAMERAS[name]
    view = View(camera, (120, 160))
    away = np.array([[0.9, 0.1, 0.045], [0.9, 0.3, 0.045], [0.9, 0.9, 0.045]])
    scene = Scene(np.array([*tips, 0.02]), away, np.array([0.1, 0.1]))
    # Both fingers: the position is the point between them.
    fingers = np.add(tips, [[0.018, 0.0, 0.0], [-0.018, 0.0, 0.0]])

    pixels, visible = project(fingers, view.intrinsics, camera.extrinsics(scene))

    assert visible.all()
    labels = view.measure(scene).labels
    for x, y in np.round(pixels).astype(int):
        assert labels[y, x] == HAND_LABEL
