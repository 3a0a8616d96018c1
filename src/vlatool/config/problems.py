"""Every problem of a configuration at once: key, origin, and the nearest valid names."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import BaseModel, ValidationError

from vlatool.config.coerce import InvalidValue
from vlatool.config.scalars import write_scalar
from vlatool.config.schema import ANY_NAME, choices, dotted_keys, section_names, types_with
from vlatool.config.tree import Node, child, find, nearest_origin, plain
from vlatool.errors import ConfigError
from vlatool.plugins import Registry

_NEAR_KEY = 0.6
_NEAR_VALUE = 0.4
_ABSENT = ("missing", "union_tag_not_found")
_UNKNOWN_KEY = "config.unknown_key"
_INVALID_VALUE = "config.invalid_value"
_MOST_LINES = 20
_MOST_PROBLEMS = 100  # more are only counted: finding near names takes time
_LONGEST_VALUE = 60
# pydantic's kinds of error whose own sentences do not say what to write.
_REASONS = {
    "greater_than": "it must be above {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be below {lt}",
    "less_than_equal": "it must be at most {le}",
    "multiple_of": "it must be a multiple of {multiple_of}",
    "finite_number": "it must be a finite number",
    "too_short": "it needs at least {min_length}, and has {actual_length}",
    "too_long": "it takes at most {max_length}, and has {actual_length}",
    "string_too_short": "it needs at least {min_length} character(s)",
    "string_too_long": "it takes at most {max_length} characters",
    "string_pattern_mismatch": "it must have the form {pattern}",
    "model_type": "it needs a section (a mapping)",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        key: Dotted, as the user types it; empty when the file itself is wrong.
        origin: Who wrote it.
        message: What is wrong, without origin and suggestions.
        suggestions: The nearest valid keys or values.
        code: Stable identifier.
    """

    key: str
    origin: str
    message: str
    suggestions: tuple[str, ...] = ()
    code: str = _INVALID_VALUE

    def line(self) -> str:
        """The problem in one line."""
        start = f"{self.origin}: " if self.origin not in ("", "default") else ""
        names = ", ".join(f'"{name}"' for name in self.suggestions)
        return f"{start}{self.message}" + (f" (did you mean {names}?)" if names else "")


def config_error(problems: Sequence[Problem], *, more: int = 0, hint: str = "") -> ConfigError:
    """One error that lists all problems.

    Args:
        problems: What is wrong; of very many, the first ones.
        more: How many there are beside these.
        hint: What to do about it.
    """
    problems = _by_cause(problems)
    codes = {problem.code for problem in problems}
    lines = [problem.line() for problem in problems[:_MOST_LINES]]
    if len(lines) > 1:
        count = len(problems) + more
        lines = [f"{count:,} problems in the configuration:", *(f"  {line}" for line in lines)]
        lines += [f"  and {count - _MOST_LINES:,} more"] if count > _MOST_LINES else []
    return ConfigError(
        "\n".join(lines),
        hint=hint or "vlatool resolve-config --keys lists every key with its type and default",
        code=codes.pop() if len(codes) == 1 else "config.invalid",
        details={"problems": [asdict(problem) for problem in problems]},
    )


def _by_cause(problems: Sequence[Problem]) -> list[Problem]:
    """The problems, those of one line that stands in several places told once."""
    causes: dict[tuple[str, ...], list[Problem]] = {}
    for problem in problems:
        leaf = problem.key.rpartition(".")[2]
        what = problem.message.replace(f'"{problem.key}"', f'"{leaf}"')
        causes.setdefault((problem.origin, leaf, what), []).append(problem)
    return [_also(*same) for same in causes.values()]


def _also(first: Problem, *others: Problem) -> Problem:
    if not others:
        return first
    names = ", ".join(f'"{problem.key}"' for problem in others[:3])
    more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
    return replace(first, message=f"{first.message}; so is {names}{more}")


def validation_problems(
    error: ValidationError, tree: Node, schema: type[BaseModel]
) -> tuple[list[Problem], int]:
    """What pydantic found, in the words and keys of the files; one problem per key.

    Returns:
        The first problems, and how many there are beside them.
    """
    found: dict[str, Problem] = {}
    details = error.errors(include_url=False)
    for detail in details[:_MOST_PROBLEMS]:
        problem = _translate(detail, tree, schema)
        known = found.get(problem.key)
        if known is not None and known.code == problem.code and known.message != problem.message:
            problem = replace(known, message=f"{known.message}, or {problem.message}")
        found[problem.key] = problem
    return list(found.values()), len(details[_MOST_PROBLEMS:])


def unknown_keys(error: ValidationError, tree: Node) -> list[list[str | int]]:
    """Places of the keys that nobody knows, where all that are wrong may be left out."""
    found: list[list[str | int]] = []
    for detail in error.errors(include_url=False):
        parts = _typed_parts(detail["loc"], tree, detail["type"])
        node = find(tree, parts)
        if detail["type"] == "extra_forbidden" and node is not None and node.is_lenient:
            found.append(parts)
    return found


def owners_of_key(key: str, schema: type[BaseModel]) -> list[str]:
    """Whose a key is that this configuration does not have: `sink jsonl`, `format spartan`."""
    registries: Mapping[str, Registry[Any]] = getattr(schema, "registries", {})
    section, _, name = key.rpartition(".")
    asked = [table for place, table in registries.items() if section in ("", place)]
    return [f"{table.label} {owner}" for table in asked for owner in table.names_with_key(name)]


def nearest_keys(key: str, schema: type[BaseModel]) -> tuple[str, ...]:
    """Valid keys of any section that look like `key`, the best first."""
    known = [*(info.key for info in dotted_keys(schema)), *section_names(schema)]
    flat: tuple[str, ...] = getattr(schema, "flat_sections", ())
    if key.partition(".")[0] not in flat:  # whoever types keys flat is answered so
        known = [_without_section(name, flat) for name in known]
    scored: dict[str, float] = {}
    for pattern in known:
        name = _concrete(pattern, key)
        score = _likeness(key, name)
        if ANY_NAME not in name.split(".") and name != key and score >= _NEAR_KEY:
            scored[name] = score
    ranked = sorted(scored, key=lambda name: -scored[name])[:3]
    return tuple(name for name in ranked if scored[name] >= scored[ranked[0]] - 0.1)


def _without_section(key: str, sections: Sequence[str]) -> str:
    section, _, rest = key.partition(".")
    return rest if rest and rest != "type" and section in sections else key


def _likeness(key: str, other: str) -> float:
    """0 to 1; the last part of a key counts most, because sections are what people forget."""
    leaf, other_leaf = key.rpartition(".")[2], other.rpartition(".")[2]
    return 0.75 * _ratio(leaf, other_leaf) + 0.25 * _ratio(key, other)


def _ratio(left: str, right: str) -> float:
    return difflib.SequenceMatcher(None, left, right).ratio()


def _concrete(pattern: str, key: str) -> str:
    """`pattern` with its free names as `key` has them, where both agree up to there."""
    parts, typed = pattern.split("."), key.split(".")
    for index, part in enumerate(parts):
        if part == ANY_NAME and index < len(typed) and parts[:index] == typed[:index]:
            parts[index] = typed[index]
    return ".".join(parts)


def _translate(detail: Mapping[str, Any], tree: Node, schema: type[BaseModel]) -> Problem:
    kind, rejected = detail["type"], isinstance(detail["input"], InvalidValue)
    parts = _typed_parts(detail["loc"], tree, kind)
    if kind.startswith("union_tag") and not rejected:
        parts.append(detail["ctx"]["discriminator"].strip("'"))
    place = _Place(_told(parts, tree), nearest_origin(tree, parts), _pattern(parts, schema))
    if kind == "extra_forbidden":
        return _unknown_key(place, schema)
    if kind in _ABSENT and not rejected:
        valid = choices(schema, place.pattern)
        message = f'"{place.key}" is required' + (f"; one of {', '.join(valid)}" if valid else "")
        return Problem(place.key, place.origin, message, code="config.missing_key")
    return _invalid(place, find(tree, parts), detail, schema)


@dataclass(frozen=True)
class _Place:
    """Where something is wrong.

    Attributes:
        key: Dotted, as the user types it.
        origin: Who wrote it.
        pattern: The declared key, with `*` for free names.
    """

    key: str
    origin: str
    pattern: str


def _told(parts: Sequence[str | int], tree: Node) -> str:
    """The dotted key as it was written: without its section where that was left out."""
    node = find(tree, parts[:2])
    is_flat = node is not None and node.is_flat
    return ".".join(str(part) for part in (parts[1:] if is_flat else parts))


def _unknown_key(place: _Place, schema: type[BaseModel]) -> Problem:
    message = f'unknown key "{place.key}"'
    owners = [f"type {name}" for name in types_with(schema, place.pattern)]
    owners = owners or owners_of_key(place.key, schema)
    if owners:
        message += f": only {' and '.join(owners)} has it"
    near = () if owners else nearest_keys(place.key, schema)
    return Problem(place.key, place.origin, message, near, _UNKNOWN_KEY)


def _invalid(
    place: _Place, value: Node | None, detail: Mapping[str, Any], schema: type[BaseModel]
) -> Problem:
    shown = _shown(value) if value is not None else "unset"
    rejected = detail["input"] if isinstance(detail["input"], InvalidValue) else None
    valid = list(rejected.choices if rejected else ()) or choices(schema, place.pattern)
    if rejected is not None:
        reason = f"it needs {rejected.needs}"
        kinds = choices(schema, f"{place.pattern}.type")
        reason += f", whose type is {' or '.join(kinds)}" if kinds else ""
    elif detail["type"] == "union_tag_invalid":
        reason = f"it needs one of {', '.join(valid) or detail['ctx']['expected_tags']}"
    else:
        reason = _reason(detail)
    message = f'"{place.key}" is {shown}: {reason}' if place.key else reason
    near = difflib.get_close_matches(shown.strip('"'), valid, n=3, cutoff=_NEAR_VALUE)
    return Problem(place.key, place.origin, message, tuple(near))


def _typed_parts(loc: Sequence[str | int], tree: Node, kind: str) -> list[str | int]:
    """A place in pydantic's words without the names of union members."""
    parts: list[str | int] = []
    current: Node | None = tree
    entered_section = False
    for index, part in enumerate(loc):
        is_absent_key = kind == "missing" and index == len(loc) - 1
        is_tag = entered_section and current is not None and _is_tag(part, current)
        below = child(current, part) if current is not None and not is_tag else None
        entered_section = below is not None and isinstance(below.value, dict)
        if below is not None or is_absent_key:
            parts.append(part)
            current = below
    return parts


def _is_tag(part: str | int, section: Node) -> bool:
    kind = child(section, "type")
    return kind is not None and plain(kind) == part


def _pattern(parts: Sequence[str | int], schema: type[BaseModel]) -> str:
    """The declared key, with `*` for free names, that a concrete key belongs to."""
    key = ".".join(str(part) for part in parts)
    for info in dotted_keys(schema):
        if _concrete(info.key, key) == key:
            return info.key
    return key


def _shown(value: Node) -> str:
    data = plain(value)
    if isinstance(data, dict):
        return "a mapping"
    if isinstance(data, str):
        return f'"{_clipped(data)}"'
    return _clipped(write_scalar(data) if not isinstance(data, list) else str(data))


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _reason(detail: Mapping[str, Any]) -> str:
    """What is wrong with a value, in our words where pydantic's do not help."""
    if rule := _REASONS.get(detail["type"]):
        return rule.format(**detail.get("ctx", {}))
    message: str = detail["msg"]
    for start in ("Value error, ", "Assertion failed, ", "Input "):
        if message.startswith(start):
            return ("it " if start == "Input " else "") + message.removeprefix(start)
    return message
