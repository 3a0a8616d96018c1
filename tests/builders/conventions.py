"""Recordings whose conventions are known: poses of worlds, and actions written in a convention.

`python -m tests.builders.conventions` writes 200 of them, and prints how many are found.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from vlatool.conventions.fit import Column, Frame, Relation, Samples
from vlatool.conventions.groups import Group, find_groups
from vlatool.episode import Array
from vlatool.transforms.rotations import (
    ROTATION_WIDTH,
    RotationForm,
    angle_between,
    form_from_matrix,
    matrix_from,
)
from vlatool.world.recording import expert_episode

Verdict = Literal["right", "not determined", "wrong"]

SCALES = (1.0, 1.0, 20.0, 1000.0)
_SCALE = 0.1  # share by which a scale may differ
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
    """Position, rotation and opening in meters [F, 4 + C]."""
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
        inverse = np.swapaxes(reference, 1, 2)
        rotation = inverse @ rotation if planted.frame == "tool" else rotation @ inverse
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


def trajectories(world: str, rng: np.random.Generator) -> list[Trajectory]:
    """Hands of a world, `world` or `metaworld`, which also turn."""
    return [_trajectory(rng, poses) for poses in _recorded(world)]


@cache
def _recorded(world: str) -> list[Array]:
    if world == "world":
        return [expert_episode(0, number).states for number in range(12)]
    from vlatool.world.metaworld.episodes import simulated_episode

    tasks = ["reach-v3", "push-v3"]
    return [simulated_episode(tasks, (16, 16), 0, number).states[:, :4] for number in range(4)]


def _trajectory(rng: np.random.Generator, poses: Array) -> Trajectory:
    opening = (poses[:, 3] - poses[:, 3].min()) / max(float(np.ptp(poses[:, 3])), 1e-9)
    return Trajectory(poses[:, :3], turning(rng, len(poses)), opening)


def verdict(planted: Planted, trajectories: Sequence[Trajectory], *, named: bool = True) -> Verdict:
    """Verdict on the conventions of actions that are written as planted.

    `named`: the states name the form of their rotation.
    """
    rng = np.random.default_rng(7)
    rows = [
        (actions_of(each, planted, rng), states_of(each, planted.state_rotation))
        for each in trajectories
    ]
    end = 3 + ROTATION_WIDTH[planted.rotation]
    actions = [Column("action", index) for index in range(end + 1)]
    form = planted.state_rotation
    fields = {"position": 3, form if named else "turned": ROTATION_WIDTH[form], "width": 1}
    states = [Column(name, index) for name, size in fields.items() for index in range(size)]
    groups = {
        (group.columns.start, group.columns.stop): group
        for group in find_groups(Samples.of(rows, actions, states))
    }
    answers = [
        _judge(groups.get((0, 3)), planted, trajectories, planted.scale),
        _judge(groups.get((3, end)), planted, trajectories, planted.turn_scale),
        _judge_gripper(groups.get((end, end + 1)), planted),
    ]
    verdicts: tuple[Verdict, ...] = ("wrong", "not determined")
    return next((each for each in verdicts if each in answers), "right")


def _judge(
    group: Group | None, planted: Planted, trajectories: Sequence[Trajectory], scale: float
) -> Verdict:
    """Verdict on a position or a rotation; answers that move no pose count as the planted one."""
    if group is None or not group.is_determined:
        return "not determined"
    names = ("relation", "lag", "frame", *(["rotation"] if group.kind == "rotation" else []))
    moves = [
        _moves_a_pose(
            replace(planted, **dict(zip(names, answer, strict=True))), planted, trajectories
        )
        for answer in product(*(group.values(name) or [None] for name in names))
    ]
    if any(moves):
        return "wrong" if all(moves) else "not determined"
    fitted = group.fits[0].scale
    is_other = planted.relation == "delta" and fitted and abs(fitted[0] / scale - 1) > _SCALE
    return "wrong" if is_other else "right"


def _moves_a_pose(answer: Planted, planted: Planted, trajectories: Sequence[Trajectory]) -> bool:
    """True if targets differ by more than 1 mm or 1 degree when actions are read as an answer."""
    kinds = [(case.relation, case.frame, case.lag) for case in (answer, planted)]
    if kinds[0] != kinds[1]:
        return True
    for each in trajectories:
        clean = actions_of(each, replace(planted, noise=0.0), np.random.default_rng(0))[:, 3:-1]
        is_scaled = planted.relation == "delta" and clean.shape[1] == 3
        numbers = clean / planted.turn_scale if is_scaled else clean
        turned = [matrix_from(numbers, case.rotation) for case in (answer, planted)]
        if np.rad2deg(angle_between(*turned)).max() > 1:
            return True
    return False


def _judge_gripper(group: Group | None, planted: Planted) -> Verdict:
    if group is None or not group.is_determined or group.kind == "values":
        return "not determined"
    low, high = planted.gripper
    is_opening = group.fits[0].scale[0] > 0
    if group.values("lag") != [planted.lag]:
        return "not determined" if planted.lag in group.values("lag") else "wrong"
    return "right" if is_opening == (high > low) and group.kind == "gripper" else "wrong"


@dataclass(frozen=True)
class PlantedJoints:
    """Convention of joints and a gripper that are one vector."""

    joints: int
    relation: Relation
    lag: int  # of the joints
    gripper: Literal["meters", "share", "command"]  # command: two values, which the state follows
    gripper_lag: int
    frames_to_close: int  # of the gripper
    is_named: bool
    noise: float  # 1: states are measured to 0.002 rad and 2 mm


def joint_case(number: int) -> PlantedJoints:
    rng = np.random.default_rng([43, number])
    kinds: Sequence[Literal["meters", "share", "command"]] = ("meters", "share", "command")
    return PlantedJoints(
        joints=(6, 7)[number % 2],
        relation=("absolute", "absolute", "delta")[number % 3],
        lag=int(rng.integers(0, 4)),
        gripper=kinds[number // 2 % 3],
        gripper_lag=int(rng.integers(0, 3)),
        frames_to_close=int(rng.choice([3, 8, 20, 40])),
        is_named=bool(number // 6 % 2),
        noise=float(rng.choice([0.0, 1.0])),
    )


def joint_rows(case: PlantedJoints, number: int, episodes: int = 10) -> list[tuple[Array, Array]]:
    """Actions and states [F, C] of each episode."""
    rng = np.random.default_rng([44, number])
    rows: list[tuple[Array, Array]] = []
    for _ in range(episodes):
        frames = int(rng.integers(80, 160))
        speed = np.zeros(case.joints)
        joints = [rng.normal(0, 0.5, case.joints)]
        for _ in range(frames - 1):
            speed = 0.9 * speed + rng.normal(0, 0.01, case.joints)
            joints.append(joints[-1] + speed)
        command = np.ones(frames)
        command[int(rng.integers(15, 40)) : int(rng.integers(50, frames))] = 0
        opening = [1.0]
        for wanted in command[1:]:
            step = 1 / case.frames_to_close
            opening.append(opening[-1] + float(np.clip(wanted - opening[-1], -step, step)))
        hand = 0.08 * np.array(opening)
        clean = np.stack(joints)
        later = np.clip(np.arange(frames) + case.lag, 0, frames - 1)
        before = np.clip(np.arange(frames) + case.lag - 1, 0, frames - 1)
        moved = clean[later] if case.relation == "absolute" else clean[later] - clean[before]
        at = np.clip(np.arange(frames) + case.gripper_lag, 0, frames - 1)
        written = {"meters": hand[at], "share": hand[at] / 0.08, "command": command}[case.gripper]
        actions = np.hstack([moved, written[:, None]])
        states = np.hstack([clean, hand[:, None]])
        noise = case.noise * np.array([0.002] * (case.joints + 1))
        rows.append((actions, states + rng.normal(size=states.shape) * noise))
    return rows


def joint_verdict(number: int) -> Verdict:
    """Verdict on joints and a gripper in one vector."""
    case = joint_case(number)
    names = [*(f"joint_{index}" for index in range(case.joints)), "gripper"]
    width = case.joints + 1
    shown = names if case.is_named else [""] * width
    actions = [Column("action", index, shown[index]) for index in range(width)]
    states = [Column("state", index, shown[index]) for index in range(width)]
    answers: set[Verdict] = set()
    for group in find_groups(Samples.of(joint_rows(case, number), actions, states)):
        span = range(group.columns.start, group.columns.stop)
        if case.joints in span:
            answers.add(_judge_hand(group, case, is_alone=len(span) == 1))
        if span.start < case.joints:
            answers.add(_judge_numbers(group, case.relation, case.lag, 1.0))
    verdicts: tuple[Verdict, ...] = ("wrong", "not determined")
    return next((each for each in verdicts if each in answers), "right")


def _judge_hand(group: Group, case: PlantedJoints, *, is_alone: bool) -> Verdict:
    if case.gripper != "command":
        scale = 1.0 if case.gripper == "meters" else 1 / 0.08
        return _judge_numbers(group, "absolute", case.gripper_lag, scale)
    if not group.is_determined:
        return "not determined"
    is_opening = group.fits[0].scale[-1] > 0
    return "right" if is_alone and group.kind == "gripper" and is_opening else "wrong"


def _judge_numbers(group: Group, relation: Relation, lag: int, scale: float) -> Verdict:
    """Verdict on numbers that are those of the states of a lag, by a scale."""
    if not group.is_determined:
        return "not determined"
    answers = [(fit.relation, fit.lag) for fit in group.tied]
    if (relation, lag) not in answers:
        return "wrong"
    if len({*answers}) > 1:
        return "not determined"
    fitted = np.array(group.fits[0].scale)
    return "right" if (np.abs(fitted / scale - 1) < 2 * _SCALE).all() else "wrong"


def main(cases: int) -> None:
    verdicts: Counter[tuple[str, float, str]] = Counter()
    for number in range(cases):
        case, world = planted_case(number), ("world", "metaworld")[number // 8 % 2]
        outcome = verdict(case, trajectories(world, np.random.default_rng(number)))
        verdicts[world, case.noise, outcome] += 1
        if outcome != "right":
            sys.stdout.write(f"{number} {outcome}: {case}\n")
    for number in range(cases):
        case, outcome = joint_case(number), joint_verdict(number)
        verdicts["joints", 0.01 * case.noise, outcome] += 1
        if outcome != "right":
            sys.stdout.write(f"{number} {outcome}: {case}\n")
    for (world, noise, outcome), count in sorted(verdicts.items()):
        sys.stdout.write(f"{world} {noise:.0%} {outcome} {count}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=200)
    main(parser.parse_args().cases)
