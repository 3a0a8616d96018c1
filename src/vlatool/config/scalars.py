"""YAML scalars: values of unquoted text (YAML 1.2 core schema), and text of values."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = frozenset({".nan", ".NaN", ".NAN"})
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
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if len(text) > _LONGEST_NUMBER:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text) or _HEX.fullmatch(text):
        return int(text, 0)
    return _core_float(text)


def _core_float(text: str) -> float | str:
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text):
        return -math.inf if text.startswith("-") else math.inf
    return math.nan if text in _NAN else text


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
    return _write_text(str(value))


def value_text(value: Any) -> str:
    """One line of YAML of a plain value, for messages; the middle of a long one is left out."""
    text = _flow(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT // 2]} ... {text[-9:]}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = value.items()
        return "{" + ", ".join(f"{write_scalar(key)}: {_flow(item)}" for key, item in items) + "}"
    if isinstance(value, list | tuple):
        entries: Iterable[Any] = value
        return f"[{', '.join(map(_flow, entries))}]"
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


def _write_text(text: str) -> str:
    if _SAFE_TEXT.fullmatch(text) and text.lower() not in _YAML_1_1_WORDS:
        return text
    quoted = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.strip()
