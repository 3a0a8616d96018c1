"""Reports of a folder of training shards and of one shard, with their provenance."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.sample import ARRAYS
from vlatool.artifacts.shards.dimensions import recorded_names
from vlatool.artifacts.shards.format import ShardFolder, expects_manifest
from vlatool.artifacts.shards.manifest import Shard, check_shards
from vlatool.artifacts.stats.format import Statistics
from vlatool.artifacts.tar import open_shard
from vlatool.errors import DataError
from vlatool.inspection.fields import (
    FieldSummary,
    dimensions_table,
    statistics_field_table,
    summary_of_statistics,
)
from vlatool.inspection.report import (
    Findings,
    Problems,
    Size,
    branch,
    findings_table,
    listed,
    number_text,
    pairs,
    pixels_text,
    table,
)
from vlatool.inspection.sample_view import SampleSummary, first_sample
from vlatool.jobs.record import read_record, read_valid_record
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
class ShardReport:
    """Contents of a shard.

    Attributes:
        samples: Number of keys with at least one member.
        members: Number of files in the tar.
        bytes: Size of the tar.
        members_per_sample: Map from number of members to number of samples that have that many.
        first: First sample; None in an empty tar.
        problem: Reason why the tar could not be read to its end; empty if it could.
    """

    samples: int
    members: int
    bytes: int
    members_per_sample: Mapping[int, int]
    first: SampleSummary | None
    problem: str = ""
    kind: str = "shard"

    def document(self) -> dict[str, Any]:
        """Report as JSON values."""
        first = None if self.first is None else self.first.document()
        return {**asdict(self), "first": first}

    def headline(self) -> str:
        """Summary in one line."""
        return f"shard, {self.samples} samples"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        counts = ", ".join(
            f"{members} in {samples} samples" if len(self.members_per_sample) > 1 else str(members)
            for members, samples in self.members_per_sample.items()
        )
        summary = pairs(
            {
                "status": self.problem or "whole",
                "on disk": size_text(self.bytes),
                "members per sample": counts,
                "first sample": self.first.key if self.first else "none",
            }
        )
        return [summary, *(self._first_blocks(self.first) if self.first else ())]

    @staticmethod
    def _first_blocks(first: SampleSummary) -> Iterator[str]:
        shown = {name: pixels_text(size, "unreadable") for name, size in first.pictures.items()}
        members = [
            (name, size_text(size), shown.get(name, "")) for name, size in first.members.items()
        ]
        yield table("Members of the first sample", ("name", "size", "width x height"), members)
        yield table(f"Arrays of {ARRAYS}", ("name", "shape", "dtype"), first.array_rows())
        language = [(kind, f'"{texts[0]}"') for kind, texts in first.language.items()]
        yield table("Language", ("kind", "example"), language)


def inspect_shard(path: Path) -> ShardReport:
    """Reads the headers of a tar and its first sample.

    Raises:
        DataError: The file is not a tar.
    """
    with open_shard(path) as shard:
        counts = Counter[str]()
        for sample in shard.scan.samples:
            counts[sample.key] += len(sample.members)
        others = sum(problem.code == "not_a_file" for problem in shard.scan.problems)
        return ShardReport(
            samples=len(counts),
            members=counts.total(),
            bytes=path.stat().st_size,
            members_per_sample=dict(Counter(counts.values()).most_common()),
            first=first_sample(shard),
            problem=shard.damage or (f"{others} members are not plain files" if others else ""),
        )


@dataclass(frozen=True)
class Provenance:
    """Provenance of samples.

    Attributes:
        format: Format of the raw data.
        sources: Names of the raw sources.
        version: Version of vlatool.
        created_at: Time of creation, ISO 8601.
        is_complete: True if the command that wrote them finished; None if not recorded.
        episodes: Number of episodes in the output.
        failures: Number of broken episodes, which are left out.
        dropped: Map from drop reason to number of samples.
        options: preprocessing_config.yaml.
    """

    format: str
    sources: tuple[str, ...]
    version: str
    created_at: str
    is_complete: bool | None
    episodes: int | None
    failures: int
    dropped: Mapping[str, int]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class ShardsReport:
    """Contents of a shard folder.

    Attributes:
        folder: Folder of the manifest.
        window: Steps before and after the anchor; None if unknown.
        padding_share: Share of all rows that are padding; None if unknown.
        cameras: Map from camera to (width, height) in the first sample; None if it has no image
            there.
        language: Map from kind of annotation to a sentence of the first sample.
        findings: Broken or missing files, with `code` and `message`.
    """

    folder: str
    samples: int
    shards: int
    bytes: int
    window: tuple[int, int] | None
    fps: float | None
    image_indices: tuple[int, ...]
    padding_share: float | None
    cameras: Mapping[str, Size | None]
    fields: tuple[FieldSummary, ...]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    language: Mapping[str, str]
    origin: Provenance
    findings: Findings = ()
    kind: str = "shards"

    @property
    def status(self) -> str:
        """`whole`, `broken`, or `incomplete` if the command that writes it has not finished."""
        if self.origin.is_complete is False:
            return "incomplete"
        return "broken" if self.findings else "whole"

    def document(self) -> dict[str, Any]:
        """Report as JSON values."""
        fields = {info.name: info.document() for info in self.fields}
        return {**asdict(self), "status": self.status, "fields": fields}

    def headline(self) -> str:
        """Summary in one line."""
        return f"{self.samples} samples in {self.shards} shards"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        language = [(kind, f'"{text}"') for kind, text in self.language.items()]
        return [
            pairs(self._summary()),
            findings_table(self.findings),
            table("Cameras", ("name", "width x height"), self.views()),
            statistics_field_table(self.fields),
            dimensions_table(self.fields),
            table("Language", ("kind", "example"), language),
            _provenance_block(self.origin),
        ]

    def _summary(self) -> dict[str, object]:
        window = "unknown"
        if self.window is not None:
            window = f"{self.window[0]} past + anchor + {self.window[1]} future"
        share = self.padding_share
        return {
            "status": self.status,
            "on disk": size_text(self.bytes),
            "window": window,
            "rate": "unknown" if self.fps is None else f"{number_text(self.fps)} fps",
            "images at": ", ".join(map(str, self.image_indices)),
            "padding": "unknown" if share is None else f"{share:.1%} of the rows",
            "actions": self.action_fields or "not recorded",
            "proprioception": self.proprioception_fields or "not recorded",
        }

    def views(self) -> list[tuple[str, str]]:
        """Name and image size of each camera, as text."""
        missing = "not in the first sample"
        return [(name, pixels_text(size, missing)) for name, size in self.cameras.items()]


def inspect_shards(location: Path) -> ShardsReport:
    """Reads the files beside the shards, checks that each shard exists, and opens the first sample.

    Raises:
        DataError: There is no manifest (an interrupted run has none), or it is broken.
    """
    folder = _open(location)
    shards = folder.shards()
    findings = Problems()
    whole: list[Shard] = []
    for shard in shards:
        with findings.collecting():
            check_shards(folder.manifest, [shard])
            whole.append(shard)
    options = findings.read(folder.options) or {}
    statistics: Statistics = findings.read(folder.statistics) or {}
    sample = _first_sample(whole[0].path) if whole else None
    views = sample.cameras() if sample else {}
    names = recorded_names(options)
    fields = (summary_of_statistics(name, entry, names) for name, entry in statistics.items())
    fps = options.get("fps")
    samples = sum(shard.num_sequences for shard in shards)
    return ShardsReport(
        folder=str(folder.path),
        samples=samples,
        shards=len(shards),
        bytes=sum(shard.path.stat().st_size for shard in shards if shard.path.is_file()),
        window=_window(options),
        fps=float(fps) if isinstance(fps, int | float) else None,
        image_indices=tuple(listed(options, "image_indices")),
        padding_share=_padding_share(statistics, samples),
        cameras=dict.fromkeys(listed(options, "camera_names")) | views,
        fields=tuple(field for field in fields if field is not None),
        action_fields=tuple(listed(options, "action_fields")),
        proprioception_fields=tuple(listed(options, "proprioception_fields")),
        language={kind: texts[0] for kind, texts in sample.language.items()} if sample else {},
        origin=_provenance(folder, options, findings),
        findings=tuple(findings),
    )


def _open(location: Path) -> ShardFolder:
    has_data = ShardFolder.find(location) is not None
    record = read_record(location) if has_data else read_valid_record(location)
    is_shards = record is None or not record.complete or expects_manifest(location)
    if not has_data and not is_shards:
        raise DataError(
            f"{location}: inspect does not support the contents of this output",
            hint="use `vlatool verify` to compare its files with their list",
            code="data.unknown_output",
            details={"path": str(location)},
        )
    if not has_data and record is not None:
        raise DataError(
            f"{location}: `vlatool {record.command}` has not written a manifest here yet",
            hint="wait until it ends; if it was interrupted, run the same command again",
            code="data.incomplete_output",
            details={"path": str(location), "options": dict(record.options)},
        )
    return ShardFolder.open(location)


def _first_sample(path: Path) -> SampleSummary | None:
    try:
        with open_shard(path) as shard:
            return first_sample(shard)
    except DataError:
        return None


def _window(options: Mapping[str, Any]) -> tuple[int, int] | None:
    past, future = options.get("past_lowdim_steps"), options.get("future_lowdim_steps")
    return (past, future) if isinstance(past, int) and isinstance(future, int) else None


def _padding_share(statistics: Statistics, samples: int) -> float | None:
    """Share of rows that are padding. Source: formats/lbm 4.1, `count` leaves padding out."""
    counts = next((entry.get("count") for entry in statistics.values()), None)
    if not isinstance(counts, list) or not counts or not samples:
        return None
    return round(1 - sum(counts) / (len(counts) * samples), 6)


def _provenance(folder: ShardFolder, options: Mapping[str, Any], findings: Problems) -> Provenance:
    """Provenance from the options, the record and the metadata of a shard folder."""
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


def _provenance_block(provenance: Provenance) -> str:
    """Provenance as text."""
    options, episodes, failures = provenance.options, provenance.episodes, provenance.failures
    sources = ", ".join(provenance.sources) or "unknown"
    rows = pairs(
        {
            "from": f"{sources} ({provenance.format or 'unknown'})",
            "episodes": "" if episodes is None else str(episodes),
            "broken": f"{failures} episodes left out" if failures else "",
            "dropped": [
                f"{count} samples: {reason}" for reason, count in provenance.dropped.items()
            ],
            "written by": f"vlatool {provenance.version}" if provenance.version else "",
            "at": provenance.created_at,
            **{key: _option_text(options[key]) for key in _SHOWN_OPTIONS if key in options},
        }
    )
    return "Provenance\n" + "\n".join(f"  {line}" for line in rows.split("\n"))


def _option_text(value: object) -> str:
    if value is None:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
