"""What the episodes of a container are made of: by a mapping, or by what each stored thing is.

Shapes: F frames, C numbers of a field.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlatool.episode import (
    Array,
    Clip,
    Episode,
    EpisodeRef,
    FieldSpec,
    FrameSource,
    Role,
    StoredPart,
    Survey,
)
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import FindingCodes
from vlatool.formats import inventory, limits
from vlatool.formats.base import unused_id
from vlatool.formats.language import first_text, recorded_language
from vlatool.formats.mapping import (
    NEXT,
    RecordingMapping,
    file_beside,
    filled,
    is_beside,
    matching,
    nearest,
    value_beside,
)
from vlatool.formats.media.frames import SingleImages, VideoFrames, probe_video
from vlatool.formats.media.images import decode_rgb, decode_values
from vlatool.formats.rules import SOURCE
from vlatool.transforms.rates import NearestFrames

_CAMERA = inventory.Assignment("camera", "images")


@dataclass(frozen=True)
class PlannedImages:
    """Images that an episode has."""

    path: str = ""  # of the stored thing; empty: a video beside the file
    decision: inventory.Assignment = _CAMERA
    bgr: bool = False
    video: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Known:
    """What the first episodes decide for all: roles by their rows, and names, by path."""

    decisions: Mapping[str, inventory.Assignment] = field(
        default_factory=dict[str, inventory.Assignment]
    )
    names: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass
class EpisodePlan:
    """Roles of what an episode stores, by name; a mapping comes before what things are."""

    cameras: dict[str, PlannedImages] = field(default_factory=dict[str, PlannedImages])
    depth: dict[str, PlannedImages] = field(default_factory=dict[str, PlannedImages])
    labels: dict[str, PlannedImages] = field(default_factory=dict[str, PlannedImages])
    fields: dict[str, str] = field(default_factory=dict[str, str])  # name to path
    following: dict[str, str] = field(default_factory=dict[str, str])  # name to a field: its next
    actions: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    # (kind, reference) by preference; of the kind `original` the first that is not empty is taken
    texts: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    success: str = ""
    parts: tuple[StoredPart, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All fields, those that are made of others last."""
        return (*self.fields, *self.following)

    def dimension_names(self, stored: Mapping[str, inventory.Stored]) -> dict[str, tuple[str, ...]]:
        """Names of the numbers of fields that have some, pose matrices among them."""
        poses = {part.path for part in self.parts if part.note.startswith("pose")}
        names: dict[str, tuple[str, ...]] = {}
        for name, path in self.fields.items():
            if path in poses:
                names[name] = inventory.matrix_names(stored[path].shape)
            elif stored[path].names:
                names[name] = stored[path].names
        for name, source in self.following.items():
            if source in names:
                names[name] = names[source]
        return names


def plan_by_structure(
    stored: Sequence[inventory.Stored],
    known: "Known | None" = None,
    excluded: Mapping[str, str] | None = None,
) -> EpisodePlan:
    """The plan of an episode whose things are used by what they are; it predicts nothing yet.

    `excluded`: paths of things that the layout does not use, to the reason.
    """
    plan = EpisodePlan()
    parts = list[StoredPart]()
    excluded = excluded or {}
    known = known or Known()
    used = [each for each in stored if each.path not in excluded]
    decisions, assigned = inventory.assign(used, known.decisions, known.names)
    by_path = {part.path: part for part in assigned}
    for each in stored:
        if each.path in excluded:
            content = inventory.decide(each).content
            parts.append(StoredPart(each.path, "left_out", "", content, excluded[each.path]))
        else:
            parts.append(by_path[each.path])
            _add(plan, by_path[each.path], decisions[each.path])
    plan.parts = tuple(parts)
    return plan


def _add(plan: EpisodePlan, part: StoredPart, decision: inventory.Assignment) -> None:
    images = {"camera": plan.cameras, "depth": plan.depth, "labels": plan.labels}
    if part.role in images:
        images[part.role][part.name] = PlannedImages(part.path, decision)
    elif part.role == "field":
        plan.fields[part.name] = part.path
    elif part.role == "language":
        plan.texts.append((part.name, part.path))
    elif part.role == "success":
        plan.success = part.path


def plan_by_mapping(
    stored: Sequence[inventory.Stored],
    mapping: RecordingMapping,
    find: Callable[[str], inventory.Stored | None],
    known: "Known | None" = None,
) -> EpisodePlan:
    """The plan of a mapping.

    `find` returns the thing that a reference names, None if it is no dataset (an attribute, a file
    beside), and raises DataError if it is missing.

    Raises:
        DataError: A thing is missing.
        ValueError: A thing cannot have its role.
    """
    plan = EpisodePlan()
    decided = known.decisions if known else {}
    used: dict[str, StoredPart] = {}
    unusable: set[str] = set()
    roles: Sequence[tuple[Role, dict[str, PlannedImages]]] = (
        ("camera", plan.cameras),
        ("depth", plan.depth),
        ("labels", plan.labels),
    )
    for role, planned in roles:
        for name, images in _images_of(mapping, role).items():
            if images.video:
                planned[name] = images
                continue
            thing = _found(find, images.path)
            decision = decided.get(thing.path)
            if decision is None or decision.role != role:
                decision = inventory.decide_as(role, thing)
            planned[name] = PlannedImages(thing.path, decision, images.bgr)
            used.setdefault(thing.path, StoredPart(thing.path, role, name, "images"))
    for name, reference in mapping.fields.items():
        if following := NEXT.fullmatch(reference):
            plan.following[name] = following["field"]
            continue
        thing = _found(find, reference)
        decision = decided.get(thing.path)
        if decision is not None and decision.content == "unusable":
            unusable.add(name)
            part = StoredPart(thing.path, "left_out", "", "unusable", decision.note)
            used[thing.path] = part
            continue
        plan.fields[name] = thing.path
        used.setdefault(thing.path, StoredPart(thing.path, "field", name))
    for kind, reference in _texts_of(mapping):
        plan.texts.append((kind, reference))
        if (thing := find(reference)) is not None:
            used.setdefault(thing.path, StoredPart(thing.path, "language", kind, "text"))
    plan.success = mapping.success
    times = [mapping.rows.index, mapping.fps if isinstance(mapping.fps, str) else ""]
    for reference in times:
        if reference and (thing := find(reference)) is not None:
            used.setdefault(thing.path, StoredPart(thing.path, "time"))
    if mapping.success and (thing := find(mapping.success)) is not None:
        used.setdefault(thing.path, StoredPart(thing.path, "success"))
    _add_rest(plan, mapping, stored, used, known or Known())
    _add_policy(plan, mapping, unusable)
    return plan


def _images_of(mapping: RecordingMapping, role: Role) -> dict[str, PlannedImages]:
    images: dict[str, PlannedImages] = {}
    if role == "camera":
        for name, camera in mapping.cameras.items():
            images[name] = PlannedImages(
                camera.path, bgr=camera.bgr, video=camera.video, optional=camera.optional
            )
        return images
    for name, reference in (mapping.depth if role == "depth" else mapping.labels).items():
        images[name] = PlannedImages(reference)
    return images


def _texts_of(mapping: RecordingMapping) -> list[tuple[str, str]]:
    texts = [("original", reference) for reference in mapping.instructions]
    return [*texts, *mapping.language.items()]


def _found(find: Callable[[str], inventory.Stored | None], reference: str) -> inventory.Stored:
    thing = find(reference)
    if thing is None:
        raise ValueError(f"{reference} is a single value, not one for each frame")
    return thing


def _add_rest(
    plan: EpisodePlan,
    mapping: RecordingMapping,
    stored: Sequence[inventory.Stored],
    used: Mapping[str, StoredPart],
    known: "Known",
) -> None:
    """Adds what the mapping does not name: left out, or used by what it is."""
    others = [thing for thing in stored if thing.path not in used]
    decisions, parts = inventory.assign(others, known.decisions, known.names)
    rest: dict[str, StoredPart] = {}
    rows = {thing.path: thing.rows for thing in stored}
    counts = [rows.get(path) for path in plan.fields.values() if rows.get(path)]
    frames = max(counts, key=counts.count, default=None)
    for part in parts:
        length = rows[part.path]
        is_other = frames and length is not None and abs(length - frames) > 1
        if mapping.rest == "assign" and is_other and not (part.role == "language" and length == 1):
            note = f"{length} rows, the episode has {frames}"
            rest[part.path] = StoredPart(part.path, "left_out", "", part.content, note)
            continue
        if mapping.rest == "leave":
            note = "the mapping does not name it"
            rest[part.path] = StoredPart(part.path, "left_out", "", part.content, note)
            continue
        names = {
            "camera": plan.cameras,
            "depth": plan.depth,
            "labels": plan.labels,
            "field": plan.names,
        }
        taken = dict.fromkeys(names.get(part.role, ()), 1)
        part = replace(part, name=unused_id(part.name, taken))
        rest[part.path] = part
        _add(plan, part, decisions[part.path])
    in_order = [used.get(thing.path) or rest[thing.path] for thing in stored]
    paths = {thing.path for thing in stored}
    elsewhere = [part for path, part in used.items() if path not in paths]
    plan.parts = (*in_order, *elsewhere)


def _add_policy(plan: EpisodePlan, mapping: RecordingMapping, unusable: Collection[str]) -> None:
    """Adds the fields that a policy predicts and observes; ValueError if one is not there."""
    actions: list[str] = []
    measured = [name for name in plan.names if name not in plan.following]
    for name in mapping.action_fields:
        if following := NEXT.fullmatch(name):
            name = unused_id(f"{following['field']}_next", dict.fromkeys(plan.names, 1))
            plan.following[name] = following["field"]
        actions += _fitting(name, measured)
    observed: list[str] = []
    for pattern in mapping.proprioception_fields:
        observed += _fitting(pattern, measured)
    for name in (*actions, *observed):
        if name not in (*plan.names, *unusable):
            raise ValueError(f"{name!r} is no field; {nearest(name, plan.names)}")
    for name in plan.following.values():
        if name not in plan.fields:
            there = nearest(name, [*plan.fields])
            raise ValueError(f"next({name}): {name!r} is no stored field; {there}")
    plan.actions = tuple(name for name in actions if name not in unusable)
    plan.observed = tuple(name for name in observed if name not in unusable)


def _fitting(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a pattern fits; a name without `*` is itself."""
    if "*" not in pattern:
        return [pattern]
    return [name for name in names if fnmatchcase(name, pattern)]


# Episodes

PLAIN = "="  # before a text that is no reference
_NO_TEXT = "name the key of a sentence in the mapping, such as FILE.json@KEY.text"
_FLAGS = {
    **dict.fromkeys(("true", "yes", "1", "success", "successful", "succeeded"), True),
    **dict.fromkeys(("false", "no", "0", "failure", "failed", "fail"), False),
}


class PlannedFrames(SingleImages):
    """Images of a plan; a format reads their rows, as pixels or as an encoded file."""

    planned: PlannedImages

    def row(self, index: int) -> bytes | Array:
        """A row as it is stored."""
        raise NotImplementedError(index)

    def encoded(self, index: int) -> bytes | None:
        """The stored JPEG or PNG; None for pixels, and where colors are swapped."""
        if self.planned.decision.role != "camera" or self.planned.bgr:
            return None
        row = self.row(index)
        return row if isinstance(row, bytes) else None

    def image(self, index: int) -> Array:
        """The image uint8 [H, W, 3], or depth or labels uint16 [H, W] of a frame."""
        row = self.row(index)
        decision = self.planned.decision
        try:
            if decision.role == "camera":
                image = (
                    decode_rgb(row)
                    if isinstance(row, bytes)
                    else inventory.rgb_image(row, decision.scale)
                )
                return image[..., ::-1] if self.planned.bgr else image
            values = decode_values(row) if isinstance(row, bytes) else row
            if decision.role == "depth":
                return inventory.depth_image(values, decision.scale)
            return inventory.label_image(values)
        except ValueError as error:
            raise self.image_error(index, str(error)) from error


class PlannedEpisode:
    """An episode of a container: its plan, and the rows of its parts.

    A format says how things are found and read; everything else is the same for all.

    Attributes:
        codes: Its findings; they have `not_numeric`, `length_mismatch` and `empty_episode`.
        missing: Code of a thing that a mapping names and that is not there.
        most_cut: Rows by which parts may differ; those behind the shortest part are cut.
        things: What the episode stores, by path.
        plan: The role of each.
        file: Where relative paths of a mapping start: in the folder of this file.
        frame_rows: Path of a part, or pattern of a video, to the rows that are its frames; of
            others that are all.
    """

    codes: ClassVar[FindingCodes]
    missing: ClassVar[str]
    most_cut: ClassVar[int] = 1

    def __init__(
        self, ref: EpisodeRef, mapping: RecordingMapping | None, config: Any, episode: str
    ) -> None:
        """`config`: keys of the format, `fps` and `instruction` among them; `episode`: for
        {episode}.
        """
        self.ref = ref
        self.mapping = mapping
        self.config = config
        self.things: dict[str, inventory.Stored] = {}
        self.plan = EpisodePlan()
        self.file = ref.path
        self.frame_rows: dict[str, Array] = {}
        self._episode = episode
        self._videos: dict[str, tuple[Path, int]] = {}  # pattern to file and frames

    # What a format says

    @property
    def known(self) -> Known:
        """What the first episodes decided."""
        return self.ref.extras.get("known", Known())

    def find_stored(self, name: str) -> inventory.Stored:
        """The thing of a name that is not in `things`; DataError if there is none."""
        try:
            fitting = matching(name, [*self.things])
        except ValueError as error:
            raise self.error(self.missing, f"{name}: {error}", field=name) from error
        if fitting is None:
            reason = f"{name}: is missing; {nearest(name, [*self.things])}"
            raise self.error(self.missing, reason, field=name)
        return self.things[fitting]

    def open_images(self, planned: PlannedImages) -> FrameSource:
        """The images of a thing, all its rows."""
        raise NotImplementedError(planned)

    def numbers(self, path: str) -> Array:
        """The rows of a field [N, C]."""
        raise NotImplementedError(path)

    def texts_of(self, name: str, count: int) -> list[str]:
        """One text, or one for each of `count` frames."""
        raise NotImplementedError(name, count)

    def value_of(self, name: str) -> Any:
        """A single value: an attribute, or the last row of a thing."""
        raise NotImplementedError(name)

    def name_of(self, reference: str) -> str:
        """A reference of a mapping as the format writes it."""
        return reference

    # What is the same for all

    def error(self, code: str, reason: str, **details: Any) -> DataError:
        """An error of this episode."""
        return self.codes.error(code, self.ref.path, self.ref.id, reason, **details)

    def make_plan(
        self, stored: Sequence[inventory.Stored], by_structure: Callable[[], EpisodePlan]
    ) -> None:
        """Sets things and plan, by the mapping if there is one."""
        self.things = {each.path: each for each in stored}
        try:
            if self.mapping is None:
                self.plan = by_structure()
            else:
                self.plan = plan_by_mapping(stored, self.mapping, self.find, self.known)
        except ValueError as error:
            raise self.error("not_numeric", str(error)) from error
        self._find_videos()
        reference = self.mapping.rows.index if self.mapping else ""
        if reference:
            rows = self.numbers(self._filled(reference))[:, 0].astype(np.int64)
            if not len(rows) or (np.diff(rows) <= 0).any() or rows[0] < 0:
                raise self.error("length_mismatch", f"{reference}: no ascending numbers of rows")
            counts = {path: thing.rows or 0 for path, thing in self.things.items()}
            counts |= {pattern: frames for pattern, (_, frames) in self._videos.items()}
            for path, count in counts.items():
                if count > int(rows[-1]):
                    self.frame_rows[path] = rows

    def _filled(self, reference: str) -> str:
        return self.name_of(filled(reference, self.file, self._episode))

    def find(self, reference: str) -> inventory.Stored | None:
        """The thing that a reference of the mapping names; None for attributes and files beside."""
        name = self._filled(reference)
        if name in self.things:
            return self.things[name]
        if "@" in name or is_beside(name):
            return None
        thing = self.find_stored(name)
        self.things.setdefault(thing.path, thing)
        return thing

    def _find_videos(self) -> None:
        """Finds the videos of the plan, and names those beside them that it does not use."""
        folder = self.file.parent
        parts: list[StoredPart] = []
        patterns: list[str] = []
        for name, planned in list(self.plan.cameras.items()):
            if not planned.video:
                continue
            patterns.append(_without_facts(planned.video))
            try:
                path = file_beside(self._filled(planned.video), self.file)
            except DataError:
                if not planned.optional:
                    raise
                del self.plan.cameras[name]
                continue
            self._videos[planned.video] = path, probe_video(Clip(path)).num_frames
            parts.append(StoredPart(_below(path, folder), "camera", name, "images"))
        used = {path for path, _ in self._videos.values()}
        for pattern in patterns:
            # A pattern with the name of the episode stands among videos of other episodes.
            place = pattern.rpartition("/")[0]
            if "{stem}" in pattern or "{episode}" in pattern or re.search(r"[{*]", place):
                continue
            for path in sorted((folder / place).glob(f"*{Path(pattern).suffix}")):
                if path not in used:
                    used.add(path)
                    note = "the mapping does not name it"
                    parts.append(StoredPart(_below(path, folder), "left_out", "", "images", note))
        self.plan.parts = (*self.plan.parts, *parts)

    @property
    def lengths(self) -> dict[str, int]:
        """Number of frames of each part of the plan that has some."""
        paths = [*self.plan.fields.values()]
        for images in (self.plan.cameras, self.plan.depth, self.plan.labels):
            paths += [planned.path for planned in images.values() if planned.path]
        lengths = {path: self.things[path].rows or 0 for path in paths}
        for pattern, (_, frames) in self._videos.items():
            lengths[pattern] = frames
        for path in lengths:
            if path in self.frame_rows:
                lengths[path] = len(self.frame_rows[path])
        return lengths

    @property
    def count(self) -> int:
        """Number of frames; DataError if parts differ or there are none."""
        lengths = self.lengths
        if not lengths:
            raise self.error(self.missing, "the mapping names no images and no fields")
        try:
            count = frame_count(self.plan, lengths, self.most_cut) - bool(self.plan.following)
        except ValueError as error:
            raise self.error("length_mismatch", str(error)) from error
        if count < 1:
            raise self.error("empty_episode", "has no frames")
        if count > limits.MOST_ROWS:
            raise self.error("too_large", f"{count:,} frames; the limit is {limits.MOST_ROWS:,}")
        return count

    def images(self, planned: PlannedImages, count: int) -> FrameSource:
        """The images of a camera, of depth or of labels, one for each frame."""
        if planned.video:
            path, frames = self._videos[planned.video]
            source: FrameSource = VideoFrames(Clip(path), frames)
        else:
            source = self.open_images(planned)
        rows = self.frame_rows.get(planned.video or planned.path)
        if rows is not None:
            return NearestFrames(source, rows[:count])
        return source if len(source) == count else NearestFrames(source, np.arange(count))

    def field(self, path: str, rows: int) -> Array:
        """The first rows of a field."""
        values = self.numbers(path)
        if path in self.frame_rows:
            values = values[self.frame_rows[path]]
        return values[:rows]

    def texts(self, reference: str, count: int) -> list[str]:
        """One text, or one for each frame; of a list of texts the first."""
        if reference.startswith(PLAIN):
            return [reference.removeprefix(PLAIN)]
        name = self._filled(reference)
        if "@" in name:
            value = self.value(reference)
            texts = [*value] if isinstance(value, list | np.ndarray) else [value]
            if texts and isinstance(texts[0], dict | list):
                raise self.error("not_numeric", f"{name} holds no text", hint=_NO_TEXT)
            return [str(text) for text in texts][:1]
        if name in self.frame_rows:
            texts = self.texts_of(name, self.things[name].rows or 0)
            return [texts[row] for row in self.frame_rows[name][:count]]
        return self.texts_of(name, count)

    def _all_texts(self, count: int) -> list[tuple[str, list[str]]]:
        """Texts by kind. Of several references of one kind those may be missing that another
        stands in for; none is needed if the option gives the instruction.
        """
        texts: list[tuple[str, list[str]]] = []
        kinds = [kind for kind, _ in self.plan.texts]
        for kind, reference in self.plan.texts:
            is_listed = self.mapping is not None and isinstance(self.mapping.instruction, list)
            may_miss = kind == "original" and (
                is_listed or kinds.count(kind) > 1 or self.config.instruction is not None
            )
            try:
                texts.append((kind, self.texts(reference, count)))
            except DataError:
                if not may_miss:
                    raise
        return texts

    def value(self, reference: str) -> Any:
        """The single value of a reference."""
        name = self._filled(reference)
        return value_beside(name, self.file) if is_beside(name) else self.value_of(name)

    def fps(self, stored: float | None) -> float:
        """Frames per second, 0 if unknown; the option comes before the mapping and the data."""
        named = self.mapping.fps if self.mapping else ""
        if self.config.fps:
            return float(self.config.fps)
        if isinstance(named, str) and named:
            value = self.value(named)
            if not limits.possible_rate(value):
                reason = f"fps: {named} is {value!r:.40}, no number of frames per second"
                raise self.error("not_numeric", reason, hint="correct fps in the mapping")
            named = float(value)
        return float(named or stored or 0.0)

    def success(self, stored: Any = None) -> bool | None:
        """The success flag of the plan, else the stored one."""
        value = self.value(self.plan.success) if self.plan.success else stored
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if not isinstance(value, str):
            return None if value is None else bool(value)
        meaning = _FLAGS.get(value.strip().lower())
        if meaning is None:
            raise self.error("not_numeric", f"success is {value!r}, neither true nor false")
        return meaning

    def survey(self, fps: float | None) -> Survey:
        """Cameras, fields and length, from shapes."""
        plan = self.plan
        count = self.count
        names = plan.dimension_names(self.things)
        fields: dict[str, FieldSpec] = {}
        for name, path in plan.fields.items():
            width = math.prod(self.things[path].shape)
            fields[name] = FieldSpec(width, names.get(name, ()))
        for name, source in plan.following.items():
            fields[name] = fields[source]
        cameras = {name: self.images(each, count).size for name, each in plan.cameras.items()}
        kinds = dict.fromkeys(kind for kind, _ in plan.texts if kind != "original")
        return Survey(
            1,
            cameras,
            fields,
            count,
            self.fps(fps) or None,
            plan.actions,
            plan.observed,
            text_kinds=tuple(kinds),
            parts=plan.parts,
        )

    def episode(self, *, fps: float | None, success: Any = None, task: str = "") -> Episode:
        """The episode; its images stay on disk."""
        plan = self.plan
        count = self.count
        episode = self.ref.id
        longest = max(self.lengths.values())
        rows = count + bool(plan.following)
        numbers = [rows * math.prod(self.things[path].shape) for path in plan.fields.values()]
        limits.check_numbers(self.codes, self.ref.path, episode, sum(numbers))
        fields = {name: self.field(path, rows) for name, path in plan.fields.items()}
        for name, source in plan.following.items():
            fields[name] = fields[source][1:]
        texts = self._all_texts(count)
        language, findings = recorded_language(
            self.ref, count, preferred(texts), self.config.instruction
        )
        if longest > count:
            frames = counted(longest - count, "frame")
            message = f"{episode}: {frames} at its end without an action or an image; cut"
            findings.append(SOURCE("frames_cut", message, episode=episode, frame=count))
        return Episode(
            id=episode,
            task=task or first_text(language),
            fps=self.fps(fps),
            num_frames=count,
            cut_frames=longest - count,
            cameras={name: self.images(each, count) for name, each in plan.cameras.items()},
            depth={name: self.images(each, count) for name, each in plan.depth.items()},
            labels={name: self.images(each, count) for name, each in plan.labels.items()},
            lowdim={name: values[:count] for name, values in fields.items()},
            dimension_names=plan.dimension_names(self.things),
            language=language[0],
            language_spans=tuple(language[1]),
            success=self.success(success),
            action_fields=plan.actions,
            proprioception_fields=plan.observed,
            parts=plan.parts,
            findings=(*findings, *inventory.left_out_findings(episode, plan.parts)),
        )

    def decisions(self) -> dict[str, inventory.Assignment]:
        """What rows of this episode decide for other episodes."""
        count = self.count
        things = [each for each in self.things.values() if abs((each.rows or 0) - count) <= 1]
        return inventory.sampled_decisions(things, lambda thing: self.numbers(thing.path))


def _without_facts(pattern: str) -> str:
    """A pattern whose values of JSON files are any name."""
    return re.sub(r"\{[^{}]*@[^{}]*\}", "*", pattern)


def _below(path: Path, folder: Path) -> str:
    """Path from a folder on, if it is below."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def with_decisions(
    refs: Sequence[EpisodeRef],
    opened: Callable[[EpisodeRef], AbstractContextManager[PlannedEpisode]],
) -> Iterator[EpisodeRef]:
    """The refs with what rows and names of the first, middle and last episode decide for all."""
    decisions: dict[str, list[inventory.Assignment]] = {}
    names: dict[str, str] = {}
    taken: set[tuple[Role, str]] = set()
    for number in sorted({0, len(refs) // 2, len(refs) - 1}) if refs else ():
        with suppress(DataError), opened(refs[number]) as episode:
            for path, decision in episode.decisions().items():
                decisions.setdefault(path, []).append(decision)
            for part in episode.plan.parts:
                if part.name and part.path not in names and (part.role, part.name) not in taken:
                    names[part.path] = part.name
                    taken.add((part.role, part.name))
    merged = {path: _merged(several) for path, several in decisions.items()}
    for ref in refs:
        yield replace(ref, extras={**ref.extras, "known": Known(merged, names)})


def _merged(decisions: Sequence[inventory.Assignment]) -> inventory.Assignment:
    """The decision that holds for all of some episodes.

    A dark episode has no value above 1, a short one few values: what the others show counts.
    """
    order = ("field", "left_out", "camera", "depth", "labels")
    usable = [each for each in decisions if each.content != "unusable"] or decisions
    return min(usable, key=lambda each: (order.index(each.role), each.scale))


def preferred(texts: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Texts by kind; of several instructions the first that says something, the others after it."""
    kinds = [(kind, rows) for kind, rows in texts if any(row.strip() for row in rows)]
    if not any(kind == "original" for kind, _ in kinds):
        for number, (kind, rows) in enumerate(kinds):
            if kind == "alternative":
                kinds[number] = ("original", rows)
                break
    ordered: list[tuple[str, list[str]]] = []
    for kind, rows in kinds:
        is_second = kind == "original" and any(known == "original" for known, _ in ordered)
        ordered.append(("alternative" if is_second else kind, rows))
    return ordered


def frame_count(plan: EpisodePlan, lengths: Mapping[str, int], most_cut: int = 1) -> int:
    """Number of frames of an episode whose parts have these numbers of rows.

    A part may have `most_cut` rows more or less than the actions: observations after the last
    action, or a clip that ends a frame early. The rows behind the shortest part are cut.

    Raises ValueError if a part differs by more.
    """
    leads = [plan.fields[name] for name in plan.actions if name in plan.fields]
    count = next((lengths[path] for path in leads if path in lengths), None)
    if count is None:
        values = list(lengths.values())
        count = max(values, key=values.count, default=0)
    for path, length in lengths.items():
        if abs(length - count) > most_cut:
            raise ValueError(f"{path} has {length} rows, the others {count}")
    return min(lengths.values(), default=0)
