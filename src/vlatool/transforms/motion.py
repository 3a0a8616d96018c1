"""Figures of one recorded motion: stillness, jumps, tremor, lag.

Legend of shapes: F frames, S dimensions of the state, A of the action. Dimensions that do not
change, and those that are open or closed like a gripper, have no speed.
"""

import numpy as np

from vlatool.episode import Array

_STILL = 0.05  # of the top speed
_END_S = 0.3  # of which the speed at the end is the mean
_EDGE = 0.1
_TWO_VALUED = 0.9
_MOST_LAG = 4  # frames
_CLEAR = 0.65  # of the residual at the usual lag, below which another one is clear
_WELL_EXPLAINED = 0.25  # share of the episodes that the usual lag explains best
_FEWEST_FRAMES = 8


def motion_figures(states: Array, fps: float) -> dict[str, float]:
    """Figures of states [F, S]; empty if they are too few or do not change.

    Speeds are norms of the steps of the state, each dimension by its standard deviation.

    Args:
        states: Recorded states, float [F, S].
        fps: Frames per second; 0 if unknown: then seconds are frames.

    Returns:
        `idle_share`, the share of still frames between the first and the last that move;
        `longest_pause` in seconds; `end_speed`, the speed at the end by the top one;
        `largest_jump`, the largest step of a dimension by the range of nine tenths of its values;
        `reversal`, the negative correlation of each step with the next, from -1 to 1: 1 where each
        undoes the last.
    """
    changing = moving_dimensions(states)
    if len(states) < _FEWEST_FRAMES or not changing.shape[1]:
        return {}
    rate = fps or 1.0
    speed = speeds(changing)
    moves = np.flatnonzero(is_moving(speed))
    gaps = np.diff(moves) - 1
    at_end = speed[-max(1, round(_END_S * rate)) :]

    low, high = np.percentile(changing, [5, 95], axis=0)
    ranges = np.where(high > low, high - low, np.ptp(changing, axis=0))
    jumps = np.abs(np.diff(changing, axis=0)) / ranges
    steps = np.diff(changing, axis=0) / changing.std(axis=0)
    return {
        "idle_share": float(gaps.sum() / (moves[-1] - moves[0] + 1)),
        "longest_pause": float(gaps.max(initial=0) / rate),
        "end_speed": float(at_end.mean() / _top(speed)),
        "largest_jump": float(jumps.max()),
        "reversal": -float((steps[1:] * steps[:-1]).sum() / (steps**2).sum()),
    }


def moving_dimensions(states: Array) -> Array:
    """The dimensions of states [F, S] that change, without dimensions of a gripper."""
    return states[:, _changes(states) & ~two_valued(states)]


def speeds(states: Array) -> Array:
    """Norms of the steps [F - 1] of states [F, S] that all change."""
    return np.linalg.norm(np.diff(states, axis=0) / states.std(axis=0), axis=1)


def two_valued(values: Array) -> Array:
    """Dimensions that are at one of two ends in nine of ten frames: bool of the last axis."""
    low = values.min(axis=0)
    high = values.max(axis=0)
    edge = _EDGE * (high - low)
    return ((values <= low + edge) | (values >= high - edge)).mean(axis=0) >= _TWO_VALUED


def _changes(values: Array) -> Array:
    return np.ptp(values, axis=0) > 1e-6 * np.abs(values).max(axis=0)


def is_moving(speed: Array) -> Array:
    """True where a speed [N] is above a twentieth of the top one."""
    return speed > _STILL * _top(speed)


def _top(speed: Array) -> float:
    """Top speed: the 95th percentile, or the largest one of a robot that mostly stands still."""
    return float(np.percentile(speed, 95) or speed.max())


def lag_residuals(states: Array, actions: Array) -> Array | None:
    """Residuals [2, 9] of actions that come -4 to 4 frames later.

    Mean squares of linear fits of the actions [F, A] to the next state, and to the step to it, of
    the states [F, S]. None without actions, or with too few frames.
    """
    changing = moving_dimensions(states)
    commands = actions[:, _changes(actions)]
    if not (changing.shape[1] and commands.shape[1]):
        return None
    scaled = changing / changing.std(axis=0)
    steps = np.diff(scaled, axis=0)
    if len(steps) < 2 * _MOST_LAG + 3 * (scaled.shape[1] + 1):
        return None
    targets = (commands - commands.mean(axis=0)) / commands.std(axis=0)
    return np.array([_residuals(scaled[1:], targets), _residuals(steps, targets)])


def _residuals(inputs: Array, targets: Array) -> list[float]:
    """Mean squared residual of targets [F, A] by inputs [F - 1, S], at each shift."""
    count = len(inputs) - 2 * _MOST_LAG
    fitted = np.hstack([inputs[_MOST_LAG : _MOST_LAG + count], np.ones((count, 1))])
    residuals: list[float] = []
    for first in range(2 * _MOST_LAG + 1):
        target = targets[first : first + count]
        solution = np.linalg.lstsq(fitted, target, rcond=None)[0]
        residuals.append(float(((fitted @ solution - target) ** 2).mean()))
    return residuals


def action_lags(residuals: Array) -> Array:
    """Number of frames [N] that actions come later than usual in the data set.

    0 where another lag does not explain clearly more, or where the usual one explains as much as in
    the best quarter of all. The fit that explains more in most episodes counts for all.

    Args:
        residuals: `lag_residuals` [N, 2, 9] of episodes of one robot.
    """
    best_fit = int(np.argmin(np.median(residuals.min(axis=2), axis=0)))
    by_lag = residuals[:, best_fit]
    best_lags = by_lag.argmin(axis=1)
    usual = int(np.median(best_lags))
    at_usual = by_lag[:, usual]
    # Noise alone finds another lag where the usual one explains nearly all.
    is_worse = at_usual > np.quantile(at_usual, _WELL_EXPLAINED)
    is_clear = is_worse & (by_lag.min(axis=1) < _CLEAR * at_usual)
    return np.where(is_clear, best_lags - usual, 0).astype(float)
