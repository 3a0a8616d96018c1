"""Report of a folder of image shards, or of one shard."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.image_shards.format import (
    METADATA_SUFFIX,
    TRAIN_LIST,
    VAL_LIST,
    image_suffix,
    image_tars,
    read_list,
    read_manifest,
)
from vlatool.artifacts.stored_image import ImageInfo, image_info
from vlatool.artifacts.tar import OpenShard, open_shard
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
    """Contents of a folder of image shards, or of one shard.

    Attributes:
        folder: Path of the folder, or of the one tar.
        shards: Number of tars.
        pictures: Number of images in all of them; None without a manifest.
        bytes: Total size of the tars.
        first: Format and size of the first image; None if it cannot be read.
        metadata: Metadata of the first image.
        train: Number of shards on the list for training; None without a list.
        val: Number of shards on the list for validation; None without a list.
        options: Options that the images were written with; empty if unknown.
        findings: Broken or missing files, with `code` and `message`.
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
        """Report as JSON values."""
        return {**asdict(self), "status": self.status}

    def headline(self) -> str:
        """Summary in one line."""
        images = "images" if self.pictures is None else f"{self.pictures} images"
        return f"{images} in {self.shards} image shard{'s' * (self.shards != 1)}"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        metadata = [(name, str(value)) for name, value in self.metadata.items()]
        return [
            pairs(self.summary()),
            findings_table(self.findings),
            table("Metadata of the first image", ("name", "value"), metadata),
            table("Provenance", ("key", "value"), self.provenance()),
        ]

    def summary(self) -> dict[str, object]:
        """Map from name to value of the first block."""
        size = None if self.first is None else (self.first.width, self.first.height)
        return {
            "status": self.status,
            "on disk": size_text(self.bytes),
            "images": "unknown" if self.pictures is None else self.pictures,
            "first image": f"{self.first.format}, {pixels_text(size)}" if self.first else "none",
            "cameras": ", ".join(map(str, listed(self.options, "cameras"))),
            "split": self._split(),
        }

    def provenance(self) -> list[tuple[str, str]]:
        """Sources and options as keys and values."""
        sources = ", ".join(map(str, listed(self.options, "source_episodes")))
        source = [("from", f"{sources} ({self.options.get('type')})")] if sources else []
        known = [key for key in _SHOWN_OPTIONS if key in self.options]
        return [*source, *((key, _text(self.options[key])) for key in known)]

    def _split(self) -> str:
        if self.train is None or self.val is None:
            return "no lists"
        return f"{self.train} shards for training, {self.val} for validation"


def inspect_image_shards(location: Path) -> ImageShardsReport:
    """Reads the manifest and the lists, and opens the first shard.

    Raises:
        DataError: The command that writes the output has not finished, or a file is broken.
    """
    if location.is_file():
        return _inspect_tar(location)
    record = read_record(location)
    if record is not None and record.result is None:
        raise DataError(
            f"{location}: `vlatool {record.command}` has not written a manifest here yet",
            hint="wait until it ends; if it was interrupted, run the same command again",
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
        damage = {"code": "data.broken_shard", "message": f"{path}: {tar.damage}"}
        return ImageShardsReport(
            folder=str(path),
            shards=1,
            pictures=len(tar.keys),
            bytes=path.stat().st_size,
            first=first,
            metadata=metadata,
            train=None,
            val=None,
            options={},
            findings=(damage,) if tar.damage else (),
        )


def _missing(tars: list[Path]) -> Iterator[Mapping[str, str]]:
    for tar in tars:
        if not tar.is_file():
            yield {"code": "data.missing_shard", "message": f"{tar}: is missing"}


def _first(tar: OpenShard) -> tuple[ImageInfo | None, dict[str, Any]]:
    """Info of the first image of a tar and its metadata; None and empty if unreadable."""
    if not tar.keys:
        return None, {}
    info, metadata = None, dict[str, Any]()
    with tar.reading(tar.keys[0]) as sample:
        suffix = image_suffix(sample.members)
        if suffix is not None:
            with suppress(ValueError):
                info = image_info(sample.members[suffix])
        if METADATA_SUFFIX in sample.members:
            with suppress(DocumentError):
                document = parse_json(sample.members[METADATA_SUFFIX])
                metadata = document if isinstance(document, dict) else {}
    return info, metadata


def _listed(path: Path, findings: Problems) -> int | None:
    """Number of shards on a list; None without a list."""
    if not path.is_file():
        return None
    tars = findings.read(read_list, path)
    return None if tars is None else len(tars)


def _text(value: object) -> str:
    if value is None:
        return "as stored"
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
