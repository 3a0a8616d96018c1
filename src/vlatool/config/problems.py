"""Errors of a configuration: one message with all problems, their origins and similar names."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from vlatool.config import coerce
from vlatool.config.schema import (
    ANY_NAME,
    choices,
    concrete_key,
    dotted_keys,
    section_names,
    types_with,
)
from vlatool.config.synonyms import meant_keys, note_on
from vlatool.errors import ConfigError
from vlatool.events import counted
from vlatool.plugins import Registry
from vlatool.withdrawn import withdrawn_hint

_WORD = re.compile(r"[_.]")  # between the words of a key
_NEAR_KEY = 0.6
_NEAR_VALUE = 0.4
_ABSENT = ("missing", "union_tag_not_found")
_UNKNOWN_KEY = "config.unknown_key"
_INVALID_VALUE = "config.invalid_value"
_MAX_LINES = 20
_MAX_PROBLEMS = 100  # more are only counted, because finding similar names takes time
_MAX_VALUE = 60  # characters
# Errors of pydantic with a message that does not describe valid values.
_REASONS = {
    "greater_than": "it must be greater than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "multiple_of": "it must be a multiple of {multiple_of}",
    "finite_number": "it must be a finite number",
    "too_short": "it must have at least {min_length} items, and has {actual_length}",
    "too_long": "it must have at most {max_length} items, and has {actual_length}",
    "string_too_short": "it must have at least {min_length} character(s)",
    "string_too_long": "it must have at most {max_length} characters",
    "string_pattern_mismatch": "it must have the form {pattern}",
    "model_type": "it must be a section (a mapping)",
}


@dataclass(frozen=True)
class Problem:
    """Problem of one key."""

    key: str  # dotted key as the user writes it; empty for a problem of a whole file
    origin: str
    message: str  # description of the problem, without origin and suggestions
    suggestions: tuple[str, ...] = ()  # similar valid keys or values
    code: str = _INVALID_VALUE  # stable identifier

    def line(self) -> str:
        """One-line message."""
        text = self.message
        if self.origin not in ("", "default"):
            text = f"{self.origin}: {text}"
        if self.suggestions:
            names = ", ".join(f'"{name}"' for name in self.suggestions)
            text = f"{text} (did you mean {names}?)"
        return text


def config_error(problems: Sequence[Problem], *, more: int = 0, hint: str = "") -> ConfigError:
    """Error that lists all problems; `problems`: problems, at most the first 100."""
    if len(problems) == 1:
        message = problems[0].line()
    else:
        count = len(problems) + more
        message = f"{counted(count, 'problem')} in the configuration:"
        for problem in problems[:_MAX_LINES]:
            message += f"\n  {problem.line()}"
        if count > _MAX_LINES:
            message += f"\n  and {count - _MAX_LINES:,} more"
    codes = {problem.code for problem in problems}
    return ConfigError(
        message,
        hint=hint or "vlatool resolve-config --keys lists every key with its type and default",
        code=codes.pop() if len(codes) == 1 else _INVALID_VALUE,
        details={"problems": [asdict(problem) for problem in problems]},
    )


def validation_problems(
    error: ValidationError, tree: coerce.Node, schema: type[BaseModel]
) -> tuple[list[Problem], int]:
    """Converts errors of pydantic to problems, one per key, with keys as in the files.

    Returns the first problems, and the number of further ones.
    """
    problems: dict[str, Problem] = {}
    details = error.errors(include_url=False)
    for detail in details[:_MAX_PROBLEMS]:
        problem = _translate(detail, tree, schema)
        first = problems.get(problem.key)
        if first is not None and first.code == problem.code and first.message != problem.message:
            problem = replace(first, message=f"{first.message}, or {problem.message}")
        problems[problem.key] = problem
    return list(problems.values()), len(details[_MAX_PROBLEMS:])


def unknown_keys(error: ValidationError, tree: coerce.Node) -> list[list[str | int]]:
    """Paths of unknown keys that may be ignored."""
    paths: list[list[str | int]] = []
    for detail in error.errors(include_url=False):
        parts = _key_parts(detail["loc"], tree, detail["type"])
        node = coerce.find(tree, parts)
        if detail["type"] == "extra_forbidden" and node is not None and node.is_lenient:
            paths.append(parts)
    return paths


def owners_of_key(key: str, schema: type[BaseModel]) -> list[str]:
    """Types that have a key which this configuration has not: `sink jsonl`, `format spartan`."""
    registries: Mapping[str, Registry[Any]] = getattr(schema, "registries", {})
    section, _, name = key.rpartition(".")
    owners: list[str] = []
    for path, registry in registries.items():
        if section in ("", path):
            for owner in registry.names_with_key(name):
                owners.append(f"{registry.label} {owner}")
    return owners


def similar_keys(
    key: str, schema: type[BaseModel], others: Sequence[str] = (), words: Sequence[str] = ()
) -> tuple[tuple[str, ...], str]:
    """Returns keys that an unknown key may stand for: by meaning, else by spelling. Without any, a
    note may say what to do instead.

    `others` are names besides the keys of the class; `words` are compared in place of the key.
    """
    flat: tuple[str, ...] = getattr(schema, "flat_sections", ())
    names = [*others, *(info.key for info in dotted_keys(schema)), *section_names(schema)]
    short = [_without_section(name, flat) for name in names]
    for word in words or (key,):
        if meant := meant_keys(word, {*names, *short}):
            return meant[:3], ""
        if note := note_on(word):
            return (), note
    if key.partition(".")[0] not in flat:  # without a section, as are the suggestions
        names = short
    return _nearest_keys(key, names), ""


def _nearest_keys(key: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """Valid keys of any section with all words of `key`, or with a last part of similar spelling;
    the most similar first.
    """
    words = set(_WORD.split(key))
    near: set[str] = set()
    by_leaf: dict[str, list[str]] = {}
    for pattern in patterns:
        name = concrete_key(pattern, key)
        if name == key or ANY_NAME in name.split("."):
            continue
        by_leaf.setdefault(name.rpartition(".")[2], []).append(name)
        if words <= set(_WORD.split(name)):
            near.add(name)
    for leaf in difflib.get_close_matches(key.rpartition(".")[2], by_leaf, n=1, cutoff=_NEAR_KEY):
        near.update(by_leaf[leaf])
    return tuple(sorted(near, key=lambda name: (-_ratio(key, name), name))[:3])


def _without_section(key: str, sections: Sequence[str]) -> str:
    section, _, rest = key.partition(".")
    return rest if rest and rest != "type" and section in sections else key


def _ratio(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()


def _translate(detail: Mapping[str, Any], tree: coerce.Node, schema: type[BaseModel]) -> Problem:
    kind = detail["type"]
    given = detail["input"]
    is_rejected = isinstance(given, coerce.InvalidValue)
    parts = _key_parts(detail["loc"], tree, kind)
    if kind.startswith("union_tag") and not is_rejected:
        parts.append(detail["ctx"]["discriminator"].strip("'"))
    section = coerce.find(tree, parts[:2])
    path = ".".join(map(str, parts))
    key = path
    if section is not None and section.is_flat:  # written without its section
        key = path.partition(".")[2]
    origin = coerce.nearest_origin(tree, parts)
    value = coerce.find(tree, parts)
    if kind == "extra_forbidden":
        return _unknown(key, origin, path, value, schema)
    valid = choices(schema, path)
    if kind in _ABSENT and not is_rejected:
        message = f'"{key}" is required'
        if valid:
            message += f"; one of {', '.join(valid)}"
        return Problem(key, origin, message, code="config.missing_key")
    if is_rejected:
        reason = f"it must be {given.needs}"
        kinds = choices(schema, f"{path}.type")
        if kinds:
            reason += f" of type {' or '.join(kinds)}"
    elif kind == "union_tag_invalid":
        reason = f"it must be one of {', '.join(valid) or detail['ctx']['expected_tags']}"
    else:
        reason = _reason(detail)
    if not key:
        return Problem(key, origin, reason)
    if kind == "value_error" and isinstance(given, Mapping):  # a rule, which names its keys
        return Problem(key, origin, f'"{key}": {reason}')
    text = "unset" if value is None else _value_text(value)
    near = tuple(difflib.get_close_matches(text.strip('"'), valid, n=3, cutoff=_NEAR_VALUE))
    return Problem(key, origin, f'"{key}" is {text}: {reason}', near)


def _unknown(
    key: str, origin: str, path: str, value: coerce.Node | None, schema: type[BaseModel]
) -> Problem:
    message = f'unknown key "{key}"'
    if withdrawn := withdrawn_hint(key) or withdrawn_hint(key.rpartition(".")[2]):
        return Problem(key, origin, f"{message}: {withdrawn}", code=_UNKNOWN_KEY)
    owners = [f"type {name}" for name in types_with(schema, path)]
    owners = owners or owners_of_key(key, schema)
    if owners:
        message += f": it belongs to {' and '.join(owners)}"
        return Problem(key, origin, message, code=_UNKNOWN_KEY)
    words: list[str] = []
    if value is not None:
        words = [name for name, _ in coerce.leaf_origins(value, key)]
    near, note = similar_keys(key, schema, words=words)
    if note:
        message += f": {note}"
    return Problem(key, origin, message, near, _UNKNOWN_KEY)


def _key_parts(loc: Sequence[str | int], tree: coerce.Node, kind: str) -> list[str | int]:
    """Path of an error of pydantic, without the names of union members."""
    parts: list[str | int] = []
    current: coerce.Node | None = tree
    entered_section = False
    for index, part in enumerate(loc):
        is_absent_key = kind == "missing" and index == len(loc) - 1
        is_tag = entered_section and current is not None and _is_tag(part, current)
        below = coerce.child(current, part) if current is not None and not is_tag else None
        entered_section = below is not None and isinstance(below.value, dict)
        if below is not None or is_absent_key:
            parts.append(part)
            current = below
    return parts


def _is_tag(part: str | int, section: coerce.Node) -> bool:
    kind = coerce.child(section, "type")
    return kind is not None and coerce.plain(kind) == part


def _value_text(value: coerce.Node) -> str:
    data = coerce.plain(value)
    if isinstance(data, dict):
        return "a mapping"
    if isinstance(data, str):
        return f'"{_clipped(data)}"'
    if isinstance(data, list):
        return _clipped(str(data))
    return _clipped(coerce.write_scalar(data))


def _clipped(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _reason(detail: Mapping[str, Any]) -> str:
    """Describes an invalid value, by `_REASONS` or else by the message of pydantic."""
    rule = _REASONS.get(detail["type"])
    if rule:
        return rule.format(**detail.get("ctx", {}))
    message: str = detail["msg"]
    if message.startswith("Input "):
        return f"it {message.removeprefix('Input ')}"
    return message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
