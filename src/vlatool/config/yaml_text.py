"""Configurations as YAML, with the origin of each value as a comment.

A configuration becomes lines, one per value, each with the dotted key of its value. Short lists are
written on one line, lists of sections as blocks. Any YAML 1.1 or 1.2 reader gets the same values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from vlatool.config import coerce
from vlatool.config.resolve import Resolved
from vlatool.config.schema import mark

_WIDEST_FLOW = 100  # characters of a line with a list
_COMMENT_COLUMN = 60


@dataclass(frozen=True)
class _Line:
    """Line of YAML."""

    text: str
    key: str = ""  # dotted key of the value; empty for the line of a section
    rule: str = ""  # rule for a value that is derived later


@dataclass(frozen=True)
class _Field:
    """Field of a section."""

    name: str
    value: Any  # JSON value or section
    rule: str = ""  # rule for a value that is derived later


def to_yaml(resolved: Resolved[Any], *, explain: bool = False) -> str:
    """Writes all values as YAML, in the order of their declaration.

    With `explain`, a comment has the origin of each value; else only the rules of derived ones.
    """
    lines = list(_mapping_lines(_fields(resolved.config), "", ""))
    comments: list[str] = []
    column = 0
    for line in lines:
        comment = ""
        if line.rule:
            comment = f"derived: {line.rule}"
        elif explain and line.key:
            comment = origin_of(line.key, resolved.origins)
        comments.append(comment)
        if explain and comment:
            column = max(column, min(len(line.text), _COMMENT_COLUMN))
    text = ""
    for line, comment in zip(lines, comments, strict=True):
        if comment:
            text += f"{line.text:<{column}}  # {comment}"
        else:
            text += line.text
        text += "\n"
    return text


def values_to_yaml(values: Mapping[str, Any]) -> str:
    """Writes nested plain data as YAML in the same form."""
    return "".join(f"{line.text}\n" for line in _mapping_lines(_fields(values), "", ""))


def value_origins(resolved: Resolved[Any]) -> dict[str, str]:
    """Map from dotted key to origin of every value, including defaults."""
    origins: dict[str, str] = {}
    for line in _mapping_lines(_fields(resolved.config), "", ""):
        if line.key:
            origins[line.key] = origin_of(line.key, resolved.origins)
    return origins


def origin_of(key: str, origins: Mapping[str, str]) -> str:
    """Origin of a dotted key; an item of a list has the origin of the list."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return coerce.DEFAULT_ORIGIN


def _fields(value: BaseModel | Mapping[str, Any]) -> list[_Field]:
    fields: list[_Field] = []
    if not isinstance(value, BaseModel):
        for name, item in value.items():
            fields.append(_Field(str(name), item))
        return fields
    data = value.model_dump(mode="json")
    for name, info in type(value).model_fields.items():
        item = getattr(value, name)
        rule = ""
        if item is None:
            rule = mark(info, "derived") or ""
        if not _has_sections(item):
            item = data[name]
        fields.append(_Field(name, item, rule))
    return fields


def _has_sections(item: Any) -> bool:
    if isinstance(item, BaseModel):
        return True
    if isinstance(item, dict):
        return any(_has_sections(part) for part in item.values())
    return isinstance(item, list | tuple) and any(_has_sections(part) for part in item)


def _mapping_lines(fields: list[_Field], indent: str, prefix: str) -> Iterator[_Line]:
    for field in fields:
        start = f"{indent}{coerce.write_scalar(field.name)}:"
        yield from _value_lines(start, field.value, indent, f"{prefix}{field.name}", field.rule)


def _value_lines(start: str, value: Any, indent: str, key: str, rule: str) -> Iterator[_Line]:
    if isinstance(value, BaseModel) or (isinstance(value, dict) and value):
        yield _Line(start)
        yield from _mapping_lines(_fields(value), f"{indent}  ", f"{key}.")
        return
    flow = _flow(value)
    is_list = isinstance(value, list | tuple)
    if flow is not None and (len(start) + len(flow) < _WIDEST_FLOW or not is_list):
        yield _Line(f"{start} {flow}", key, rule)
        return
    yield _Line(start, "" if flow is None else key)
    for index, item in enumerate(value):
        yield from _item_lines(item, indent, f"{key}.{index}", has_key=flow is None)


def _item_lines(item: Any, indent: str, key: str, *, has_key: bool) -> Iterator[_Line]:
    """Lines of an item of a block list; scalars of a list that is one value have no key."""
    if isinstance(item, BaseModel) or (isinstance(item, dict) and item):
        first, *others = _mapping_lines(_fields(item), f"{indent}  ", f"{key}.")
        yield _Line(f"{indent}- {first.text.lstrip()}", first.key, first.rule)
        yield from others
        return
    flow = _flow(item)
    if flow is not None:
        yield _Line(f"{indent}- {flow}", key if has_key else "")
        return
    yield _Line(f"{indent}-")
    for index, part in enumerate(item):
        yield from _item_lines(part, f"{indent}  ", f"{key}.{index}", has_key=has_key)


def _flow(value: Any) -> str | None:
    """One-line form of a scalar or a list without mappings; None for other values."""
    return None if _has_mapping(value) else coerce.flow_text(value)


def _has_mapping(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_has_mapping(item) for item in value)
    return isinstance(value, BaseModel) or (isinstance(value, dict) and bool(value))
