"""Windows in which nothing moves. Source: lbm-data 3.6.

Legend of shapes: N windows, T steps, C channels of a field.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.plugins import did_you_mean
from vlatool.transforms.windows import Windows

# The published rule looks at every field whose name contains one of these.
_PUBLISHED_WORDS = ("action", "joint", "poses", "xyz", "actual")


@dataclass(frozen=True)
class StillnessSpec:
    """When a window counts as still.

    Attributes:
        threshold: Published rule: no considered field's standard deviation over the real steps is
            above it, whatever the field's unit.
        field_thresholds: Better rule, used instead where given: every named field stays within
            this range, in its own unit; other fields do not matter.
    """

    threshold: float = 0.01
    field_thresholds: Mapping[str, float] = field(default_factory=dict[str, float])


def moving(windows: Windows, fields: Mapping[str, Array], spec: StillnessSpec) -> Array:
    """Which windows move, bool [N], from per-frame fields [F, C]; padding does not count.

    Raises:
        DataError: A threshold names a field that is not there.
    """
    if spec.field_thresholds:
        return _leaves_its_range(windows, fields, spec.field_thresholds)
    considered = [
        values
        for name, values in fields.items()
        if values.dtype.kind != "U" and any(word in name.lower() for word in _PUBLISHED_WORDS)
    ]
    if not considered:
        return np.ones(len(windows.anchors), bool)
    steps = windows.valid.sum(axis=1)
    result = np.zeros(len(windows.anchors), bool)
    for values in considered:
        result |= (_deviation(windows, values) > spec.threshold) & (steps > 1)
    return result


def _deviation(windows: Windows, values: Array) -> Array:
    """Largest population standard deviation of any channel over the real steps, [N]."""
    real = windows.valid[..., None]
    rows = np.where(real, values[windows.rows], 0.0)
    steps = np.maximum(real.sum(axis=1, keepdims=True), 1)
    mean = rows.sum(axis=1, keepdims=True) / steps
    squared = np.where(real, (rows - mean) ** 2, 0.0).sum(axis=1) / steps[:, 0]
    return np.sqrt(squared).max(axis=1, initial=0.0)


def _leaves_its_range(
    windows: Windows, fields: Mapping[str, Array], thresholds: Mapping[str, float]
) -> Array:
    result = np.zeros(len(windows.anchors), bool)
    for name, threshold in thresholds.items():
        if name not in fields or fields[name].dtype.kind == "U":
            raise DataError(
                f"still_field_thresholds: there is no field of numbers {name!r}",
                hint=did_you_mean(name, list(fields)),
                code="data.unknown_field",
                details={"field": name, "known": list(fields)},
            )
        rows = fields[name][windows.rows]
        real = windows.valid[..., None]
        highest = np.where(real, rows, -np.inf).max(axis=1)
        lowest = np.where(real, rows, np.inf).min(axis=1)
        # Not `>`: a range with NaN in it is no proof of stillness.
        result |= ~((highest - lowest) <= threshold).all(axis=1)
    return result
