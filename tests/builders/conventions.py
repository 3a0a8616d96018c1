"""Recordings whose conventions are known: poses of worlds, and actions written in a convention."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vlatool.episode import Array
from vlatool.transforms.convention_fits import Frame, Relation, between
from vlatool.transforms.rotations import (
    ROTATION_WIDTH,
    RotationForm,
    form_from_matrix,
)

SCALES = (1.0, 1.0, 20.0, 1000.0)
TURN_SCALES = (1.0, 1.0, 10.0, 60.0)
RANGES = ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (0.0, 255.0))


@dataclass(frozen=True)
class Planted:
    """Convention in which actions were written."""

    relation: Relation
    frame: Frame | None
    lag: int
    rotation: RotationForm
    state_rotation: RotationForm
    scale: float  # of the position
    turn_scale: float  # of three numbers of a rotation, if it is a delta
    gripper: tuple[float, float]  # action of the closed and of the open hand
    noise: float  # share of the deviation of each dimension


@dataclass(frozen=True)
class Trajectory:
    """Poses and opening of a hand at F frames."""

    positions: Array  # [F, 3]
    rotations: Array  # [F, 3, 3]
    opening: Array  # [F], 0 closed to 1 open


def planted_case(number: int) -> Planted:
    rng = np.random.default_rng([42, number])
    forms: Sequence[RotationForm] = list(ROTATION_WIDTH)
    relation: Relation = ("absolute", "delta")[number % 2]
    return Planted(
        relation,
        None if relation == "absolute" else ("base", "tool")[number // 2 % 2],
        number // 4 % 4,
        forms[number % len(forms)],
        forms[int(rng.integers(len(forms)))],
        float(rng.choice(SCALES)),
        float(rng.choice(TURN_SCALES)),
        RANGES[int(rng.integers(len(RANGES)))],
        float(rng.choice([0.0, 0.01, 0.02, 0.05])),
    )


def turning(rng: np.random.Generator, frames: int) -> Array:
    """Smooth rotations [F, 3, 3] of a hand that points down on average."""
    speed = np.zeros(3)
    rotation = Rotation.from_rotvec(rng.normal(0, 0.4, 3)) * Rotation.from_euler("x", np.pi)
    turned = [rotation]
    for _ in range(frames - 1):
        speed = 0.9 * speed + rng.normal(0, 0.02, 3)
        rotation = Rotation.from_rotvec(speed) * rotation
        turned.append(rotation)
    return Rotation.concatenate(turned).as_matrix()


def states_of(trajectory: Trajectory, form: RotationForm) -> Array:
    """Position, rotation and opening in metres [F, 4 + C]."""
    rotation = form_from_matrix(trajectory.rotations, form)
    if form.startswith("quaternion"):
        signs = np.sign((rotation[1:] * rotation[:-1]).sum(axis=1))
        rotation[1:] *= np.cumprod(signs)[:, None]
    return np.hstack([trajectory.positions, rotation, 0.08 * trajectory.opening[:, None]])


def actions_of(trajectory: Trajectory, planted: Planted, rng: np.random.Generator) -> Array:
    """Actions [F, 4 + C] in a convention; the frames at the end repeat the last pose."""
    frames = np.arange(len(trajectory.positions))
    later = np.clip(frames + planted.lag, 0, frames[-1])
    before = np.clip(frames + planted.lag - 1, 0, frames[-1])
    position = trajectory.positions[later]
    rotation = trajectory.rotations[later]
    if planted.relation == "delta":
        reference = trajectory.rotations[before]
        position = position - trajectory.positions[before]
        if planted.frame == "tool":
            position = np.einsum("nji,nj->ni", reference, position)
        rotation = between(reference, rotation, planted.frame)
    numbers = form_from_matrix(rotation, planted.rotation)
    if planted.relation == "delta" and numbers.shape[1] == 3:
        numbers = numbers * planted.turn_scale
    low, high = planted.gripper
    opening = low + (high - low) * trajectory.opening[later, None]
    actions = np.hstack([planted.scale * position, numbers, opening])
    noise = planted.noise * actions.std(axis=0)
    noise[3 + numbers.shape[1] :] = 0
    if planted.relation == "absolute":  # of angles that may wrap: of the rotation itself
        noise[3 : 3 + numbers.shape[1]] = 0
        turns = Rotation.from_rotvec(rng.normal(0, planted.noise * 0.3, (len(frames), 3)))
        noisy = form_from_matrix(turns.as_matrix() @ rotation, planted.rotation)
        actions[:, 3 : 3 + numbers.shape[1]] = noisy
    return actions + rng.normal(size=actions.shape) * noise
