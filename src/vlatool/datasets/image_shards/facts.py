"""Report of a folder of image shards, or of one shard, with a contact sheet."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.datasets.image_shards import layout as image_shards_layout
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.jobs.record import read_record
from vlatool.media.images import ImageInfo, image_info, open_image
from vlatool.media.tar import OpenShard, open_shard
from vlatool.report.facts import (
    Figure,
    Figures,
    Findings,
    PageRequest,
    Part,
    Problems,
    Report,
    Section,
    Table,
    Text,
    Tiles,
    evenly_spaced,
    listed,
    notes,
    status_text,
)
from vlatool.report.text import pixels_text
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
# Images of a shard in its row of the page.
_ROW = 8


@dataclass(frozen=True)
class ImageShardsFacts:
    folder: str  # Path of the folder, or of the one tar
    shards: int  # number of tars
    pictures: int | None  # number of images in all of them; None without a manifest
    bytes: int  # total size of the tars
    first: ImageInfo | None  # format and size of the first image; None if it cannot be read
    metadata: Mapping[str, Any]  # metadata of the first image
    train: int | None = None  # number of shards on the list for training; None without a list
    val: int | None = None  # number of shards on the list for validation; None without a list
    # Options that the images were written with; empty if unknown.
    options: Mapping[str, Any] | None = None


def inspect(location: Path) -> Report:
    """Reads the manifest and the lists, and opens the first shard."""
    findings = Problems()
    if location.is_file():
        with open_shard(location) as tar:
            first, metadata = _first(tar)
            facts = ImageShardsFacts(
                folder=str(location),
                shards=1,
                pictures=len(tar.keys),
                bytes=location.stat().st_size,
                first=first,
                metadata=metadata,
                options={},
            )
            if tar.damage:
                message = f"{location}: {tar.damage}"
                findings.append({"code": "data.broken", "message": message})
        return _report(facts, findings, [location])
    record = read_record(location)
    if record is not None and record.result is None:
        raise record.no_manifest_error(location)
    manifest = image_shards_layout.read_manifest(location)
    tars = image_shards_layout.image_tars(location)
    first = None
    metadata = dict[str, Any]()
    if tars:
        with findings.collecting(), open_shard(tars[0]) as tar:
            first, metadata = _first(tar)
    missing: list[Path] = []
    size = 0
    for tar in tars:
        if not tar.is_file():
            missing.append(tar)
        elif manifest is None:
            size += tar.stat().st_size
    if manifest is not None:
        size = sum(shard.bytes for shard in manifest.shards)
    facts = ImageShardsFacts(
        folder=str(location),
        shards=len(tars),
        pictures=None if manifest is None else manifest.images,
        bytes=size,
        first=first,
        metadata=metadata,
        train=_listed(location / image_shards_layout.TRAIN_LIST, findings),
        val=_listed(location / image_shards_layout.VAL_LIST, findings),
        options={} if manifest is None else manifest.options,
    )
    for tar in missing:
        findings.append({"code": "data.missing", "message": f"{tar}: is missing"})
    return _report(facts, findings, tars)


def _report(facts: ImageShardsFacts, findings: Findings, tars: Sequence[Path]) -> Report:
    images = "images" if facts.pictures is None else counted(facts.pictures, "image")
    status = "broken" if findings else "whole"
    first_image = "none"
    if facts.first is not None:
        size = pixels_text((facts.first.width, facts.first.height))
        first_image = f"{facts.first.format}, {size}"
    split = "no lists"
    if facts.train is not None and facts.val is not None:
        split = f"{counted(facts.train, 'shard')} for training, {facts.val} for validation"
    options = facts.options or {}
    summary = {
        "status": status_text(status),
        "on disk": size_text(facts.bytes),
        "images": "unknown" if facts.pictures is None else facts.pictures,
        "first image": first_image,
        "cameras": ", ".join(map(str, listed(options, "cameras"))),
        "split": split,
    }
    provenance: list[tuple[str, str]] = []
    sources = ", ".join(map(str, listed(options, "source_episodes")))
    if sources:
        provenance.append(("from", f"{sources} ({options.get('type')})"))
    for key in _SHOWN_OPTIONS:
        if key in options:
            provenance.append((key, _text(options[key])))
    metadata = list(facts.metadata.items())
    overview: list[Part] = [Tiles({"shards": facts.shards, **summary}), *notes(findings)]
    sections = [
        Section("Overview", overview),
        Section("Metadata of the first image", [Table((), metadata)]),
        Section("Provenance", [Table((), provenance)]),
    ]
    return Report(
        kind="image-shards",
        headline=f"{images} in {counted(facts.shards, 'image shard')}",
        facts=asdict(facts) | {"status": status},
        summary=summary,
        tables=[
            Table(("name", "value"), metadata, "Metadata of the first image"),
            Table(("key", "value"), provenance, "Provenance"),
        ],
        findings=findings,
        page=partial(_page, sections, tars),
    )


def _first(tar: OpenShard) -> tuple[ImageInfo | None, dict[str, Any]]:
    """Info of the first image of a tar and its metadata; None and empty if unreadable."""
    if not tar.keys:
        return None, {}
    info = None
    with tar.reading(tar.keys[0]) as sample:
        suffix = image_shards_layout.image_suffix(sample.members)
        if suffix is not None:
            with suppress(ValueError):
                info = image_info(sample.members[suffix])
        metadata = dict(image_shards_layout.sample_metadata(sample.members))
    return info, metadata


def _listed(path: Path, findings: Problems) -> int | None:
    """Number of shards on a list; None without a list."""
    if not path.is_file():
        return None
    tars = findings.read(image_shards_layout.read_list, path)
    return None if tars is None else len(tars)


def _text(value: object) -> str:
    if value is None:
        return "as stored"
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return str(value)


def _page(sections: Sequence[Section], tars: Sequence[Path], request: PageRequest) -> list[Section]:
    rows = [_row(tars[index]) for index in evenly_spaced(len(tars), request.samples)]
    title = f"Images ({len(rows)} of {counted(len(tars), 'shard')})"
    return [*sections, Section(title, rows)]


def _row(path: Path) -> Part:
    """Evenly spaced images of a shard under its name, or a note with the error."""
    try:
        with open_shard(path) as tar:
            keys = [tar.keys[index] for index in evenly_spaced(len(tar.keys), _ROW)]
            return Figures([_figure(tar, key) for key in keys], path.name)
    except DataError as error:
        return Text(error.message, "note")


def _figure(tar: OpenShard, key: str) -> Figure:
    """Image of a sample over the file that it comes from, or else its key."""
    with tar.reading(key) as sample:
        metadata = image_shards_layout.sample_metadata(sample.members)
        label = str(metadata.get("file", key))
        suffix = image_shards_layout.image_suffix(sample.members)
        if suffix is None:
            return Figure(None, label, problem="no image")
        try:
            with open_image(sample.members[suffix]) as image:
                return Figure(image.convert("RGB"), label, f"{tar.path.name}, {key}")
        except ValueError:
            return Figure(None, label, problem="cannot be decoded")
