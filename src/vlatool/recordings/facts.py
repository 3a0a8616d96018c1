"""Report of the episodes of a raw source, and its page; `episode_cards.py` has a card of each.

Each episode is read once. A `_Survey` keeps what the report needs, and becomes `SourceFacts`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from vlatool.conventions.contradiction import contradictions
from vlatool.conventions.file import Conventions, conventions_table
from vlatool.conventions.measure import Measured, measure, sampled, sampled_part, section
from vlatool.episode import Episode, EpisodeRef, Role, StoredPart
from vlatool.errors import DataError
from vlatool.events import Reporter, counted
from vlatool.findings import Finding
from vlatool.jobs.ownership import data_files
from vlatool.recordings import field_summary
from vlatool.recordings.base import parts_of
from vlatool.recordings.choice import numbered, select
from vlatool.recordings.commands import LaterValues, later_values
from vlatool.recordings.detect import DetectedSource
from vlatool.recordings.episode_cards import PROBLEMS, EpisodeCards
from vlatool.recordings.field_summary import unit
from vlatool.recordings.inventory import left_out_text
from vlatool.report.facts import (
    Code,
    Fold,
    PageRequest,
    Part,
    Report,
    Section,
    Table,
    Tiles,
)
from vlatool.report.text import number_text, pixels_text
from vlatool.storage.tree import FileInfo, files_below_each, size_text
from vlatool.storage.uri import is_remote

_CAMERA_HEADER = ("camera", "width x height", "episodes", "calibration")


@dataclass(frozen=True)
class CameraSummary:
    """Summary of a camera; sizes are (width, height) in pixels."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    episodes: int
    calibration: tuple[str, ...]


@dataclass(frozen=True)
class LanguageSummary:
    """Summary of a kind of annotation: number of different sentences, and one of them."""

    sentences: int
    example: str


@dataclass(frozen=True)
class WarningSummary:
    """Summary of the warnings of a code: their number, and one of them."""

    code: str
    count: int
    example: str


@dataclass(frozen=True)
class SourceFacts:
    """Contents of a raw source; `episodes` counts those read, `broken` lists the others."""

    format: str
    episodes: int
    frames: int
    frames_per_episode: tuple[int, int]
    seconds: float
    fps: tuple[float, ...]
    bytes: int
    tasks: Mapping[str, int]
    cameras: tuple[CameraSummary, ...]
    fields: tuple[field_summary.FieldSummary, ...]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    language: Mapping[str, LanguageSummary]
    language_spans: Mapping[str, int]  # kind of annotation to its number of spans
    warnings: tuple[WarningSummary, ...]
    broken: tuple[Mapping[str, str], ...]
    conventions: Conventions | None
    depth: tuple[str, ...]  # cameras with depth images
    labels: tuple[str, ...]  # cameras with segmentation labels
    left_out: tuple[StoredPart, ...]  # stored things that nothing uses
    possible_actions: tuple[LaterValues, ...] = ()  # if no field is called an action

    @property
    def lengths(self) -> str:
        shortest, longest = self.frames_per_episode
        return f"{shortest} to {longest}" if shortest < longest else f"{shortest}"

    @property
    def rates(self) -> str:
        """Frames per second as text."""
        return ", ".join(number_text(rate) for rate in self.fps) or "unknown"

    def views(self, uncalibrated: str) -> list[tuple[str, ...]]:
        """Row of `_CAMERA_HEADER` for each camera; `uncalibrated` is shown without calibration."""
        rows: list[tuple[str, ...]] = []
        for camera in self.cameras:
            sizes = ", ".join(map(pixels_text, camera.sizes))
            calibration = ", ".join(camera.calibration) or uncalibrated
            rows.append((camera.name, sizes, f"{camera.episodes} / {self.episodes}", calibration))
        return rows


def report_source(
    location: Path, source: DetectedSource, episodes: str | None, reporter: Reporter
) -> Report:
    """Reads the fields of all selected episodes; of images only the size."""
    refs = select(source.refs, episodes)
    survey = _surveyed(source, refs, reporter)
    if not survey.lengths:
        raise DataError(
            f"{location}: no episode can be read; first error: {survey.broken[0]['message']}",
            hint=survey.broken[0]["hint"],
            code="data.incomplete",
            details={"failures": survey.broken},
        )
    files = data_files(location)
    size = _bytes_of(location, files) or _named_bytes(refs)
    facts = survey.facts(source.format, size)
    layout = f" ({source.reader.layout})" if source.reader.layout else ""
    headline = f"{facts.format}{layout} source, {counted(facts.episodes, 'episode')}"
    if facts.broken:
        headline += f", {len(facts.broken)} broken"
    document = asdict(facts) | {"fields": {info.name: info.document() for info in facts.fields}}
    document["left_out"] = [
        {"path": part.path, "content": part.content, "reason": part.note} for part in facts.left_out
    ]
    for name in ("language_spans", "conventions", "possible_actions"):
        if not document[name]:
            del document[name]
    return Report(
        kind="source",
        headline=headline,
        facts=document,
        summary=_summary(facts),
        tables=_tables(facts),
        page=partial(_page, facts, survey.measured, source, refs, reporter),
    )


def _summary(facts: SourceFacts) -> dict[str, object]:
    summary: dict[str, object] = {
        "frames": f"{facts.frames}, {facts.lengths} per episode",
        "duration": "unknown: no fps",
        "on disk": size_text(facts.bytes),
        "actions": facts.action_fields or _no_actions_text(facts),
        "proprioception": facts.proprioception_fields or "none",
    }
    if facts.fps:
        summary["duration"] = f"{facts.seconds:.1f} s at {facts.rates} fps"
    if facts.language_spans:
        spans = [f"{count} {kind}" for kind, count in facts.language_spans.items()]
        summary["texts of frames"] = ", ".join(spans)
    if facts.depth:
        summary["depth"] = facts.depth
    if facts.labels:
        summary["labels"] = facts.labels
    if facts.left_out:
        summary["left out"] = left_out_text(facts.left_out)
    return summary


def _no_actions_text(facts: SourceFacts) -> str:
    texts: list[str] = []
    for later in facts.possible_actions:
        texts.append(f"{later.text}: is it the action? --action-fields {later.field}")
    return "; ".join(["none", *texts])


def _surveyed(source: DetectedSource, refs: Sequence[EpisodeRef], reporter: Reporter) -> "_Survey":
    """Survey of the episodes; where all lack images, of what else they have."""
    survey = _Survey()
    others = _Survey()
    for part in (survey, others):
        part.warn(source.reader.source_findings)
    measured_episodes = sampled(len(refs))
    parts: list[Episode] = []
    with reporter.progress("episodes", len(refs), "episodes") as bar:
        for number, ref in enumerate(refs):
            try:
                episode = source.reader.read(ref)
            except DataError as error:
                survey.fail(ref, error)
                others.fail(ref, error)
            else:
                if number in measured_episodes:
                    parts.append(sampled_part(episode, number, len(refs)))
                survey.add_whole(ref, episode)
                if not (episode.cameras or survey.lengths):
                    others.add(episode)
            bar.advance(failed=len((survey if survey.lengths else others).broken))
    if not survey.lengths and others.lengths:
        survey = others
    survey.measured = measure(parts, len(refs))
    if not survey.actions:
        survey.possible_actions = later_values(parts)
    if survey.measured is not None:
        survey.warn(finding for finding, _ in contradictions(survey.measured))
    return survey


def _tables(facts: SourceFacts) -> list[Table]:
    header = ("name", "width", "dtype", "range", "constant dimensions")
    fields: list[tuple[object, ...]] = []
    for info in facts.fields:
        values = f'"{info.example}"' if info.dtype == "text" else info.range_text
        fields.append((info.name, info.width or "-", info.dtype, values, info.constant_text))
    language: list[tuple[object, ...]] = []
    for kind, summary in facts.language.items():
        language.append((kind, summary.sentences, f'"{summary.example}"'))
    tasks = [(count, task) for task, count in facts.tasks.items()]
    warnings = [(warning.count, warning.code, warning.example) for warning in facts.warnings]
    tables = [
        Table(("episodes", "task"), tasks, "Tasks"),
        Table(("name", *_CAMERA_HEADER[1:]), facts.views("no"), "Cameras"),
        Table(header, fields, "Fields"),
        field_summary.dimensions_table(facts.fields),
    ]
    if facts.conventions:
        tables.append(conventions_table(facts.conventions))
    return [
        *tables,
        Table(("kind", "sentences", "example"), language, "Language"),
        Table(("count", "code", "example"), warnings, "Warnings"),
        Table(("episode", "reason"), _broken_rows(facts), "Broken episodes"),
    ]


def _broken_rows(facts: SourceFacts) -> list[tuple[str, str]]:
    return [(episode["episode"], episode["message"]) for episode in facts.broken]


def _page(
    facts: SourceFacts,
    measured: Measured | None,
    source: DetectedSource,
    refs: Sequence[EpisodeRef],
    reporter: Reporter,
    request: PageRequest,
) -> list[Section]:
    """Page of the episodes `refs`, some of them in full."""
    broken = dict(_broken_rows(facts))
    cards = EpisodeCards(source.reader, numbered(source.refs), broken, request)
    sections = cards.sections(refs, request.episodes, reporter)
    conventions = [section(measured)] if measured else []
    return [*_overview(facts), *conventions, *sections]


def _overview(facts: SourceFacts) -> list[Section]:
    info = {
        "format": facts.format,
        "episodes": f"{facts.episodes:,}",
        "frames": f"{facts.frames:,}",
        "seconds": f"{facts.seconds:,.1f}",
        "frames per second": facts.rates,
        "frames per episode": facts.lengths,
        "on disk": size_text(facts.bytes),
    }
    language: list[tuple[object, ...]] = []
    for kind, summary in facts.language.items():
        language.append((kind, summary.sentences, summary.example))
    warnings: list[tuple[object, ...]] = []
    for warning in facts.warnings:
        warnings.append((Code(warning.code), warning.count, warning.example))
    tasks: list[Part] = [
        Table(("task", "episodes"), [*facts.tasks.items()]),
        Table(("kind", "sentences", "example"), language, "Language"),
    ]
    problems: list[Part] = [
        Table(("broken episode", "reason"), _broken_rows(facts)),
        Table(("warning", "count", "example"), warnings),
    ]
    return [
        Section("Overview", [Tiles(info)]),
        Section("Problems", problems, anchor=PROBLEMS),
        Section("Tasks", tasks),
        Section("Cameras", [Table(_CAMERA_HEADER, facts.views("none"))]),
        Section("Fields", _field_parts(facts)),
    ]


def _field_parts(facts: SourceFacts) -> list[Part]:
    """Table of the fields of a policy, and a collapsed one of the others."""
    policy = {*facts.action_fields, *facts.proprioception_fields}
    names = {name.removesuffix("_relative") for name in policy}
    first = [info for info in facts.fields if info.name in names]
    others = [info for info in facts.fields if info.name not in names]
    if not first:
        return [_field_table(others)]
    return [_field_table(first), Fold(f"{len(others)} more fields", [_field_table(others)])]


def _field_table(fields: Sequence[field_summary.FieldSummary]) -> Table:
    rows: list[tuple[object, ...]] = []
    for info in fields:
        values = info.example if info.dtype == "text" else info.range_text
        described = (unit(info.name), info.dimensions_text, info.constant_text)
        rows.append((info.name, info.width or "", info.dtype, values, *described))
    header = ("field", "width", "type", "range", "unit", "dimensions", "constant dimensions")
    return Table(header, rows)


def _bytes_of(location: Path, files: Sequence[FileInfo]) -> int:
    """Total size of files at a location; a file and the links to it count once."""
    if is_remote(location):
        return sum(file.bytes for file in files)
    sizes: dict[Path, int] = {}
    for file in files:
        sizes[(location / file.name).resolve()] = file.bytes
    return sum(sizes.values())


def _named_bytes(refs: Sequence[EpisodeRef]) -> int:
    """Total size of the files of episodes, for a location that cannot be listed."""
    paths: set[Path] = set()
    for ref in refs:
        paths.update((ref.path, *ref.files))
    return sum(file.bytes for file in chain.from_iterable(files_below_each([*paths])))


@dataclass
class _Survey:
    """Accumulator over episodes; the episodes are not stored."""

    lengths: list[int] = field(default_factory=list[int])
    broken: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    seconds: float = 0.0
    rates: set[float] = field(default_factory=set[float])
    tasks: Counter[str] = field(default_factory=Counter[str])
    sizes: dict[str, Counter[tuple[int, int]]] = field(
        default_factory=dict[str, Counter[tuple[int, int]]]
    )
    calibration: dict[str, dict[str, None]] = field(default_factory=dict[str, dict[str, None]])
    ranges: dict[str, field_summary.FieldRange] = field(
        default_factory=dict[str, field_summary.FieldRange]
    )
    actions: dict[str, None] = field(default_factory=dict[str, None])
    proprioception: dict[str, None] = field(default_factory=dict[str, None])
    sentences: dict[str, dict[str, None]] = field(default_factory=dict[str, dict[str, None]])
    spans: Counter[str] = field(default_factory=Counter[str])
    warnings: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    parts: dict[str, StoredPart] = field(default_factory=dict[str, StoredPart])
    measured: Measured | None = None
    possible_actions: Sequence[LaterValues] = ()

    def add(self, episode: Episode) -> None:
        sizes = {name: camera.size for name, camera in episode.cameras.items()}
        for name, (height, width) in sizes.items():
            self.sizes.setdefault(name, Counter())[width, height] += 1
        self.lengths.append(episode.num_frames)
        for part in parts_of(episode):
            if part.is_loss or part.path not in self.parts:
                self.parts[part.path] = part
        if episode.fps:
            self.seconds += episode.num_frames / episode.fps
            self.rates.add(episode.fps)
        self.tasks[episode.task] += 1
        self.actions |= dict.fromkeys(episode.action_fields)
        self.proprioception |= dict.fromkeys(episode.proprioception_fields)
        for name, calibration in episode.calibration.items():
            known = self.calibration.setdefault(name, {})
            for part in ("intrinsics", "extrinsics"):
                if getattr(calibration, part) is not None:
                    known[part] = None
        for kind, sentences in episode.texts().items():
            self.sentences.setdefault(kind, {}).update(dict.fromkeys(sentences))
        self.spans.update(span.kind for span in episode.language_spans)
        for name, values in episode.lowdim.items():
            if name not in self.ranges:
                self.ranges[name] = field_summary.FieldRange(name, values, episode.dimension_names)
            problem = self.ranges[name].add(values)
            if problem:
                message = f"{episode.id}: field {name!r} {problem}"
                self.warnings.setdefault("odd_field", []).append(message)
        self.warn(finding for finding in episode.findings if finding.severity != "info")

    def add_whole(self, ref: EpisodeRef, episode: Episode) -> None:
        """Adds an episode; it counts as broken if a declared camera is missing."""
        try:
            for error in episode.missing_cameras.values():
                raise error
            self.add(episode)
        except DataError as error:
            self.fail(ref, error)

    def fail(self, ref: EpisodeRef, error: DataError) -> None:
        """Adds an episode that cannot be read."""
        self.broken.append(
            {
                "episode": ref.id,
                "path": str(ref.path),
                "code": error.code,
                "message": error.message,
                "hint": error.hint,
            }
        )

    def warn(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.warnings.setdefault(finding.code, []).append(finding.message)

    def facts(self, name: str, size: int) -> SourceFacts:
        total = len(self.lengths)
        absent: list[str] = []
        for field_name, values in self.ranges.items():
            if values.episodes < total:
                episodes = f"{values.episodes} of {counted(total, 'episode')}"
                absent.append(f"field {field_name!r} is in {episodes}")
        if absent:
            self.warnings["field_not_everywhere"] = absent
        cameras: list[CameraSummary] = []
        for camera, sizes in self.sizes.items():
            calibration = tuple(self.calibration.get(camera, ()))
            cameras.append(CameraSummary(camera, tuple(sizes), sizes.total(), calibration))
        language: dict[str, LanguageSummary] = {}
        for kind, texts in self.sentences.items():
            language[kind] = LanguageSummary(len(texts), next(iter(texts), ""))
        warnings: list[WarningSummary] = []
        for code, messages in self.warnings.items():
            warnings.append(WarningSummary(code, len(messages), messages[0]))
        return SourceFacts(
            format=name,
            episodes=total,
            frames=sum(self.lengths),
            frames_per_episode=(min(self.lengths), max(self.lengths)),
            seconds=round(self.seconds, 3),
            fps=tuple(sorted(self.rates)),
            bytes=size,
            tasks=dict(self.tasks.most_common()),
            cameras=tuple(cameras),
            fields=tuple(field.info() for field in self.ranges.values()),
            action_fields=tuple(self.actions),
            proprioception_fields=tuple(self.proprioception),
            language=language,
            language_spans=dict(self.spans),
            warnings=tuple(warnings),
            broken=tuple(self.broken),
            conventions=self.measured.conventions if self.measured else None,
            depth=self._named("depth"),
            labels=self._named("labels"),
            left_out=tuple(part for part in self.parts.values() if part.role == "left_out"),
            possible_actions=tuple(self.possible_actions),
        )

    def _named(self, role: Role) -> tuple[str, ...]:
        """Names of the parts with a role."""
        return tuple(part.name for part in self.parts.values() if part.role == role)
