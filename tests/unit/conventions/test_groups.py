"""Conventions of actions are found by fits to the states."""

import numpy as np
import pytest

from tests.builders.conventions import (
    joint_verdict,
    planted_case,
    states_of,
    trajectories,
    verdict,
)
from vlatool.conventions.fit import Column, Samples
from vlatool.conventions.groups import Group, find_groups
from vlatool.episode import Array
from vlatool.transforms.rotations import form_from_matrix

FRAMES, EPISODES = 60, 6


@pytest.mark.parametrize("start", range(0, 40, 8))
def test_planted_conventions_are_found(start: int) -> None:
    for number in range(start, start + 8):
        hands = trajectories("world", np.random.default_rng(number))
        assert verdict(planted_case(number), hands) == "right", number


def test_forms_that_the_states_do_not_name_are_never_wrong() -> None:
    for number in range(1, 9, 2):
        hands = trajectories("world", np.random.default_rng(number))
        assert verdict(planted_case(number), hands, named=False) != "wrong", number


@pytest.mark.parametrize("start", range(0, 24, 8))
def test_joints_and_a_gripper_in_one_vector_are_two_groups(start: int) -> None:
    for number in range(start, start + 8):
        assert joint_verdict(number) == "right", number


def test_named_axes_are_one_position() -> None:
    states = walks(14, 4)
    actions = [np.vstack([each[1:], each[-1:]]) for each in states]

    groups = groups_of(actions, states, ["x", "y", "z", "gripper"])

    assert [(group.kind, group.columns) for group in groups] == [
        ("values", slice(0, 3)),
        ("gripper", slice(3, 4)),
    ]


def walks(seed: int, width: int) -> list[Array]:
    """Smooth random numbers [F, C] of each episode."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 0.02, (EPISODES, FRAMES, width))
    return [np.cumsum(np.cumsum(each, axis=0), axis=0) for each in steps]


def groups_of(
    actions: list[Array], states: list[Array], names: list[str] | None = None
) -> list[Group]:
    width, states_width = actions[0].shape[1], states[0].shape[1]
    columns = [Column("action", index) for index in range(width)]
    observed = [Column("state", index) for index in range(states_width)]
    if names is not None:
        columns = [Column("action", index, name) for index, name in enumerate(names)]
        observed = [Column("state", index, name) for index, name in enumerate(names)]
    rows = list(zip(actions, states, strict=True))
    return find_groups(Samples.of(rows, columns, observed))


@pytest.mark.parametrize("lag", [-1, 0, 1, 5])
def test_joints_and_a_gripper_of_the_other_sign(lag: int) -> None:
    states = walks(0, 8)
    frames = np.clip(np.arange(FRAMES) + lag, 0, FRAMES - 1)
    actions = [each[frames] * ([1.0] * 7 + [-2.0]) for each in states]
    names = [f"joint_{index}" for index in range(7)] + ["gripper"]

    joints, gripper = groups_of(actions, states, names)

    assert (joints.kind, joints.columns, joints.states) == ("joints", slice(0, 7), slice(0, 7))
    assert (gripper.kind, gripper.columns, gripper.states) == ("gripper", slice(7, 8), slice(7, 8))
    for group, scale in ((joints, 1.0), (gripper, -2.0)):
        assert (group.values("relation"), group.values("lag")) == (["absolute"], [lag])
        assert group.fits[0].scale == pytest.approx([scale] * len(group.fits[0].scale))


def test_numbers_of_another_order_are_matched_by_their_values() -> None:
    states = walks(1, 4)
    actions = [np.diff(each, axis=0, append=each[-1:])[:, [2, 3, 0]] for each in states]

    first, second = groups_of(actions, states)

    assert (first.states, second.states) == (slice(2, 4), slice(0, 1))
    assert (first.values("relation"), first.values("lag")) == (["delta"], [1])


def test_unnamed_joints_are_no_pose() -> None:
    rng = np.random.default_rng(1)
    states = [5 * each for each in walks(10, 7)]
    actions = [
        np.vstack([each[1:], each[-1:]]) + rng.normal(0, 0.003, each.shape) for each in states
    ]
    (group,) = groups_of(actions, states)
    assert (group.kind, group.values("relation"), group.values("lag")) == (
        "values",
        ["absolute"],
        [1],
    )


def test_some_numbers_of_a_quaternion_are_no_match() -> None:
    hands = trajectories("world", np.random.default_rng(0))
    states = [states_of(hand, "quaternion_xyzw") for hand in hands]
    degrees = [np.rad2deg(form_from_matrix(hand.rotations, "euler_xyz")) for hand in hands]
    assert not any(group.is_determined for group in groups_of(degrees, states))


def test_smooth_signals_of_few_episodes_say_nothing() -> None:
    actions, states = walks(11, 3), walks(12, 6)
    for copies in (1, 20):
        groups = groups_of([actions[0]] * copies, [states[0]] * copies)
        assert not any(group.is_determined for group in groups)


def test_a_dimension_without_numbers_leaves_the_others() -> None:
    states = walks(13, 3)
    actions = [np.hstack([each, np.full((FRAMES, 1), np.nan)]) for each in states]
    groups = groups_of(actions, states)
    assert [group.kind for group in groups] == ["values", "missing"]
    assert groups[0].values("lag") == [0]


def test_a_group_ends_with_the_field_of_its_states() -> None:
    states = walks(7, 4)
    columns = [Column("action", index) for index in range(4)]
    observed = [*(Column("eef_pos", index) for index in range(3)), Column("gripper", 0)]
    rows = list(zip(states, states, strict=True))
    groups = find_groups(Samples.of(rows, columns, observed))
    kinds = [(group.kind, group.states) for group in groups]
    assert kinds == [("position", slice(0, 3)), ("gripper", slice(3, 4))]


def test_actions_that_follow_no_state_are_not_determined() -> None:
    (group,) = groups_of(walks(2, 2), [each[::-1] * 0 for each in walks(3, 5)])
    assert (group.is_determined, group.states) == (False, None)


def test_dimensions_that_do_not_move_are_constant() -> None:
    states = walks(4, 2)
    actions = [np.hstack([each, np.full((FRAMES, 3), 0.5)]) for each in states]
    assert [group.kind for group in groups_of(actions, states)] == ["values", "constant"]


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_few_rows_say_nothing(frames: int) -> None:
    states = [each[:frames] for each in walks(5, 3)[:2]]
    assert [group.is_determined for group in groups_of(states, states)] == [False]


def test_answers_that_few_noisy_rows_do_not_distinguish_are_all_named() -> None:
    rng = np.random.default_rng(0)
    states = [each[:16] for each in walks(8, 2)]
    actions = [np.roll(each, -1, axis=0) for each in states]
    noisy = [each + rng.normal(0, 0.3 * each.std(), each.shape) for each in actions]
    (group,) = groups_of(noisy, states)
    assert {*group.values("relation")} == {"absolute", "delta"}
    assert 1 in group.values("lag")


def test_rows_with_nan_are_left_out() -> None:
    states = walks(6, 2)
    actions = [each.copy() for each in states]
    actions[0][10], states[1][20] = np.nan, np.inf
    (group,) = groups_of(actions, states)
    assert (group.values("lag"), group.fits[0].residual) == ([0], pytest.approx(0, abs=1e-6))


def test_states_of_a_lost_tracker_are_read() -> None:
    rng = np.random.default_rng(0)
    quaternions = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in walks(9, 4)]
    quaternions[0][20:25] = 0
    states = [np.hstack([rng.random((FRAMES, 3)), each]) for each in quaternions]
    states[1][5, 0] = 1e300
    groups = groups_of([each[:, :6] for each in states], states)
    assert groups[0].values("lag") == [0]


def test_actions_without_states_have_no_convention() -> None:
    actions = walks(1, 3)
    groups = groups_of(actions, [each[:, :0] for each in actions])
    assert [group.states for group in groups] == [None]
