"""Fits recorded actions to recorded states, to find out what action dimensions mean.

A possible meaning predicts the actions of every row from the states: of which frame (lag), as they
are or as a difference, in which frame of reference, in which representation of rotations. The
meanings of a group compete: the less of the actions' variance they leave, the better. Meanings
that predict about as well as the best one are ties; whatever all ties agree on is determined.

Legend of shapes: F frames, N rows, S dimensions of the states, C of the actions.
"""

import re
from collections.abc import Collection, Iterator, Sequence
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

# Lags that are tried: an action is the state LAG frames later.
_LAGS = tuple(range(-1, 4))
_LAGS_OF_LONG = tuple(range(-1, 7))
_LONG = 40  # frames of an episode
_BLOCK = 20  # consecutive rows whose errors count as one observation
_Z = 3.5  # standard errors from which on a tie is rejected
_RATIO = 1.02  # of residuals, within which fits are ties whatever the number of rows
_CLEAR_SHARE = 0.25  # of the variance: such a fit is worse, whatever the number of rows
_EXACT = 1e-4  # residual of numbers that are equal but for rounding
LARGEST_RESIDUAL = 0.7
FEWEST_ROWS = 20
# Smooth signals of few episodes follow each other by chance.
FEW_EPISODES = 5
_LARGEST_OF_FEW = 0.05
SMALLEST = 1e-18
_LARGEST = 1e12
_SCREENED_ROWS = 1000
_SCREENED = 24
_NUMBER = re.compile(r"[^a-zA-Z]*\d+$|(?<![a-zA-Z])[xyz]$")  # or the axis of a position


@dataclass(frozen=True)
class Column:
    """A dimension of the actions or the states."""

    field: str
    index: int  # in the field
    name: str = ""  # of the dimension, if the data have one

    @property
    def group(self) -> str:
        """Part of the name that the dimensions of a joint, a hand and so on share."""
        return f"{self.field}/{_NUMBER.sub('', self.name)}"

    @property
    def words(self) -> str:
        return f"{self.field} {self.name}".lower()


@dataclass(frozen=True)
class Samples:
    """Actions and states of some episodes, all frames one after the other.

    Attributes:
        action_columns: What the columns of `actions` are.
        state_columns: What the columns of `states` are.
        actions: Actions of all frames [F, C].
        states: States of all frames [F, S].
        rows: Frames that have all lags in their episode [N].
        blocks: Number of the block of each frame [F].
        lags: Lags that are tried, in ascending order.
        missing: Columns of the actions that are mostly NaN, bool [C].
        largest_residual: Residual above which nothing is determined.
    """

    action_columns: Sequence[Column]
    state_columns: Sequence[Column]
    actions: Array
    states: Array
    rows: Array
    blocks: Array
    lags: tuple[int, ...]
    missing: Array
    largest_residual: float
    _rotations: dict[Any, Array] = field(default_factory=dict[Any, Array], repr=False)

    @classmethod
    def of(
        cls,
        episodes: Sequence[tuple[Array, Array]],  # actions [F, C] and states [F, S] of each
        action_columns: Sequence[Column],
        state_columns: Sequence[Column],
    ) -> "Samples":
        lengths = [len(actions) for actions, _ in episodes]
        lags = _LAGS_OF_LONG if np.median(lengths) >= _LONG else _LAGS
        frames = np.concatenate([np.arange(length) for length in lengths])
        episode = np.repeat(np.arange(len(lengths)), lengths)
        blocks = episode * len(frames) + frames // _BLOCK

        actions = np.concatenate([actions for actions, _ in episodes]).astype(np.float64)
        states = np.concatenate([states for _, states in episodes]).astype(np.float64)
        missing = _is_mostly_missing(actions)
        actions[:, missing] = 0
        states[:, _is_mostly_missing(states)] = 0

        stops = np.repeat(lengths, lengths) - lags[-1]
        rows = np.flatnonzero((frames >= 2) & (frames < stops))
        is_usual = _is_usual(actions[rows]).all(axis=1)
        for lag in (lags[0] - 1, *lags):
            is_usual &= _is_usual(states[rows + lag]).all(axis=1)

        distinct = {actions.tobytes() for actions, _ in episodes}
        largest_residual = _LARGEST_OF_FEW if len(distinct) < FEW_EPISODES else LARGEST_RESIDUAL
        return cls(
            action_columns=action_columns,
            state_columns=state_columns,
            actions=actions,
            states=states,
            rows=rows[is_usual],
            blocks=blocks,
            lags=lags,
            missing=missing,
            largest_residual=largest_residual,
        )

    @property
    def pairs(self) -> list[tuple[Relation, int]]:
        """Relations and lags that are tried."""
        pairs: list[tuple[Relation, int]] = []
        for lag in self.lags:
            pairs.append(("absolute", lag))
            pairs.append(("delta", lag))
        return pairs

    @cached_property
    def few(self) -> "Samples":
        """The same with a part of the rows, to screen possible meanings."""
        step = max(len(self.rows) // _SCREENED_ROWS, 1)
        return replace(self, rows=self.rows[::step], _rotations={})

    def action(self, columns: slice) -> Array:
        return self.actions[self.rows, columns]

    def state(self, columns: slice, lag: int) -> Array:
        return self.states[self.rows + lag, columns]

    def moved(self, columns: slice, relation: Relation, lag: int) -> Array:
        """Numbers of the state that actions of a relation would be [N, C]."""
        values = self.state(columns, lag)
        if relation == "absolute":
            return values
        return values - self.state(columns, lag - 1)

    def rotation(self, columns: slice, form: RotationForm, lag: int) -> Array:
        """Rotations of the states [N, 3, 3]."""
        key = (columns.start, form, lag)
        if key not in self._rotations:
            self._rotations[key] = _matrices(self.state(columns, lag), form)
        return self._rotations[key]


def _is_usual(values: Array) -> Array:
    """True for finite numbers of a size that a robot may have."""
    return np.abs(np.nan_to_num(values, nan=np.inf)) < _LARGEST


def _is_mostly_missing(values: Array) -> Array:
    """True for columns [C] of values [F, C] with few usual numbers."""
    return _is_usual(values).sum(axis=0) < len(values) / 2


def _matrices(values: Array, form: RotationForm) -> Array:
    """Rotations [N, 3, 3] of values [N, C]; any for zeros, as of a lost tracker."""
    if ROTATION_WIDTH[form] > 3:
        is_zero = np.abs(values).max(axis=-1, keepdims=True) < SMALLEST
        usual = form_from_matrix(np.eye(3)[None], form)
        values = np.where(is_zero, usual, values)
    return matrix_from(values, form)


@dataclass(frozen=True)
class Pose:
    """Columns of a pose in the states: a position, and a rotation in one of some forms."""

    position: slice
    rotation: slice
    forms: tuple[RotationForm, ...]
    is_known: bool = True  # False: these may be other numbers


@dataclass(frozen=True)
class Fit:
    """A possible meaning of a group of action dimensions, and how well it predicts them."""

    relation: Relation
    lag: int
    frame: Frame | None = None  # of a difference of poses
    rotation: RotationForm | None = None  # None: no rotation, or the numbers of the state
    state_rotation: RotationForm | None = None
    residual: float = np.inf  # root of the share of the variance that it leaves
    scale: tuple[float, ...] = ()  # action units per state unit, by dimension
    offset: tuple[float, ...] = ()  # of absolute values, in action units
    # Share of the variance by row [N].
    errors: Array = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    # Recorded and predicted actions [N, C], of the best fit of a group only.
    drawn: tuple[Array, Array] | None = field(default=None, repr=False, compare=False)


def value_fits(samples: Samples, columns: slice, states: slice) -> list[Fit]:
    """Fits of action dimensions that are numbers of the state, dimension by dimension."""
    actions = samples.action(columns)
    fits: list[Fit] = []
    for relation, lag in samples.pairs:
        expected = samples.moved(states, relation, lag)
        fits.append(_linear(Fit(relation, lag), actions, expected, has_one_scale=False))
    return _ranked(fits)


def position_fits(samples: Samples, columns: slice, pose: Pose) -> list[Fit]:
    """Fits of three action dimensions to a position, differences in either frame."""
    actions = samples.action(columns)
    fits: list[Fit] = []
    for guess, moved in _positions(samples, pose):
        fits.append(_linear(guess, actions, moved))
    return _ranked(fits)


def position_residuals(samples: Samples, pose: Pose) -> Array:
    """Least residual of a position at each three columns of the actions [C - 2]."""
    actions = samples.actions[samples.rows]
    centered = actions - actions.mean(axis=0)
    power = (centered**2).sum(axis=0)
    variance = np.maximum(_sum_of_three(power, power, power), SMALLEST)
    least = np.full(len(variance), np.inf)
    for guess, moved in _positions(samples, pose):
        values = actions
        if guess.relation == "absolute":
            values = centered
            moved = moved - moved.mean(axis=0)
        power = (values**2).sum(axis=0)
        products = np.maximum(_sum_of_three(*(values.T @ moved).T), 0)
        explained = products**2 / max(float((moved**2).sum()), SMALLEST)
        least = np.minimum(least, (_sum_of_three(power, power, power) - explained) / variance)
    return np.sqrt(np.maximum(least, 0))


def _sum_of_three(x: Array, y: Array, z: Array) -> Array:
    """Sums [C - 2] over each three consecutive columns of what they are as x, y and z [C]."""
    return x[:-2] + y[1:-1] + z[2:]


def _positions(samples: Samples, pose: Pose) -> Iterator[tuple[Fit, Array]]:
    """Possible meanings of a position, and the actions by each but for scale and offset [N, 3]."""
    for relation, lag in samples.pairs:
        moved = samples.moved(pose.position, relation, lag)
        if relation == "absolute":
            yield Fit(relation, lag), moved
            continue
        yield Fit(relation, lag, "base"), moved
        for form in pose.forms:
            reference = samples.rotation(pose.rotation, form, lag - 1)
            turned = np.einsum("nji,nj->ni", reference, moved)
            yield Fit(relation, lag, "tool", state_rotation=form), turned


def rotation_fits(samples: Samples, columns: slice, pose: Pose) -> list[Fit]:
    """Fits of action dimensions to a rotation: its numbers, or rotations in any form."""
    screened: list[Fit] = []
    for guess in _rotations(samples, columns, pose):
        screened.append(_fit_rotation(samples.few, columns, pose, guess))
    fits: list[Fit] = []
    for guess in _ranked(screened)[:_SCREENED]:
        fits.append(_fit_rotation(samples, columns, pose, guess))
    return _ranked(fits)


def rotation_residual(
    samples: Samples, columns: slice, pose: Pose, name: str, values: Collection[str]
) -> float | None:
    """Least residual of a rotation with one of some values of an attribute of `Fit`.

    None: no form has that width.
    """
    residuals: list[float] = []
    for guess in _rotations(samples, columns, pose):
        if getattr(guess, name) in values:
            residuals.append(_fit_rotation(samples, columns, pose, guess).residual)
    return min(residuals, default=None)


def _rotations(samples: Samples, columns: slice, pose: Pose) -> Iterator[Fit]:
    """Possible meanings of a rotation."""
    width = columns.stop - columns.start
    forms: list[RotationForm] = [form for form, size in ROTATION_WIDTH.items() if size == width]
    for relation, lag in samples.pairs:
        # With one form, equal numbers are the meaning of that form.
        is_form = relation == "absolute" and len(pose.forms) == 1
        if not is_form and width == pose.rotation.stop - pose.rotation.start:
            yield Fit(relation, lag)
        frames: tuple[Frame | None, ...] = (None,) if relation == "absolute" else ("base", "tool")
        for frame, form, state_form in product(frames, forms, pose.forms):
            yield Fit(relation, lag, frame, form, state_form)


def _fit_rotation(samples: Samples, columns: slice, pose: Pose, guess: Fit) -> Fit:
    actions = samples.action(columns)
    lag = guess.lag
    form = guess.rotation
    state_form = guess.state_rotation
    if form is None or state_form is None:
        moved = samples.moved(pose.rotation, guess.relation, lag)
        if moved.shape[1] == 3:  # angles differ by less than pi
            origin = actions if guess.relation == "absolute" else 0.0
            moved = origin + ((moved - origin + np.pi) % (2 * np.pi) - np.pi)
        return _linear(guess, actions, moved)

    target = samples.rotation(pose.rotation, state_form, lag)
    if guess.frame is not None:
        reference = samples.rotation(pose.rotation, state_form, lag - 1)
        inverse = np.swapaxes(reference, -1, -2)
        turned = target @ inverse if guess.frame == "base" else inverse @ target
        return _linear(guess, actions, form_from_matrix(turned, form))

    # Absolute rotations: angles between both by the variance of the expected ones.
    u, _, v = np.linalg.svd(target.mean(axis=0))
    center = u @ np.diag([1, 1, np.linalg.det(u @ v)]) @ v
    variance = float((angle_between(target, center) ** 2).mean())
    errors = angle_between(target, _matrices(actions, form)) ** 2 / max(variance, 1e-12)
    residual = float(np.sqrt(errors.mean()))
    drawn = (actions, form_from_matrix(target, form))
    return replace(guess, residual=residual, errors=errors, drawn=drawn)


def _linear(guess: Fit, actions: Array, expected: Array, *, has_one_scale: bool = True) -> Fit:
    """Least squares; an absolute value may have an offset by dimension.

    Forms of more than three numbers have no scale, and a quaternion may have the other sign.
    `has_one_scale`: one for all dimensions, which is positive.
    """
    is_form = guess.rotation is not None and expected.shape[1] > 3
    if is_form and expected.shape[1] == 4:
        signs = np.sign((actions * expected).sum(axis=1, keepdims=True))
        actions = actions * np.where(signs == 0, 1, signs)
    has_offset = guess.relation == "absolute" and not is_form
    center = expected.mean(axis=0) if has_offset else 0.0
    origin = actions.mean(axis=0) if has_offset else 0.0
    moved = expected - center
    products = ((actions - origin) * moved).sum(axis=0)
    power = (moved**2).sum(axis=0)
    if is_form:
        scale = np.ones(len(power))
    elif has_one_scale:
        common = max(products.sum() / max(power.sum(), SMALLEST), 0.0)
        scale = np.full(len(power), common)
    else:
        scale = np.where(power > SMALLEST, products / np.maximum(power, SMALLEST), 0.0)
    left = actions - origin - scale * moved
    errors = (left**2).sum(axis=1) / max(actions.var(axis=0).sum(), SMALLEST)
    return replace(
        guess,
        residual=float(np.sqrt(errors.mean())),
        scale=() if is_form else tuple(scale.tolist()),
        offset=tuple((origin - scale * center).tolist()) if has_offset else (),
        errors=errors,
        drawn=(actions, actions - left),
    )


def _ranked(fits: Sequence[Fit]) -> list[Fit]:
    """Fits from the best on; of equal ones the simpler meaning first. Only the best is drawn."""
    best, *others = sorted(fits, key=lambda fit: round(fit.residual, 9))
    return [best] + [replace(fit, drawn=None) for fit in others]


def ties(fits: Sequence[Fit], samples: Samples) -> list[Fit]:
    """Returns the best of ranked fits, and all fits that are worse only by chance."""
    best = fits[0]
    if best.residual > LARGEST_RESIDUAL:
        return list(fits)
    _, numbers = np.unique(samples.blocks[samples.rows], return_inverse=True)
    counts = np.bincount(numbers)
    # From here on a fit is clearly worse.
    least = max(2 * best.residual, 10 * _EXACT)
    tied = [best]
    for fit in fits[1:]:
        is_tie = fit.residual < max(best.residual * _RATIO, _EXACT)
        is_clear = fit.residual**2 > best.residual**2 + _CLEAR_SHARE or fit.residual > least
        if not is_tie and not is_clear:
            worse = np.bincount(numbers, fit.errors - best.errors) / counts
            error = worse.std() / np.sqrt(max(len(worse) - 1, 1))
            is_tie = worse.mean() < _Z * error
        if is_tie:
            tied.append(fit)
    return tied
