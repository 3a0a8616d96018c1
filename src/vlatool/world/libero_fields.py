"""States and actions of the world in the layout of LIBERO.

Legend of shapes: L frames. Source: formats/lerobot 10.
"""

import numpy as np
from numpy.typing import NDArray

from vlatool.world.scene import CLOSED, OPEN, FloatArray

IMAGE_COLUMNS = ("image", "wrist_image")
STATE_WIDTH, ACTION_WIDTH = 8, 7
# An action of 1 moves the target of the real arm by this many meters (robosuite's default scale).
_METERS_PER_UNIT = 0.05
# Axis-angle of a hand that points down.
_DOWNWARD = (np.pi, 0.0, 0.0)


def libero_states(poses: FloatArray) -> NDArray[np.float32]:
    """Position, axis-angle and two fingers [L, 8]; `poses`: x, y, z, opening of the hand [L, 4]."""
    rotation = np.tile(_DOWNWARD, (len(poses), 1))
    finger = poses[:, 3:] / 2
    return np.hstack([poses[:, :3], rotation, finger, -finger]).astype(np.float32)


def libero_actions(targets: FloatArray, poses: FloatArray) -> NDArray[np.float32]:
    """Displacement, zero rotation, gripper (-1 open, 1 closed) [L, 7]; `targets`: target x, y, z,
    opening of the hand [L, 4]; `poses`: x, y, z, opening of the hand before the action [L, 4].
    """
    displacements = (targets[:, :3] - poses[:, :3]) / _METERS_PER_UNIT
    grip = np.where(targets[:, 3:] > OPEN / 2, -1.0, 1.0)
    return np.hstack([displacements, np.zeros_like(displacements), grip]).astype(np.float32)


def world_target(action: FloatArray, pose: FloatArray) -> FloatArray:
    """Target x, y, z, opening [4] of an action of LIBERO [7]; its rotation is left out; `pose`: x,
    y, z, opening of the hand before the action [4].
    """
    opening = CLOSED if action[-1] > 0 else OPEN
    return np.array([*(pose[:3] + _METERS_PER_UNIT * action[:3]), opening])
