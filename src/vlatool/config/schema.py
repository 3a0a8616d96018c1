"""Declarations of a configuration class: keys, types, defaults and marks."""

import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from vlatool.config.coerce import alternatives

ANY_NAME = "*"
"""Placeholder in dotted keys for an index of a list or a name of a mapping."""


class KeyInfo(NamedTuple):
    """Declaration of a key."""

    key: str  # dotted key, with `*` for an index or a free name
    type_text: str  # type such as `int | null`
    default: Any  # default; None if there is none
    description: str  # help text
    group: str  # heading in `--help`; empty for the default heading
    owner: type[BaseModel]  # class that declares it
    annotation: Any  # its type


@lru_cache(maxsize=8)
def dotted_keys(schema: type[BaseModel]) -> tuple[KeyInfo, ...]:
    """All keys of a class and of its sections; keys that union members share are listed once."""
    infos: dict[str, KeyInfo] = {}
    for info in _declared(schema):
        if _sections(info.annotation):
            continue
        first = infos.get(info.key)
        if first is None:
            infos[info.key] = info
        elif info.type_text not in first.type_text.split(" | "):
            type_text = f"{first.type_text} | {info.type_text}"
            infos[info.key] = first._replace(type_text=type_text)
    return tuple(infos.values())


def section_names(schema: type[BaseModel]) -> list[str]:
    """Dotted keys of sections."""
    keys = [info.key for info in _declared(schema) if _sections(info.annotation)]
    return list(dict.fromkeys(keys))


def choices(schema: type[BaseModel], key: str) -> list[str]:
    """Valid values of a key if they are few and known, including `type` keys of unions."""
    values: list[str] = []
    for info in _declared(schema):
        if concrete_key(info.key, key) == key:
            values += _literals(info.annotation)
    return list(dict.fromkeys(values))


def types_with(schema: type[BaseModel], key: str) -> list[str]:
    """Value of `type` of each section class that declares a dotted key."""
    types: list[str] = []
    for info in _declared(schema):
        if concrete_key(info.key, key) == key and "type" in info.owner.model_fields:
            types += _literals(info.owner.model_fields["type"].annotation)
    return list(dict.fromkeys(types))


def concrete_key(pattern: str, key: str) -> str:
    """Puts the free names of `key` into `pattern`, as far as both have the same parts."""
    parts = pattern.split(".")
    typed = key.split(".")
    for index, part in enumerate(parts):
        if part == ANY_NAME and index < len(typed) and parts[:index] == typed[:index]:
            parts[index] = typed[index]
    return ".".join(parts)


def section_models(schema: type[BaseModel], section: str) -> list[type[BaseModel]]:
    """Possible classes of a top-level section."""
    return [model for _, model in _sections(schema.model_fields[section].annotation)]


def flat_keys(schema: type[BaseModel]) -> dict[str, str]:
    """Keys of flat sections that may be written at the top level, with their sections."""
    sections: tuple[str, ...] = getattr(schema, "flat_sections", ())
    section_of: dict[str, str] = {}
    for section in sections:
        for model in section_models(schema, section):
            for key in model.model_fields:
                if key != "type" and key not in schema.model_fields:
                    section_of.setdefault(key, section)
    return section_of


def unset_required(config: BaseModel) -> list[str]:
    """Keys that must be set: required keys without a value, groups of which none is set."""
    exclusive: tuple[tuple[str, ...], ...] = getattr(config, "exclusive", ())
    unset = list(_unset(config, "needed"))
    for group in exclusive:
        if not any(getattr(config, key) for key in group):
            unset.append(" or ".join(group))
    return unset


def underived(config: BaseModel) -> list[str]:
    """Keys of a section that every derivation sets, and that are not set."""
    return list(_unset(config, "derived"))


def execution_keys(schema: type[BaseModel]) -> frozenset[str]:
    """Keys that control how a command works and not what it writes; see `execution_field`."""
    fields = schema.model_fields.items()
    return frozenset(name for name, field in fields if mark(field, "execution"))


def mark(field: FieldInfo, name: str) -> Any:
    """Mark of a field, such as its rule `derived` or the flag `needed`; None without it."""
    extra = field.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None


@lru_cache(maxsize=8)
def _declared(schema: type[BaseModel]) -> tuple[KeyInfo, ...]:
    """All fields of a class and of its sections."""
    return tuple(_walk(schema))


def _walk(
    model: type[BaseModel],
    prefix: str = "",
    instance: BaseModel | None = None,
    above: tuple[type, ...] = (),
) -> Iterator[KeyInfo]:
    """Yields all fields of `model` and its sections, with the defaults of `instance` if given."""
    groups: Mapping[str, tuple[str, ...]] = getattr(model, "help_groups", {})
    group_of = {name: title for title, names in groups.items() for name in names}
    for name, field in sorted(model.model_fields.items(), key=_is_execution):
        default = default_of(field) if instance is None else getattr(instance, name, None)
        yield KeyInfo(
            f"{prefix}{name}",
            _type_text(field.annotation),
            to_jsonable_python(_changed_values(default), fallback=str),
            field.description or "",
            group_of.get(name, ""),
            model,
            field.annotation,
        )
        for suffix, section in _sections(field.annotation):
            if section not in above:
                below = default if type(default) is section else None
                start = f"{prefix}{name}{suffix}."
                yield from _walk(section, start, below, (*above, section))


def _changed_values(default: Any) -> Any:
    """A default, of a section only what differs from its own defaults."""
    if isinstance(default, BaseModel):
        return default.model_dump(mode="json", exclude_defaults=True)
    return default


def _is_execution(item: tuple[str, FieldInfo]) -> bool:
    return bool(mark(item[1], "execution"))


def default_of(field: FieldInfo) -> Any:
    """Default of a field; None if there is none, or if it depends on other values."""
    if field.default_factory_takes_validated_data:
        return None
    default = field.get_default(call_default_factory=True)
    return None if default is PydanticUndefined else default


def _sections(annotation: Any, suffix: str = "") -> list[tuple[str, type[BaseModel]]]:
    """Pairs (`` or `.*`, class) of the models that a type contains, besides those with a form."""
    models: list[tuple[str, type[BaseModel]]] = []
    for member in alternatives(annotation):
        if (
            isinstance(member, type)
            and get_origin(member) is None
            and issubclass(member, BaseModel)
            and not getattr(member, "typed_form", "")
        ):
            models.append((suffix, member))
        elif get_origin(member) is not None and get_origin(member) is not Literal:
            for part in get_args(member):
                models += _sections(part, f"{suffix}.{ANY_NAME}")
    return models


def _literals(annotation: Any) -> list[str]:
    """Known values of a type, or of the items of a list."""
    values: list[str] = []
    for member in alternatives(annotation):
        if get_origin(member) is Literal:
            values += [str(value) for value in get_args(member)]
        elif get_origin(member) is list:
            values += _literals(*get_args(member))
        elif isinstance(member, type) and issubclass(member, Enum):
            values += [str(item.value) for item in member]
    return values


def _type_text(annotation: Any) -> str:
    return " | ".join(dict.fromkeys(_member_text(member) for member in alternatives(annotation)))


def _member_text(member: Any) -> str:
    origin = get_origin(member)
    arguments = get_args(member)
    if member is type(None):
        return "null"
    if member is Ellipsis:
        return "..."
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin is not None:
        name = "dict" if origin is Mapping else getattr(origin, "__name__", str(origin)).lower()
        return f"{name}[{', '.join(_type_text(part) for part in arguments)}]"
    if member is typing.Any:
        return "any"
    return getattr(member, "typed_form", "") or getattr(member, "__name__", str(member))


def _unset(value: Any, kind: str, prefix: str = "") -> Iterator[str]:
    """Keys with a mark of this name and without a value."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            item = getattr(value, name)
            is_marked = mark(field, kind) and not mark(field, "may_be_null")
            if is_marked and (item is None or item in ("", [], (), {})):
                yield f"{prefix}{name}"
            yield from _unset(item, kind, f"{prefix}{name}.")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _unset(item, kind, f"{prefix}{name}.")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _unset(item, kind, f"{prefix}{index}.")
