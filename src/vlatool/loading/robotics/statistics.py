"""Statistics of a run: normalization of fields, checks of ranges, statistics of initial weights.

`Normalizer` scales the fields of a run. `report_ranges` names dimensions that it scales badly,
`select_statistics` takes the statistics of the data or of the initial weights and compares both,
and `report_conventions` compares what the actions of the data sets mean.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlatool.checkpoints.contract import Contract, differences
from vlatool.checkpoints.layout import RunDir
from vlatool.datasets.lbm.layout import (
    MANIFEST_NAME,
    ShardFolder,
    read_preprocessing_config,
)
from vlatool.datasets.stats.layout import Statistics, compact
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter, counted
from vlatool.loading.robotics.config import NormalizeConfig, RoboticsDataConfig
from vlatool.loading.robotics.options import DataOptions
from vlatool.recordings.field_summary import dimension_label
from vlatool.report.text import few_text
from vlatool.storage.uri import location
from vlatool.transforms.normalize import (
    FieldScale,
    constant_dimensions,
    field_scale,
    field_width,
    held_values,
    normalized_range,
    share_beyond,
    unscaled,
)
from vlatool.transforms.relative import SUFFIX

if TYPE_CHECKING:
    from vlatool.loading.robotics.mixture import RoboticsInfo


class Normalizer:
    """Normalizes and denormalizes the fields of a run."""

    def __init__(
        self,
        config: RoboticsDataConfig,  # section `data`, derived
        statistics: Mapping[str, Mapping[str, Any]],  # map from field name to statistics entry
        statistics_past: int,  # index of the anchor in statistics per time step
    ) -> None:
        past = config.lowdim_past_timesteps
        future = config.lowdim_future_timesteps
        if past is None or future is None:  # a damaged run; loading derives both
            raise DataError(
                "data.lowdim_past_timesteps or data.lowdim_future_timesteps is not set",
                hint="copy the run again, with its config.yaml",
                code="data.broken",
            )
        self._first = statistics_past - past
        self._scales: dict[str, FieldScale] = {}
        for name in _fields(config):
            self._scales[name] = scale_of(name, statistics.get(name), config.normalization)
        last = self._first + past + future
        for name, scale in self._scales.items():
            has_steps = scale.center.ndim == 2
            if has_steps and (self._first < 0 or last >= len(scale.center)):
                raise DataError(
                    f"the statistics of field {name!r} have "
                    f"{counted(len(scale.center), 'step')}, but the window has steps "
                    f"{self._first} to {last}",
                    hint="compute statistics with `vlatool stats compute DATA`, or use one scale "
                    "for all steps: data.normalization.scope=global",
                    code="data.broken",
                    details={"field": name},
                )

    def scale(self, field: str, steps: int) -> FieldScale:
        """Returns the scale of the first `steps` steps of the window."""
        return self._scales[field].steps(self._first, steps)

    def normalize(self, field: str, values: Array) -> Array:
        """Normalizes values [..., S, C] of the first S steps of the window; float32."""
        return self.scale(field, values.shape[-2]).normalize(values.astype(np.float32))

    def denormalize(self, field: str, values: Array) -> Array:
        """Inverse of `normalize`; float64."""
        return self.scale(field, values.shape[-2]).denormalize(values.astype(np.float64))

    def constant(self, fields: Sequence[str]) -> Array:
        """Mask bool [sum of widths] of the dimensions that are constant over the data."""
        return np.concatenate([self._scales[name].constant for name in fields])


def _fields(config: RoboticsDataConfig) -> Sequence[str]:
    return list(dict.fromkeys([*config.action_fields, *config.proprioception_fields]))


def scale_of(name: str, stats: Mapping[str, Any] | None, section: NormalizeConfig) -> FieldScale:
    """Scale of a field by its statistics entry; one without normalization."""
    config = section.for_field(name)
    if stats is None:
        raise DataError(
            f"the statistics of your data have no field {name!r}",
            hint="leave it out of data.action_fields and data.proprioception_fields",
            code="data.missing",
            details={"field": name},
        )
    if not config.enabled:
        return unscaled(stats, name)
    return field_scale(
        stats,
        field=name,
        method=config.method,
        scope=config.scope,
        epsilon=config.epsilon,
        centered=config.centered_norm,
    )


_log = logging.getLogger(__name__)

# Normalized values of normal data are below 10 with any method.
_MAX_REACH = 20.0
# Larger ones drown what the network could learn of all other dimensions.
_REFUSED_REACH = 1000.0
_ORDERS = 100.0
# A message lists 40 dimensions.
_listed = partial(few_text, limit=40)


@dataclass(frozen=True)
class _Dimension:
    """Range of one dimension that moves, after normalization."""

    field: str
    index: int
    label: str  # its name, such as `action: left_arm.3`
    reach: float  # largest absolute value; 0 without normalization
    deviation: float  # standard deviation


def report_ranges(config: RoboticsDataConfig, info: "RoboticsInfo", reporter: Reporter) -> None:
    """Names the dimensions that are constant, have too narrow a range, or an uneven scale.

    Raises:
        DataError: Normalized values of a dimension exceed 1,000, and `data.allow` does not name it.
    """
    constant: list[str] = []
    for field in _fields(config):
        is_constant = constant_dimensions(info.statistics[field], field)
        if is_constant.all():
            constant.append(field)
            continue
        for index in np.flatnonzero(is_constant).tolist():
            constant.append(dimension_label(field, index, len(is_constant), info.options.names))
    for text, labels in (
        ("these never change in your data, so the policy holds them", constant),
        (
            "fixed in one data set, but not in all, so the policy does not hold them",
            info.fixed_in_some,
        ),
    ):
        if labels:
            _log.info("%s: %s", text, _listed(labels))
            reporter.note(f"{text}: {few_text(labels, 3)}")

    narrow: list[str] = []
    others: list[_Dimension] = []
    for dimension in _moving(config, info):
        is_allowed = dimension.field in config.allow or dimension.label in config.allow
        if dimension.reach > _REFUSED_REACH and not is_allowed:
            raise _reach_error(dimension, config, info)
        if dimension.reach > _MAX_REACH:
            narrow.append(f"{dimension.label} (up to {dimension.reach:.3g})")
        elif dimension.deviation > 0:
            others.append(dimension)
    if narrow:
        reporter.warn(
            "data.narrow_ranges",
            "these dimensions are normalized with a range that is far narrower than their motion, "
            f"so that a few values are very large: {_listed(narrow)}; choose another method for "
            "them in data.normalization.field_configs, such as min_max",
        )

    if not others:
        return
    median = float(np.median([dimension.deviation for dimension in others]))
    uneven: list[str] = []
    for dimension in others:
        if not median / _ORDERS <= dimension.deviation <= median * _ORDERS:
            uneven.append(f"{dimension.label} ({dimension.deviation:.3g})")
    if uneven:
        reporter.warn(
            "data.uneven_scales",
            "after normalization, the standard deviations of these dimensions differ by orders of "
            f"magnitude from the median {median:.3g}: {_listed(uneven)}; check "
            "data.normalization and its epsilon",
        )


def _reach_error(
    dimension: _Dimension, config: RoboticsDataConfig, info: "RoboticsInfo"
) -> DataError:
    field = dimension.field
    method = config.normalization.for_field(field).method
    stats = info.statistics[field]
    scale = scale_of(field, stats, config.normalization)
    share = share_beyond(_of_data(info, field), field, scale, dimension.index, _REFUSED_REACH)
    return DataError(
        f"{dimension.label} reaches {dimension.reach:.3g} when it is normalized with {method}: "
        f"{share} of the rows are over {_REFUSED_REACH:,.0f}",
        hint="normalize it by its standard deviation, --set 'data.normalization.field_configs="
        f"{{{field}: {{method: std}}}}', or leave it out of data.action_fields and "
        f"data.proprioception_fields; --data.allow {field} accepts it as it is",
        code="data.wide_range",
        details={"field": field, "dimension": dimension.index, "largest": dimension.reach},
    )


def _moving(config: RoboticsDataConfig, info: "RoboticsInfo") -> Iterator[_Dimension]:
    for field in _fields(config):
        stats = info.statistics[field]
        scale = scale_of(field, stats, config.normalization)
        is_normalized = config.normalization.for_field(field).enabled
        with suppress(DataError):  # statistics without what only this check needs
            reach, deviation = normalized_range(_of_data(info, field), field, scale)
            for index in np.flatnonzero(~constant_dimensions(stats, field)).tolist():
                label = dimension_label(field, index, len(reach), info.options.names)
                largest = float(reach[index]) if is_normalized else 0.0
                yield _Dimension(field, index, label, largest, float(deviation[index]))


def _of_data(info: "RoboticsInfo", field: str) -> Mapping[str, Any]:
    """Statistics of a field over the data, if the statistics of other weights normalize it."""
    stats = info.statistics[field]
    own = (info.data_statistics or {}).get(field)
    if not own:
        return stats
    shape = np.shape(stats.get("mean_per_timestep", ()))
    return own if np.shape(own.get("mean_per_timestep", ())) == shape else stats


# A larger factor between the ranges of a dimension gives a warning.
_MAX_FACTOR = 2.0
_HINT = "set data.statistics_from=data to normalize with the statistics of the data"


def select_statistics(
    config: RoboticsDataConfig, info: "RoboticsInfo", folder: Path | None, reporter: Reporter
) -> "RoboticsInfo":
    """Returns the info with the statistics that `config.statistics_from` selects.

    Args:
        config: Section `data`, derived.
        info: Metadata of the data.
        folder: Run of the initial weights, or folder of their published file; None: there are none.
        reporter: Receives what is selected, and how statistics and rules of both differ.
    """
    is_init = config.statistics_from == "init"
    if folder is None:
        if is_init:
            raise UsageError(
                "data.statistics_from is init, but there are no initial weights",
                hint="name them with --init-from, or set data.statistics_from to data",
                code="usage.missing_key",
            )
        return info
    run = _run_of(folder)
    before = Statistics()
    try:
        before = compact(run.statistics())
    except DataError as error:
        if is_init:
            error.hint = f"copy stats.json from the origin of the weights, or {_HINT}"
            raise
    owner = "initial weights" if is_init else "data"
    unknown = "" if before else "; the initial weights have no known statistics"
    reporter.note(
        f"data.statistics_from={config.statistics_from}: fields are normalized with the statistics "
        f"of the {owner}{unknown}"
    )
    with suppress(DataError):  # published files need not have them
        # A rate that differs is a difference of the data, but not of their statistics.
        contract = replace(_options_of(run).meaning, fps=None)
        meaning = info.options.meaning
        _report_differences("the initial weights", contract, "the data", meaning, reporter)
    changed = [name for name in info.fields if _has_other_range(name, config, info, before)]
    if changed:
        reporter.warn(
            "data.ranges_differ",
            "the ranges of these fields differ more than twofold from those of the initial "
            f"weights: {_listed(changed)}",
        )
    if is_init:
        return _replaced(info, before, run, folder)
    return info


def _run_of(folder: Path) -> RunDir:
    """The folder with statistics: the folder, or the one above a published file."""
    above = RunDir(folder.parent)
    run = RunDir(folder)
    is_below = above.stats.is_file() or above.config.is_file()
    return above if is_below and not (run.stats.is_file() or run.config.is_file()) else run


def _options_of(run: RunDir) -> DataOptions:
    return DataOptions.parse(read_preprocessing_config(run.root), run.options)


def _has_other_range(
    name: str, config: RoboticsDataConfig, info: "RoboticsInfo", before: Statistics
) -> bool:
    """True if a dimension of a field has another range in the data than in `before`."""
    section = config.normalization.for_field(name)
    if name not in info.statistics or name not in before or not section.enabled:
        return False
    ranges: list[Array] = []
    of_all_steps = section.model_copy(update={"scope": "global", "field_configs": {}})
    with suppress(DataError):  # raised when the statistics are used
        for entry in (info.statistics[name], before[name]):
            scale = scale_of(name, entry, of_all_steps)
            ranges.append(np.where(scale.constant, 0.0, scale.scale))
    if len(ranges) < 2 or ranges[0].shape != ranges[1].shape:
        return False
    low, high = np.minimum(*ranges), np.maximum(*ranges)
    return bool((high > _MAX_FACTOR * low).any())


def _replaced(
    info: "RoboticsInfo", before: Statistics, run: RunDir, folder: Path
) -> "RoboticsInfo":
    """The info with the statistics of the initial weights."""
    for name in info.fields:
        if name not in before:
            raise _not_usable(f"{folder}: the statistics have no field {name!r}")
        width = field_width(name, before[name])
        own = info.statistics.get(name)
        if own and field_width(name, own) != width:
            raise _not_usable(
                f"{folder}: the statistics of field {name!r} have {counted(width, 'dimension')}, "
                f"the data have {field_width(name, own)}"
            )
        if own is None:
            continue
        # A dimension that never moved in the data of the weights would stay at its value.
        moves = ~constant_dimensions(own, name)
        values = held_values(before[name], name)
        is_other = ~np.isclose(values, held_values(own, name), rtol=1e-6, atol=1e-6)
        wrong = np.flatnonzero(constant_dimensions(before[name], name) & (moves | is_other))
        if len(wrong):
            label = dimension_label(name, int(wrong[0]), width, info.options.names)
            raise _not_usable(
                f"{label} never moved in the data of the initial weights, but it moves or has "
                "another value in your data: their statistics would keep it at "
                f"{values[wrong[0]]:g}"
            )
    past = _options_of(run).past_lowdim_steps
    if past is None:
        raise _not_usable(f"{folder}: preprocessing_config.yaml has no past_lowdim_steps")
    used = {name: before[name] for name in info.fields}
    return replace(
        info,
        statistics={**info.statistics, **used},
        statistics_past=past,
        data_statistics={name: info.statistics.get(name) for name in info.fields},
    )


def _not_usable(message: str) -> DataError:
    return DataError(message, hint=_HINT, code="data.missing")


def report_blind(config: RoboticsDataConfig, info: "RoboticsInfo", reporter: Reporter) -> None:
    """Warns if the data have numbers that a policy could observe, and it observes none."""
    predicted = {name.removesuffix(SUFFIX) for name in config.action_fields}
    others = [name for name in info.statistics if name.removesuffix(SUFFIX) not in predicted]
    if others and not config.proprioception_fields:
        reporter.warn(
            "data.nothing_observed",
            f"the policy observes images only, but your data have {few_text(others)}: name what "
            "the robot measures with --data.proprioception-fields",
        )


def report_conventions(
    config: RoboticsDataConfig, info: "RoboticsInfo", reporter: Reporter
) -> None:
    """Warns of declarations that were trusted, and of data sets and statistics that differ."""
    first = info.sets[0]
    for dataset in info.sets:
        meaning = dataset.options.meaning
        _report_differences(first.name, first.options.meaning, dataset.name, meaning, reporter)
        for message in (dataset.options.stored.get("conventions") or {}).get("trusted", ()):
            reporter.warn("conventions.contradiction", f"{dataset.name}: {message}")
    for text, dataset in zip(config.dataset_statistics, info.sets, strict=False):
        path = location(text)
        folder = path.parent if path.suffix == ".json" else path
        stored = ShardFolder(folder / MANIFEST_NAME).conventions()
        if stored is not None:
            contract = Contract(conventions=stored.groups)
            owner = f"the data of {text}"
            _report_differences(owner, contract, "the data", dataset.options.meaning, reporter)


def _report_differences(
    owner: str, contract: Contract, name: str, other: Contract, reporter: Reporter
) -> None:
    for key, value, other_value in differences(contract, other):
        reporter.warn(
            "data.conventions_differ",
            f"{key} is {value} in {owner}, but {other_value} in {name}: convert one of them with "
            "`vlatool preprocess`",
        )
