"""Overview cards of a source, a data folder or a shard: values, tables, statistics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlatool.artifacts.stats.format import Statistics, number_array
from vlatool.episode import Array
from vlatool.inspection.fields import FieldSummary, unit
from vlatool.inspection.report import number_text, range_text
from vlatool.inspection.shards import ShardReport, ShardsReport
from vlatool.inspection.source import CAMERA_HEADER, SourceReport
from vlatool.pages.layout import (
    Html,
    Section,
    code,
    details,
    field_label,
    heading,
    label_with_unit,
    note,
    table,
    tags,
    tiles,
)
from vlatool.pages.plots import histogram, sparkline
from vlatool.storage.tree import size_text

_COLUMNS = ("mean", "std", "min", "percentile_1", "percentile_99", "max")
_PER_STEP = Html("mean &plusmn; std per step")
_HEADER = ("field", "dimension", "mean", "std", "min", "1 %", "99 %", "max", _PER_STEP)


def source_sections(report: SourceReport) -> list[Section]:
    """Cards of a raw source."""
    shortest, longest = report.frames_per_episode
    info = {
        "format": report.format,
        "episodes": f"{report.episodes:,}",
        "frames": f"{report.frames:,}",
        "seconds": f"{report.seconds:,.1f}",
        "frames per second": ", ".join(number_text(rate) for rate in report.fps),
        "frames per episode": f"{shortest} to {longest}" if shortest < longest else shortest,
        "on disk": size_text(report.bytes),
    }
    tasks = table(("task", "episodes"), report.tasks.items(), numbers=(1,))
    language = table(
        ("kind", "sentences", "example"),
        [(kind, summary.sentences, summary.example) for kind, summary in report.language.items()],
        numbers=(1,),
    )
    return [
        Section("Overview", tiles(info)),
        Section("Problems", _source_problems(report)),
        Section("Tasks", tasks + heading("Language", language)),
        Section("Cameras", table(CAMERA_HEADER, report.views("none"), numbers=(1, 2))),
        Section("Fields", _source_fields(report)),
    ]


def shards_sections(
    report: ShardsReport, statistics: Statistics, per_episode: Sequence[int]
) -> list[Section]:
    """Cards of a data folder.

    Args:
        report: Report of the folder.
        statistics: stats.json.
        per_episode: Number of samples of each episode; empty if unknown.
    """
    share = report.padding_share
    window = report.window
    info = {
        "samples": f"{report.samples:,}",
        "shards": f"{report.shards:,}",
        "status": report.status,
        "past + anchor + future": "" if window is None else f"{window[0]} + 1 + {window[1]}",
        "frames per second": "" if report.fps is None else number_text(report.fps),
        "images at": ", ".join(map(str, report.image_indices)),
        "padded rows": "" if share is None else f"{share:.1%}",
        "on disk": size_text(report.bytes),
    }
    findings = "".join(note(finding["message"]) for finding in report.findings)
    return [
        Section("Overview", tiles(info) + findings + _provenance(report)),
        Section("Cameras", table(("camera", "width x height"), report.views(), numbers=(1,))),
        Section("Language", table(("kind", "example"), report.language.items())),
        Section("Samples per episode", histogram(per_episode, "samples per episode")),
        Section("Statistics", _statistics(report, statistics)),
    ]


def shard_sections(report: ShardReport) -> list[Section]:
    """Cards of one tar."""
    info = {
        "samples": f"{report.samples:,}",
        "members": f"{report.members:,}",
        "status": "broken" if report.problem else "whole",
        "on disk": size_text(report.bytes),
    }
    first = report.first
    members = ""
    if first is not None:
        sizes = [(code(name), f"{size:,}") for name, size in first.members.items()]
        arrays = [(code(name), shape, dtype) for name, shape, dtype in first.array_rows()]
        members = details(
            "Members of the first sample", table(("member", "bytes"), sizes, numbers=(1,))
        ) + details("Arrays of the first sample", table(("array", "shape", "type"), arrays))
    problem = note(report.problem) if report.problem else ""
    return [Section("Overview", tiles(info) + problem + members)]


def _source_problems(report: SourceReport) -> str:
    broken = table(
        ("broken episode", "reason"),
        [(episode["episode"], episode["message"]) for episode in report.broken],
    )
    warnings = table(
        ("warning", "count", "example"),
        [(code(warning.code), warning.count, warning.example) for warning in report.warnings],
        numbers=(1,),
    )
    return broken + warnings


def _source_fields(report: SourceReport) -> str:
    policy = {*report.action_fields, *report.proprioception_fields}
    names = {name.removesuffix("_relative") for name in policy}
    first = [info for info in report.fields if info.name in names]
    others = [info for info in report.fields if info.name not in names]
    if not first:
        return _field_table(others)
    more = details(f"{len(others)} more fields", _field_table(others)) if others else ""
    return _field_table(first) + more


def _field_table(fields: Sequence[FieldSummary]) -> str:
    rows = [
        (
            field_label(info.name),
            info.width or "",
            info.dtype,
            info.example if info.dtype == "text" else range_text([*info.min, *info.max]),
            unit(info.name),
            info.dimensions_text,
            info.constant_text,
        )
        for info in fields
    ]
    header = ("field", "width", "type", "range", "unit", "dimensions", "constant dimensions")
    return table(header, rows, numbers=(1,))


def _provenance(report: ShardsReport) -> str:
    provenance = report.origin
    dropped = ", ".join(
        f"{count} samples: {reason}" for reason, count in provenance.dropped.items()
    )
    info = {
        "from": ", ".join(provenance.sources),
        "format": provenance.format,
        "episodes": provenance.episodes,
        "broken episodes left out": provenance.failures or None,
        "dropped": dropped,
        "written by vlatool": provenance.version,
        "at": provenance.created_at,
    }
    options = {name: value for name, value in provenance.options.items() if _is_short(value)}
    rows = [(code(name), code("null" if v is None else v)) for name, v in options.items()]
    return heading("Provenance", tags(info) + details("Options", table(("key", "value"), rows)))


def _is_short(value: object) -> bool:
    return not isinstance(value, dict) and not (
        isinstance(value, list) and any(isinstance(item, dict) for item in value)
    )


def _statistics(report: ShardsReport, statistics: Statistics) -> str:
    policy = (
        ("Actions", report.action_fields),
        ("Proprioception", report.proprioception_fields),
    )
    known = {info.name: info for info in report.fields}

    def tabled(names: Sequence[str]) -> str:
        return _statistics_table({name: statistics[name] for name in names}, known)

    policy_tables = "".join(
        heading(title, tabled([name for name in names if name in statistics]))
        for title, names in policy
    )
    policy_names = {name for _, names in policy for name in names}
    others = [name for name in statistics if name not in policy_names]
    rest = tabled(others)
    if not policy_tables:
        return rest
    return policy_tables + details(f"{len(others)} more fields", rest)


def _statistics_table(statistics: Statistics, known: Mapping[str, FieldSummary]) -> str:
    constant = {name: values for name in statistics if (values := _constant(known.get(name)))}
    rows = [
        row
        for name in statistics
        if name not in constant
        for row in _dimension_rows(name, statistics[name], known.get(name))
    ]
    constant_table = table(
        ("constant field", "values"),
        [
            (label_with_unit(name), Html(f"<code>{values}</code>"))
            for name, values in constant.items()
        ],
    )
    return table(_HEADER, rows, numbers=range(1, 8)) + constant_table


def _constant(info: FieldSummary | None) -> str:
    """Values of a constant field as text; empty for one that changes."""
    if info is None or len(info.constant) < info.width:
        return ""
    return ", ".join(map(number_text, info.mean))


def _dimension_rows(
    name: str, entry: Mapping[str, Any], info: FieldSummary | None
) -> list[tuple[object, ...]]:
    mean = number_array(entry.get("mean"))
    if mean is None or mean.ndim != 1:
        return [(field_label(name), "", *[""] * len(_COLUMNS), "not readable")]
    width = len(mean)
    columns = [_column(entry.get(key), width) for key in _COLUMNS]
    steps = _steps(entry, width)
    names = info.names if info and info.names else [str(number) for number in range(width)]
    return [
        (
            label_with_unit(name) if index == 0 else "",
            dimension,
            *(number_text(float(c[index])) if np.isfinite(c[index]) else "-" for c in columns),
            "" if steps is None else Html(sparkline(steps[0][:, index], steps[1][:, index])),
        )
        for index, dimension in enumerate(names)
    ]


def _column(value: object, width: int) -> Array:
    """Numbers [C]; NaN if there are none."""
    numbers = number_array(value)
    try:
        return np.broadcast_to(np.nan if numbers is None else numbers, (width,))
    except ValueError:
        return np.full(width, np.nan)


def _steps(entry: Mapping[str, Any], width: int) -> tuple[Array, Array] | None:
    """Mean and std per step [T, C]; None if they are missing or broken."""
    mean = number_array(entry.get("mean_per_timestep"))
    std = number_array(entry.get("std_per_timestep"))
    if mean is None or std is None or mean.ndim != 2 or mean.shape[1] != width:
        return None
    try:
        return mean, np.broadcast_to(std, mean.shape)
    except ValueError:
        return None
