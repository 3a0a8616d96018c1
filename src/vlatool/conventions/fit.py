"""Fits of recorded actions to recorded states, which show the meaning of action dimensions.

A hypothesis predicts the actions of every row from the states: of which frame (lag), as they are or
as a difference, in which frame of reference, in which form of rotation. The hypotheses of a group
compete by the share of the actions' variance that they leave. Those that predict about as well as
the best one are ties; what the ties agree on is determined.

Legend of shapes: N rows, S dimensions of the states, C of the actions.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any, Literal

import numpy as np

from vlatool.episode import Array
from vlatool.transforms.rotations import (
    ROTATION_WIDTH,
    RotationForm,
    angle_between,
    form_from_matrix,
    matrix_from,
)

# `absolute`: the state itself; `delta`: its difference to the frame before.
Relation = Literal["absolute", "delta"]
Frame = Literal["base", "tool"]

# Lags that are tried, in long episodes and in others: an action is the state LAG frames later.
_LAGS = {40: tuple(range(-1, 7)), 0: tuple(range(-1, 4))}
_BLOCK = 20  # consecutive rows whose errors count as one observation
_Z = 3.5  # standard errors by which a tie is rejected
_RATIO = 1.02  # of residuals, within which hypotheses are ties whatever the number of rows
_CLEAR_SHARE = 0.25  # of the variance, by which a hypothesis is worse whatever the rows
_EXACT = 1e-4  # residual of numbers that are equal but for rounding
LARGEST_RESIDUAL = 0.7
# Smooth signals of few episodes follow each other by chance.
_FEW_EPISODES = 5
_LARGEST_OF_FEW = 0.05
SMALLEST = 1e-18
_LARGEST = 1e12
_SCREENED_ROWS = 1000
_SCREENED = 24


@dataclass(frozen=True)
class Tracks:
    """Rows of episodes: `actions` [F, C] and `states` [F, S] of all frames, one after the other."""

    actions: Array
    states: Array
    rows: Array  # frames that have all lags in their episode [N]
    blocks: Array  # number of the block of each row [N]
    lags: tuple[int, ...]
    missing: Array  # columns of the actions that are mostly NaN, bool [C]
    distinct: int  # number of episodes whose actions are not those of another one
    cache: dict[Any, Array] = field(default_factory=dict[Any, Array], repr=False)

    @classmethod
    def of(cls, episodes: Iterable[tuple[Array, Array]]) -> "Tracks":
        actions: list[Array] = []
        states: list[Array] = []
        rows: list[Array] = []
        blocks: list[Array] = []
        first = block = 0
        every_episode = list(episodes)
        distinct = {np.asarray(action).tobytes() for action, _ in every_episode}
        frames = float(np.median([len(action) for action, _ in every_episode] or [0]))
        lags = next(lags for least, lags in _LAGS.items() if frames >= least)
        for action, state in every_episode:
            usable = np.arange(2, len(action) - lags[-1])
            actions.append(np.asarray(action, np.float64))
            states.append(np.asarray(state, np.float64))
            rows.append(first + usable)
            blocks.append(block + usable // _BLOCK)
            first += len(action)
            block += len(action) // _BLOCK + 1
        index = np.concatenate(rows)
        numbers = np.concatenate(blocks)
        every = np.concatenate(actions), np.concatenate(states)
        missing = [_is_usual(each).sum(axis=0) < len(each) / 2 for each in every]
        for each, is_missing in zip(every, missing, strict=True):
            each[:, is_missing] = 0
        is_usual = _is_usual(every[0][index]).all(axis=1)
        for lag in (lags[0] - 1, *lags):
            is_usual &= _is_usual(every[1][index + lag]).all(axis=1)
        return cls(*every, index[is_usual], numbers[is_usual], lags, missing[0], len(distinct))

    @property
    def largest_residual(self) -> float:
        """Residual above which nothing is determined."""
        return _LARGEST_OF_FEW if self.distinct < _FEW_EPISODES else LARGEST_RESIDUAL

    @cached_property
    def few(self) -> "Tracks":
        """The same with a part of the rows, to screen hypotheses."""
        step = max(len(self.rows) // _SCREENED_ROWS, 1)
        return replace(self, rows=self.rows[::step], blocks=self.blocks[::step], cache={})

    def action(self, columns: slice) -> Array:
        return self.actions[self.rows, columns]

    def state(self, columns: slice, lag: int) -> Array:
        return self.states[self.rows + lag, columns]

    def moved(self, columns: slice, relation: Relation, lag: int) -> Array:
        """Numbers of the state that actions of a relation would be [N, C]."""
        values = self.state(columns, lag)
        return values if relation == "absolute" else values - self.state(columns, lag - 1)

    def rotation(self, columns: slice, form: RotationForm, lag: int) -> Array:
        """Rotations of the states [N, 3, 3]."""
        key = (columns.start, form, lag)
        if key not in self.cache:
            self.cache[key] = _matrices(self.state(columns, lag), form)
        return self.cache[key]


def _matrices(values: Array, form: RotationForm) -> Array:
    """Rotations [N, 3, 3] of values [N, C]; any for zeros, as of a lost tracker."""
    if ROTATION_WIDTH[form] > 3:
        is_zero = np.abs(values).max(axis=-1, keepdims=True) < SMALLEST
        usual = form_from_matrix(np.eye(3)[None], form)
        values = np.where(is_zero, usual, values)
    return matrix_from(values, form)


def _is_usual(values: Array) -> Array:
    """True for finite numbers of a size that a robot may have."""
    return np.abs(np.nan_to_num(values, nan=np.inf)) < _LARGEST


@dataclass(frozen=True)
class Hypothesis:
    """Possible meaning of a group of action dimensions."""

    relation: Relation
    lag: int
    frame: Frame | None = None  # of a difference of poses
    rotation: RotationForm | None = None  # None: no rotation, or the numbers of the state
    state_rotation: RotationForm | None = None


@dataclass(frozen=True)
class Fit:
    """A hypothesis and how well it predicts the actions."""

    hypothesis: Hypothesis
    residual: float  # root of the share of the variance that it leaves
    scale: tuple[float, ...]  # action units per state unit, by dimension; empty for forms with none
    offset: tuple[float, ...]  # of absolute values, in action units
    errors: Array = field(repr=False)  # share of the variance by row [N]
    # Recorded and predicted actions [N, C], of the best fit of a group only.
    drawn: tuple[Array, Array] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class PoseColumns:
    """Columns of a pose in the states: a position, and a rotation in one of some forms."""

    position: slice
    rotation: slice
    forms: tuple[RotationForm, ...]
    is_known: bool = True  # False: these may be other numbers


def pairs(tracks: Tracks) -> Iterator[tuple[Relation, int]]:
    for lag in tracks.lags:
        yield "absolute", lag
        yield "delta", lag


def fit_values(tracks: Tracks, columns: slice, states: slice) -> list[Fit]:
    """Fits of action dimensions that are numbers of the state, dimension by dimension."""
    fits: list[Fit] = []
    for relation, lag in pairs(tracks):
        moved = tracks.moved(states, relation, lag)
        hypothesis = Hypothesis(relation, lag)
        fits.append(_linear(tracks, columns, hypothesis, moved, has_one_scale=False))
    return ranked(fits)


def fit_position(tracks: Tracks, columns: slice, pose: PoseColumns) -> list[Fit]:
    """Fits of three action dimensions to a position, differences in either frame."""
    return ranked(_linear(tracks, columns, *each) for each in _positions(tracks, pose))


def position_residuals(tracks: Tracks, pose: PoseColumns) -> Array:
    """Least residual of a position at each three columns of the actions [C - 2]."""
    actions = tracks.action(slice(0, tracks.actions.shape[1]))
    centered = actions - actions.mean(axis=0)
    variance = _three(np.stack([(centered**2).sum(axis=0)] * 3, axis=1))
    least = np.full(len(variance), np.inf)
    for hypothesis, moved in _positions(tracks, pose):
        is_absolute = hypothesis.relation == "absolute"
        values = centered if is_absolute else actions
        moved = moved - moved.mean(axis=0) if is_absolute else moved
        power = max(float((moved**2).sum()), SMALLEST)
        squares = _three(np.stack([(values**2).sum(axis=0)] * 3, axis=1))
        left = squares - np.maximum(_three(values.T @ moved), 0) ** 2 / power
        least = np.minimum(least, left / np.maximum(variance, SMALLEST))
    return np.sqrt(np.maximum(least, 0))


def _three(products: Array) -> Array:
    """Sums [C - 2] of the products [C, 3] of three consecutive columns with x, y and z."""
    return products[:-2, 0] + products[1:-1, 1] + products[2:, 2]


def _positions(tracks: Tracks, pose: PoseColumns) -> Iterator[tuple[Hypothesis, Array]]:
    """Hypotheses of a position, and what the actions are by each but for scale and offset."""
    for relation, lag in pairs(tracks):
        moved = tracks.moved(pose.position, relation, lag)
        yield Hypothesis(relation, lag, None if relation == "absolute" else "base"), moved
        for form in () if relation == "absolute" else pose.forms:
            reference = tracks.rotation(pose.rotation, form, lag - 1)
            turned = np.einsum("nji,nj->ni", reference, moved)
            yield Hypothesis(relation, lag, "tool", None, form), turned


def fit_rotation(tracks: Tracks, columns: slice, pose: PoseColumns) -> list[Fit]:
    """Fits of action dimensions to a rotation: its numbers, or rotations in any form."""
    hypotheses = list(_rotation_hypotheses(tracks, columns.stop - columns.start, pose))
    screened = ranked(_rotation_fit(tracks.few, columns, pose, each) for each in hypotheses)
    best = [fit.hypothesis for fit in screened[:_SCREENED]]
    return ranked(_rotation_fit(tracks, columns, pose, each) for each in best)


def rotation_residual(
    tracks: Tracks, columns: slice, pose: PoseColumns, name: str, values: Collection[str]
) -> float | None:
    """Least residual of a rotation with one of some values of an attribute of `Hypothesis`.

    None: no form has that width.
    """
    residuals = (
        _rotation_fit(tracks, columns, pose, each).residual
        for each in _rotation_hypotheses(tracks, columns.stop - columns.start, pose)
        if getattr(each, name) in values
    )
    return min(residuals, default=None)


def _rotation_hypotheses(tracks: Tracks, width: int, pose: PoseColumns) -> Iterator[Hypothesis]:
    forms: list[RotationForm] = [form for form, size in ROTATION_WIDTH.items() if size == width]
    for relation, lag in pairs(tracks):
        # With one form, equal numbers are the hypothesis of that form.
        is_form = relation == "absolute" and len(pose.forms) == 1
        if not is_form and width == pose.rotation.stop - pose.rotation.start:
            yield Hypothesis(relation, lag)
        frames: tuple[Frame | None, ...] = (None,) if relation == "absolute" else ("base", "tool")
        for frame, form, state_form in product(frames, forms, pose.forms):
            yield Hypothesis(relation, lag, frame, form, state_form)


def _rotation_fit(tracks: Tracks, columns: slice, pose: PoseColumns, hypothesis: Hypothesis) -> Fit:
    form = hypothesis.rotation
    state_form = hypothesis.state_rotation
    lag = hypothesis.lag
    if form is None or state_form is None:
        return _numbers(tracks, columns, hypothesis, pose)
    target = tracks.rotation(pose.rotation, state_form, lag)
    if hypothesis.frame is None:
        return _turned(hypothesis, form, tracks.action(columns), target)
    reference = tracks.rotation(pose.rotation, state_form, lag - 1)
    turned = between(reference, target, hypothesis.frame)
    return _linear(tracks, columns, hypothesis, form_from_matrix(turned, form))


def between(reference: Array, target: Array, frame: Frame) -> Array:
    """Rotation [..., 3, 3] from a reference to a target in a frame."""
    inverse = np.swapaxes(reference, -1, -2)
    return target @ inverse if frame == "base" else inverse @ target


def _numbers(tracks: Tracks, columns: slice, hypothesis: Hypothesis, pose: PoseColumns) -> Fit:
    """Fit of the numbers of a rotation as they are; differences of angles within pi."""
    moved = tracks.moved(pose.rotation, hypothesis.relation, hypothesis.lag)
    if moved.shape[1] == 3:
        actions = tracks.action(columns)
        if hypothesis.relation == "absolute":
            moved = actions + wrapped(moved - actions)
        else:
            moved = wrapped(moved)
    return _linear(tracks, columns, hypothesis, moved)


def wrapped(angles: Array) -> Array:
    """Angles within pi."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


def _linear(
    tracks: Tracks,
    columns: slice,
    hypothesis: Hypothesis,
    expected: Array,
    *,
    has_one_scale: bool = True,  # for all dimensions, positive
) -> Fit:
    """Least squares; an absolute value may have an offset by dimension.

    Forms of more than three numbers have no scale, and a quaternion may have the other sign.
    """
    actions = tracks.action(columns)
    is_form = hypothesis.rotation is not None and expected.shape[1] > 3
    if is_form and expected.shape[1] == 4:
        signs = np.sign((actions * expected).sum(axis=1, keepdims=True))
        actions = actions * np.where(signs == 0, 1, signs)
    variance = actions.var(axis=0).sum()
    is_absolute = hypothesis.relation == "absolute" and not is_form
    center = expected.mean(axis=0) if is_absolute else 0.0
    origin = actions.mean(axis=0) if is_absolute else 0.0
    moved = expected - center
    products = ((actions - origin) * moved).sum(axis=0)
    power = (moved**2).sum(axis=0)
    if is_form:
        scale = np.ones(expected.shape[1])
    elif has_one_scale:
        common = max(products.sum() / max(power.sum(), SMALLEST), 0.0)
        scale = np.full(expected.shape[1], common)
    else:
        scale = np.where(power > SMALLEST, products / np.maximum(power, SMALLEST), 0.0)
    left = actions - origin - scale * moved
    errors = (left**2).sum(axis=1) / max(variance, SMALLEST)
    offset = tuple((origin - scale * center).tolist()) if is_absolute else ()
    scales = () if is_form else tuple(scale.tolist())
    drawn = (actions, actions - left)
    return Fit(hypothesis, float(np.sqrt(errors.mean())), scales, offset, errors, drawn)


def _turned(hypothesis: Hypothesis, form: RotationForm, values: Array, expected: Array) -> Fit:
    """Fit of absolute rotations: angles between both by the variance of the expected ones."""
    actions = _matrices(values, form)
    mean = expected.mean(axis=0)
    u, _, v = np.linalg.svd(mean)
    center = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    variance = (angle_between(expected, center) ** 2).mean()
    errors = angle_between(expected, actions) ** 2 / max(float(variance), 1e-12)
    drawn = (values, form_from_matrix(expected, form))
    return Fit(hypothesis, float(np.sqrt(errors.mean())), (), (), errors, drawn)


def ranked(fits: Iterable[Fit]) -> list[Fit]:
    """Fits from the best on; of equal ones the simpler hypothesis first."""
    ordered = sorted(fits, key=lambda fit: round(fit.residual, 9))
    return [*ordered[:1], *(replace(fit, drawn=None) for fit in ordered[1:])]


def ties(fits: Sequence[Fit], blocks: Array) -> list[Fit]:
    """The best fit and those that predict no worse than by chance, from ranked ones."""
    best = fits[0]
    if best.residual > LARGEST_RESIDUAL:
        return list(fits)
    return [best, *(fit for fit in fits[1:] if _is_tie(best, fit, blocks))]


def _is_tie(best: Fit, other: Fit, blocks: Array) -> bool:
    if other.residual < max(best.residual * _RATIO, _EXACT):
        return True
    is_clear = other.residual**2 > best.residual**2 + _CLEAR_SHARE
    if is_clear or other.residual > max(2 * best.residual, 10 * _EXACT):
        return False
    _, numbers = np.unique(blocks, return_inverse=True)
    counts = np.bincount(numbers)
    worse = np.bincount(numbers, other.errors - best.errors) / counts
    error = worse.std() / np.sqrt(max(len(worse) - 1, 1))
    return bool(worse.mean() < _Z * error)
