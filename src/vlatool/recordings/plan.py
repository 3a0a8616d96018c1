"""Plans which stored thing of an episode becomes which camera and field.

An `EpisodePlan` follows a mapping, or else the rules of `recordings/inventory.py`. `planned.py` reads
episodes by their plan.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from vlatool.episode import Role, StoredPart
from vlatool.recordings import inventory
from vlatool.recordings.base import unused_id
from vlatool.recordings.commands import named_commands
from vlatool.recordings.mapping import NEXT, RecordingMapping, nearest

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
    """What the first episodes decide for all others: roles and names, by path.

    `cameras`: name of each camera of theirs; True if most of them have it.
    """

    decisions: Mapping[str, inventory.Assignment] = field(
        default_factory=dict[str, inventory.Assignment]
    )
    names: Mapping[str, str] = field(default_factory=dict[str, str])
    cameras: Mapping[str, bool] = field(default_factory=dict[str, bool])


@dataclass
class EpisodePlan:
    """What each camera, field and text of an episode is made from."""

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

    @property
    def images(self) -> dict[Role, dict[str, PlannedImages]]:
        """The images by their role."""
        return {"camera": self.cameras, "depth": self.depth, "labels": self.labels}

    def add(self, part: StoredPart, decision: inventory.Assignment) -> None:
        """Adds a stored thing under the name and in the role of `part`."""
        if part.role in self.images:
            self.images[part.role][part.name] = PlannedImages(part.path, decision)
        elif part.role == "field":
            self.fields[part.name] = part.path
        elif part.role == "language":
            self.texts.append((part.name, part.path))
        elif part.role == "success":
            self.success = part.path

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
    stored: Sequence[inventory.Stored], known: Known, excluded: Mapping[str, str] | None = None
) -> EpisodePlan:
    """The plan of an episode whose things are used by what they are; it predicts nothing yet.

    `excluded`: paths of things that the layout does not use, to the reason.
    """
    excluded = excluded or {}
    used = [thing for thing in stored if thing.path not in excluded]
    decisions, assigned = inventory.assign(used, known.decisions, known.names)
    part_of = {part.path: part for part in assigned}
    plan = EpisodePlan()
    parts: list[StoredPart] = []
    for thing in stored:
        path = thing.path
        if path in excluded:
            content = inventory.decide(thing).content
            parts.append(StoredPart(path, "left_out", "", content, excluded[path]))
        else:
            parts.append(part_of[path])
            plan.add(part_of[path], decisions[path])
    plan.parts = tuple(parts)
    return plan


def name_commands(plan: EpisodePlan, stored: Mapping[str, inventory.Stored]) -> None:
    """Predicts fields such as `target_q` beside `q`, if the layout names no action."""
    if plan.actions:
        return
    widths = {name: math.prod(stored[path].shape) for name, path in plan.fields.items()}
    plan.actions = named_commands(widths)
    plan.observed = tuple(name for name in plan.observed if name not in plan.actions)


Find = Callable[[str], inventory.Stored | None]


def plan_by_mapping(
    stored: Sequence[inventory.Stored], mapping: RecordingMapping, find: Find, known: Known
) -> EpisodePlan:
    """The plan of a mapping.

    `find` returns the thing that a reference names, None if it is no dataset (an attribute, a file
    beside), and raises DataError if it is missing.

    Raises:
        DataError: A thing is missing.
        ValueError: A thing cannot have its role.
    """
    plan = EpisodePlan()
    _add_images(plan, mapping, find, known)
    used: dict[str, StoredPart] = {}  # a thing that is named twice has the first role
    for role, named_images in plan.images.items():
        for name, images in named_images.items():
            if images.path:
                used.setdefault(images.path, StoredPart(images.path, role, name, "images"))
    unusable: set[str] = set()
    for name, reference in mapping.fields.items():
        following = NEXT.fullmatch(reference)
        if following:
            plan.following[name] = following["field"]
            continue
        path = _found(find, reference).path
        decision = known.decisions.get(path)
        if decision is not None and decision.content == "unusable":
            unusable.add(name)
            used[path] = StoredPart(path, "left_out", "", "unusable", decision.note)
        else:
            plan.fields[name] = path
            used.setdefault(path, StoredPart(path, "field", name))
    for reference in mapping.instructions:
        plan.texts.append(("original", reference))
    plan.texts += mapping.language.items()
    for kind, reference in plan.texts:
        thing = find(reference)
        if thing is not None:
            used.setdefault(thing.path, StoredPart(thing.path, "language", kind, "text"))
    plan.success = mapping.success
    singles: list[tuple[str, Role]] = [(mapping.rows.index, "time")]
    if isinstance(mapping.fps, str):
        singles.append((mapping.fps, "time"))
    singles.append((mapping.success, "success"))
    for reference, role in singles:
        thing = find(reference) if reference else None
        if thing is not None:
            used.setdefault(thing.path, StoredPart(thing.path, role))
    _add_rest(plan, mapping, stored, used, known)
    _add_policy(plan, mapping, unusable)
    return plan


def _add_images(plan: EpisodePlan, mapping: RecordingMapping, find: Find, known: Known) -> None:
    """Adds the cameras, depth and labels of a mapping."""
    for name, camera in mapping.cameras.items():
        if camera.video:
            plan.cameras[name] = PlannedImages(
                bgr=camera.bgr, video=camera.video, optional=camera.optional
            )
        else:
            images = _planned_images("camera", camera.path, find, known)
            plan.cameras[name] = replace(images, bgr=camera.bgr)
    for name, reference in mapping.depth.items():
        plan.depth[name] = _planned_images("depth", reference, find, known)
    for name, reference in mapping.labels.items():
        plan.labels[name] = _planned_images("labels", reference, find, known)


def _planned_images(role: Role, reference: str, find: Find, known: Known) -> PlannedImages:
    thing = _found(find, reference)
    decision = known.decisions.get(thing.path)
    if decision is None or decision.role != role:
        decision = inventory.decide_as(role, thing)
    return PlannedImages(thing.path, decision)


def _found(find: Find, reference: str) -> inventory.Stored:
    thing = find(reference)
    if thing is None:
        raise ValueError(f"{reference} is a single value; one value per frame is needed")
    return thing


def _add_rest(
    plan: EpisodePlan,
    mapping: RecordingMapping,
    stored: Sequence[inventory.Stored],
    used: Mapping[str, StoredPart],
    known: Known,
) -> None:
    """Adds the parts that the mapping does not name: left out, or used as their type suggests."""
    others = [thing for thing in stored if thing.path not in used]
    decisions, assigned = inventory.assign(others, known.decisions, known.names)
    rows = {thing.path: thing.rows for thing in stored}
    counts = [rows.get(path) for path in plan.fields.values() if rows.get(path)]
    frames = max(counts, key=counts.count, default=None)
    rest: dict[str, StoredPart] = {}
    for part in assigned:
        length = rows[part.path]
        is_single_text = part.role == "language" and length == 1
        reason = ""
        if mapping.rest == "leave":
            reason = "not in the mapping"
        elif frames and length is not None and abs(length - frames) > 1 and not is_single_text:
            reason = f"it has {length} rows, the episode has {frames} frames"
        if reason:
            rest[part.path] = StoredPart(part.path, "left_out", "", part.content, reason)
            continue
        names = plan.names if part.role == "field" else plan.images.get(part.role, ())
        part = replace(part, name=unused_id(part.name, dict.fromkeys(names, 1)))
        rest[part.path] = part
        plan.add(part, decisions[part.path])
    in_order = [used.get(thing.path) or rest[thing.path] for thing in stored]
    elsewhere = [part for path, part in used.items() if path not in rows]
    plan.parts = (*in_order, *elsewhere)


def _add_policy(plan: EpisodePlan, mapping: RecordingMapping, unusable: Collection[str]) -> None:
    """Adds the fields that a policy predicts and observes; ValueError if one is not there."""
    measured = [name for name in plan.names if name not in plan.following]
    actions: list[str] = []
    for name in mapping.action_fields:
        following = NEXT.fullmatch(name)
        if following:
            name = unused_id(f"{following['field']}_next", dict.fromkeys(plan.names, 1))
            plan.following[name] = following["field"]
        actions += _fitting(name, measured)
    observed: list[str] = []
    for pattern in mapping.proprioception_fields:
        observed += _fitting(pattern, measured)
    for name in (*actions, *observed):
        if name not in (*plan.names, *unusable):
            raise ValueError(f"there is no field {name!r}; {nearest(name, plan.names)}")
    for name in plan.following.values():
        if name not in plan.fields:
            stored = nearest(name, [*plan.fields])
            raise ValueError(f"next({name}): no field {name!r} is stored; {stored}")
    plan.actions = tuple(name for name in actions if name not in unusable)
    plan.observed = tuple(name for name in observed if name not in unusable)


def _fitting(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a pattern fits; a name without `*` is itself."""
    if "*" not in pattern:
        return [pattern]
    return [name for name in names if fnmatchcase(name, pattern)]
