"""Fits what was typed to a field's type: the one place where text becomes bool, number or list."""

import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from vlatool.config.scalars import Plain, Repeated, parse_plain, unwrap

_WORDS = {"yes": True, "on": True, "no": False, "off": False}
_WITH_UNDERSCORES = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_MOST = 2**63 - 1  # what arrays, files and other libraries can hold
_NOTHING = "null"
_SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable)


class TypeMismatch(Exception):
    """A value does not fit one alternative of a type."""

    def __init__(self, needs: str, choices: Sequence[Any] = ()) -> None:
        super().__init__(needs)
        self.needs = needs
        self.choices = tuple(str(choice) for choice in choices)


@dataclass(frozen=True)
class InvalidValue:
    """Stands in place of a value that does not fit, so that pydantic reports its key.

    Attributes:
        value: What was given.
        needs: What the type takes, in words.
        choices: The valid values, when they are few and known.
    """

    value: Any
    needs: str
    choices: tuple[str, ...]


def coerce(value: Any, annotation: Any) -> Any:
    """`value` as the type wants it: `yes` for a bool, `a,b` for a list, typed text for text.

    Returns:
        The fitted value, or `Rejected` when no alternative of the type takes it.
    """
    try:
        return _fit(value, annotation)
    except TypeMismatch as misfit:
        return InvalidValue(unwrap(value), misfit.needs, misfit.choices)


def alternatives(annotation: Any) -> list[Any]:
    """The alternatives of a union, flattened and without `Annotated`; else the type alone."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [arm for part in get_args(annotation) for arm in alternatives(part)]
    return [annotation]


def _fit(value: Any, annotation: Any) -> Any:
    misfits: list[TypeMismatch] = []
    for arm in sorted(alternatives(annotation), key=_rank):
        try:
            return _fitter(arm)(value, arm)
        except TypeMismatch as misfit:
            misfits.append(misfit)
    told = [misfit.needs for misfit in misfits]
    needs = " or ".join(dict.fromkeys([one for one in told if one != _NOTHING] or told))
    raise TypeMismatch(needs, [choice for misfit in misfits for choice in misfit.choices])


def _rank(arm: Any) -> int:
    """Narrow types are tried first, so that `5` is a number for `int | str`."""
    fitters = list(_FITTERS)
    kind = _kind(arm)
    return fitters.index(kind) if kind in fitters else len(fitters)


def _kind(arm: Any) -> Any:
    origin = get_origin(arm) or arm
    if origin in _SEQUENCES:
        return list
    if origin in (dict, Mapping):
        return dict
    if isinstance(origin, type) and issubclass(origin, BaseModel):
        return BaseModel
    return types.NoneType if origin is None else origin


def _fitter(arm: Any) -> Callable[[Any, Any], Any]:
    return _FITTERS.get(_kind(arm), _fit_other)


def _scalar(value: Any) -> Any:
    """One value of a key that was given several times: the last."""
    return value[-1] if isinstance(value, Repeated) else value


def _fit_none(value: Any, _arm: Any) -> None:
    if unwrap(value) is not None:
        raise TypeMismatch(_NOTHING)


def _fit_literal(value: Any, arm: Any) -> Any:
    value = _scalar(value)
    choices = get_args(arm)
    meanings = [value.value, str(value)] if isinstance(value, Plain) else [value]
    for meaning in meanings:
        for choice in choices:
            if type(choice) is type(meaning) and choice == meaning:
                return choice
        for choice in choices:  # published files write some names in capitals
            if isinstance(choice, str) and choice.lower() == str(meaning).lower():
                return choice
    needs = ", ".join(str(choice) for choice in choices)
    raise TypeMismatch(f"one of {needs}" if len(choices) > 1 else needs, choices)


def _fit_bool(value: Any, _arm: Any) -> bool:
    value = _scalar(value)
    meaning = unwrap(value)
    if isinstance(value, Plain) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if not isinstance(meaning, bool):
        raise TypeMismatch("true or false")
    return meaning


def _fit_int(value: Any, _arm: Any) -> int:
    meaning = _number(value)
    if not isinstance(meaning, Integral):
        raise TypeMismatch("a whole number")
    if abs(int(meaning)) > _MOST:
        raise TypeMismatch("a whole number below 2^63")
    return int(meaning)


def _fit_float(value: Any, _arm: Any) -> float:
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


def _fit_text(value: Any, _arm: Any) -> str:
    value = _scalar(value)
    meaning = unwrap(value)
    if isinstance(value, Plain) and meaning is not None:
        return str(value)
    if isinstance(meaning, str | int | float) and not isinstance(meaning, bool):
        return str(meaning)
    raise TypeMismatch("text")


def _fit_sequence(value: Any, arm: Any) -> list[Any]:
    items = _items(value)
    if items is None:
        raise TypeMismatch("a list")
    kinds = [kind for kind in get_args(arm) if kind is not Ellipsis]
    if get_origin(arm) is tuple and Ellipsis not in get_args(arm) and len(kinds) != len(items):
        raise TypeMismatch(f"{len(kinds)} values, not {len(items)}")
    if len(kinds) == 1:
        kinds *= len(items)
    return [_fit(item, kind) for item, kind in zip(items, kinds or [Any] * len(items), strict=True)]


def _items(value: Any) -> list[Any] | None:
    """The items of a list, however it was written; None when it is no list."""
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


def _fit_mapping(value: Any, arm: Any) -> dict[Any, Any]:
    value = _scalar(value)
    if not isinstance(value, Mapping):
        raise TypeMismatch("a mapping")
    _, item_kind = get_args(arm) or (str, Any)
    return {key: _fit(item, item_kind) for key, item in value.items()}


def _fit_model(value: Any, _arm: Any) -> Any:
    value = _scalar(value)
    if not isinstance(value, dict | BaseModel):
        raise TypeMismatch("a section (a mapping)")
    return value


def _fit_other(value: Any, arm: Any) -> Any:
    """Types that pydantic reads from text (paths, enumerations), and `Any`."""
    value = _scalar(value)
    if isinstance(value, Plain) and arm not in (Any, object):
        return None if value.value is None else str(value)
    return unwrap(value)


_FITTERS: dict[Any, Callable[[Any, Any], Any]] = {
    types.NoneType: _fit_none,
    Literal: _fit_literal,
    bool: _fit_bool,
    int: _fit_int,
    float: _fit_float,
    BaseModel: _fit_model,
    str: _fit_text,
    dict: _fit_mapping,
    list: _fit_sequence,
}
