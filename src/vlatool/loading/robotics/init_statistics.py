"""Statistics of initial weights: selection for a new run, comparison with those of its data."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlatool.artifacts.fields import dimension_label, recorded_names
from vlatool.artifacts.run.format import RunDir
from vlatool.artifacts.shards.format import read_preprocessing_config
from vlatool.artifacts.stats.format import Statistics, compact
from vlatool.config.scalars import value_text
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter, counted
from vlatool.loading.robotics.config import NormalizeConfig, RoboticsDataConfig
from vlatool.loading.robotics.info import RoboticsInfo
from vlatool.transforms.normalize import FieldScale, field_scale, field_width

# A larger factor between the ranges of a dimension gives a warning.
_MAX_FACTOR = 2.0
# Number of dimensions that a warning lists.
_MAX_LISTED = 40
_HINT = "set data.statistics_from=data to normalize with the statistics of the data"


def select_statistics(
    config: RoboticsDataConfig, info: RoboticsInfo, folder: Path | None, reporter: Reporter
) -> RoboticsInfo:
    """The info with the statistics that `config.statistics_from` selects; `folder`: run of the
    initial weights, or folder of their published file; None: there are none.
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
    known = _known_statistics(folder, is_required=is_init)
    owner = "initial weights" if is_init else "data"
    unknown = "" if known else "; those of the initial weights are unknown"
    reporter.note(
        f"data.statistics_from={config.statistics_from}: fields are normalized with the statistics "
        f"of the {owner}{unknown}"
    )
    for key, now, before in _changed_rules(config.normalization, _run_of(folder)):
        reporter.warn(
            "data.normalization_differs",
            f"data.normalization.{key} is {value_text(now)}, that of the initial weights is "
            f"{value_text(before)}",
        )
    changes = [text for name in info.fields for text in _changed_ranges(name, config, info, known)]
    if changes:
        more = f" and {len(changes) - _MAX_LISTED} more" if len(changes) > _MAX_LISTED else ""
        reporter.warn(
            "data.ranges_differ",
            "the ranges of these dimensions differ by more than twice from those of the initial "
            f"weights: {', '.join(changes[:_MAX_LISTED])}{more}",
        )
    return _replaced(info, known, folder) if is_init else info


def _known_statistics(folder: Path, *, is_required: bool) -> Statistics:
    """Statistics of initial weights; none if they are missing and not required."""
    try:
        return compact(_run_of(folder).statistics())
    except DataError as error:
        if is_required:
            error.hint = f"copy stats.json from the origin of the weights, or {_HINT}"
            raise
        return Statistics()


def _run_of(folder: Path) -> RunDir:
    """The folder with statistics: the folder, or the one above a published file."""
    above = RunDir(folder.parent)
    run = RunDir(folder)
    is_below = above.stats.is_file() or above.config.is_file()
    return above if is_below and not (run.stats.is_file() or run.config.is_file()) else run


def _changed_rules(config: NormalizeConfig, run: RunDir) -> Iterator[tuple[str, Any, Any]]:
    """Yields each key of the normalization whose value differs, with the new and the old value."""
    data = (run.read_config() or {}).get("data")
    section = data.get("normalization") if isinstance(data, Mapping) else None
    with suppress(ValidationError):  # of another version: unknown
        known = NormalizeConfig.model_validate(section or config).model_dump()
        for key, value in config.model_dump().items():
            if key not in config.no_effect_on_output and value != known[key]:
                yield key, value, known[key]


def _replaced(info: RoboticsInfo, known: Statistics, folder: Path) -> RoboticsInfo:
    """The info with the statistics of initial weights for the used fields."""
    for name in info.fields:
        if name not in known:
            raise _not_usable(f"{folder}: the statistics have no field {name!r}")
        widths = [
            field_width(name, entry) for entry in (known[name], info.statistics.get(name)) if entry
        ]
        if len(set(widths)) > 1:
            raise _not_usable(
                f"{folder}: the statistics of field {name!r} have "
                f"{counted(widths[0], 'dimension')}, the data "
                f"have {widths[1]}"
            )
    past = read_preprocessing_config(_run_of(folder).root).get("past_lowdim_steps")
    if not isinstance(past, int):
        raise _not_usable(f"{folder}: preprocessing_config.yaml has no past_lowdim_steps")
    used = {name: known[name] for name in info.fields}
    return replace(
        info,
        statistics={**info.statistics, **used},
        statistics_past=past,
        data_statistics={name: info.statistics.get(name) for name in info.fields},
    )


def _changed_ranges(
    name: str, config: RoboticsDataConfig, info: RoboticsInfo, known: Statistics
) -> Iterator[str]:
    """Yields a text on each dimension of a field whose range is another one than in `known`."""
    section = config.normalization.for_field(name)
    entries = [entries[name] for entries in (info.statistics, known) if name in entries]
    if len(entries) < 2 or not section.enabled:
        return
    with suppress(DataError):  # raised when the statistics are used
        new, old = (_range(name, entry, section) for entry in entries)
        width = len(new.scale)
        if len(old.scale) != width:
            return
        names = recorded_names(info.options[0])
        for index in range(width):
            texts = [
                "constant" if scale.constant[index] else f"{scale.scale[index]:.4g}"
                for scale in (new, old)
            ]
            sizes = [0.0 if scale.constant[index] else scale.scale[index] for scale in (new, old)]
            if max(sizes) > _MAX_FACTOR * min(sizes):
                label = dimension_label(name, index, width, names)
                yield f"{label} {texts[0]} (weights: {texts[1]})"


def _range(name: str, entry: Mapping[str, Any], section: NormalizeConfig) -> FieldScale:
    """The range of each dimension over all steps, as the method of normalization measures it."""
    return field_scale(
        entry,
        field=name,
        method=section.method,
        scope="global",
        epsilon=section.epsilon,
        centered=False,
    )


def _not_usable(message: str) -> DataError:
    return DataError(message, hint=_HINT, code="data.missing_statistics")
