"""What a configuration class declares: its keys, their types, defaults and marks."""

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vlatool.config.coerce import alternatives

ANY_NAME = "*"
"""Stands in dotted keys for an index of a list or a name of a mapping."""


class KeyInfo(NamedTuple):
    """One key that can be set.

    Attributes:
        key: Dotted, with `*` for an index or a free name.
        type_text: Such as `int | null`.
        default: As JSON would show it; None also when there is none.
        description: The help text.
        group: Its heading in `--help`; empty where its class names none.
    """

    key: str
    type_text: str
    default: Any
    description: str
    group: str = ""


@dataclass(frozen=True)
class _Declared:
    key: str
    owner: type[BaseModel]
    field: FieldInfo
    default: Any


@lru_cache(maxsize=8)
def dotted_keys(schema: type[BaseModel]) -> tuple[KeyInfo, ...]:
    """Every key of a class and of its sections; keys that union members share appear once."""
    found: dict[str, KeyInfo] = {}
    for declared in _declared(schema):
        if _sections(declared.field.annotation):
            continue
        info = _info(declared)
        known = found.get(info.key)
        if known is not None and info.type_text not in known.type_text.split(" | "):
            info = known._replace(type_text=f"{known.type_text} | {info.type_text}")
        found[info.key] = info if known is None else known._replace(type_text=info.type_text)
    return tuple(found.values())


def section_names(schema: type[BaseModel]) -> list[str]:
    """The dotted keys that are sections, not values."""
    keys = [item.key for item in _declared(schema) if _sections(item.field.annotation)]
    return list(dict.fromkeys(keys))


def choices(schema: type[BaseModel], key: str) -> list[str]:
    """The values a key can have when they are few and known; `type` keys of unions too."""
    found: list[str] = []
    for declared in _declared(schema):
        if declared.key == key:
            found += _literals(declared.field.annotation)
    return list(dict.fromkeys(found))


def types_with(schema: type[BaseModel], key: str) -> list[str]:
    """The `type` of each section class that declares a dotted key."""
    found: list[str] = []
    for declared in _declared(schema):
        if declared.key == key and "type" in declared.owner.model_fields:
            found += _literals(declared.owner.model_fields["type"].annotation)
    return list(dict.fromkeys(found))


def section_models(schema: type[BaseModel], section: str) -> list[type[BaseModel]]:
    """The classes that a top-level section can have."""
    return [model for _, model in _sections(schema.model_fields[section].annotation)]


def flat_keys(schema: type[BaseModel]) -> dict[str, str]:
    """Keys of flat sections that may stand at the top level, each with its section."""
    sections: tuple[str, ...] = getattr(schema, "flat_sections", ())
    taken = schema.model_fields.keys() | {"type"}
    found: dict[str, str] = {}
    for section in sections:
        for kind in section_models(schema, section):
            found = dict.fromkeys(kind.model_fields.keys() - taken, section) | found
    return found


def unset_required(config: BaseModel) -> list[str]:
    """What must still be set: needed keys without a value, groups of which one key is needed."""
    exclusive: tuple[tuple[str, ...], ...] = getattr(config, "exclusive", ())
    groups = [" or ".join(keys) for keys in exclusive if not any(getattr(config, k) for k in keys)]
    return [*_unset(config, ""), *groups]


def mark(field: FieldInfo, name: str) -> Any:
    """A mark of a field: its `derived` rule or whether it is `needed`; None without."""
    extra = field.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None


@lru_cache(maxsize=8)
def _declared(schema: type[BaseModel]) -> tuple[_Declared, ...]:
    """Every field of a class and below."""
    return tuple(_walk(schema))


def _walk(
    model: type[BaseModel],
    prefix: str = "",
    instance: BaseModel | None = None,
    above: tuple[type, ...] = (),
) -> Iterator[_Declared]:
    """Yields every field of `model` and below; `instance` gives defaults that differ."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        default = getattr(instance, name, None) if instance is not None else default_of(field)
        yield _Declared(key, model, field, default)
        for suffix, section in _sections(field.annotation):
            if section in above:
                continue
            below = default if type(default) is section else None
            yield from _walk(section, f"{key}{suffix}.", below, (*above, section))


def default_of(field: FieldInfo) -> Any:
    """The default of a field; None when it has none or needs other values."""
    if field.default_factory_takes_validated_data:
        return None
    default = field.get_default(call_default_factory=True)
    return None if default is PydanticUndefined else default


def _sections(annotation: Any, suffix: str = "") -> list[tuple[str, type[BaseModel]]]:
    """(`` or `.*`, class) of every model that a type contains."""
    found: list[tuple[str, type[BaseModel]]] = []
    for arm in alternatives(annotation):
        if isinstance(arm, type) and get_origin(arm) is None and issubclass(arm, BaseModel):
            found.append((suffix, arm))
        elif get_origin(arm) is not None and get_origin(arm) is not Literal:
            for part in get_args(arm):
                found += _sections(part, f"{suffix}.{ANY_NAME}")
    return found


def _literals(annotation: Any) -> list[str]:
    found: list[str] = []
    for arm in alternatives(annotation):
        if get_origin(arm) is Literal:
            found += [str(value) for value in get_args(arm)]
        elif isinstance(arm, type) and issubclass(arm, Enum):
            found += [str(member.value) for member in arm]
    return found


def _info(declared: _Declared) -> KeyInfo:
    default = declared.default
    if isinstance(default, Enum):
        default = default.value
    if isinstance(default, tuple | set | frozenset):
        default = list(default)
    if default is not None and not isinstance(default, bool | int | float | str | list | dict):
        default = str(default)
    text = _type_text(declared.field.annotation)
    return KeyInfo(declared.key, text, default, declared.field.description or "", _group(declared))


def _group(declared: _Declared) -> str:
    groups: Mapping[str, tuple[str, ...]] = getattr(declared.owner, "help_groups", {})
    name = declared.key.rpartition(".")[2]
    return next((title for title, names in groups.items() if name in names), "")


def _type_text(annotation: Any) -> str:
    return " | ".join(dict.fromkeys(_arm_text(arm) for arm in alternatives(annotation)))


def _arm_text(arm: Any) -> str:
    origin, arguments = get_origin(arm), get_args(arm)
    if arm is type(None):
        return "null"
    if arm is Ellipsis:
        return "..."
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin is not None:
        name = "dict" if origin is Mapping else getattr(origin, "__name__", str(origin)).lower()
        return f"{name}[{', '.join(_type_text(part) for part in arguments)}]"
    if arm is typing.Any:
        return "any"
    return getattr(arm, "__name__", str(arm))


def _unset(value: Any, prefix: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            item = getattr(value, name)
            if mark(field, "needed") and (item is None or item in ("", [], (), {})):
                yield f"{prefix}{name}"
            yield from _unset(item, f"{prefix}{name}.")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _unset(item, f"{prefix}{name}.")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _unset(item, f"{prefix}{index}.")
