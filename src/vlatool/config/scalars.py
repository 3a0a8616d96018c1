"""Scalars: what unquoted text means (YAML 1.2 core), and how a value is written back."""

import math
import re
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
_LONGEST_NUMBER = 1_000  # what is longer stays text: Python refuses to convert 4,301 digits

_SAFE_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_./:@%+-]*(?<!:)")
_WORDS_OF_OTHER_READERS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


class Plain(str):
    """Unquoted text, kept as typed until a field's type decides what it is.

    Attributes:
        value: What YAML 1.2 makes of the text: null, bool, int, float or the text itself.
    """

    value: Any

    def __new__(cls, text: str, value: Any) -> "Plain":
        """Text with a meaning that is already known."""
        scalar = super().__new__(cls, text)
        scalar.value = value
        return scalar


class Repeated(tuple[Any, ...]):
    """The values of one key that was given several times on the command line."""


def parse_plain(text: str) -> Plain:
    """Unquoted text with its YAML 1.2 meaning."""
    return Plain(text, core_value(text))


def core_value(text: str) -> Any:
    """The value of unquoted text: `1e-4` is a number, `012` is twelve, `yes` is text."""
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
    """The same tree with every scalar as its YAML meaning; of repeated values the last."""
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
    """YAML of one scalar that readers of YAML 1.1 and of 1.2 understand alike."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _write_float(value)
    if isinstance(value, int):
        return str(value)
    return _write_text(str(value))


def _write_float(value: float) -> str:
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    mantissa, exponent_mark, exponent = repr(value).partition("e")
    if exponent_mark and "." not in mantissa:
        mantissa += ".0"  # YAML 1.1 needs the point: 1e-08 would be text
    return mantissa + exponent_mark + exponent


def _write_text(text: str) -> str:
    if _SAFE_TEXT.fullmatch(text) and text.lower() not in _WORDS_OF_OTHER_READERS:
        return text
    quoted = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)
    return quoted.strip()
