"""Finds what contradicts the measured conventions: declarations, relative fields, other rates."""

from collections.abc import Collection, Iterator, Sequence
from itertools import product

from vlatool.conventions.file import Convention, Conventions, meaning
from vlatool.conventions.fit import Samples, rotation_residual
from vlatool.conventions.groups import Group
from vlatool.conventions.measure import Measured
from vlatool.episode import Declaration
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes, warning
from vlatool.transforms.relative import SUFFIX

# A contradiction is clear from this ratio of residuals on, and with so many rows and episodes.
_CLEAR_RATIO = 10
_CLEAR_ROWS = 200
_CLEAR_EPISODES = 3
_RATE = 0.1  # share that a scale may differ from the rate
CONVENTION = FindingCodes(
    "conventions",
    contradiction=warning(
        "What you or the data declare about the actions contradicts the recorded states.",
        "correct the declaration; if you are sure of it, add --trust-declared",
    ),
    relative_twice=warning(
        "Actions that are differences already are made relative to the measured pose once more.",
        "use the action fields without the suffix _relative",
    ),
)


def contradictions(
    measured: Measured, typed: Sequence[Declaration] = ()
) -> Iterator[tuple[Finding, bool]]:
    """Yields findings on declarations that the recorded states contradict.

    Declarations come from the data, or are typed. The second value is True if the declaration fits
    so much worse that training on it is refused.
    """
    conventions = measured.conventions
    is_large = conventions.rows >= _CLEAR_ROWS and conventions.episodes >= _CLEAR_EPISODES
    groups = list(zip(measured.groups, conventions.groups, strict=True))
    for declaration, (group, convention) in product([*measured.declared, *typed], groups):
        is_declared = (
            convention.field == declaration.field
            and declaration.first <= convention.last
            and convention.first <= declaration.last
        )
        if not is_declared or not group.is_determined:
            continue
        for name, values in _declared(declaration, group, convention, measured.fps).items():
            if set(values) & set(getattr(convention, name)):
                continue
            residual = _residual(measured.samples, group, name, values)
            left = "of another width" if residual is None else f"residual {residual:.3g}"
            best = convention.residual or 0.0
            message = (
                f"{convention.name}: {declaration.origin} says {' or '.join(values)} ({left}), "
                f"but the recorded states show {meaning(convention)} (residual {best:.3g}), "
                f"by {conventions.sample_text}"
            )
            is_worse = residual is None or residual >= _CLEAR_RATIO * best
            finding = CONVENTION("contradiction", message, field=convention.field)
            yield finding, is_worse and is_large


def _declared(
    declaration: Declaration, group: Group, convention: Convention, fps: float
) -> dict[str, tuple[str, ...]]:
    """Values of the attributes of a convention that a declaration states."""
    declared: dict[str, tuple[str, ...]] = {}
    # A velocity, the difference by the rate, is an absolute value of its own.
    is_velocity = any(abs(scale - fps) < _RATE * fps for scale in convention.scale)
    if declaration.relation and not is_velocity:
        declared["relation"] = (declaration.relation,)
    if declaration.rotations and group.pose is not None:
        declared["rotation"] = declaration.rotations
    if declaration.frame and convention.frame:
        declared["frame"] = (declaration.frame,)
    return declared


def _residual(samples: Samples, group: Group, name: str, values: Sequence[str]) -> float | None:
    """Least residual of the fits in which an attribute has one of `values`; None without any."""
    if group.pose is not None:
        return rotation_residual(samples, group.columns, group.pose, name, values)
    return min((fit.residual for fit in group.fits if getattr(fit, name) in values), default=None)


def relative_twice(conventions: Conventions, actions: Collection[str]) -> Iterator[Finding]:
    """Yields findings on differences between frames that an output makes relative once more."""
    for group in conventions.groups:
        if group.relation == ("delta",) and group.field + SUFFIX in actions:
            message = (
                f"{group.field}{SUFFIX} is computed from {group.name}, but the recorded states "
                f"show that this is {meaning(group)} already (residual {group.residual:.3g})"
            )
            yield CONVENTION("relative_twice", message, field=group.field)


def check_rate(conventions: Conventions, actions: Sequence[str], hint: str) -> None:
    """Raises DataError if actions are differences between frames: another rate changes them."""
    fields = {name.removesuffix(SUFFIX) for name in actions}
    for group in conventions.groups:
        if group.field in fields and group.relation == ("delta",):
            raise DataError(
                f"{group.name}: these actions are differences between frames "
                f"({meaning(group)}), so they mean something else at another rate",
                hint=hint,
                code="data.mismatch",
                details={"field": group.field},
            )
