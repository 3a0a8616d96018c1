"""Configurations as YAML that can be loaded again, with the origin of each value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from vlatool.config.resolve import Resolved
from vlatool.config.scalars import write_scalar
from vlatool.config.schema import mark
from vlatool.config.tree import DEFAULT_ORIGIN

_WIDEST_FLOW = 100
_COMMENT_COLUMN = 60


@dataclass(frozen=True)
class _Line:
    """Line of YAML; `key` is the dotted key of its value, empty for the line of a section."""

    text: str
    key: str = ""
    rule: str = ""


def to_yaml(resolved: Resolved[Any], *, explain: bool = False) -> str:
    """Writes all values as YAML, in the order of their declaration."""
    lines = list(_mapping_lines(_fields(resolved.config), "", ""))
    comments = [_comment(line, resolved.origins, explain=explain) for line in lines]
    widths = [len(line.text) for line, comment in zip(lines, comments, strict=True) if comment]
    column = min(max(widths, default=0), _COMMENT_COLUMN) if explain else 0
    commented = [
        f"{line.text:<{column}}  # {comment}" if comment else line.text
        for line, comment in zip(lines, comments, strict=True)
    ]
    return "\n".join(commented) + "\n"


def values_to_yaml(values: Mapping[str, Any]) -> str:
    """Writes nested plain data as YAML in the same form."""
    return "".join(f"{line.text}\n" for line in _mapping_lines(_fields(values), "", ""))


def origin_of(key: str, origins: Mapping[str, str]) -> str:
    """Origin of a dotted key; an item of a list has the origin of the list."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return DEFAULT_ORIGIN


def value_origins(resolved: Resolved[Any]) -> dict[str, str]:
    """Map from dotted key to origin of every value, including defaults."""
    keys = [line.key for line in _mapping_lines(_fields(resolved.config), "", "") if line.key]
    return {key: origin_of(key, resolved.origins) for key in keys}


def _comment(line: _Line, origins: Mapping[str, str], *, explain: bool) -> str:
    if line.rule:
        return f"derived: {line.rule}"
    return origin_of(line.key, origins) if explain and line.key else ""


@dataclass(frozen=True)
class _Field:
    """Name of a field, its JSON value or section, and the rule if the value is derived later."""

    name: str
    value: Any
    rule: str = ""


def _fields(value: BaseModel | Mapping[str, Any]) -> list[_Field]:
    if not isinstance(value, BaseModel):
        return [_Field(str(name), _plain(item)) for name, item in value.items()]
    data = value.model_dump(mode="json")
    fields: list[_Field] = []
    for name, field in type(value).model_fields.items():
        item = getattr(value, name)
        rule = (mark(field, "derived") or "") if item is None else ""
        fields.append(_Field(name, item if _has_sections(item) else data[name], rule))
    return fields


def _plain(item: Any) -> Any:
    return item if not isinstance(item, tuple) else list(item)


def _has_sections(item: Any) -> bool:
    if isinstance(item, BaseModel):
        return True
    if isinstance(item, dict):
        return any(_has_sections(part) for part in item.values())
    return isinstance(item, list | tuple) and any(_has_sections(part) for part in item)


def _mapping_lines(fields: list[_Field], indent: str, prefix: str) -> Iterator[_Line]:
    for field in fields:
        start = f"{indent}{write_scalar(field.name)}:"
        key = f"{prefix}{field.name}"
        yield from _value_lines(start, field.value, indent, key, field.rule)


def _value_lines(start: str, value: Any, indent: str, key: str, rule: str) -> Iterator[_Line]:
    if isinstance(value, BaseModel) or (isinstance(value, dict) and value):
        yield _Line(start)
        yield from _mapping_lines(_fields(value), f"{indent}  ", f"{key}.")
        return
    flow = _flow(value)
    if flow is not None and (len(start) + len(flow) < _WIDEST_FLOW or not isinstance(value, list)):
        yield _Line(f"{start} {flow}", key, rule)
        return
    yield _Line(start, "" if flow is None else key)
    for index, item in enumerate(value):
        yield from _item_lines(item, indent, f"{key}.{index}", is_shown=flow is None)


def _item_lines(item: Any, indent: str, key: str, *, is_shown: bool) -> Iterator[_Line]:
    """Lines of an item of a block list; scalars of a list that is one value have no key."""
    if isinstance(item, BaseModel) or (isinstance(item, dict) and item):
        lines = list(_mapping_lines(_fields(item), f"{indent}  ", f"{key}."))
        first = lines[0]
        yield _Line(f"{indent}- {first.text.lstrip()}", first.key, first.rule)
        yield from lines[1:]
        return
    flow = _flow(item)
    if flow is not None:
        yield _Line(f"{indent}- {flow}", key if is_shown else "")
        return
    yield _Line(f"{indent}-")
    for index, part in enumerate(item):
        yield from _item_lines(part, f"{indent}  ", f"{key}.{index}", is_shown=is_shown)


def _flow(value: Any) -> str | None:
    """One-line form of a scalar or a list without mappings; None for other values."""
    if isinstance(value, dict):
        return None if value else "{}"
    if isinstance(value, BaseModel):
        return None
    if not isinstance(value, list | tuple):
        return write_scalar(value)
    items = [_flow(item) for item in value]
    return None if None in items else f"[{', '.join(item for item in items if item)}]"
