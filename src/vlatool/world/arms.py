"""Signals of the two-armed robot that the world stands for; only the right arm moves.

Joints, torques and wrenches are smooth made-up functions of the hand's pose: their names, shapes
and ranges are those of real recordings, their values have no physics. Source: lbm-data 2.2.
"""

import numpy as np

from vlatool.world.cameras import LEFT_ARM_POSITION
from vlatool.world.scene import FPS, OPEN, FloatArray

ROBOT_VERSION = 20241212.0
# First two rows of the rotation of a hand that points down: diag(1, -1, -1). Source: lbm-data 3.7.
DOWNWARD_ROT_6D = np.array([1.0, 0.0, 0.0, 0.0, -1.0, 0.0])
LEFT_HAND = np.array([*LEFT_ARM_POSITION, OPEN])

_JOINTS = 7
_REST = np.array([0.0, -0.4, 0.0, -2.1, 0.0, 1.8, 0.8])
_JOINT_GAINS = np.cos(np.arange(_JOINTS * 3).reshape(3, _JOINTS)) * 0.9
_GRAVITY_TORQUE = np.array([0.0, -28.0, -3.0, 22.0, 1.5, 2.2, 0.1])
_HAND_WEIGHT = 7.2


def robot_signals(states: FloatArray, desired: FloatArray) -> dict[str, FloatArray]:
    """Every low-dimensional array of an episode by its raw name, float64 [L, C].

    Args:
        states: x, y, z, opening of the right hand [L, 4].
        desired: The same as it was commanded [L, 4].
    """
    left = np.tile(LEFT_HAND, (len(states), 1))
    signals: dict[str, FloatArray] = {}
    for kind, right in (("actual", states), ("desired", desired)):
        for side, hand in (("left", left), ("right", right)):
            signals |= _arm_signals(kind, side, hand)
    signals["robot__version"] = np.full((len(states), 1), ROBOT_VERSION)
    return dict(sorted(signals.items()))


def action_vectors(actions: FloatArray) -> FloatArray:
    """Commands x, y, z, opening [L, 4] in the published order [L, 20]. Source: lbm-data 2.3."""
    rotation = np.tile(DOWNWARD_ROT_6D, (len(actions), 1))
    left = np.tile(LEFT_HAND, (len(actions), 1))
    right_pose = [actions[:, :3], rotation]
    return np.hstack([*right_pose, left[:, :3], rotation, actions[:, 3:], left[:, 3:]])


def _arm_signals(kind: str, side: str, hand: FloatArray) -> dict[str, FloatArray]:
    joints = _REST + (hand[:, :3] - [0.5, 0.5, 0.2]) @ _JOINT_GAINS
    velocity = np.gradient(joints, axis=0) * FPS if len(hand) > 1 else np.zeros_like(joints)
    grip = 1 - hand[:, 3:] / OPEN
    external = 0.3 * np.sin(3 * joints) + 0.2 * grip
    force = np.hstack([0.4 * np.sin(4 * hand[:, :3]), 0.05 * np.cos(4 * hand[:, :3])])
    values = {
        "joint_position": joints,
        "joint_velocity": velocity,
        "joint_torque": _GRAVITY_TORQUE * np.cos(0.5 * (joints - _REST)) + external,
        "joint_torque_external": external,
        "wrench": force + np.array([0.0, 0.0, -_HAND_WEIGHT, 0.0, 0.0, 0.0]),
        "external_wrench": force,
    }
    prefix = f"robot__{kind}__"
    arm = {f"{prefix}{family}__{side}::panda": value for family, value in values.items()}
    arm[f"{prefix}grippers__{side}::panda_hand"] = hand[:, 3:]
    arm[f"{prefix}poses__{side}::panda__xyz"] = hand[:, :3]
    arm[f"{prefix}poses__{side}::panda__rot_6d"] = np.tile(DOWNWARD_ROT_6D, (len(hand), 1))
    return arm
