"""Compares the camera and field names of several data sets, and proposes renames."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from vlatool.episode import Array, EpisodeRef
from vlatool.errors import VlatoolError
from vlatool.events import counted
from vlatool.recordings.detect import DetectedSource
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
    """Cameras and fields of one data set."""

    location: str
    option: str  # option that renames them: `--rename` or `--data.rename`
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
    """Returns the names in the facts that `inspect` reports on shards."""
    fields = {name: field["width"] for name, field in facts["fields"].items()}
    roles = facts["action_fields"], facts["proprioception_fields"]
    return NamedSet(location, "--data.rename", facts["cameras"], fields, facts["fps"], *roles)


def names_report(sets: Sequence[NamedSet]) -> Report:
    """Returns a report of which set has which names; it proposes the names of the first set."""
    first, *others = sets
    options: dict[str, list[str]] = {}
    questions: list[str] = []
    lines: list[tuple[str, str]] = []
    for other in others:
        if other.location in options:
            continue
        renames: list[str] = []
        for text, is_sure in _renames(first, other):
            if is_sure:
                renames.append(text)
            else:
                questions.append(f"{other.location}: {text}")
        options[other.location] = renames
        if renames:
            words = " ".join(f"{other.option} {text}" for text in renames)
            lines.append((other.location, words))
    for number, other in enumerate(others, 2):
        questions += _turned(first, other, number)
    header = ["name"]
    summary: dict[str, str] = {}
    cameras: list[dict[str, str]] = []
    fields: list[dict[str, str]] = []
    for number, named in enumerate(sets, 1):
        header.append(f"[{number}]")
        rate = number_text(named.fps)
        summary[f"[{number}]"] = f"{named.location}, {rate} frames per second"
        cameras.append({name: pixels_text(size, "yes") for name, size in named.cameras.items()})
        fields.append({name: str(width or "text") for name, width in named.fields.items()})
    return Report(
        kind="names",
        headline=f"{counted(len(sets), 'set')}, {_difference_text(sets)}",
        facts={
            "sets": [asdict(replace(named, looks={})) for named in sets],
            "renames": options,
            "questions": questions,
        },
        summary=summary,
        tables=[
            Table(tuple(header), _rows(cameras), "Cameras (width x height)"),
            Table(tuple(header), _rows(fields), "Fields (width)"),
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
    """Counts the cameras that not all sets have, and the fields that are not equal in all."""
    cameras = set().union(*(named.cameras for named in sets))
    fields = set().union(*(named.fields for named in sets))
    num_cameras = 0
    for camera in cameras:
        num_cameras += any(camera not in named.cameras for named in sets)
    num_fields = 0
    for name in fields:
        num_fields += len({named.fields.get(name) for named in sets}) > 1
    return f"{counted(num_cameras, 'camera')} and {counted(num_fields, 'field')} differ"


def _rows(columns: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    """A row for each name of any column, with `-` where a column lacks it."""
    names: dict[str, None] = {}
    for column in columns:
        names |= dict.fromkeys(column)
    return [(name, *(column.get(name, "-") for column in columns)) for name in names]


def _renames(first: NamedSet, other: NamedSet) -> Iterator[tuple[str, bool]]:
    """Yields a rename and True, or a question and False, for names that only `first` has."""
    for kind in ("cameras", "fields"):
        names_of_first = getattr(first, kind)
        names_of_other = getattr(other, kind)
        spare = [name for name in names_of_other if name not in names_of_first]
        olds_by_new: dict[str, list[str]] = {}
        for new in names_of_first:
            if new not in names_of_other:
                olds_by_new[new] = _matches(first, other, kind, new, spare)
        num_claims = Counter(chain.from_iterable(olds_by_new.values()))
        for new, olds in olds_by_new.items():
            is_sure = len(olds) == 1 and num_claims[olds[0]] == 1
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
