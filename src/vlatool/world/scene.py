"""The manipulation world: a table, three soft blocks, a bin and a gripper; kinematic, 10 Hz.

Lengths are in meters. In the base frame, x points right, y away from the viewer, z up; the table
is the unit square at z = 0. Source of the rules and numbers: measured, learnable in minutes.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

FPS = 10
COLORS = ("red", "green", "blue")
BLOCK_HALF = 0.045
BIN_HALF = 0.085
BIN_WALL = 0.012
MAX_STEP = 0.045
MAX_STEPS = 104
OPEN = 0.1
CLOSED = 0.0
# Opening of a hand that holds a block; blocks are soft, and an empty hand closes further.
HELD_OPENING = 0.04

_WORKSPACE_LOW = np.array([0.03, 0.03, 0.02])
_WORKSPACE_HIGH = np.array([0.97, 0.97, 0.32])
_OPENING_STEP = 0.05
_GRASP_HEIGHT = 0.05
_GRASP_RADIUS = 0.035
_BLOCK_DISTANCE = 0.15
_BIN_DISTANCE = 0.2
# Seed of the shared start scenes, and the largest distance from them along each axis.
_SHARED_SEED = 1
_SHARED_RANGE = 0.02


@dataclass(frozen=True)
class Scene:
    """State of the world at one frame."""

    gripper: FloatArray  # x, y, z of the fingertips and the opening between them [4]
    blocks: FloatArray  # center of each block [3, 3], in the order of `COLORS`
    bin: FloatArray  # x, y of the center of the bin [2]
    held: int | None = None  # index of the block in the hand, or None

    def is_in_bin(self, block: int) -> bool:
        """True if a block is in the bin and released."""
        inside = np.abs(self.blocks[block, :2] - self.bin).max() < BIN_HALF
        return bool(inside) and self.held != block

    def placed(self, target: int) -> int | None:
        """Block in the bin: `target` if it is there, else another one, else None."""
        candidates = [target, *range(len(COLORS))]
        return next((block for block in candidates if self.is_in_bin(block)), None)


def instruction_for(color: str) -> str:
    return f"put the {color} block in the bin"


def random_scene(rng: np.random.Generator) -> Scene:
    """Start scene: blocks and bin apart from each other, open hand above the table."""
    while True:
        positions = rng.uniform(0.12, 0.88, size=(4, 2))
        blocks = positions[:3]
        bin_center = positions[3]
        gaps = np.linalg.norm(blocks - np.roll(blocks, 1, axis=0), axis=1)
        bin_gaps = np.linalg.norm(blocks - bin_center, axis=1)
        if gaps.min() >= _BLOCK_DISTANCE and bin_gaps.min() >= _BIN_DISTANCE:
            break
    hand = rng.uniform([0.2, 0.2, 0.15], [0.8, 0.8, 0.3])
    return Scene(
        gripper=np.array([*hand, OPEN]),
        blocks=np.column_stack([blocks, np.full(3, BLOCK_HALF)]),
        bin=bin_center,
    )


def shared_scene(rng: np.random.Generator, number: int) -> Scene:
    """Start scene near the shared one of a number, as all episodes of a task of LIBERO have it."""
    scene = random_scene(np.random.default_rng([_SHARED_SEED, number]))
    moves = rng.uniform(-_SHARED_RANGE, _SHARED_RANGE, size=(5, 2))
    blocks = scene.blocks.copy()
    gripper = scene.gripper.copy()
    blocks[:, :2] += moves[:3]
    gripper[:2] += moves[4]
    return Scene(gripper, blocks, scene.bin + moves[3])


def next_pose(gripper: FloatArray, action: FloatArray) -> FloatArray:
    """Target pose of the hand for the next step [4]: `action`, limited in speed and workspace.

    Arguments are x, y, z, opening [4]. The opening of the result is fully open or fully closed,
    because fingers only open or close.
    """
    displacement = np.clip(action[:3], _WORKSPACE_LOW, _WORKSPACE_HIGH) - gripper[:3]
    length = float(np.linalg.norm(displacement))
    scale = min(1.0, MAX_STEP / length) if length > 0 else 0.0
    opening = OPEN if action[3] > OPEN / 2 else CLOSED
    return np.array([*(gripper[:3] + scale * displacement), opening])


def step(scene: Scene, action: FloatArray, disturbance: FloatArray | None = None) -> Scene:
    """Scene a frame later, for a target x, y, z, opening [4] and a displacement of the hand [3]."""
    goal = next_pose(scene.gripper, action)
    shift = np.zeros(3) if disturbance is None else disturbance
    hand = np.clip(goal[:3] + shift, _WORKSPACE_LOW, _WORKSPACE_HIGH)
    wants_open = goal[3] == OPEN
    was_open = scene.gripper[3] > OPEN / 2
    if wants_open:
        held = None
    elif scene.held is None and was_open:
        distances = np.linalg.norm(scene.blocks[:, :2] - hand[:2], axis=1)
        nearest = int(distances.argmin())
        reached = hand[2] < _GRASP_HEIGHT and distances[nearest] < _GRASP_RADIUS
        held = nearest if reached else None
    else:
        held = scene.held
    opening = _move_fingers(float(scene.gripper[3]), wants_open=wants_open, holds=held is not None)
    after = replace(scene, gripper=np.array([*hand, opening]), held=held)
    return replace(after, blocks=_move_blocks(after, dropped=scene.held if wants_open else None))


def _move_fingers(opening: float, *, wants_open: bool, holds: bool) -> float:
    if wants_open:
        return min(OPEN, opening + _OPENING_STEP)
    return max(HELD_OPENING if holds else CLOSED, opening - _OPENING_STEP)


def _move_blocks(scene: Scene, dropped: int | None) -> FloatArray:
    """Blocks after the hand moved [3, 3]: a held block follows it, a dropped one falls at once."""
    blocks = scene.blocks.copy()
    if scene.held is not None:
        x, y, z, _ = scene.gripper
        blocks[scene.held] = [x, y, max(z + 0.01, BLOCK_HALF)]
    if dropped is not None:
        position = blocks[dropped, :2]
        if np.abs(position - scene.bin).max() < BIN_HALF:
            margin = BIN_HALF - BIN_WALL - BLOCK_HALF  # the walls guide a falling block inward
            position = np.clip(position, scene.bin - margin, scene.bin + margin)
        blocks[dropped] = [*position, BLOCK_HALF]
    return blocks


IMAGE_COLUMNS = ("image", "wrist_image")
STATE_WIDTH = 8
ACTION_WIDTH = 7
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
    """Displacement, zero rotation, gripper (-1 open) [L, 7] of targets and poses before [L, 4]."""
    displacements = (targets[:, :3] - poses[:, :3]) / _METERS_PER_UNIT
    grip = np.where(targets[:, 3:] > OPEN / 2, -1.0, 1.0)
    return np.hstack([displacements, np.zeros_like(displacements), grip]).astype(np.float32)


def world_target(action: FloatArray, pose: FloatArray) -> FloatArray:
    """Target x, y, z, opening [4] of an action of LIBERO [7], without rotation, at a pose [4]."""
    opening = CLOSED if action[-1] > 0 else OPEN
    return np.array([*(pose[:3] + _METERS_PER_UNIT * action[:3]), opening])
