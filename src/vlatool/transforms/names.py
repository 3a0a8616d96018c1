"""Names of cameras and fields: those of a data set or environment to those of a policy.

Legend of shapes: F frames, C dimensions of a field.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

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


class FieldMap(ConfigModel):
    """Mapping of a value or its slice to a field; typed as `KEY` or `KEY[START:STOP]`."""

    key: str | None = option(None, "Key of the observation; dots separate nested keys.")
    start: int = option(0, "First dimension.", ge=0)
    stop: int | None = option(None, "Dimension after the last; null: to the end.", ge=1)
    scale: float = option(1.0, "Factor from the environment's unit to the field's.")
    offset: float = option(0.0, "Number that is added after the factor.")
    constant: list[float] | None = option(None, "Fixed values, without key.")

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
            raise ValueError("a field has a key, or the values of a constant")
        return self

    @property
    def is_whole(self) -> bool:
        """True if the field is renamed and nothing else."""
        return self == FieldMap(key=self.key)

    def of(self, values: Array) -> Array:
        """The dimensions of values [..., C] that become the field."""
        part = values[..., self.start : self.stop]
        return part if (self.scale, self.offset) == (1, 0) else part * self.scale + self.offset


WHOLE = FieldMap()


class NameMap(ConfigModel):
    """New names of cameras and fields; a `*` on both sides stands for the same text."""

    typed_form: ClassVar[str] = "NEW=OLD"

    cameras: dict[str, str] = option({}, "New name of a camera to its name in the data.")
    fields: dict[str, FieldMap] = option({}, "New name of a field to what it consists of.")

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> dict[str, Any]:
        keys: dict[str, dict[str, str]] = {}
        for text in texts:
            kind, dot, rest = text.partition(".")
            new, equals, old = (part.strip() for part in rest.partition("="))
            if kind not in _KINDS or not (dot and new and equals and old):
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
            part = {new: value} if dot else value
            nested[kind] = {**nested.get(kind, {}), **part} if isinstance(part, dict) else part
        return nested

    @model_validator(mode="after")
    def _check_entries(self) -> Self:
        for kind, new, old in self._entries():
            if new.count("*") != old.count("*") or new.count("*") > 1:
                raise ValueError(f"{kind}.{new}={old}: one * on each side, or none")
            if new == old and (kind == "cameras" or self.fields[new].is_whole):
                raise ValueError(f"{kind}.{new}={old}: the old name is the new one")
        for new, part in self.fields.items():
            if part.key is None and part.constant is None:
                raise ValueError(f"fields.{new} has neither key nor constant")
        return self

    def _entries(self) -> list[tuple[str, str, str]]:
        """(`cameras` or `fields`, new name, old name) of what has an old name."""
        fields = [(new, part.key) for new, part in self.fields.items() if part.key is not None]
        rows = {"cameras": self.cameras.items(), "fields": fields}
        return [(kind, new, old) for kind, pairs in rows.items() for new, old in pairs]

    @property
    def is_empty(self) -> bool:
        return not (self.cameras or self.fields)

    def _matched(
        self, known: Mapping[str, Collection[str]]
    ) -> Iterator[tuple[str, str, str, list[tuple[str, str]]]]:
        """Yields each entry, with (new name, old name) of what is there."""
        exact = {(kind, old) for kind, _, old in self._entries()}
        for kind, new, old in self._entries():
            others = [name for name in known[kind] if "*" not in old or (kind, name) not in exact]
            yield kind, new, old, list(_matches(new, old, others))

    def expanded(self, cameras: Collection[str], fields: Collection[str]) -> Self:
        """The map without globs, for names that are there; DataError for a name that is not."""
        known: Mapping[str, Collection[str]] = {"cameras": cameras, "fields": fields}
        parts = {new: part for new, part in self.fields.items() if part.key is None}
        names: dict[str, dict[str, str]] = {"cameras": {}, "fields": dict.fromkeys(parts, "")}
        for kind, new, old, matches in self._matched(known):
            if not matches:
                raise _unknown(kind, new, old, known[kind])
            for name, source in matches:
                if name in names[kind] or (kind == "cameras" and source in names[kind].values()):
                    raise _taken(f"{kind}.{new}={old}: {source!r} or {name!r} has an entry already")
                names[kind][name] = source
                if kind == "fields":
                    parts[name] = self.fields[new].model_copy(update={"key": source})
        for kind, sources in names.items():
            for name in sorted({*sources} & {*known[kind]} - {*sources.values()}):
                problem = f"the data have this {_KINDS[kind]} already"
                raise _taken(f"{kind}.{name}={sources[name]}: {problem}")
        return type(self)(cameras=names["cameras"], fields=parts)

    def applicable(self, cameras: Collection[str], fields: Collection[str]) -> Self:
        """Renames of whole names that are there, to names that are not."""
        known: Mapping[str, Collection[str]] = {"cameras": cameras, "fields": fields}
        pairs: dict[str, dict[str, Any]] = {"cameras": {}, "fields": {}}
        for kind, _, _, matches in self._matched(known):
            for name, source in matches:
                if name not in known[kind]:
                    pairs[kind][name] = source if kind == "cameras" else {"key": source}
        return type(self).model_validate(pairs)

    def unmatched(self, cameras: Collection[str], fields: Collection[str]) -> list[str]:
        """Entries whose new name is not there; `cameras` and `fields` are new names."""
        known = {"cameras": cameras, "fields": fields}
        return [
            f"{kind}.{new}={old}"
            for kind, new, old in self._entries()
            if not any(_matches(old, new, known[kind]))
        ]

    def source_of(self, field: str) -> str:
        """Old name of a field that was renamed, or of a relative pose of it."""
        base = field.removesuffix(SUFFIX) if field not in self.fields else field
        part = self.fields.get(base)
        return field if part is None or part.key is None else part.key + field[len(base) :]

    def camera_of(self, new: str) -> str | None:
        """Old name of a camera, by its entry or a glob; None: not mapped."""
        return self.cameras.get(new) or next((old for _, old in self._globs("cameras", new)), None)

    def field_of(self, new: str) -> FieldMap | None:
        """Parts of a field, by its entry or a glob; None: not mapped."""
        globs = ((self.fields[name], old) for name, old in self._globs("fields", new))
        parts = (part.model_copy(update={"key": old}) for part, old in globs)
        return self.fields.get(new) or next(parts, None)

    def _globs(self, kind: str, new: str) -> Iterator[tuple[str, str]]:
        """Yields the entries whose new name matches, with the old name."""
        for each, name, old in self._entries():
            if each == kind and "*" in name:
                yield from ((name, match) for match, _ in _matches(old, name, [new]))

    def cameras_of(self, by_camera: Mapping[str, Any]) -> dict[str, Any]:
        """Values by old name of a camera, by its new name."""
        new = {old: name for name, old in self.cameras.items()}
        return {new.get(name, name): value for name, value in by_camera.items()}

    def parts_of(self, field: str) -> list[str]:
        """New names of what was a field, or a relative pose of it; without any, its own."""
        for name, suffix in ((field, ""), (field.removesuffix(SUFFIX), SUFFIX)):
            parts = [new + suffix for new, part in self.fields.items() if part.key == name]
            if parts and field.endswith(suffix):
                return parts
        return [field]

    def names_of(self, fields: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(new for name in fields for new in self.parts_of(name)))

    def pose_groups_of(self, groups: Iterable[PoseGroup]) -> Iterator[PoseGroup]:
        """Yields the groups, with references by name; without those that are sliced."""
        for group in groups:
            keys = (group.position_key, group.rotation_key, *reference_keys(group))
            new = [self.parts_of(key)[0] for key in keys]
            if new == [*keys]:
                yield group
            elif all(self.fields.get(name, WHOLE).is_whole for name in new):
                yield PoseGroup(group.name, *new)


def name_end(name: str) -> str:
    """Last part of a name, by which names of different layouts are alike."""
    return _SEPARATORS.split(name)[-1].lower()


def _matches(new: str, old: str, known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(new name, old name) of the names that are `old`, or that match it with a `*`."""
    head, star, tail = old.partition("*")
    for name in known:
        middle = name[len(head) : len(name) - len(tail)] if star else ""
        if name == head + middle + tail:
            yield new.replace("*", middle), name


def _unknown(kind: str, new: str, old: str, known: Collection[str]) -> DataError:
    problem = "matches no" if "*" in old else "is not a"
    listed = ", ".join(known) or "none"
    nearest = did_you_mean(old, list(known))
    return DataError(
        f"{kind}.{new}={old}: {old!r} {problem} {_KINDS[kind]} of the data, which have {listed}",
        hint=nearest if nearest.startswith("did you mean") else "give an old name that they have",
        code="data.unknown_field",
        details={"name": old, "known": list(known)},
    )


def _taken(message: str) -> DataError:
    return DataError(
        message,
        hint="each new name needs one old name, and one that is not in use",
        code="data.broken",
    )


def renamed_episode(episode: Episode, names: NameMap) -> Episode:
    """The episode with new names; `names` has no globs. DataError if a slice does not fit."""
    lowdim: dict[str, Array] = {}
    dimensions: dict[str, Sequence[str]] = {}
    for name, values in episode.lowdim.items():
        labels = list(episode.dimension_names.get(name, ()))
        for new in names.parts_of(name):
            part = names.fields.get(new, WHOLE)
            lowdim[new] = values if part.is_whole else _part(new, part, values)
            if labels:
                dimensions[new] = labels[part.start : part.stop]
    for new, part in names.fields.items():
        if part.constant is not None:
            lowdim[new] = np.tile(np.array(part.constant), (episode.num_frames, 1))
    by_camera = ("cameras", "missing_cameras", "calibration", "depth", "labels")
    return replace(
        episode,
        lowdim=lowdim,
        dimension_names=dimensions,
        **{key: names.cameras_of(getattr(episode, key)) for key in by_camera},
        action_fields=names.names_of(episode.action_fields),
        proprioception_fields=names.names_of(episode.proprioception_fields),
        pose_groups=tuple(names.pose_groups_of(episode.pose_groups)),
        declared=tuple(new for old in episode.declared for new in _declarations(old, names)),
    )


def _part(new: str, part: FieldMap, values: Array) -> Array:
    width = values.shape[1] if values.ndim == 2 and values.dtype.kind != "U" else 0
    if not part.start < (part.stop or width) <= width:
        raise DataError(
            f"fields.{new}={part.key}[{part.start}:{part.stop or ''}]: {part.key!r} is "
            f"{f'{width} wide' if width else 'no numbers'}",
            hint="give a slice within the field",
            code="data.mismatch",
            details={"field": part.key, "width": width},
        )
    return part.of(values)


def _declarations(declaration: Declaration, names: NameMap) -> Iterator[Declaration]:
    for new in names.parts_of(declaration.field):
        part = names.fields.get(new, WHOLE)
        first = max(declaration.first, part.start)
        last = declaration.last
        last = last if part.stop is None else min(last, part.stop - 1)
        if first <= last:
            yield replace(declaration, field=new, first=first - part.start, last=last - part.start)
