"""Episodes compared with each other: nearest ones, and figures at like length.

Legend of shapes: N episodes, D numbers of one, K moments of one.
"""

from collections.abc import Sequence

import numpy as np

from vlatool.episode import Array

_LIKE_LENGTH = 0.2  # of the episodes
_FEWEST = 20
_NEAREST = 5
_MAD = 1.4826  # standard deviations of a normal distribution
_MOST = 2000  # that each is compared with


def resampled(values: Array, count: int) -> Array:
    """Values [F, C] at `count` evenly spaced times, linear between frames [count, C]."""
    times = np.linspace(0, len(values) - 1, count)
    low = np.floor(times).astype(int)
    share = (times - low)[:, None]
    high = np.minimum(low + 1, len(values) - 1)
    return (values[low] * (1 - share) + values[high] * share).astype(np.float32)


def at_like_length(values: Array, lengths: Array) -> Array:
    """Robust z-scores [N] of values [N] among the fifth, or at least 20, of nearest length.

    NaN stays NaN. Where the others are equal, a score is 0 for their value and infinite for others.
    """
    scores = np.full(len(values), np.nan)
    finite = np.flatnonzero(np.isfinite(values))
    order = finite[np.argsort(lengths[finite], kind="stable")]
    count = min(len(order), max(_FEWEST, round(_LIKE_LENGTH * len(order))))
    for position, index in enumerate(order):
        first = min(max(position - count // 2, 0), len(order) - count)
        scores[index] = robust_score(float(values[index]), values[order[first : first + count]])
    return scores


def robust_score(value: float, others: Array) -> float:
    """Distance of a value to the median of others [N], in robust standard deviations."""
    center = np.median(others)
    deviation = _MAD * np.median(np.abs(others - center)) or others.std()
    difference = float(value - center)
    if difference == 0:
        return 0.0
    if not deviation:
        return float(np.copysign(np.inf, difference))
    return difference / float(deviation)


def whitened(features: Array, groups: Sequence[str]) -> Array:
    """Features [N, D] by their deviation, each weighted by how well it separates the groups.

    The weight is the square root of the excess of its variance ratio (F statistic) above 1, so that
    features that say nothing about the group do not count; 1 for all with a single group.
    """
    deviation = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    names, members = np.unique(np.array(groups), return_inverse=True)
    if len(names) < 2 or len(groups) <= len(names):
        return scaled
    counts = np.bincount(members)
    means = np.stack([scaled[members == group].mean(axis=0) for group in range(len(names))])
    between = (counts[:, None] * means**2).sum(axis=0) / (len(names) - 1)
    within = ((scaled - means[members]) ** 2).sum(axis=0) / (len(groups) - len(names))
    ratio = between / np.maximum(within, 1e-9)
    return scaled * np.sqrt(np.maximum(ratio - 1, 0))


def distances(features: Array, groups: Sequence[str], count: int = _NEAREST) -> Array:
    """Mean distance [N] of features [N, D], each by its deviation, to the nearest `count` episodes.

    Of the same group; NaN for an episode alone in its group.
    """
    points = _scaled(features)
    names = np.array(groups)
    result = np.full(len(points), np.nan)
    for index in range(len(points)):
        result[index] = _distance(points, index, names == names[index], count)
    return result


def _distance(points: Array, index: int, members: Array, count: int) -> float:
    """Mean distance of a point of [N, D] to the nearest of the members, bool [N], without itself.

    At most 2,000 evenly spaced members count; NaN without any.
    """
    others = np.flatnonzero(members)
    others = others[others != index]
    others = others[spread(len(others), _MOST)]
    if not len(others):
        return float("nan")
    squares = ((points[others] - points[index]) ** 2).sum(axis=1)
    return float(np.sqrt(np.sort(squares)[:count]).mean())


def other_group_ratios(last: Array, groups: Sequence[str]) -> Array:
    """Mean distance [N] to the five nearest of the same group, divided by that for another group.

    `last`: features [N, D] of the ends. Above 1 another group is nearer. NaN with one group.
    """
    points = whitened(last, groups)
    names = np.array(groups)
    ratios = np.full(len(points), np.nan)
    for index, group in enumerate(names):
        to_others: list[float] = []
        for other in np.unique(names):
            if other != group:
                to_others.append(_distance(points, index, names == other, _NEAREST))
        if to_others:
            to_same = _distance(points, index, names == group, _NEAREST)
            ratios[index] = to_same / max(min(to_others), 1e-9)
    return ratios


def disagreements(states: Array, actions: Array, groups: Sequence[str]) -> Array:
    """Difference [N] of actions from the mean of those at the five nearest moments of others.

    `states` [N, K, S] and `actions` [N, K, A], of moments of each episode, each by its deviation.
    """
    count, moments = states.shape[:2]
    names = np.array(groups)
    scaled_states = _scaled(states.reshape(count * moments, -1)).reshape(count, moments, -1)
    scaled_actions = _scaled(actions.reshape(count * moments, -1)).reshape(count, moments, -1)
    result = np.full(count, np.nan)
    for index in range(count):
        others = np.flatnonzero((names == names[index]) & (np.arange(count) != index))
        others = others[spread(len(others), _MOST // 10)]
        if not len(others):
            continue
        other_states = scaled_states[others].reshape(len(others) * moments, -1)
        other_actions = scaled_actions[others].reshape(len(others) * moments, -1)
        squares = ((scaled_states[index][:, None] - other_states) ** 2).sum(axis=-1)
        nearest = np.argsort(squares, axis=1, kind="stable")[:, :_NEAREST]
        difference = scaled_actions[index] - other_actions[nearest].mean(axis=1)
        result[index] = np.sqrt((difference**2).mean())
    return result


def swapped_ratios(means: Array) -> Array:
    """Distance [N] of a camera's mean image to the median one, by that to another camera's.

    `means` [N, V, D]; of the two cameras with the largest ratios, the smaller one. Above 1: each
    looks like another one.
    """
    usual = np.median(means, axis=0)
    distances = np.linalg.norm(means[:, :, None] - usual[None, None], axis=-1)
    own = np.diagonal(distances, axis1=1, axis2=2)
    others = distances + np.where(np.eye(len(usual), dtype=bool), np.inf, 0.0)
    ratios = own / np.maximum(others.min(axis=2), 1e-9)
    return np.sort(ratios, axis=1)[:, -2]


def _scaled(values: Array) -> Array:
    """Values [N, D] by the deviation of each number and the root of their count."""
    deviation = values.std(axis=0)
    return values / np.where(deviation > 0, deviation, 1) / np.sqrt(max(values.shape[1], 1))


def spread(count: int, most: int) -> list[int]:
    """At most `most` positions in 0..count-1, evenly spaced: the first and the last included."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
