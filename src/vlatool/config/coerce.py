"""Conversion of text and YAML values to the types of fields: bool, number, list and others."""

import math
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

DEFAULT_ORIGIN = "default"
TYPED_ORIGIN = "command line"


@dataclass(frozen=True)
class Node:
    """Value with its origin."""

    value: Any  # A scalar, a list of nodes, or a mapping from key to node
    origin: str  # origin such as `presets/runs/x.yaml:12` or `command line, --hparams.lr`
    replace: bool = False  # A mapping replaces the earlier one instead of being merged into it
    is_flat: bool = False  # the key of a section was written at the top level
    is_lenient: bool = False  # the value is ignored if its key is unknown


def from_value(value: Any, origin: str) -> Node:
    """Tree of plain data, with the same origin for all values."""
    if isinstance(value, dict):
        value = {str(key): from_value(item, origin) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        value = [from_value(item, origin) for item in value]
    return Node(value, origin)


def to_value(node: Node) -> Any:
    """Nested data of a tree, with scalars as they were written."""
    if isinstance(node.value, dict):
        return {key: to_value(item) for key, item in node.value.items()}
    if isinstance(node.value, list):
        return [to_value(item) for item in node.value]
    return node.value


def plain(node: Node) -> Any:
    """Nested data of a tree, with the YAML values of scalars."""
    return unwrap(to_value(node))


def merge(base: Node, over: Node) -> Node:
    """Merges `over` into `base`: mappings are merged recursively, other values are replaced.

    A mapping with `!replace`, or with another `type`, replaces the mapping of `base`.
    """
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    if over.replace or _switches_type(base, over):
        return over
    merged = dict(base.value)
    for key, value in over.value.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    origin = over.origin if over.value else base.origin
    return replace(over, value=merged, origin=origin, replace=base.replace)


def _switches_type(base: Node, over: Node) -> bool:
    old = base.value.get("type")
    new = over.value.get("type")
    return old is not None and new is not None and str(plain(old)) != str(plain(new))


def child(node: Node, part: str | int) -> Node | None:
    """Child of `node` at a key or index."""
    if isinstance(node.value, dict):
        return node.value.get(part)
    if isinstance(node.value, list) and str(part).isdecimal() and int(part) < len(node.value):
        return node.value[int(part)]
    return None


def find(node: Node, parts: Sequence[str | int]) -> Node | None:
    """Node at a path of keys and indices; None if there is none."""
    current: Node | None = node
    for part in parts:
        if current is None:
            return None
        current = child(current, part)
    return current


def nearest_origin(node: Node, parts: Sequence[str | int]) -> str:
    """Origin of the value at a path; of its section if the value does not exist."""
    origin = DEFAULT_ORIGIN
    current = node
    for part in parts:
        below = child(current, part)
        if below is None:
            break
        current = below
        origin = below.origin
    return origin


def without(node: Node, parts: Sequence[str | int]) -> Node:
    """Copy of a tree without the key at a path."""
    part, *rest = parts
    if isinstance(node.value, list):
        assert isinstance(part, int)
        items = list(node.value)
        items[part] = without(items[part], rest)
        return replace(node, value=items)
    children = dict(node.value)
    if rest:
        children[part] = without(children[part], rest)
    else:
        children.pop(part, None)
    return replace(node, value=children)


def put(tree: Node, key: str, value: Node) -> Node:
    """Copy of a tree with a value at a dotted key."""
    for name in reversed(key.split(".")):
        value = Node({name: value}, value.origin)
    return merge(tree, value)


def lenient(node: Node) -> Node:
    """Copy of a tree in which unknown keys are ignored."""
    value = node.value
    if isinstance(value, dict):
        value = {key: lenient(item) for key, item in value.items()}
    elif isinstance(value, list):
        value = [lenient(item) for item in value]
    return replace(node, value=value, is_lenient=True)


def leaf_origins(node: Node, key: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted key, origin) of each value; a list of scalars is one value."""
    start = f"{key}." if key else ""
    if key and not (isinstance(node.value, dict) and node.value):
        yield key, node.origin
    if isinstance(node.value, dict):
        for name, item in node.value.items():
            yield from leaf_origins(item, f"{start}{name}")
    elif isinstance(node.value, list):
        for index, item in enumerate(node.value):
            if isinstance(item.value, dict):
                yield from leaf_origins(item, f"{start}{index}")


# Texts of YAML 1.2 that are no text.
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL_OR_HEX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LONGEST_TEXT = 160  # characters of a value in a message
_LONGEST_NUMBER = 1_000  # longer numbers stay text: Python does not convert 4,301 digits

_SAFE_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_./:@%+-]*(?<!:)")
_YAML_1_1_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


class Plain(str):
    """Unquoted text, which is kept until the type of a field determines its value."""

    value: Any  # value in YAML 1.2: null, bool, int, float or the text itself

    def __new__(cls, text: str, value: Any) -> "Plain":
        """Creates text with a known value."""
        scalar = super().__new__(cls, text)
        scalar.value = value
        return scalar


class Repeated(tuple[Any, ...]):
    """Values of a key that was given several times on the command line."""


def parse_plain(text: str) -> Plain:
    """Unquoted text with its value in YAML 1.2."""
    return Plain(text, core_value(text))


def core_value(text: str) -> Any:
    """Value of unquoted text: `1e-4` is a number, `012` is twelve, `yes` is text."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL_OR_HEX.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text


def unwrap(value: Any) -> Any:
    """Replaces scalars in a tree by their YAML values, repeated values by the last one."""
    if isinstance(value, Plain):
        return value.value
    if isinstance(value, Repeated):
        return unwrap(value[-1])
    if isinstance(value, dict):
        return {key: unwrap(child) for key, child in value.items()}
    if isinstance(value, list):
        return [unwrap(child) for child in value]
    return value


def write_scalar(value: Any) -> str:
    """YAML text of a scalar, with the same value in YAML 1.1 and 1.2."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _write_float(value)
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _SAFE_TEXT.fullmatch(text) and text.lower() not in _YAML_1_1_WORDS:
        return text
    quoted = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.strip()


def value_text(value: Any) -> str:
    """One line of YAML of a plain value, for messages; the middle of a long one is left out."""
    text = flow_text(value)
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[: _LONGEST_TEXT // 2]} ... {text[-9:]}"


def flow_text(value: Any) -> str:
    """One line of YAML of a plain value."""
    if isinstance(value, Mapping):
        entries = [f"{write_scalar(key)}: {flow_text(value[key])}" for key in value]
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(flow_text(item) for item in value)}]"
    return write_scalar(value)


def _write_float(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    mantissa, exponent_mark, exponent = repr(value).partition("e")
    if exponent_mark and "." not in mantissa:
        mantissa += ".0"  # YAML 1.1 needs the decimal point: 1e-08 would be text
    return mantissa + exponent_mark + exponent


_BOOLEANS = {"yes": True, "on": True, "no": False, "off": False}
_WITH_UNDERSCORES = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_MAX_INT = 2**63 - 1  # limit of arrays, files and other libraries
_NULL = "null"
_SEQUENCES = (list, tuple, set, frozenset, Sequence, Iterable)


class TypeMismatch(Exception):
    """Value that does not fit one alternative of a type."""

    def __init__(self, needs: str) -> None:
        super().__init__(needs)
        self.needs = needs


@dataclass(frozen=True)
class InvalidValue:
    """Placeholder of a value that does not fit its type, so that pydantic reports its key."""

    value: Any
    needs: str  # description of valid values


def coerce(value: Any, annotation: Any) -> Any:
    """Converts `value` to a type: `yes` to a bool, `a,b` to a list, unquoted text to text.

    Returns the converted value, or `InvalidValue` if no alternative of the type accepts it.
    """
    try:
        return _coerce(value, annotation)
    except TypeMismatch as mismatch:
        return InvalidValue(unwrap(value), mismatch.needs)


def alternatives(annotation: Any) -> list[Any]:
    """Members of a union, flattened and without `Annotated`; any other type alone."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin not in (Union, types.UnionType):
        return [annotation]
    members: list[Any] = []
    for part in get_args(annotation):
        members += alternatives(part)
    return members


def _coerce(value: Any, annotation: Any) -> Any:
    needs: list[str] = []
    for member in sorted(alternatives(annotation), key=_rank):
        try:
            return _COERCERS.get(_kind(member), _coerce_other)(value, member)
        except TypeMismatch as mismatch:
            if mismatch.needs not in needs:
                needs.append(mismatch.needs)
    if len(needs) > 1 and _NULL in needs:
        needs.remove(_NULL)
    raise TypeMismatch(" or ".join(needs))


def _rank(member: Any) -> int:
    """Position of a type in the order of attempts: narrow types first (`5` of `int | str`)."""
    kinds = [*_COERCERS]
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


def _scalar(value: Any) -> Any:
    """Last value of a key that was given several times; other values unchanged."""
    return value[-1] if isinstance(value, Repeated) else value


def _coerce_none(value: Any, _member: Any) -> None:
    if unwrap(value) is not None:
        raise TypeMismatch(_NULL)


def _coerce_literal(value: Any, member: Any) -> Any:
    value = _scalar(value)
    choices = get_args(member)
    for meaning in (unwrap(value), str(value) if isinstance(value, Plain) else value):
        for choice in choices:
            if type(choice) is type(meaning) and choice == meaning:
                return choice
        for choice in choices:  # published files write some names in upper case
            if isinstance(choice, str) and choice.lower() == str(meaning).lower():
                return choice
    needs = ", ".join(str(choice) for choice in choices)
    raise TypeMismatch(f"one of {needs}" if len(choices) > 1 else needs)


def _coerce_bool(value: Any, _member: Any) -> bool:
    value = _scalar(value)
    meaning = unwrap(value)
    if isinstance(value, Plain) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    if not isinstance(meaning, bool):
        raise TypeMismatch("true or false")
    return meaning


def _coerce_number(value: Any, member: Any) -> int | float:
    value = _scalar(value)
    number = unwrap(value)
    if isinstance(value, Plain) and isinstance(number, str) and _WITH_UNDERSCORES.fullmatch(value):
        number = core_value(value.replace("_", ""))
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeMismatch("an integer" if member is int else "a number")
    if member is float:
        return float(number)
    if not isinstance(number, Integral):
        raise TypeMismatch("an integer")
    if abs(int(number)) > _MAX_INT:
        raise TypeMismatch("an integer below 2^63")
    return int(number)


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
        items: list[Any] = []
        for part in value:
            items_of_part = _items(part)
            if items_of_part is None:
                return None
            items += items_of_part
        return items
    if isinstance(value, Plain):
        if value.value is None:
            return None
        if not value:
            return []
        return [parse_plain(item.strip()) for item in value.split(",")]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return None


def _coerce_mapping(value: Any, member: Any) -> dict[Any, Any]:
    texts = _items(value.split(",") if isinstance(value, str) else value)
    if texts and all(isinstance(text, str) and "=" in text for text in texts):
        value = dict(text.split("=", 1) for text in texts)
    value = _scalar(value)
    if not isinstance(value, Mapping):
        raise TypeMismatch("a mapping")
    _, item_kind = get_args(member) or (str, Any)
    return {key: _coerce(item, item_kind) for key, item in value.items()}


def keys_of_text(value: Any, member: Any) -> Any:
    """Keys of a section that is typed as text, if it may be; any other value as it is."""
    if not hasattr(member, "from_texts"):
        return value
    texts = value if isinstance(value, Repeated) else (value,)
    for text in texts:
        if not isinstance(text, str) or unwrap(text) is None:
            return value
    return member.from_texts(texts)


def _coerce_model(value: Any, member: Any) -> Any:
    value = _scalar(keys_of_text(value, member))
    if not isinstance(value, dict | BaseModel):
        raise TypeMismatch("a section (a mapping)")
    return value


def _coerce_other(value: Any, member: Any) -> Any:
    """Value for types that pydantic converts from text (paths, enumerations), and for `Any`."""
    value = _scalar(value)
    meaning = unwrap(value)
    if isinstance(value, Plain) and meaning is not None and member not in (Any, object):
        return str(value)
    return meaning


_COERCERS: dict[Any, Callable[[Any, Any], Any]] = {
    types.NoneType: _coerce_none,
    Literal: _coerce_literal,
    bool: _coerce_bool,
    int: _coerce_number,
    float: _coerce_number,
    BaseModel: _coerce_model,
    str: _coerce_text,
    dict: _coerce_mapping,
    list: _coerce_sequence,
}
