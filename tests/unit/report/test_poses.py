"""Camera models and drawn end effectors."""

import numpy as np

from vlatool.report.poses import CameraModel, EndEffectorTrack, draw_poses

INTRINSICS = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
CAMERA = CameraModel(INTRINSICS, np.eye(4), (64, 48))


def test_a_camera_model_needs_finite_matrices_whose_last_row_serves_later_steps() -> None:
    broken = np.full((4, 4), np.nan)
    assert CameraModel.at(INTRINSICS, np.eye(4), 0, (64, 48)) is not None
    assert CameraModel.at(INTRINSICS, broken, 0, (64, 48)) is None
    assert CameraModel.at(None, np.eye(4), 0, (64, 48)) is None

    extrinsics = np.stack([np.eye(4), 2 * np.eye(4)])
    camera = CameraModel.at(INTRINSICS, extrinsics, 7, (64, 48))
    assert camera is not None
    assert (camera.extrinsics == extrinsics[1]).all()


def test_the_ring_is_at_the_projected_position_and_padding_is_not_drawn() -> None:
    track = EndEffectorTrack("right", 0, np.array([[0.0, 0, 1], [0.1, 0, 1]]), None)
    assert 'cx="32.5" cy="24.5"' in draw_poses([track], 0, CAMERA, 1)

    track = EndEffectorTrack("right", 0, np.full((2, 3), np.nan), None)
    assert draw_poses([track], 0, CAMERA, 1).count("<circle") == 0
