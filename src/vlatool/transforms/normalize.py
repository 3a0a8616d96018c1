"""Normalization of fields and its inverse.

`field_scale` makes the scale of a field from its entry of stats.json. The other functions read
such an entry: what never changes, how far normalized values reach.

Legend of shapes: B batch, T steps, C dimensions. Source: formats/lbm 5.3, with constant dimensions
scaled by one. The same functions serve numpy arrays and torch tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.transforms.statistics import PERCENTILES

Method = Literal["std", "percentile_5_95", "percentile_1_99", "min_max"]
Scope = Literal["global", "per_timestep"]

_RANGES: dict[Method, tuple[str, str]] = {
    "percentile_5_95": ("percentile_5", "percentile_95"),
    "percentile_1_99": ("percentile_1", "percentile_99"),
    "min_max": ("min", "max"),
}
_CONSTANT_WIDTH = 1e-6


@dataclass(frozen=True)
class FieldScale:
    """Center and scale of a field: `normalized = (value - center) / scale`."""

    center: Array  # float32 [C], or [T, C] per timestep
    scale: Array  # same shape as `center`, positive
    constant: Array  # bool [C], true for dimensions that never change; their scale is 1
    held: Array  # float64 [C], value of these dimensions; of others any

    def normalize(self, values: Any) -> Any:
        """Normalized values [..., C] or [..., T, C]."""
        return (values - self.center) / self.scale

    def denormalize(self, values: Any) -> Any:
        """Inverse of `normalize`; a dimension that never changes has its recorded value."""
        return np.where(self.constant, self.held, values * self.scale + self.center)

    def steps(self, first: int, count: int) -> "FieldScale":
        """Scale of `count` steps from index `first`; a global scale is returned unchanged."""
        if self.center.ndim == 1:
            return self
        rows = slice(first, first + count)
        return FieldScale(self.center[rows], self.scale[rows], self.constant, self.held)


def field_scale(
    stats: Mapping[str, Any],
    *,
    field: str,
    method: Method,
    scope: Scope,
    epsilon: float,
    centered: bool,
) -> FieldScale:
    """Makes the scale of a field from its entry in stats.json.

    A dimension with `max - min <= 1e-6 * max(1, |mean|)` is constant: it is centered and scaled by
    one, because the published rule, division by a lower bound, would amplify noise.

    Args:
        stats: Entry of the field.
        field: Name of the field, for messages.
        method: `std`: mean and standard deviation; else the ends of a range.
        scope: One scale for all steps of a window, or one for each.
        epsilon: Smallest scale.
        centered: Map a range to [-1, 1] instead of [0, 1].
    """
    suffix = "_per_timestep" if scope == "per_timestep" else ""
    if method == "std":
        center = _numbers(stats, field, "mean" + suffix)
        width = np.broadcast_to(_numbers(stats, field, "std" + suffix), center.shape)
    else:
        low_key, high_key = _RANGES[method]
        center = _numbers(stats, field, low_key + suffix)
        width = _numbers(stats, field, high_key + suffix) - center
        if centered:
            width = width / 2
            center = center + width
    constant = constant_dimensions(stats, field, suffix)
    scale = np.where(constant, 1.0, np.maximum(width, epsilon))
    return FieldScale(
        center=center.astype(np.float32),
        scale=scale.astype(np.float32),
        constant=constant_dimensions(stats, field),
        held=held_values(stats, field),
    )


def unscaled(stats: Mapping[str, Any], field: str) -> FieldScale:
    """Scale of a field that is not normalized."""
    width = field_width(field, stats)
    center = np.zeros(width, np.float32)
    scale = np.ones(width, np.float32)
    if not has_range(stats):
        return FieldScale(center, scale, np.zeros(width, bool), np.zeros(width))
    return FieldScale(center, scale, constant_dimensions(stats, field), held_values(stats, field))


def held_values(stats: Mapping[str, Any], field: str) -> Array:
    """Value float64 [C] of dimensions that never change; the mean where they did by rounding."""
    if not has_range(stats):
        return _numbers(stats, field, "mean")
    low, high = value_range(stats, field)
    return np.where(low == high, low, _numbers(stats, field, "mean"))


def has_range(stats: Mapping[str, Any]) -> bool:
    """True if statistics have smallest and largest values; other programs may not write them."""
    return "min" in stats and "max" in stats


def value_range(stats: Mapping[str, Any], field: str) -> tuple[Array, Array]:
    """Smallest and largest values of a field over the data set, float64 [C]."""
    return _numbers(stats, field, "min"), _numbers(stats, field, "max")


def constant_dimensions(stats: Mapping[str, Any], field: str, suffix: str = "") -> Array:
    """Bool [C], true for dimensions that never change over the data set.

    With the suffix `_per_timestep` bool [T, C], for each step of the window separately. Without
    smallest and largest values the standard deviation decides.
    """
    if not suffix and not has_range(stats):
        return _numbers(stats, field, "std") == 0
    low = _numbers(stats, field, "min" + suffix)
    high = _numbers(stats, field, "max" + suffix)
    mean = _numbers(stats, field, "mean" + suffix)
    return high - low <= _CONSTANT_WIDTH * np.maximum(1.0, np.abs(mean))


def range_width(low: Array, high: Array) -> Array:
    """Width [C] of a range; 1 for a dimension that never changes."""
    width = high - low
    is_constant = width <= _CONSTANT_WIDTH * np.maximum(1.0, np.abs(low))
    return np.where(is_constant, 1.0, width)


def normalized_range(
    stats: Mapping[str, Any], field: str, scale: FieldScale
) -> tuple[Array, Array]:
    """Largest absolute value and standard deviation [C] of each dimension after normalization.

    With a scale per timestep, the values of the step where they are largest.
    """
    suffix = "_per_timestep" if scale.center.ndim == 2 else ""
    low = scale.normalize(_numbers(stats, field, "min" + suffix))
    high = scale.normalize(_numbers(stats, field, "max" + suffix))
    reach = np.maximum(np.abs(low), np.abs(high))
    deviation = _numbers(stats, field, "std" + suffix) / scale.scale
    return _largest_of_steps(reach), _largest_of_steps(deviation)


def _largest_of_steps(values: Array) -> Array:
    """Largest values [C] of [C] or [T, C]."""
    return values.reshape(-1, values.shape[-1]).max(axis=0)


def share_beyond(
    stats: Mapping[str, Any], field: str, scale: FieldScale, index: int, limit: float
) -> str:
    """Share of rows whose normalized value of a dimension exceeds a limit, such as `at most 2 %`.

    As far as percentiles tell.
    """
    center = np.reshape(scale.center, (-1, scale.center.shape[-1]))[0, index]
    width = np.reshape(scale.scale, (-1, scale.scale.shape[-1]))[0, index]
    below = 0
    above = 0
    for percent in PERCENTILES:
        key = f"percentile_{percent}"
        if key not in stats:
            continue
        value = (_numbers(stats, field, key)[index] - center) / width
        if value < -limit:
            below = percent
        if value > limit:
            above = max(above, 100 - percent)
    if below or above:
        return f"at least {below + above} %"
    if "percentile_1" in stats and "percentile_99" in stats:
        return "at most 2 %"
    return "an unknown share"


def field_width(field: str, stats: Mapping[str, Any]) -> int:
    """Number of dimensions of a field; raises DataError if its statistics have no mean."""
    return len(_numbers(stats, field, "mean"))


def _numbers(stats: Mapping[str, Any], field: str, key: str) -> Array:
    """Numbers [C], or [T, C] per timestep, of a key, in the shape of the mean."""
    values = stats.get(key)
    if values is None:
        raise DataError(
            f"statistics of field {field!r} have no {key!r}",
            hint="preprocess the data again, or use another normalization method",
            code="data.missing",
            details={"field": field, "key": key},
        )
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise _statistics_error(field, key, "is not an array of numbers") from None
    is_per_step = key.endswith("_per_timestep")
    shape = f"has the shape {list(numbers.shape)}"
    if key.startswith("mean"):
        dimensions = 2 if is_per_step else 1
        if numbers.ndim != dimensions or not numbers.size:
            form = "a number per step and dimension" if is_per_step else "a number per dimension"
            raise _statistics_error(field, key, f"{shape}, not {form}")
    else:
        mean = _numbers(stats, field, "mean_per_timestep" if is_per_step else "mean")
        if numbers.shape not in ((), mean.shape, mean.shape[-1:]):
            raise _statistics_error(field, key, f"{shape}, the mean {list(mean.shape)}")
    finite = np.isfinite(numbers)
    if finite.all():
        return numbers
    if not is_per_step or not finite.any():
        raise _statistics_error(field, key, "is not finite")
    step = int(np.flatnonzero(~finite.reshape(len(finite), -1).all(axis=1))[0])
    raise DataError(
        f"statistics of field {field!r}: {key!r} has no number at step {step} of the window: all "
        "episodes are shorter",
        hint="use one scale for all steps, data.normalization.scope=global, or preprocess with "
        "shorter windows",
        code="data.broken",
        details={"field": field, "key": key, "step": step},
    )


def _statistics_error(field: str, key: str, problem: str) -> DataError:
    return DataError(
        f"statistics of field {field!r}: {key!r} {problem}",
        hint="compute them with `vlatool stats compute DATA`, or preprocess the data again",
        code="data.broken",
        details={"field": field, "key": key},
    )
