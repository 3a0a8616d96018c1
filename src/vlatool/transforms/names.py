"""Maps names of cameras and fields of a data set or environment to the names of a policy.

`NameMap` is the option `--rename`: a new name for an old one, with or without a `*`. `expanded`
replaces the globs by the names that data have, and `renamed_episode` applies the result.

Legend of shapes: F frames, C dimensions of a field.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import model_validator

from vlatool.config.base import ConfigModel, option
from vlatool.config.coerce import TypeMismatch
from vlatool.episode import Array, Declaration, Episode, PoseGroup
from vlatool.errors import DataError
from vlatool.plugins import did_you_mean
from vlatool.transforms.relative import SUFFIX, reference_keys

_SLICED = re.compile(r"([^\[\]]+)(?:\[([0-9]{0,9}):([0-9]{0,9})\])?")
_SEPARATORS = re.compile(r"[./]|__|::")
_KINDS = {"cameras": "camera", "fields": "field"}


def name_end(name: str) -> str:
    """Returns the last part of a name, in which names of different layouts often agree."""
    return _SEPARATORS.split(name)[-1].lower()


class FieldMap(ConfigModel):
    """Where a field comes from: a value or a slice of it, `KEY` or `KEY[START:STOP]`."""

    key: str | None = option(None, "Key of the value; dots separate nested keys.")
    start: int = option(0, "First dimension of the slice.", ge=0)
    stop: int | None = option(
        None, "Dimension after the last one of the slice; null takes all.", ge=1
    )
    scale: float = option(1.0, "Factor from the unit of the value to the unit of the field.")
    offset: float = option(0.0, "Number that is added after the factor.")
    constant: list[float] | None = option(None, "Fixed values of the field, instead of a key.")

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> dict[str, Any]:
        match = _SLICED.fullmatch(texts[-1])
        if match is None:
            raise TypeMismatch(f"KEY or KEY[START:STOP] with whole numbers, not {texts[-1]!r}")
        key, start, stop = match.groups()
        return {"key": key, "start": int(start or 0), "stop": int(stop) if stop else None}

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.constant is not None and (self.key is not None or not self.constant):
            raise ValueError("set either key, or constant with its values")
        return self

    @property
    def is_whole(self) -> bool:
        """True if the field is renamed and nothing else."""
        return self == FieldMap(key=self.key)

    def of(self, values: Array) -> Array:
        """The dimensions of values [..., C] that become the field."""
        part = values[..., self.start : self.stop]
        if self.scale == 1 and self.offset == 0:
            return part
        return part * self.scale + self.offset


_WHOLE = FieldMap()


class _Entry(NamedTuple):
    """A new name, or a pattern of new names, for an old one."""

    kind: str  # `cameras` or `fields`
    new: str
    old: str

    def __str__(self) -> str:
        return f"{self.kind}.{self.new}={self.old}"


class NameMap(ConfigModel):
    """New names of cameras and fields; a `*` on both sides stands for any text."""

    typed_form: ClassVar[str] = "NEW=OLD"

    cameras: dict[str, str] = option({}, "Cameras by new name: NEW: OLD.")
    fields: dict[str, FieldMap] = option({}, "Fields by new name: NEW: OLD, or a part of OLD.")

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> dict[str, Any]:
        keys: dict[str, dict[str, str]] = {}
        for text in texts:
            left, _, right = text.partition("=")
            kind, _, name = left.partition(".")
            new = name.strip()
            old = right.strip()
            if kind not in _KINDS or not new or not old:
                raise TypeMismatch(f"cameras.NEW=OLD or fields.NEW=OLD[0:3], not {text!r}")
            if keys.setdefault(kind, {}).setdefault(new, old) != old:
                raise TypeMismatch(f"one old name for {kind}.{new}, not {text!r} too")
        return keys

    @model_validator(mode="before")
    @classmethod
    def _nest_dotted(cls, data: Any) -> Any:
        """Allows keys such as `cameras.wrist`."""
        if not isinstance(data, dict):
            return data
        nested: dict[str, Any] = {}
        for key, value in data.items():
            kind, dot, new = str(key).partition(".")
            section = {new: value} if dot else value
            if isinstance(section, dict):
                section = {**nested.get(kind, {}), **section}
            nested[kind] = section
        return nested

    @model_validator(mode="after")
    def _check_entries(self) -> Self:
        for entry in self._entries():
            if entry.new.count("*") != entry.old.count("*") or entry.new.count("*") > 1:
                raise ValueError(f"{entry}: one * on each side, or none")
            is_renamed_only = entry.kind == "cameras" or self.fields[entry.new].is_whole
            if entry.new == entry.old and is_renamed_only:
                raise ValueError(f"{entry}: the old name is the new one")
        for new, part in self.fields.items():
            if part.key is None and part.constant is None:
                raise ValueError(f"fields.{new} has neither key nor constant")
        return self

    def _entries(self) -> list[_Entry]:
        """Entries with an old name: all but constants."""
        entries = [_Entry("cameras", new, old) for new, old in self.cameras.items()]
        for new, part in self.fields.items():
            if part.key is not None:
                entries.append(_Entry("fields", new, part.key))
        return entries

    @property
    def is_empty(self) -> bool:
        return not (self.cameras or self.fields)

    # The names of data

    def expanded(self, cameras: Collection[str], fields: Collection[str]) -> Self:
        """The map without globs, for names that are there; DataError for a name that is not."""
        existing = {"cameras": cameras, "fields": fields}
        parts = {new: part for new, part in self.fields.items() if part.key is None}
        old_names: dict[str, dict[str, str]] = {"cameras": {}, "fields": dict.fromkeys(parts, "")}
        for entry in self._entries():
            matches = self._matches(entry, existing[entry.kind])
            if not matches:
                raise _unknown(entry, existing[entry.kind])
            taken = old_names[entry.kind]
            for new, old in matches.items():
                # A field may have several parts, a camera has one name.
                is_camera_again = entry.kind == "cameras" and old in taken.values()
                if new in taken or is_camera_again:
                    raise _taken(f"{entry}: {old!r} or {new!r} has an entry already")
                taken[new] = old
                if entry.kind == "fields":
                    parts[new] = self.fields[entry.new].model_copy(update={"key": old})
        for kind, taken in old_names.items():
            for new in sorted(taken):
                if new in existing[kind] and new not in taken.values():
                    entry = _Entry(kind, new, taken[new])
                    raise _taken(f"{entry}: the data have this {_KINDS[kind]} already")
        return type(self)(cameras=old_names["cameras"], fields=parts)

    def applicable(self, cameras: Collection[str], fields: Collection[str]) -> Self:
        """Renames of whole names that are there, to names that are not."""
        existing = {"cameras": cameras, "fields": fields}
        pairs: dict[str, dict[str, Any]] = {"cameras": {}, "fields": {}}
        for entry in self._entries():
            names = existing[entry.kind]
            for new, old in self._matches(entry, names).items():
                if new not in names:
                    pairs[entry.kind][new] = old if entry.kind == "cameras" else {"key": old}
        return type(self).model_validate(pairs)

    def unmatched(self, cameras: Collection[str], fields: Collection[str]) -> list[str]:
        """Entries whose new name is not there; `cameras` and `fields` are new names."""
        existing = {"cameras": cameras, "fields": fields}
        unmatched: list[str] = []
        for entry in self._entries():
            if not _matches(entry.old, entry.new, existing[entry.kind]):
                unmatched.append(str(entry))
        return unmatched

    def _matches(self, entry: _Entry, existing: Collection[str]) -> dict[str, str]:
        """Map from new to old name of what is there; a glob leaves names with their own entry."""
        if "*" in entry.old:
            exact = {other.old for other in self._entries() if other.kind == entry.kind}
            existing = [name for name in existing if name not in exact]
        return _matches(entry.new, entry.old, existing)

    # From a new name to the old one

    def source_of(self, field: str) -> str:
        """Old name of a field that was renamed, or of a relative pose of it."""
        base = field if field in self.fields else field.removesuffix(SUFFIX)
        part = self.fields.get(base)
        if part is None or part.key is None:
            return field
        return part.key + field[len(base) :]

    def camera_of(self, new: str) -> str | None:
        """Old name of a camera, by its entry or a glob; None: not mapped."""
        if new in self.cameras:
            return self.cameras[new]
        for glob, old_glob in self.cameras.items():
            for old in _matches(old_glob, glob, [new]):
                return old
        return None

    def field_of(self, new: str) -> FieldMap | None:
        """Parts of a field, by its entry or a glob; None: not mapped."""
        if new in self.fields:
            return self.fields[new]
        for entry in self._entries():
            if entry.kind == "fields":
                for old in _matches(entry.old, entry.new, [new]):
                    return self.fields[entry.new].model_copy(update={"key": old})
        return None

    # From an old name to the new ones

    def cameras_of(self, by_camera: Mapping[str, Any]) -> dict[str, Any]:
        """Values by old name of a camera, by its new name."""
        new = {old: name for name, old in self.cameras.items()}
        return {new.get(name, name): value for name, value in by_camera.items()}

    def parts_of(self, field: str) -> list[str]:
        """New names of what was a field, or a relative pose of it; without any, its own."""
        parts = [new for new, part in self.fields.items() if part.key == field]
        if not parts and field.endswith(SUFFIX):
            base = field.removesuffix(SUFFIX)
            parts = [new + SUFFIX for new, part in self.fields.items() if part.key == base]
        return parts or [field]

    def names_of(self, fields: Iterable[str]) -> tuple[str, ...]:
        """New names of fields, each once."""
        names: dict[str, None] = {}
        for field in fields:
            names |= dict.fromkeys(self.parts_of(field))
        return tuple(names)

    def pose_groups_of(self, groups: Iterable[PoseGroup]) -> Iterator[PoseGroup]:
        """Yields the groups, with references by name; without those that are sliced."""
        for group in groups:
            keys = (group.position_key, group.rotation_key, *reference_keys(group))
            new_keys = [self.parts_of(key)[0] for key in keys]
            if new_keys == [*keys]:
                yield group
            elif all(self.fields.get(key, _WHOLE).is_whole for key in new_keys):
                yield PoseGroup(group.name, *new_keys)


def _matches(new: str, old: str, existing: Iterable[str]) -> dict[str, str]:
    """Map from new to old name of the names that are `old`, or that match it with a `*`."""
    matches: dict[str, str] = {}
    head, star, tail = old.partition("*")
    for name in existing:
        middle = name[len(head) : len(name) - len(tail)] if star else ""
        if name == head + middle + tail:
            matches[new.replace("*", middle)] = name
    return matches


def _unknown(entry: _Entry, existing: Collection[str]) -> DataError:
    problem = "matches no" if "*" in entry.old else "is not a"
    kind = _KINDS[entry.kind]
    listed = ", ".join(existing) or "none"
    hint = did_you_mean(entry.old, list(existing))
    if not hint.startswith("did you mean"):
        hint = "write NEW=OLD, with an OLD from this list"
    return DataError(
        f"{entry}: {entry.old!r} {problem} {kind} of your data, which have {listed}",
        hint=hint,
        code="data.unknown_field",
        details={"name": entry.old, "known": list(existing)},
    )


def _taken(message: str) -> DataError:
    return DataError(
        message,
        hint="choose a new name that no other entry and no other part of the data has",
        code="data.broken",
    )


def renamed_episode(episode: Episode, names: NameMap) -> Episode:
    """The episode with new names; `names` has no globs. DataError if a slice does not fit."""
    lowdim: dict[str, Array] = {}
    dimensions: dict[str, Sequence[str]] = {}
    for name, values in episode.lowdim.items():
        labels = list(episode.dimension_names.get(name, ()))
        for new in names.parts_of(name):
            part = names.fields.get(new, _WHOLE)
            if part.is_whole:
                lowdim[new] = values
            else:
                _check_slice(new, part, values)
                lowdim[new] = part.of(values)
            if labels:
                dimensions[new] = labels[part.start : part.stop]
    for new, part in names.fields.items():
        if part.constant is not None:
            lowdim[new] = np.tile(np.array(part.constant), (episode.num_frames, 1))
    declared: list[Declaration] = []
    for declaration in episode.declared:
        declared += _declarations(declaration, names)
    return replace(
        episode,
        lowdim=lowdim,
        dimension_names=dimensions,
        cameras=names.cameras_of(episode.cameras),
        missing_cameras=names.cameras_of(episode.missing_cameras),
        calibration=names.cameras_of(episode.calibration),
        depth=names.cameras_of(episode.depth),
        labels=names.cameras_of(episode.labels),
        action_fields=names.names_of(episode.action_fields),
        proprioception_fields=names.names_of(episode.proprioception_fields),
        pose_groups=tuple(names.pose_groups_of(episode.pose_groups)),
        declared=tuple(declared),
    )


def _check_slice(new: str, part: FieldMap, values: Array) -> None:
    width = values.shape[1] if values.ndim == 2 and values.dtype.kind != "U" else 0
    if not part.start < (part.stop or width) <= width:
        actual = f"{width} wide" if width else "no numbers"
        raise DataError(
            f"fields.{new}={part.key}[{part.start}:{part.stop or ''}]: {part.key!r} is {actual}",
            hint=f"choose a slice within its {width} dimensions"
            if width
            else "leave the slice out",
            code="data.mismatch",
            details={"field": part.key, "width": width},
        )


def _declarations(declaration: Declaration, names: NameMap) -> Iterator[Declaration]:
    """Yields what a declaration says of the new parts of its field."""
    for new in names.parts_of(declaration.field):
        part = names.fields.get(new, _WHOLE)
        first = max(declaration.first, part.start)
        last = declaration.last
        if part.stop is not None:
            last = min(last, part.stop - 1)
        if first <= last:
            yield replace(declaration, field=new, first=first - part.start, last=last - part.start)
