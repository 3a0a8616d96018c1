"""Report of the episodes of a raw source."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.events import Reporter
from vlatool.findings import Finding
from vlatool.inspection.fields import (
    FieldRange,
    FieldSummary,
    dimensions_table,
    source_field_table,
)
from vlatool.inspection.report import number_text, pairs, pixels_text, table
from vlatool.jobs.files import output_files
from vlatool.sources.detection import DetectedSource
from vlatool.sources.order import select
from vlatool.storage.tree import files_below, files_below_each, size_text

CAMERA_HEADER = ("camera", "width x height", "episodes", "calibration")


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
class SourceReport:
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
    fields: tuple[FieldSummary, ...]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    language: Mapping[str, LanguageSummary]
    warnings: tuple[WarningSummary, ...]
    broken: tuple[Mapping[str, str], ...]
    kind: str = "source"

    def document(self) -> dict[str, Any]:
        """Report as JSON values."""
        fields = {info.name: info.document() for info in self.fields}
        return {**asdict(self), "fields": fields}

    def headline(self) -> str:
        """Summary in one line."""
        broken = f", {len(self.broken)} broken" if self.broken else ""
        return f"{self.format} source, {self.episodes} episodes{broken}"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        tasks = [(count, task) for task, count in self.tasks.items()]
        language = [
            (kind, summary.sentences, f'"{summary.example}"')
            for kind, summary in self.language.items()
        ]
        warnings = [(warning.count, warning.code, warning.example) for warning in self.warnings]
        broken = [(episode["episode"], episode["message"]) for episode in self.broken]
        return [
            pairs(self._summary()),
            table("Tasks", ("episodes", "task"), tasks),
            table("Cameras", ("name", *CAMERA_HEADER[1:]), self.views("no")),
            source_field_table(self.fields),
            dimensions_table(self.fields),
            table("Language", ("kind", "sentences", "example"), language),
            table("Warnings", ("count", "code", "example"), warnings),
            table("Broken episodes", ("episode", "reason"), broken),
        ]

    def _summary(self) -> dict[str, object]:
        shortest, longest = self.frames_per_episode
        lengths = f"{shortest} to {longest}" if shortest < longest else f"{shortest}"
        rates = ", ".join(number_text(rate) for rate in self.fps)
        return {
            "frames": f"{self.frames}, {lengths} per episode",
            "duration": f"{self.seconds:.1f} s at {rates} fps",
            "on disk": size_text(self.bytes),
            "actions": self.action_fields or "none",
            "proprioception": self.proprioception_fields or "none",
        }

    def views(self, uncalibrated: str) -> list[tuple[str, ...]]:
        """Row of `CAMERA_HEADER` for each camera; `uncalibrated` is shown without calibration."""
        return [
            (
                camera.name,
                ", ".join(map(pixels_text, camera.sizes)),
                f"{camera.episodes} / {self.episodes}",
                ", ".join(camera.calibration) or uncalibrated,
            )
            for camera in self.cameras
        ]


def inspect_source(
    location: Path, source: DetectedSource, episodes: str | None, reporter: Reporter
) -> SourceReport:
    """Reads the fields of all selected episodes; of images only the size.

    Raises:
        DataError: No episode can be read, or none is selected.
    """
    refs = select(source.refs, episodes)
    survey = _Survey()
    survey.warn(getattr(source.reader, "source_findings", ()))
    with reporter.progress("episodes", len(refs), "episodes") as bar:
        for ref in refs:
            try:
                survey.add(_whole(source.reader.read(ref)))
            except DataError as error:
                survey.fail(ref, error)
            bar.advance(failed=len(survey.broken))
    if not survey.lengths:
        raise DataError(
            f"{location}: every episode is broken; the first: {survey.broken[0]['message']}",
            hint=survey.broken[0]["hint"],
            code="data.all_failed",
            details={"failures": survey.broken},
        )
    # Without .vlatool/ and outputs inside the folder; a location may also be one file.
    files = output_files(location) or files_below(location)
    size = sum(file.bytes for file in files) if files else _named_bytes(refs)
    return survey.report(source.format, size)


def _named_bytes(refs: Sequence[EpisodeRef]) -> int:
    """Total size of the files of episodes, for a location that cannot be listed."""
    paths = {path for ref in refs for path in (ref.path, *ref.files)}
    return sum(file.bytes for files in files_below_each([*paths]) for file in files)


def _whole(episode: Episode) -> Episode:
    """The episode; raises DataError if a camera that its data set declares is missing."""
    for error in episode.missing_cameras.values():
        raise error
    return episode


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
    ranges: dict[str, FieldRange] = field(default_factory=dict[str, FieldRange])
    actions: dict[str, None] = field(default_factory=dict[str, None])
    proprioception: dict[str, None] = field(default_factory=dict[str, None])
    sentences: dict[str, dict[str, None]] = field(default_factory=dict[str, dict[str, None]])
    warnings: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def add(self, episode: Episode) -> None:
        """Adds an episode.

        Raises:
            DataError: A camera cannot be opened; the episode is not added then.
        """
        sizes = {name: camera.size for name, camera in episode.cameras.items()}
        for name, (height, width) in sizes.items():
            self.sizes.setdefault(name, Counter())[width, height] += 1
        self.lengths.append(episode.num_frames)
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
        for kind, sentences in episode.language.items():
            self.sentences.setdefault(kind, {}).update(dict.fromkeys(sentences))
        self._add_fields(episode)
        self.warn(finding for finding in episode.findings if finding.severity != "info")

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
        """Adds findings."""
        for finding in findings:
            self.warnings.setdefault(finding.code, []).append(finding.message)

    def report(self, name: str, size: int) -> SourceReport:
        """Report of all episodes so far."""
        self._warn_of_absent_fields()
        return SourceReport(
            format=name,
            episodes=len(self.lengths),
            frames=sum(self.lengths),
            frames_per_episode=(min(self.lengths), max(self.lengths)),
            seconds=round(self.seconds, 3),
            fps=tuple(sorted(self.rates)),
            bytes=size,
            tasks=dict(self.tasks.most_common()),
            cameras=tuple(
                CameraSummary(
                    name, tuple(sizes), sizes.total(), tuple(self.calibration.get(name, ()))
                )
                for name, sizes in self.sizes.items()
            ),
            fields=tuple(field.info() for field in self.ranges.values()),
            action_fields=tuple(self.actions),
            proprioception_fields=tuple(self.proprioception),
            language={
                kind: LanguageSummary(len(texts), next(iter(texts), ""))
                for kind, texts in self.sentences.items()
            },
            warnings=tuple(
                WarningSummary(code, len(messages), messages[0])
                for code, messages in self.warnings.items()
            ),
            broken=tuple(self.broken),
        )

    def _add_fields(self, episode: Episode) -> None:
        for name, values in episode.lowdim.items():
            if name not in self.ranges:
                self.ranges[name] = FieldRange(name, values, episode.dimension_names)
            problem = self.ranges[name].add(values)
            if problem:
                message = f"{episode.id}: field {name!r} {problem}"
                self.warnings.setdefault("odd_field", []).append(message)

    def _warn_of_absent_fields(self) -> None:
        total = len(self.lengths)
        absent = [
            f"field {name!r} is in {field.episodes} of {total} episodes"
            for name, field in self.ranges.items()
            if field.episodes < total
        ]
        if absent:
            self.warnings["field_not_everywhere"] = absent
