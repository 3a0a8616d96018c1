"""Check of the ranges of actions and proprioception, before training."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from vlatool.artifacts.fields import dimension_label, recorded_names
from vlatool.errors import DataError
from vlatool.events import Reporter
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.info import RoboticsInfo
from vlatool.loading.robotics.normalizer import scale_of
from vlatool.transforms.normalize import constant_dimensions, normalized_range

# Normalized values of normal data are below 10 with any method.
_MAX_REACH = 20.0
_ORDERS = 100.0
# Number of dimensions that a message lists.
_MAX_LISTED = 40


@dataclass(frozen=True)
class _Dimension:
    """Range of one dimension that moves, after normalization."""

    label: str  # its name, such as `action: left_arm.3`
    reach: float  # largest absolute value; 0 without normalization
    deviation: float  # standard deviation


def report_ranges(config: RoboticsDataConfig, info: RoboticsInfo, reporter: Reporter) -> None:
    """Names the dimensions that are constant, have too narrow a range, or an uneven scale."""
    if constant := list(_constant_labels(config, info)):
        reporter.note(f"these dimensions never change in the data: {_listed(constant)}")
    varying = list(_moving(config, info))
    narrow = [dimension for dimension in varying if dimension.reach > _MAX_REACH]
    if narrow:
        labels = [f"{dimension.label} (up to {dimension.reach:.3g})" for dimension in narrow]
        reporter.warn(
            "data.narrow_ranges",
            "the range by which these dimensions are normalized is far narrower than their motion, "
            f"so that a few values are very large: {_listed(labels)}; choose another method for "
            "them in data.normalization.field_configs, such as min_max",
        )
    even = [
        dimension for dimension in varying if dimension not in narrow and dimension.deviation > 0
    ]
    median = float(np.median([dimension.deviation for dimension in even] or [1.0]))
    uneven = [
        f"{dimension.label} ({dimension.deviation:.3g})"
        for dimension in even
        if not median / _ORDERS <= dimension.deviation <= median * _ORDERS
    ]
    if uneven:
        reporter.warn(
            "data.uneven_scales",
            "the standard deviations of these dimensions, as the model receives them, differ by "
            f"orders of magnitude from the median {median:.3g}: {_listed(uneven)}; check "
            "data.normalization and its epsilon",
        )


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MAX_LISTED} more" if len(labels) > _MAX_LISTED else ""
    return f"{', '.join(labels[:_MAX_LISTED])}{more}"


def _constant_labels(config: RoboticsDataConfig, info: RoboticsInfo) -> Iterator[str]:
    """Labels of constant dimensions; of a field that is constant as a whole its name."""
    names = recorded_names(info.options[0])
    for field in _fields(config):
        constant = constant_dimensions(info.statistics[field], field)
        if constant.all():
            yield field
            continue
        for index in np.flatnonzero(constant).tolist():
            yield dimension_label(field, index, len(constant), names)


def _moving(config: RoboticsDataConfig, info: RoboticsInfo) -> Iterator[_Dimension]:
    names = recorded_names(info.options[0])
    for field in _fields(config):
        stats = info.statistics[field]
        scale = scale_of(field, stats, config.normalization)
        is_normalized = config.normalization.for_field(field).enabled
        with suppress(DataError):  # statistics without what only this check needs
            reach, deviation = normalized_range(stats, field, scale)
            for index in np.flatnonzero(~constant_dimensions(stats, field)).tolist():
                label = dimension_label(field, index, len(reach), names)
                yield _Dimension(
                    label, is_normalized * float(reach[index]), float(deviation[index])
                )


def _fields(config: RoboticsDataConfig) -> Sequence[str]:
    return list(dict.fromkeys([*config.action_fields, *config.proprioception_fields]))
