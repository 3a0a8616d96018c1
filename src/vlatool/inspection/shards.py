"""What is in a folder of training shards."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.manifest import Shard, check_shards, read_manifest
from vlatool.artifacts.provenance import CONFIG_NAME, read_preprocessing_config
from vlatool.artifacts.stats import Statistics, read_stats
from vlatool.errors import DataError
from vlatool.inspection.fields import (
    FieldFacts,
    facts_of_statistics,
    statistics_field_table,
)
from vlatool.inspection.origin import Origin, list_of, origin_block, read_origin
from vlatool.inspection.shard import StoredSample, first_sample
from vlatool.inspection.text import number_text, pairs, size_text, table
from vlatool.jobs.record import read_record

_MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class ShardsReport:
    """What is in a shard folder.

    Attributes:
        folder: The folder with the manifest.
        window: Steps before and after the anchor; None when unknown.
        padding_share: Part of all rows that are padding; None when unknown.
        cameras: Camera to (width, height) in the first sample; None where it has no picture.
        language: Kind to a sentence of the first sample.
        findings: What is broken or missing, with `code` and `message`.
    """

    folder: str
    samples: int
    shards: int
    bytes: int
    window: tuple[int, int] | None
    fps: float | None
    image_indices: tuple[int, ...]
    padding_share: float | None
    cameras: Mapping[str, tuple[int, int] | None]
    fields: tuple[FieldFacts, ...]
    action_fields: tuple[str, ...]
    proprioception_fields: tuple[str, ...]
    language: Mapping[str, str]
    origin: Origin
    findings: tuple[Mapping[str, str], ...] = ()
    kind: str = "shards"

    @property
    def status(self) -> str:
        """`whole`, `broken`, or `incomplete` where the run that makes it has not ended."""
        if self.origin.is_complete is False:
            return "incomplete"
        return "broken" if self.findings else "whole"

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        fields = {facts.name: facts.document() for facts in self.fields}
        return {**asdict(self), "status": self.status, "fields": fields}

    def headline(self) -> str:
        """What it is, in a few words."""
        return f"{self.samples} samples in {self.shards} shards"

    def blocks(self) -> list[str]:
        """The report for people, block by block."""
        return [
            pairs(self._summary()),
            table("Findings", ("code", "message"), [tuple(one.values()) for one in self.findings]),
            table("Cameras", ("name", "width x height"), self._views()),
            statistics_field_table(self.fields),
            table(
                "Language",
                ("kind", "example"),
                [(kind, f'"{text}"') for kind, text in self.language.items()],
            ),
            origin_block(self.origin),
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
            "pictures at": ", ".join(map(str, self.image_indices)),
            "padding": "unknown" if share is None else f"{share:.1%} of the rows",
            "actions": self.action_fields or "not recorded",
            "proprioception": self.proprioception_fields or "not recorded",
        }

    def _views(self) -> list[tuple[str, str]]:
        return [
            (name, "not in the first sample" if size is None else f"{size[0]} x {size[1]}")
            for name, size in self.cameras.items()
        ]


def find_shards(location: Path) -> Path | None:
    """The folder with the manifest: `location/shards`, itself, or `location/episodes`.

    Raises:
        DataError: An interrupted run left the folder without one.
    """
    for folder in (location / "shards", location, location / "episodes"):
        if (folder / _MANIFEST).is_file():
            return folder
    record = read_record(location)
    if record is not None and record.command == "preprocess":
        raise DataError(
            f"{location}: `vlatool preprocess` has not written a manifest here yet",
            hint="wait for the run, or, if it was interrupted, run the same command again",
            code="data.incomplete_output",
            details={"path": str(location), "options": dict(record.options)},
        )
    return None


def inspect_shards(folder: Path) -> ShardsReport:
    """Reads what lies beside the shards, checks that each is whole, and opens the first sample.

    Raises:
        DataError: The manifest is broken.
    """
    manifest = folder / _MANIFEST
    shards = read_manifest(manifest)
    findings, whole = _check(manifest, shards)
    options = _options(folder, findings)
    statistics = _statistics(folder, findings)
    sample = first_sample(whole[0].path) if whole else None
    samples = sum(shard.num_sequences for shard in shards)
    return ShardsReport(
        folder=str(folder),
        samples=samples,
        shards=len(shards),
        bytes=sum(shard.path.stat().st_size for shard in shards if shard.path.is_file()),
        window=_window(options),
        fps=_number(options.get("fps")),
        image_indices=tuple(list_of(options, "image_indices")),
        padding_share=_padding_share(statistics, samples),
        cameras=_cameras(options, sample),
        fields=_fields(statistics),
        action_fields=tuple(list_of(options, "action_fields")),
        proprioception_fields=tuple(list_of(options, "proprioception_fields")),
        language={kind: texts[0] for kind, texts in sample.language().items()} if sample else {},
        origin=read_origin(folder, options),
        findings=tuple(findings),
    )


Findings = list[dict[str, str]]


def _check(manifest: Path, shards: Sequence[Shard]) -> tuple[Findings, list[Shard]]:
    """What is wrong with shards, and those with which nothing is."""
    findings: Findings = []
    whole: list[Shard] = []
    for shard in shards:
        try:
            check_shards(manifest, [shard])
            whole.append(shard)
        except DataError as error:
            findings.append(_finding(error))
    return findings, whole


def _options(folder: Path, findings: Findings) -> dict[str, Any]:
    """preprocessing_config.yaml, which for `episodes` lies in the folder beside."""
    beside = folder.parent / "shards"
    try:
        here = (folder / CONFIG_NAME).exists() or not (beside / CONFIG_NAME).exists()
        return read_preprocessing_config(folder if here else beside)
    except DataError as error:
        findings.append(_finding(error))
        return {}


def _statistics(folder: Path, findings: Findings) -> Statistics:
    try:
        return read_stats(folder / "stats.json")
    except DataError as error:
        findings.append(_finding(error))
        return {}


def _finding(error: DataError) -> dict[str, str]:
    return {"code": error.code, "message": error.message}


def _window(options: Mapping[str, Any]) -> tuple[int, int] | None:
    past, future = options.get("past_lowdim_steps"), options.get("future_lowdim_steps")
    return (past, future) if isinstance(past, int) and isinstance(future, int) else None


def _fields(statistics: Statistics) -> tuple[FieldFacts, ...]:
    facts = (facts_of_statistics(name, entry) for name, entry in statistics.items())
    return tuple(one for one in facts if one is not None)


def _padding_share(statistics: Statistics, samples: int) -> float | None:
    """Rows that no statistics counted. Source: lbm-data 3.12, `count` leaves padding out."""
    counts = next((entry.get("count") for entry in statistics.values()), None)
    if not isinstance(counts, list) or not counts or not samples:
        return None
    return round(1 - sum(counts) / (len(counts) * samples), 6)


def _cameras(
    options: Mapping[str, Any], sample: StoredSample | None
) -> dict[str, tuple[int, int] | None]:
    sizes = sample.cameras() if sample else {}
    return {**dict.fromkeys(list_of(options, "camera_names")), **sizes}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
