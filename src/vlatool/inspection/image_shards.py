"""What is in image shards, or in one of them."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.image_shards import (
    METADATA_SUFFIX,
    TRAIN_LIST,
    VAL_LIST,
    image_suffix,
    image_tars,
    read_list,
    read_manifest,
)
from vlatool.artifacts.shard import OpenShard, open_shard
from vlatool.artifacts.stored_image import ImageInfo, image_info
from vlatool.errors import DataError
from vlatool.inspection.report import (
    Findings,
    Problems,
    findings_table,
    listed,
    pairs,
    pixels_text,
    table,
)
from vlatool.jobs.record import read_record
from vlatool.storage.documents import DocumentError, parse_json
from vlatool.storage.tree import size_text

_SHOWN_OPTIONS = (
    "image_format",
    "jpeg_quality",
    "jpeg_subsampling",
    "resize_images_size",
    "image_resizing_method",
    "image_resizing_filter",
    "image_metadata",
)


@dataclass(frozen=True)
class ImageShardsReport:
    """What is in a folder of image shards, or in one.

    Attributes:
        folder: The folder, or the one tar.
        shards: How many tars there are.
        pictures: In all of them; None where no manifest says so.
        bytes: Size of the tars.
        first: The first picture: format and size; None where none can be read.
        metadata: What stands beside it.
        train: Shards on the list for training; None without one.
        val: Shards on the list for validation; None without one.
        options: How the pictures were made; empty where nobody knows.
        findings: What is broken or missing, with `code` and `message`.
    """

    folder: str
    shards: int
    pictures: int | None
    bytes: int
    first: ImageInfo | None
    metadata: Mapping[str, Any]
    train: int | None
    val: int | None
    options: Mapping[str, Any]
    findings: Findings = ()
    kind: str = "image-shards"

    @property
    def status(self) -> str:
        """`whole` or `broken`."""
        return "broken" if self.findings else "whole"

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        return {**asdict(self), "status": self.status}

    def headline(self) -> str:
        """What it is, in a few words."""
        images = "pictures" if self.pictures is None else f"{self.pictures} pictures"
        return f"{images} in {self.shards} image shard{'s' * (self.shards != 1)}"

    def blocks(self) -> list[str]:
        """The report for people, block by block."""
        beside = [(name, str(value)) for name, value in self.metadata.items()]
        return [
            pairs(self.summary()),
            findings_table(self.findings),
            table("Beside the first picture", ("name", "value"), beside),
            table("How it was made", ("key", "value"), self.made_by()),
        ]

    def summary(self) -> dict[str, object]:
        """Name to value of what is told first."""
        size = None if self.first is None else (self.first.width, self.first.height)
        return {
            "status": self.status,
            "on disk": size_text(self.bytes),
            "pictures": "unknown" if self.pictures is None else self.pictures,
            "first picture": f"{self.first.format}, {pixels_text(size)}" if self.first else "none",
            "cameras": ", ".join(map(str, listed(self.options, "cameras"))),
            "split": self._split(),
        }

    def made_by(self) -> list[tuple[str, str]]:
        """Key and value of the options."""
        sources = ", ".join(map(str, listed(self.options, "source_episodes")))
        origin = [("from", f"{sources} ({self.options.get('type')})")] if sources else []
        known = [key for key in _SHOWN_OPTIONS if key in self.options]
        return [*origin, *((key, _text(self.options[key])) for key in known)]

    def _split(self) -> str:
        if self.train is None or self.val is None:
            return "no lists"
        return f"{self.train} shards for training, {self.val} for validation"


def inspect_image_shards(location: Path) -> ImageShardsReport:
    """Reads the manifest and the lists, and opens the first shard.

    Raises:
        DataError: The run that writes here has not ended, or what is there is broken.
    """
    if location.is_file():
        return _inspect_tar(location)
    record = read_record(location)
    if record is not None and record.result is None:
        raise DataError(
            f"{location}: `vlatool {record.command}` has not written a manifest here yet",
            hint="wait for the run, or, if it was interrupted, run the same command again",
            code="data.incomplete_output",
            details={"path": str(location), "options": dict(record.options)},
        )
    manifest, tars = read_manifest(location), image_tars(location)
    findings = Problems()
    first, metadata = None, dict[str, Any]()
    if tars:
        with findings.collecting(), open_shard(tars[0]) as tar:
            first, metadata = _first(tar)
    return ImageShardsReport(
        folder=str(location),
        shards=len(tars),
        pictures=None if manifest is None else manifest.images,
        bytes=sum(tar.stat().st_size for tar in tars if tar.is_file())
        if manifest is None
        else sum(shard.bytes for shard in manifest.shards),
        first=first,
        metadata=metadata,
        train=_listed(location / TRAIN_LIST, findings),
        val=_listed(location / VAL_LIST, findings),
        options={} if manifest is None else manifest.options,
        findings=(*findings, *_missing(tars)),
    )


def _inspect_tar(path: Path) -> ImageShardsReport:
    with open_shard(path) as tar:
        first, metadata = _first(tar)
        damage = f"{path}: {tar.damage}"
        found = ({"code": "data.broken_shard", "message": damage},) if tar.damage else ()
        size = path.stat().st_size
        keys = len(tar.keys)
        return ImageShardsReport(str(path), 1, keys, size, first, metadata, None, None, {}, found)


def _missing(tars: list[Path]) -> Iterator[Mapping[str, str]]:
    for tar in tars:
        if not tar.is_file():
            yield {"code": "data.missing_shard", "message": f"{tar}: is missing"}


def _first(tar: OpenShard) -> tuple[ImageInfo | None, dict[str, Any]]:
    """The first picture of a tar and what stands beside it, as far as they can be read."""
    if not tar.keys:
        return None, {}
    info, told = None, dict[str, Any]()
    with tar.reading(tar.keys[0]) as sample:
        suffix = image_suffix(sample.members)
        if suffix is not None:
            with suppress(ValueError):
                info = image_info(sample.members[suffix])
        if METADATA_SUFFIX in sample.members:
            with suppress(DocumentError):
                read = parse_json(sample.members[METADATA_SUFFIX])
                told = read if isinstance(read, dict) else {}
    return info, told


def _listed(path: Path, findings: Problems) -> int | None:
    """How many shards a list names; None where there is no list."""
    if not path.is_file():
        return None
    tars = findings.read(read_list, path)
    return None if tars is None else len(tars)


def _text(value: object) -> str:
    if value is None:
        return "as stored"
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
