"""What the episodes of a container are made of: by a mapping, or by what each stored thing is.

Shapes: F frames, C numbers of a field.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlatool.artifacts.images import decode_rgb, decode_values
from vlatool.episode import Array, EpisodeRef, FrameSource, Role, StoredPart
from vlatool.events import counted
from vlatool.sources.frames import SingleImages
from vlatool.sources.inventory import (
    Decision,
    Stored,
    assign,
    decide,
    decide_as,
    depth_image,
    label_image,
    left_out_findings,
    matrix_names,
    rgb_image,
)
from vlatool.sources.language import first_text, recorded_language
from vlatool.sources.mapping import NEXT, RecordingMapping, nearest
from vlatool.sources.rules import SOURCE

_CAMERA = Decision("camera", "images")


@dataclass(frozen=True)
class PlannedImages:
    """Images that an episode has."""

    path: str = ""  # of the stored thing; empty: a video beside the file
    decision: Decision = _CAMERA
    bgr: bool = False
    video: str = ""
    optional: bool = False


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

    def dimension_names(self, stored: Mapping[str, Stored]) -> dict[str, tuple[str, ...]]:
        """Names of the numbers of pose matrices, by field."""
        poses = {part.path for part in self.parts if part.note.startswith("pose")}
        names: dict[str, tuple[str, ...]] = {}
        for name, path in self.fields.items():
            if path in poses:
                names[name] = matrix_names(stored[path].shape)
        return names


def plan_by_structure(
    stored: Sequence[Stored],
    decided: Mapping[str, Decision] | None = None,
    excluded: Mapping[str, str] | None = None,
) -> EpisodePlan:
    """The plan of an episode whose things are used by what they are; it predicts nothing yet.

    `excluded`: paths of things that the layout does not use, to the reason.
    """
    plan, parts = EpisodePlan(), list[StoredPart]()
    excluded = excluded or {}
    decisions, assigned = assign([each for each in stored if each.path not in excluded], decided)
    by_path = {part.path: part for part in assigned}
    for each in stored:
        if each.path in excluded:
            content = decide(each).content
            parts.append(StoredPart(each.path, "left_out", "", content, excluded[each.path]))
        else:
            parts.append(by_path[each.path])
            _add(plan, by_path[each.path], decisions[each.path])
    plan.parts = tuple(parts)
    return plan


def _add(plan: EpisodePlan, part: StoredPart, decision: Decision) -> None:
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
    stored: Sequence[Stored],
    mapping: RecordingMapping,
    find: Callable[[str], Stored | None],
    decided: Mapping[str, Decision] | None = None,
) -> EpisodePlan:
    """The plan of a mapping.

    `find` returns the thing that a reference names, None if it is no dataset (an attribute, a file
    beside), and raises DataError if it is missing.

    Raises:
        DataError: A thing is missing.
        ValueError: A thing cannot have its role.
    """
    plan = EpisodePlan()
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
            decision = (decided or {}).get(thing.path)
            if decision is None or decision.role != role:
                decision = decide_as(role, thing)
            planned[name] = PlannedImages(thing.path, decision, images.bgr)
            used.setdefault(thing.path, StoredPart(thing.path, role, name, "images"))
    for name, reference in mapping.fields.items():
        if following := NEXT.fullmatch(reference):
            plan.following[name] = following["field"]
            continue
        thing = _found(find, reference)
        known = (decided or {}).get(thing.path)
        if known is not None and known.content == "unusable":
            unusable.add(name)
            used[thing.path] = StoredPart(thing.path, "left_out", "", known.content, known.note)
            continue
        plan.fields[name] = thing.path
        used.setdefault(thing.path, StoredPart(thing.path, "field", name))
    for kind, reference in _texts_of(mapping):
        plan.texts.append((kind, reference))
        if (thing := find(reference)) is not None:
            used.setdefault(thing.path, StoredPart(thing.path, "language", kind, "text"))
    plan.success = mapping.success
    for reference, role in ((mapping.success, "success"), (mapping.rows.index, "time")):
        if reference and (thing := find(reference)) is not None:
            used.setdefault(thing.path, StoredPart(thing.path, role))
    if isinstance(mapping.fps, str) and mapping.fps and (thing := find(mapping.fps)) is not None:
        used.setdefault(thing.path, StoredPart(thing.path, "time"))
    _add_rest(plan, mapping, stored, used, decided)
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


def _found(find: Callable[[str], Stored | None], reference: str) -> Stored:
    thing = find(reference)
    if thing is None:
        raise ValueError(f"{reference} is a single value, not one for each frame")
    return thing


def _add_rest(
    plan: EpisodePlan,
    mapping: RecordingMapping,
    stored: Sequence[Stored],
    used: Mapping[str, StoredPart],
    decided: Mapping[str, Decision] | None,
) -> None:
    """Adds what the mapping does not name: left out, or used by what it is."""
    others = [thing for thing in stored if thing.path not in used]
    decisions, parts = assign(others, decided)
    rest: dict[str, StoredPart] = {}
    for part in parts:
        if mapping.rest == "leave":
            note = "the mapping does not name it"
            rest[part.path] = StoredPart(part.path, "left_out", "", part.content, note)
            continue
        rest[part.path] = part
        _add(plan, part, decisions[part.path])
    in_order = [used.get(thing.path) or rest[thing.path] for thing in stored]
    known = {thing.path for thing in stored}
    elsewhere = [part for path, part in used.items() if path not in known]
    plan.parts = (*in_order, *elsewhere)


def _add_policy(plan: EpisodePlan, mapping: RecordingMapping, unusable: Collection[str]) -> None:
    """Adds the fields that a policy predicts and observes; ValueError if one is not there."""
    actions: list[str] = []
    for name in mapping.action_fields:
        if following := NEXT.fullmatch(name):
            name = f"{following['field']}_next"
            plan.following[name] = following["field"]
        actions.append(name)
    for name in (*actions, *mapping.proprioception_fields, *plan.following.values()):
        if name not in (*plan.names, *unusable):
            raise ValueError(f"{name!r} is no field; {nearest(name, plan.names)}")
    plan.actions = tuple(name for name in actions if name not in unusable)
    plan.observed = tuple(name for name in mapping.proprioception_fields if name not in unusable)


# Episodes

PLAIN = "="  # before a text that is no reference


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
        row, decision = self.row(index), self.planned.decision
        try:
            if decision.role == "camera":
                image = (
                    decode_rgb(row) if isinstance(row, bytes) else rgb_image(row, decision.scale)
                )
                return image[..., ::-1] if self.planned.bgr else image
            values = decode_values(row) if isinstance(row, bytes) else row
            if decision.role == "depth":
                return depth_image(values, decision.scale)
            return label_image(values)
        except ValueError as error:
            raise self.image_error(index, str(error)) from error


class PartReader(Protocol):
    """Rows of the things that an episode stores.

    Attributes:
        lengths: Rows of each part of the plan that has some.
        count: Frames of the episode.
    """

    @property
    def lengths(self) -> Mapping[str, int]: ...

    @property
    def count(self) -> int: ...

    def images(self, planned: PlannedImages, count: int) -> FrameSource:
        """Images of a camera, of depth or of labels."""
        ...

    def numbers(self, path: str, count: int) -> Array:
        """Numbers [F, C]."""
        ...

    def texts(self, reference: str, count: int) -> list[str]:
        """One text, or one for each frame."""
        ...


def planned_parts(
    ref: EpisodeRef,
    plan: EpisodePlan,
    reader: PartReader,
    instruction: str | None,
) -> dict[str, Any]:
    """What an `Episode` gets from a plan: its images, fields, texts and their findings."""
    count = reader.count
    longest = max(reader.lengths.values(), default=count)
    rows = count + bool(plan.following)
    fields = {name: reader.numbers(path, rows) for name, path in plan.fields.items()}
    for name, source in plan.following.items():
        fields[name] = fields[source][1:]
    fields = {name: values[:count] for name, values in fields.items()}
    images: dict[str, dict[str, FrameSource]] = {}
    for role, planned in (
        ("cameras", plan.cameras),
        ("depth", plan.depth),
        ("labels", plan.labels),
    ):
        images[role] = {name: reader.images(each, count) for name, each in planned.items()}
    texts = [(kind, reader.texts(reference, count)) for kind, reference in plan.texts]
    language, findings = recorded_language(ref, count, preferred(texts), instruction)
    if longest > count:
        text = counted(longest - count, "frame")
        message = f"{ref.id}: {text} at its end without an action or an image; cut"
        findings.append(SOURCE("frames_cut", message, episode=ref.id, frame=count))
    return {
        "id": ref.id,
        "task": first_text(language),
        "num_frames": count,
        "cut_frames": longest - count,
        **images,
        "lowdim": fields,
        "language": language[0],
        "language_spans": tuple(language[1]),
        "action_fields": plan.actions,
        "proprioception_fields": plan.observed,
        "parts": plan.parts,
        "findings": (*findings, *left_out_findings(ref.id, plan.parts)),
    }


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


def frame_count(plan: EpisodePlan, lengths: Mapping[str, int]) -> int:
    """Number of frames of an episode whose parts have these numbers of rows.

    A part may have one row more or less than the actions: observations after the last action, or a
    clip that ends a frame early. The rows behind the shortest part are cut.

    Raises ValueError if a part differs by more.
    """
    leads = [plan.fields[name] for name in plan.actions if name in plan.fields]
    count = next((lengths[path] for path in leads if path in lengths), None)
    if count is None:
        values = list(lengths.values())
        count = max(values, key=values.count, default=0)
    for path, length in lengths.items():
        if abs(length - count) > 1:
            raise ValueError(f"{path} has {length} rows, the others {count}")
    return min(lengths.values(), default=0)
