"""Errors of a configuration: one message with all problems, their origins and similar names."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from vlatool.config import coerce
from vlatool.config.schema import ANY_NAME, choices, dotted_keys, section_names, types_with
from vlatool.config.synonyms import meant_keys, note_on
from vlatool.errors import ConfigError
from vlatool.events import counted
from vlatool.plugins import Registry

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
        start = f"{self.origin}: " if self.origin not in ("", "default") else ""
        names = ", ".join(f'"{name}"' for name in self.suggestions)
        return f"{start}{self.message}" + (f" (did you mean {names}?)" if names else "")


def config_error(problems: Sequence[Problem], *, more: int = 0, hint: str = "") -> ConfigError:
    """Error that lists all problems; `problems`: problems, at most the first 100."""
    problems = _merge_equal(problems)
    codes = {problem.code for problem in problems}
    lines = [problem.line() for problem in problems[:_MAX_LINES]]
    if len(lines) > 1:
        count = len(problems) + more
        lines = [
            f"{counted(count, 'problem')} in the configuration:",
            *(f"  {line}" for line in lines),
        ]
        lines += [f"  and {count - _MAX_LINES:,} more"] if count > _MAX_LINES else []
    return ConfigError(
        "\n".join(lines),
        hint=hint or "vlatool resolve-config --keys lists every key with its type and default",
        code=codes.pop() if len(codes) == 1 else "config.invalid_value",
        details={"problems": [asdict(problem) for problem in problems]},
    )


def _merge_equal(problems: Sequence[Problem]) -> list[Problem]:
    """Joins equal problems of the same line, such as those of a repeated alias."""
    causes: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        leaf = problem.key.rpartition(".")[2]
        message = problem.message.replace(f'"{problem.key}"', f'"{leaf}"')
        causes.setdefault((problem.origin, leaf, message), []).append(problem)
    return [_joined(*same) for same in causes.values()]


def _joined(first: Problem, *others: Problem) -> Problem:
    if not others:
        return first
    names = ", ".join(f'"{problem.key}"' for problem in others[:3])
    more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
    return replace(first, message=f"{first.message}; the same applies to {names}{more}")


def validation_problems(
    error: ValidationError, tree: coerce.Node, schema: type[BaseModel]
) -> tuple[list[Problem], int]:
    """Converts errors of pydantic, with keys as in the files; one problem per key; returns the
    first problems, and the number of further ones.
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
    tables = [table for path, table in registries.items() if section in ("", path)]
    return [f"{table.label} {owner}" for table in tables for owner in table.names_with_key(name)]


def _meant(
    key: str, value: coerce.Node | None, schema: type[BaseModel]
) -> tuple[tuple[str, ...], str]:
    """Keys that those of another tool stand for, and the note on one that stands for none."""
    flat: tuple[str, ...] = getattr(schema, "flat_sections", ())
    known = {*(info.key for info in dotted_keys(schema)), *section_names(schema)}
    known |= {_without_section(name, flat) for name in known}
    below = [] if value is None else [name for name, _ in coerce.leaf_origins(value)]
    words = [f"{key}.{name}".rstrip(".") for name in below] or [key]
    near = [meant for word in words for meant in meant_keys(word, known)]
    notes = [f": {note}" for word in words if (note := note_on(word))]
    return tuple(near[:3]), notes[0] if notes and not near else ""


def nearest_keys(key: str, schema: type[BaseModel]) -> tuple[str, ...]:
    """Valid keys of any section that are similar to `key`, the most similar first."""
    known = [*(info.key for info in dotted_keys(schema)), *section_names(schema)]
    flat: tuple[str, ...] = getattr(schema, "flat_sections", ())
    if key.partition(".")[0] not in flat:  # keys without a section get suggestions without one
        known = [_without_section(name, flat) for name in known]
    scored: dict[str, float] = {}
    for pattern in known:
        name = _concrete(pattern, key)
        # From 0 to 1; the last part of a key counts most, as sections are often omitted.
        leaf = key.rpartition(".")[2]
        other_leaf = name.rpartition(".")[2]
        score = 0.75 * _ratio(leaf, other_leaf) + 0.25 * _ratio(key, name)
        if ANY_NAME not in name.split(".") and name != key and score >= _NEAR_KEY:
            scored[name] = score
    ranked = sorted(scored, key=lambda name: -scored[name])[:3]
    return tuple(name for name in ranked if scored[name] >= scored[ranked[0]] - 0.1)


def _without_section(key: str, sections: Sequence[str]) -> str:
    section, _, rest = key.partition(".")
    return rest if rest and rest != "type" and section in sections else key


def _ratio(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()


def _concrete(pattern: str, key: str) -> str:
    """Replaces free names of `pattern` by those of `key`, as far as both have the same parts."""
    parts = pattern.split(".")
    typed = key.split(".")
    for index, part in enumerate(parts):
        if part == ANY_NAME and index < len(typed) and parts[:index] == typed[:index]:
            parts[index] = typed[index]
    return ".".join(parts)


def _translate(detail: Mapping[str, Any], tree: coerce.Node, schema: type[BaseModel]) -> Problem:
    kind = detail["type"]
    rejected = isinstance(detail["input"], coerce.InvalidValue)
    parts = _key_parts(detail["loc"], tree, kind)
    if kind.startswith("union_tag") and not rejected:
        parts.append(detail["ctx"]["discriminator"].strip("'"))
    # Dotted key as it was written: without its section if that was omitted.
    node = coerce.find(tree, parts[:2])
    is_flat = node is not None and node.is_flat
    context = _KeyContext(
        ".".join(str(part) for part in (parts[1:] if is_flat else parts)),
        coerce.nearest_origin(tree, parts),
        _pattern(parts, schema),
    )
    if kind == "extra_forbidden":
        message = f'unknown key "{context.key}"'
        owners = [f"type {name}" for name in types_with(schema, context.pattern)]
        owners = owners or owners_of_key(context.key, schema)
        if owners:
            message += f": it belongs to {' and '.join(owners)}"
        near, note = ((), "") if owners else _meant(context.key, coerce.find(tree, parts), schema)
        near = near if near or owners or note else nearest_keys(context.key, schema)
        return Problem(context.key, context.origin, message + note, near, _UNKNOWN_KEY)
    if kind in _ABSENT and not rejected:
        valid = choices(schema, context.pattern)
        message = f'"{context.key}" is required' + (f"; one of {', '.join(valid)}" if valid else "")
        return Problem(context.key, context.origin, message, code="config.missing_key")
    return _invalid(context, coerce.find(tree, parts), detail, schema)


@dataclass(frozen=True)
class _KeyContext:
    """Key with a problem."""

    key: str  # dotted key as the user writes it
    origin: str
    pattern: str  # declared key, with `*` for free names


def _invalid(
    context: _KeyContext,
    value: coerce.Node | None,
    detail: Mapping[str, Any],
    schema: type[BaseModel],
) -> Problem:
    shown = _value_text(value) if value is not None else "unset"
    rejected = detail["input"] if isinstance(detail["input"], coerce.InvalidValue) else None
    valid = list(rejected.choices if rejected else ()) or choices(schema, context.pattern)
    if rejected is not None:
        reason = f"it must be {rejected.needs}"
        kinds = choices(schema, f"{context.pattern}.type")
        reason += f" of type {' or '.join(kinds)}" if kinds else ""
    elif detail["type"] == "union_tag_invalid":
        reason = f"it must be one of {', '.join(valid) or detail['ctx']['expected_tags']}"
    else:
        reason = _reason(detail)
    # A rule of a section names its keys.
    is_rule = detail["type"] == "value_error" and isinstance(detail["input"], Mapping)
    subject = f'"{context.key}"' if is_rule else f'"{context.key}" is {shown}'
    message = f"{subject}: {reason}" if context.key else reason
    near = tuple(difflib.get_close_matches(shown.strip('"'), valid, n=3, cutoff=_NEAR_VALUE))
    if value is not None and isinstance(value.value, dict) and not is_rule:
        near = near or _meant(context.key, value, schema)[0]
    return Problem(context.key, context.origin, message, near)


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


def _pattern(parts: Sequence[str | int], schema: type[BaseModel]) -> str:
    """Declared key, with `*` for free names, of a concrete key."""
    key = ".".join(str(part) for part in parts)
    for info in dotted_keys(schema):
        if _concrete(info.key, key) == key:
            return info.key
    return key


def _value_text(value: coerce.Node) -> str:
    data = coerce.plain(value)
    if isinstance(data, dict):
        return "a mapping"
    if isinstance(data, str):
        return f'"{_clipped(data)}"'
    return _clipped(coerce.write_scalar(data) if not isinstance(data, list) else str(data))


def _clipped(text: str) -> str:
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}..."


def _reason(detail: Mapping[str, Any]) -> str:
    """Description of an invalid value: that of `_REASONS`, else the message of pydantic."""
    if rule := _REASONS.get(detail["type"]):
        return rule.format(**detail.get("ctx", {}))
    message: str = detail["msg"]
    for start in ("Value error, ", "Assertion failed, ", "Input "):
        if message.startswith(start):
            return ("it " if start == "Input " else "") + message.removeprefix(start)
    return message
