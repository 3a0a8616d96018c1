"""Report of a folder of training shards, with their provenance and a page of some samples.

Legend of shapes: T steps of a window, C dimensions of a field.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.conventions.file import conventions_table
from vlatool.datasets.lbm import tar_facts
from vlatool.datasets.lbm.layout import (
    ShardFolder,
    ShardInfo,
    ShardTable,
    check_shards,
    expects_manifest,
)
from vlatool.datasets.stats.facts import field_summary, field_table, statistics_parts
from vlatool.datasets.stats.layout import Statistics
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.jobs.record import read_record, read_valid_record
from vlatool.media.tar import is_shard, open_shard
from vlatool.recordings.field_summary import FieldSummary, dimensions_table, recorded_names
from vlatool.report.facts import (
    Code,
    Fold,
    PageRequest,
    Part,
    Problems,
    Report,
    Section,
    Table,
    Tags,
    Text,
    Tiles,
    Titled,
    branch,
    evenly_spaced,
    histogram,
    listed,
    notes,
    status_text,
    under_heading,
)
from vlatool.report.text import number_text, pixels_text
from vlatool.storage.tree import size_text

_SHOWN_OPTIONS = (
    "stride",
    "max_padding_left",
    "max_padding_right",
    "padding_strategy",
    "resize_images_size",
    "image_resizing_method",
    "jpeg_quality",
    "samples_per_shard",
    "seed",
)


@dataclass(frozen=True)
class Provenance:
    """Provenance of samples."""

    format: str  # format of the raw data
    sources: tuple[str, ...]  # names of the raw sources
    version: str  # version of vlatool
    created_at: str  # time of creation, ISO 8601
    is_complete: bool | None  # True if the command that wrote them finished; None if not recorded
    episodes: int | None  # number of episodes in the output
    failures: int  # number of broken episodes, which are left out
    dropped: Mapping[str, int]  # map from drop reason to number of samples
    options: Mapping[str, Any]  # preprocessing_config.yaml


@dataclass(frozen=True)
class ShardsFacts:
    """Contents of a shard folder."""

    folder: str  # folder of the manifest
    samples: int
    shards: int
    bytes: int
    window: tuple[int, int] | None  # steps before and after the anchor; None if unknown
    fps: float | None
    image_indices: tuple[int, ...]
    padding_share: float | None  # share of all rows that are padding; None if unknown
    # Map from camera to (width, height) in the first sample; None if it has no image there.
    cameras: Mapping[str, tuple[int, int] | None]
    fields: tuple[FieldSummary, ...]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    language: Mapping[str, str]  # map from kind of annotation to a sentence of the first sample
    origin: Provenance

    @property
    def views(self) -> list[tuple[str, str]]:
        """Name and image size of each camera, as text."""
        missing = "not in the first sample"
        return [(name, pixels_text(size, missing)) for name, size in self.cameras.items()]


def inspect(location: Path) -> Report:
    """Reads the files beside the shards and the first sample; of one shard, headers and first
    sample.
    """
    if is_shard(location):
        return tar_facts.inspect_shard(location)
    folder = _open(location)
    findings = Problems()
    shards = folder.shards()
    whole: list[ShardInfo] = []
    for shard in shards:
        with findings.collecting():
            check_shards(folder.manifest, [shard])
            whole.append(shard)
    options = findings.read(folder.options) or {}
    statistics: Statistics = findings.read(folder.statistics) or {}
    first: tar_facts.SampleSummary | None = None
    if whole:
        with suppress(DataError), open_shard(whole[0].location) as tar:
            first = tar_facts.first_sample(tar)
    origin = _provenance(folder, options, findings)
    facts = _facts(folder, shards, first, statistics, origin)
    status = "broken" if findings else "whole"
    if origin.is_complete is False:
        status = "incomplete"
    conventions = folder.conventions()
    document = asdict(facts) | {"status": status}
    document["fields"] = {info.name: info.document() for info in facts.fields}
    if conventions is not None:
        document["conventions"] = asdict(conventions)
    window = "unknown"
    share = facts.padding_share
    if facts.window is not None:
        window = f"{facts.window[0]} past + anchor + {facts.window[1]} future"
    language = [(kind, f'"{text}"') for kind, text in facts.language.items()]
    return Report(
        kind="shards",
        headline=f"{counted(facts.samples, 'sample')} in {counted(facts.shards, 'shard')}",
        facts=document,
        summary={
            "status": status_text(status),
            "on disk": size_text(facts.bytes),
            "window": window,
            "rate": "unknown" if facts.fps is None else f"{number_text(facts.fps)} fps",
            "images at": ", ".join(map(str, facts.image_indices)) if facts.cameras else "no images",
            "padding": "unknown" if share is None else f"{share:.1%} of the rows",
            "actions": facts.action_fields or "not recorded",
            "proprioception": facts.proprioception_fields or "not recorded",
        },
        tables=[
            Table(("name", "width x height"), facts.views, "Cameras"),
            field_table(facts.fields),
            dimensions_table(facts.fields),
            *([conventions_table(conventions)] if conventions else []),
            Table(("kind", "example"), language, "Language"),
            _provenance_table(origin),
        ],
        findings=findings,
        page=partial(_page, folder, facts, [Tiles(_tiles(facts, status)), *notes(findings)]),
    )


def _provenance(folder: ShardFolder, options: dict[str, Any], findings: Problems) -> Provenance:
    """How the samples were made, by the record of the command and the files beside the shards."""
    record = findings.read(folder.record)
    metadata = findings.read(folder.metadata) or {}
    result = (record.result or {}) if record else {}
    return Provenance(
        format=str(options.get("type") or ""),
        sources=tuple(map(str, listed(options, "source_episodes"))),
        version=str(branch(metadata, "environment").get("vlatool") or ""),
        created_at=str(metadata.get("created_at") or ""),
        is_complete=None if record is None else record.result is not None,
        episodes=result.get("episodes"),
        failures=len(result.get("failures") or ()),
        dropped=dict(result.get("dropped") or {}),
        options=options,
    )


def _facts(
    folder: ShardFolder,
    shards: ShardTable,
    first: tar_facts.SampleSummary | None,
    statistics: Statistics,
    origin: Provenance,
) -> ShardsFacts:
    options = origin.options
    names = recorded_names(options)
    fields: list[FieldSummary] = []
    for name, entry in statistics.items():
        field = field_summary(name, entry, names)
        if field is not None:
            fields.append(field)
    samples = int(shards.sizes.sum())
    size = 0
    for shard in shards:
        if shard.location.is_file():
            size += shard.location.stat().st_size
    cameras: dict[str, tuple[int, int] | None] = dict.fromkeys(listed(options, "camera_names"))
    language: dict[str, str] = {}
    if first is not None:
        cameras |= first.cameras()
        language = {kind: texts[0] for kind, texts in first.language.items()}
    past = options.get("past_lowdim_steps")
    future = options.get("future_lowdim_steps")
    window: tuple[int, int] | None = None
    if isinstance(past, int) and isinstance(future, int):
        window = (past, future)
    fps = options.get("fps")
    return ShardsFacts(
        folder=str(folder.path),
        samples=samples,
        shards=len(shards),
        bytes=size,
        window=window,
        fps=float(fps) if isinstance(fps, int | float) else None,
        image_indices=tuple(listed(options, "image_indices")),
        padding_share=_padding_share(statistics, samples),
        cameras=cameras,
        fields=tuple(fields),
        action_fields=tuple(listed(options, "action_fields")),
        proprioception_fields=tuple(listed(options, "proprioception_fields")),
        language=language,
        origin=origin,
    )


def _open(location: Path) -> ShardFolder:
    has_data = ShardFolder.find(location) is not None
    record = read_record(location) if has_data else read_valid_record(location)
    is_shards = record is None or not record.complete or expects_manifest(location)
    if not has_data and not is_shards:
        raise DataError.at(
            location,
            "inspect does not support the contents of this output",
            hint="use `vlatool verify` to compare its files with their list",
            code="data.unknown_field",
        )
    if not has_data and record is not None:
        raise record.no_manifest_error(location)
    return ShardFolder.open(location)


def _padding_share(statistics: Statistics, samples: int) -> float | None:
    """Share of rows that are padding. Source: formats/lbm 4.1, `count` leaves padding out."""
    first = next(iter(statistics.values()), {})  # all are of the same windows
    counts = first.get("count")
    if not isinstance(counts, list) or not counts or not samples:
        return None
    return round(1 - sum(counts) / (len(counts) * samples), 6)


def _provenance_table(provenance: Provenance) -> Table:
    options = provenance.options
    sources = ", ".join(provenance.sources) or "unknown"
    rows: list[tuple[str, str]] = [("from", f"{sources} ({provenance.format or 'unknown'})")]
    if provenance.episodes is not None:
        rows.append(("episodes", str(provenance.episodes)))
    if provenance.failures:
        rows.append(("broken", f"{counted(provenance.failures, 'episode')} left out"))
    for reason, count in provenance.dropped.items():
        rows.append(("dropped", f"{counted(count, 'sample')}: {reason}"))
    if provenance.version:
        rows.append(("written by", f"vlatool {provenance.version}"))
    if provenance.created_at:
        rows.append(("at", provenance.created_at))
    for key in _SHOWN_OPTIONS:
        if key in options:
            rows.append((key, _option_text(options[key])))
    return Table((), rows, "Provenance")


def _option_text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _page(
    folder: ShardFolder, facts: ShardsFacts, overview: list[Part], request: PageRequest
) -> list[Section]:
    samples = list(_sample_cards(folder.shards(), request.samples, facts.origin.options))
    findings = Problems()  # not shown: the report has them already
    statistics = findings.read(folder.statistics) or {}
    counts: list[int] = []
    if folder.episodes is not None:
        episodes = findings.read(folder.episodes.shards)
        counts = [] if episodes is None else episodes.sizes.tolist()
    policy = {"Actions": facts.action_fields, "Proprioception": facts.proprioception_fields}
    language = Table(("kind", "example"), [*facts.language.items()])
    return [
        Section("Overview", [*overview, *_provenance_parts(facts.origin)]),
        Section("Cameras", [Table(("camera", "width x height"), facts.views)]),
        Section("Language", [language]),
        Section("Samples per episode", [histogram(counts, "samples per episode")]),
        Section("Statistics", statistics_parts(statistics, facts.fields, policy)),
        *under_heading(f"Samples ({len(samples)} of {facts.samples})", samples),
    ]


def _tiles(facts: ShardsFacts, status: str) -> dict[str, object]:
    share = facts.padding_share
    window = facts.window
    return {
        "samples": f"{facts.samples:,}",
        "shards": f"{facts.shards:,}",
        "status": status_text(status),
        "past + anchor + future": "" if window is None else f"{window[0]} + 1 + {window[1]}",
        "frames per second": "" if facts.fps is None else number_text(facts.fps),
        "images at": ", ".join(map(str, facts.image_indices)) if facts.cameras else "no images",
        "padded rows": "" if share is None else f"{share:.1%}",
        "on disk": size_text(facts.bytes),
    }


def _sample_cards(shards: ShardTable, count: int, options: Mapping[str, Any]) -> Iterator[Section]:
    """Yields cards of samples that are evenly spaced over all shards; opens each shard once."""
    positions = evenly_spaced(int(shards.sizes.sum()), count)
    start = 0
    for shard in shards:
        end = start + shard.size
        in_shard = [position - start for position in positions if start <= position < end]
        start = end
        if not in_shard:
            continue
        try:
            with open_shard(shard.location) as tar:
                for position in in_shard:
                    yield tar_facts.sample_card(tar, position, options)
        except DataError as error:
            yield Section(shard.location.name, [Text(error.message, "note")], is_under=True)


def _provenance_parts(provenance: Provenance) -> list[Part]:
    dropped: list[str] = []
    for reason, count in provenance.dropped.items():
        dropped.append(f"{counted(count, 'sample')}: {reason}")
    info = {
        "from": ", ".join(provenance.sources),
        "format": provenance.format,
        "episodes": provenance.episodes,
        "broken episodes left out": provenance.failures or None,
        "dropped": ", ".join(dropped),
        "written by vlatool": provenance.version,
        "at": provenance.created_at,
    }
    rows: list[tuple[Code, Code]] = []
    for name, value in provenance.options.items():
        if _is_short(value):
            rows.append((Code(name), Code("null" if value is None else value)))
    options = Fold("Options", [Table(("key", "value"), rows)])
    return [Titled("Provenance", [Tags(info), options])]


def _is_short(value: object) -> bool:
    if isinstance(value, list):
        return not any(isinstance(item, dict) for item in value)
    return not isinstance(value, dict)
