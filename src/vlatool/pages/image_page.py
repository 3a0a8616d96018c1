"""HTML page of image shards: a contact sheet with a row per shown shard."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.artifacts.image import open_image
from vlatool.artifacts.image_shards.format import image_suffix, image_tars
from vlatool.artifacts.tar import OpenShard, open_shard
from vlatool.errors import DataError
from vlatool.inspection.image_shards import ImageShardsReport
from vlatool.pages.html_page import PageRequest, evenly_spaced
from vlatool.pages.images import figure, image_placeholder, thumbnail
from vlatool.pages.layout import Section, note, page, table, tiles
from vlatool.storage.atomic import write_text

# Images of a shard in its row.
_ROW = 8


def write_image_page(
    report: ImageShardsReport, location: Path, path: Path, request: PageRequest
) -> None:
    """Writes the page of image shards, or of one of them, to `path`."""
    tars = [location] if location.is_file() else image_tars(location)
    rows = [_row(tars[index]) for index in evenly_spaced(len(tars), request.samples)]
    findings = "".join(note(finding["message"]) for finding in report.findings)
    info = {name: value for name, value in report.summary().items() if value != ""}
    sections = [
        Section("Overview", tiles({"shards": report.shards, **info}) + findings),
        Section("Metadata of the first image", table((), report.metadata.items())),
        Section("Provenance", table((), report.provenance())),
        Section(f"Images ({len(rows)} of {len(tars)} shards)", "".join(rows)),
    ]
    write_text(path, page(request.title, report.headline(), sections))


def _row(path: Path) -> str:
    """Evenly spaced images of a shard under its name, or a note with the error."""
    try:
        with open_shard(path) as tar:
            shown = "".join(
                _image(tar, tar.keys[index]) for index in evenly_spaced(len(tar.keys), _ROW)
            )
    except DataError as error:
        return note(error.message)
    return f'<div class="label">{path.name}</div><div class="strip">{shown}</div>'


def _image(tar: OpenShard, key: str) -> str:
    return figure("".join(_content(tar, key)), key)


def _content(tar: OpenShard, key: str) -> Iterator[str]:
    with tar.reading(key) as sample:
        suffix = image_suffix(sample.members)
        if suffix is None:
            yield image_placeholder("no image")
            return
        try:
            with open_image(sample.members[suffix]) as image:
                yield thumbnail(image.convert("RGB"), f"{tar.path.name}, {key}")
        except ValueError:
            yield image_placeholder("cannot be decoded")
