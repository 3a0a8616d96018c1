"""Checks of a source that hold for every format.

A reader may add two methods and a table of its codes; without them only these checks are made:

    findings: ClassVar[Family]
    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]
    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.findings import Family, Finding, Kind, finding_of_error
from vlatool.sources.base import FormatReader
from vlatool.sources.picture_checks import check_pictures

_RENAMED = re.compile(r"^(?P<id>.+)-\d+$")

SOURCE = Family(
    "source",
    {
        "missing_camera": Kind(
            "warning", "An episode lacks a camera.", "use the other cameras, or get it again"
        ),
        "language_fallback": Kind(
            "warning", "An episode has no instruction; its task's name in words is used."
        ),
        "duplicate_id": Kind(
            "warning",
            "Two episodes have one name; the second is called NAME-2.",
            "rename one of them, or leave one source out",
        ),
        "no_fields": Kind(
            "error",
            "The reader finds no field that a policy could predict.",
            "name the fields with the keys of the format",
        ),
    },
)


def check_episode(reader: FormatReader, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
    """What every reader can say: whether it reads the episode, and what it warns about.

    Args:
        reader: Reader of the format.
        ref: The episode.
        deep: Decode every frame of every camera.
    """
    try:
        episode = reader.read(ref)
    except DataError as error:
        yield finding_of_error(error, episode=ref.id)
        return
    yield from findings_of_warnings(episode.warnings, episode=ref.id)
    if not episode.lowdim:
        yield SOURCE("no_fields", f"{ref.id}: has no field", episode=ref.id)
    if deep:
        yield from check_cameras(episode)


def check_cameras(episode: Episode) -> Iterator[Finding]:
    """Decodes every frame of every camera of an episode."""
    for name, frames in episode.cameras.items():
        yield from check_pictures(frames, episode=episode.id, camera=name)


def findings_of_warnings(
    warnings: Iterable[tuple[str, str]], family: Family = SOURCE, **place: Any
) -> Iterator[Finding]:
    """`(code, message)` pairs of a reader as findings; the table of `family` says how bad."""
    for code, message in warnings:
        dotted = code if "." in code else f"{SOURCE.name}.{code}"
        owner, _, name = dotted.partition(".")
        kinds = next((one.kinds for one in (family, SOURCE) if one.name == owner), {})
        kind = kinds.get(name, Kind("warning", ""))
        yield Finding(dotted, kind.severity, message, place, kind.action)


def duplicate_ids(refs: Sequence[EpisodeRef]) -> Iterator[Finding]:
    """Episodes that got a number behind their name because it was taken."""
    ids = {ref.id for ref in refs}
    for ref in refs:
        match = _RENAMED.match(ref.id)
        if match and match["id"] in ids:
            message = f"{ref.path}: a second episode called {match['id']}; it is called {ref.id}"
            yield SOURCE("duplicate_id", message, episode=ref.id, path=str(ref.path))
