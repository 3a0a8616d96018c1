"""Conversion of text and YAML values to the types of fields: bool, number, list and others."""

import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from vlatool.config.scalars import Plain, Repeated, parse_plain, unwrap

_BOOLEANS = {"yes": True, "on": True, "no": False, "off": False}
_WITH_UNDERSCORES = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_MAX_INT = 2**63 - 1  # limit of arrays, files and other libraries
_NULL = "null"
_SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable)


class TypeMismatch(Exception):
    """Value that does not fit one alternative of a type."""

    def __init__(self, needs: str, choices: Sequence[Any] = ()) -> None:
        super().__init__(needs)
        self.needs = needs
        self.choices = tuple(str(choice) for choice in choices)


@dataclass(frozen=True)
class InvalidValue:
    """Placeholder of a value that does not fit its type, so that pydantic reports its key."""

    value: Any
    needs: str  # description of valid values
    choices: tuple[str, ...]  # valid values, if they are few and known


def coerce(value: Any, annotation: Any) -> Any:
    """Converts `value` to a type: `yes` to a bool, `a,b` to a list, unquoted text to text; returns
    the converted value, or `InvalidValue` if no alternative of the type accepts it.
    """
    try:
        return _coerce(value, annotation)
    except TypeMismatch as mismatch:
        return InvalidValue(unwrap(value), mismatch.needs, mismatch.choices)


def alternatives(annotation: Any) -> list[Any]:
    """Members of a union, flattened and without `Annotated`; any other type alone."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in alternatives(part)]
    return [annotation]


def _coerce(value: Any, annotation: Any) -> Any:
    mismatches: list[TypeMismatch] = []
    for member in sorted(alternatives(annotation), key=_rank):
        try:
            return _coercer(member)(value, member)
        except TypeMismatch as mismatch:
            mismatches.append(mismatch)
    needs = [mismatch.needs for mismatch in mismatches]
    text = " or ".join(dict.fromkeys([need for need in needs if need != _NULL] or needs))
    raise TypeMismatch(text, [choice for mismatch in mismatches for choice in mismatch.choices])


def _rank(member: Any) -> int:
    """Position of a type in the order of attempts: narrow types first (`5` of `int | str`)."""
    kinds = list(_COERCERS)
    kind = _kind(member)
    return kinds.index(kind) if kind in kinds else len(kinds)


def _kind(member: Any) -> Any:
    origin = get_origin(member) or member
    if origin in _SEQUENCES:
        return list
    if origin in (dict, Mapping):
        return dict
    if isinstance(origin, type) and issubclass(origin, BaseModel):
        return BaseModel
    return types.NoneType if origin is None else origin


def _coercer(member: Any) -> Callable[[Any, Any], Any]:
    return _COERCERS.get(_kind(member), _coerce_other)


def _scalar(value: Any) -> Any:
    """Last value of a key that was given several times; other values unchanged."""
    return value[-1] if isinstance(value, Repeated) else value


def _coerce_none(value: Any, _member: Any) -> None:
    if unwrap(value) is not None:
        raise TypeMismatch(_NULL)


def _coerce_literal(value: Any, member: Any) -> Any:
    value = _scalar(value)
    choices = get_args(member)
    meanings = [value.value, str(value)] if isinstance(value, Plain) else [value]
    for meaning in meanings:
        for choice in choices:
            if type(choice) is type(meaning) and choice == meaning:
                return choice
        for choice in choices:  # published files write some names in upper case
            if isinstance(choice, str) and choice.lower() == str(meaning).lower():
                return choice
    needs = ", ".join(str(choice) for choice in choices)
    raise TypeMismatch(f"one of {needs}" if len(choices) > 1 else needs, choices)


def _coerce_bool(value: Any, _member: Any) -> bool:
    value = _scalar(value)
    meaning = unwrap(value)
    if isinstance(value, Plain) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if not isinstance(meaning, bool):
        raise TypeMismatch("true or false")
    return meaning


def _coerce_int(value: Any, _member: Any) -> int:
    meaning = _number(value)
    if not isinstance(meaning, Integral):
        raise TypeMismatch("an integer")
    if abs(int(meaning)) > _MAX_INT:
        raise TypeMismatch("an integer below 2^63")
    return int(meaning)


def _coerce_float(value: Any, _member: Any) -> float:
    meaning = _number(value)
    if not isinstance(meaning, Real):
        raise TypeMismatch("a number")
    return float(meaning)


def _number(value: Any) -> Any:
    value = _scalar(value)
    meaning = unwrap(value)
    if isinstance(value, Plain) and isinstance(meaning, str) and _WITH_UNDERSCORES.fullmatch(value):
        meaning = parse_plain(value.replace("_", "")).value
    return None if isinstance(meaning, bool) else meaning


def _coerce_text(value: Any, _member: Any) -> str:
    value = _scalar(value)
    meaning = unwrap(value)
    if isinstance(value, Plain) and meaning is not None:
        return str(value)
    if isinstance(meaning, str | int | float) and not isinstance(meaning, bool):
        return str(meaning)
    raise TypeMismatch("text")


def _coerce_sequence(value: Any, member: Any) -> list[Any]:
    items = _items(value)
    if items is None:
        raise TypeMismatch("a list")
    kinds = [kind for kind in get_args(member) if kind is not Ellipsis]
    is_fixed = get_origin(member) is tuple and Ellipsis not in get_args(member)
    if is_fixed and len(kinds) != len(items):
        raise TypeMismatch(f"a list of {len(kinds)} values, not {len(items)}")
    if len(kinds) == 1:
        kinds *= len(items)
    kinds = kinds or [Any] * len(items)
    return [_coerce(item, kind) for item, kind in zip(items, kinds, strict=True)]


def _items(value: Any) -> list[Any] | None:
    """Items of a list in any notation; None if the value is no list."""
    if isinstance(value, Repeated):
        parts = [_items(part) for part in value]
        return None if None in parts else [item for part in parts for item in part or []]
    if isinstance(value, Plain):
        if value.value is None:
            return None
        return [parse_plain(item.strip()) for item in value.split(",")] if value else []
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return None


def _coerce_mapping(value: Any, member: Any) -> dict[Any, Any]:
    value = _scalar(value)
    if not isinstance(value, Mapping):
        raise TypeMismatch("a mapping")
    _, item_kind = get_args(member) or (str, Any)
    return {key: _coerce(item, item_kind) for key, item in value.items()}


def _coerce_model(value: Any, _member: Any) -> Any:
    value = _scalar(value)
    if not isinstance(value, dict | BaseModel):
        raise TypeMismatch("a section (a mapping)")
    return value


def _coerce_other(value: Any, member: Any) -> Any:
    """Value for types that pydantic converts from text (paths, enumerations), and for `Any`."""
    value = _scalar(value)
    if isinstance(value, Plain) and member not in (Any, object):
        return None if value.value is None else str(value)
    return unwrap(value)


_COERCERS: dict[Any, Callable[[Any, Any], Any]] = {
    types.NoneType: _coerce_none,
    Literal: _coerce_literal,
    bool: _coerce_bool,
    int: _coerce_int,
    float: _coerce_float,
    BaseModel: _coerce_model,
    str: _coerce_text,
    dict: _coerce_mapping,
    list: _coerce_sequence,
}
