"""The scripted expert, which needs no memory, and the disturbance that makes it recover."""

import numpy as np

from vlatool.world.scene import BLOCK_HALF, CLOSED, OPEN, FloatArray, Scene, next_pose

_HOVER = 0.16
_GRASP = 0.03
_RELEASE = 0.08
_AIMED = 0.025
_CLEAR = 0.06

_NOISE_MEMORY = 0.7
_NOISE_SCALE = 0.008
_KICK_CHANCE = 0.025
_KICK_STEPS = 3
_KICK_SCALE = np.array([0.03, 0.03, 0.015])


def expert_action(scene: Scene, target: int) -> FloatArray:
    """The pose to command now, already limited to one step [4]; a function of the scene alone."""
    return next_pose(scene.gripper, _waypoint(scene, target))


def _waypoint(scene: Scene, target: int) -> FloatArray:
    """Where to go: rise, go above, descend, close, lift, carry, lower, open."""
    if scene.held == target:
        return _carry(scene)
    hand = scene.gripper[:3]
    if scene.held is not None or scene.is_in_bin(target):
        return np.array([*hand[:2], _HOVER, OPEN])
    return _fetch(scene, scene.blocks[target])


def _fetch(scene: Scene, block: FloatArray) -> FloatArray:
    hand = scene.gripper[:3]
    distance = float(np.linalg.norm(block[:2] - hand[:2]))
    if distance > _CLEAR and hand[2] < 2 * BLOCK_HALF:
        return np.array([*hand[:2], _HOVER, OPEN])
    if distance > _AIMED:
        return np.array([*block[:2], max(_HOVER if distance > _CLEAR else hand[2], _GRASP), OPEN])
    is_low = hand[2] < _GRASP + 0.01
    can_close = is_low and scene.gripper[3] > OPEN / 2
    return np.array([*block[:2], _GRASP, CLOSED if can_close else OPEN])


def _carry(scene: Scene) -> FloatArray:
    hand = scene.gripper[:3]
    distance = float(np.linalg.norm(scene.bin - hand[:2]))
    if distance > _CLEAR and hand[2] < 2 * BLOCK_HALF:
        return np.array([*hand[:2], _HOVER, CLOSED])
    if distance > _AIMED:
        return np.array([*scene.bin, _HOVER, CLOSED])
    return np.array([*scene.bin, _RELEASE - 0.02, OPEN if hand[2] < _RELEASE else CLOSED])


class Disturbance:
    """Pushes on the hand: a slow random drift, and now and then a kick of a few steps.

    It acts on the world and not on the recorded action, so recordings show how to recover.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._drift = np.zeros(3)
        self._kick = np.zeros(3)
        self._kick_steps = 0

    def sample(self) -> FloatArray:
        """Displacement of the hand in the coming step [3]."""
        self._drift = _NOISE_MEMORY * self._drift + self._rng.normal(0.0, _NOISE_SCALE, 3)
        if self._kick_steps == 0 and self._rng.random() < _KICK_CHANCE:
            self._kick_steps = _KICK_STEPS
            self._kick = self._rng.normal(0.0, _KICK_SCALE)
        if self._kick_steps == 0:
            return self._drift
        self._kick_steps -= 1
        return self._drift + self._kick
