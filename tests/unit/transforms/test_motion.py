"""Figures of motions whose values are known in closed form."""

import numpy as np
import pytest

from vlatool.transforms.motion import (
    action_lags,
    lag_residuals,
    motion_figures,
    speeds,
    two_valued,
)

RATE = 10.0


def ramp(frames: int = 100) -> np.ndarray:
    """Position [F, 1] that moves by one each frame."""
    return np.arange(frames, dtype=float)[:, None]


def figures(states: np.ndarray) -> dict[str, float]:
    return motion_figures(states, RATE)


def test_a_steady_motion_has_no_pause_and_ends_at_its_top_speed() -> None:
    known = figures(ramp())
    assert known["idle_share"] == known["longest_pause"] == 0
    assert known["end_speed"] == pytest.approx(1)
    # The range of nine tenths of 0, ..., 99 is 89.1 steps.
    assert known["largest_jump"] == pytest.approx(1 / 89.1)
    assert known["reversal"] == pytest.approx(-98 / 99)


def test_a_pause_is_the_stillness_between_motions() -> None:
    still = [0.0] * 10, [40.0] * 20, [80.0] * 15
    states = np.concatenate([still[0], np.arange(1, 41), still[1], np.arange(41, 81), still[2]])
    known = figures(states[:, None])
    # 80 steps of motion and 20 still ones between; stillness at the ends does not count.
    assert known["idle_share"] == pytest.approx(20 / 100)
    assert known["longest_pause"] == pytest.approx(20 / RATE)
    assert known["end_speed"] == 0


def test_a_robot_that_mostly_stands_still_has_a_top_speed() -> None:
    states = np.repeat([0.0, 1.0, 2.5], [50, 40, 30])[:, None]
    known = figures(states)
    # Two steps in 119, the first at frame 50 and the second at frame 90.
    assert known["idle_share"] == pytest.approx(39 / 41)
    assert known["end_speed"] == 0


def test_a_jump_is_seen_beside_a_gripper_that_snaps() -> None:
    grip = np.repeat([0.0, 1.0], 50)
    states = np.hstack([ramp(), grip[:, None]])
    assert figures(states)["largest_jump"] < 0.02
    states[30:, 0] += 50
    assert figures(states)["largest_jump"] > 0.3


def test_steps_that_undo_each_other_are_reversals() -> None:
    # Steps of 1, -0.7 and -0.3: products of -0.7, 0.21 and -0.3 beside squares of 1.58 in sum.
    states = np.tile([0.0, 1.0, 0.3], 400)[:, None]
    assert figures(states)["reversal"] == pytest.approx(0.79 / 1.58, abs=0.001)


def test_a_gripper_has_two_values() -> None:
    grip = np.repeat([0.0, 1.0, 0.0, 1.0], 25)[:, None]
    assert two_valued(grip).all()
    assert not two_valued(ramp()).any()


@pytest.mark.parametrize("late", [0, 2, 3])
@pytest.mark.parametrize("are_steps", [True, False])
def test_late_actions_lag_by_their_frames(late: int, are_steps: bool) -> None:
    states = np.random.default_rng(0).normal(size=(60, 3)).cumsum(axis=0)
    following = np.roll(states, -1, axis=0)
    actions = np.roll(following - states if are_steps else following, late, axis=0)
    punctual = lag_residuals(states, np.roll(actions, -late, axis=0))
    residuals = lag_residuals(states, actions)
    assert residuals is not None
    assert punctual is not None
    of_set = np.stack([punctual, residuals, punctual])
    assert action_lags(of_set).tolist() == [0, late, 0]


def test_actions_without_a_relation_have_no_lag() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(5, 2, 400, 2))
    residuals = [lag_residuals(states, actions) for states, actions in drawn]
    assert action_lags(np.array(residuals)).tolist() == [0] * 5


@pytest.mark.parametrize("states", [np.zeros((100, 2)), np.zeros((3, 2)), np.zeros((100, 0))])
def test_nothing_is_said_of_a_robot_that_does_not_move(states: np.ndarray) -> None:
    assert figures(states) == {}
    assert lag_residuals(states, np.ones((len(states), 1))) is None


def test_speed_is_independent_of_units() -> None:
    states = np.random.default_rng(0).normal(size=(20, 2))
    assert speeds(states * [1, 1000]) == pytest.approx(speeds(states))
