"""Table of the cameras and fields of several sets, and the renames that make them equal."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from vlatool.episode import Array, EpisodeRef
from vlatool.errors import VlatoolError
from vlatool.events import counted
from vlatool.formats.detect import DetectedSource
from vlatool.report.facts import Report, Table, evenly_spaced
from vlatool.report.text import number_text, pixels_text
from vlatool.storage.uri import is_remote
from vlatool.transforms.geometry import resize
from vlatool.transforms.names import name_end

_EPISODES = 4
_IMAGES = 4
_LOOK = (32, 32)
# Least correlation of images that look upside down, and by how much it is higher than as stored.
_ALIKE = 0.7
_CLEAR = 0.4


@dataclass(frozen=True)
class NamedSet:
    """Names of one set."""

    location: str
    option: str  # by which names are changed
    cameras: Mapping[str, tuple[int, int] | None]  # name to (width, height)
    fields: Mapping[str, int]  # name to width, 0 for text
    fps: float | None
    action_fields: Sequence[str]
    proprioception_fields: Sequence[str]
    looks: Mapping[str, Array] = field(default_factory=dict[str, Array])  # of some cameras

    def role(self, field: str) -> tuple[bool, bool]:
        return field in self.action_fields, field in self.proprioception_fields


def set_of_source(location: str, source: DetectedSource, refs: Sequence[Any]) -> NamedSet:
    survey = source.reader.survey(refs)
    return NamedSet(
        location,
        "--rename",
        {name: size and (size[1], size[0]) for name, size in survey.cameras.items()},
        {name: spec.width for name, spec in survey.fields.items()},
        survey.fps,
        survey.action_fields,
        survey.proprioception_fields,
        _looks(source, [refs[at] for at in evenly_spaced(len(refs), _EPISODES)]),
    )


def _looks(source: DetectedSource, refs: Sequence[EpisodeRef]) -> dict[str, Array]:
    """Mean brightness [32, 32] of a few images by camera; broken ones are reported elsewhere."""
    looks: dict[str, list[Array]] = {}
    for ref in [ref for ref in refs if not is_remote(ref.path)]:  # those would be large
        with suppress(VlatoolError, ValueError, OSError):
            for camera, frames in source.reader.read(ref).cameras.items():
                images = frames.read(evenly_spaced(len(frames), _IMAGES))
                looks.setdefault(camera, []).extend(
                    resize(image, _LOOK, "resize_no_crop", "box").mean(axis=-1) for image in images
                )
    return {camera: np.mean(images, axis=0) for camera, images in looks.items()}


def set_of_shards(location: str, facts: Mapping[str, Any]) -> NamedSet:
    """Names in the facts that `inspect` has on shards."""
    fields = {name: field["width"] for name, field in facts["fields"].items()}
    roles = facts["action_fields"], facts["proprioception_fields"]
    return NamedSet(location, "--data.rename", facts["cameras"], fields, facts["fps"], *roles)


def names_report(sets: Sequence[NamedSet]) -> Report:
    """Report of who has what; renames are those to the names of the first set."""
    renames = {each.location: list(_renames(sets[0], each)) for each in sets[1:]}
    options = {name: [text for text, is_sure in rows if is_sure] for name, rows in renames.items()}
    questions = [
        f"{name}: {text}" for name, rows in renames.items() for text, is_sure in rows if not is_sure
    ]
    questions += [
        text for number, each in enumerate(sets[1:], 2) for text in _turned(sets[0], each, number)
    ]
    by_location = {each.location: each for each in sets}
    lines = [
        (name, " ".join(f"{by_location[name].option} {text}" for text in texts))
        for name, texts in options.items()
        if texts
    ]
    header = ("name", *(f"[{number}]" for number, _ in enumerate(sets, 1)))
    cameras = [{name: pixels_text(s, "yes") for name, s in each.cameras.items()} for each in sets]
    fields = [{name: str(w or "text") for name, w in each.fields.items()} for each in sets]
    return Report(
        kind="names",
        headline=f"{counted(len(sets), 'set')}, {_difference_text(sets)}",
        facts={
            "sets": [asdict(replace(each, looks={})) for each in sets],
            "renames": options,
            "questions": questions,
        },
        summary={
            f"[{number}]": f"{each.location}, {number_text(each.fps)} frames per second"
            for number, each in enumerate(sets, 1)
        },
        tables=[
            Table(header, [*_rows(cameras)], "Cameras (width x height)"),
            Table(header, [*_rows(fields)], "Fields (width)"),
            Table(("set", "options"), lines, "Renames to the names of [1]"),
            Table(("what is the same?",), [(text,) for text in questions], "Questions"),
        ],
    )


def _turned(first: NamedSet, other: NamedSet, number: int) -> Iterator[str]:
    """Yields a question for each camera whose images look upside down."""
    for camera in [name for name in first.looks if name in other.looks]:
        look = other.looks[camera]
        ways = {"as stored": look, "turned by 180 degrees": look[::-1, ::-1], "flipped": look[::-1]}
        alike = {way: _correlation(first.looks[camera], each) for way, each in ways.items()}
        best = max(alike, key=lambda way: alike[way])
        if alike[best] > _ALIKE and alike[best] - alike["as stored"] > _CLEAR:
            yield (
                f"cameras.{camera}: upside down in [1] or [{number}]? the mean images correlate by "
                f"{alike[best]:.2f} with one {best}, by {alike['as stored']:.2f} as stored"
            )


def _correlation(first: Array, second: Array) -> float:
    deviations = first.std() * second.std()
    product = ((first - first.mean()) * (second - second.mean())).mean()
    return float(product / deviations) if deviations else 0.0


def _difference_text(sets: Sequence[NamedSet]) -> str:
    """Number of cameras that not all sets have, and of fields that are not the same in all."""
    tables = [dict.fromkeys(each.cameras, 1) for each in sets], [each.fields for each in sets]
    counts = [
        sum(len({each.get(name) for each in columns}) > 1 for name in set().union(*columns))
        for columns in tables
    ]
    return f"{counted(counts[0], 'camera')} and {counted(counts[1], 'field')} differ"


def _rows(columns: Sequence[Mapping[str, str]]) -> Iterator[tuple[str, ...]]:
    for name in dict.fromkeys(name for column in columns for name in column):
        yield name, *(column.get(name, "-") for column in columns)


def _renames(first: NamedSet, other: NamedSet) -> Iterator[tuple[str, bool]]:
    """Yields a rename and True, or a question and False, for names that only `first` has."""
    for kind in ("cameras", "fields"):
        known = getattr(first, kind)
        others = getattr(other, kind)
        spare = [name for name in others if name not in known]
        matches = {
            new: _matches(first, other, kind, new, spare) for new in known if new not in others
        }
        for new, olds in matches.items():
            rivals = [name for name, each in matches.items() if {*each} & {*olds}]
            is_sure = len(olds) == 1 and rivals == [new]
            if is_sure and (kind == "fields" or name_end(olds[0]) == name_end(new)):
                yield f"{kind}.{new}={olds[0]}", True
            elif olds:
                yield f"{kind}.{new}={'|'.join(olds)}", False


def _matches(
    first: NamedSet, other: NamedSet, kind: str, new: str, spare: Sequence[str]
) -> list[str]:
    """Old names with the same end, else any camera, or a field of the same width and role."""
    olds = spare
    if kind == "fields":
        olds = [old for old in spare if other.fields[old] == first.fields[new]]
    alike = [old for old in olds if name_end(old) == name_end(new)]
    if kind == "fields":
        role = first.role(new)
        olds = [old for old in olds if any(role) and role == other.role(old)]
    return alike or list(olds)
