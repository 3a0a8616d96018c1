"""What a check has found: a stable code, how bad it is, where, and what to do about it.

Each family of codes (`spartan`, `lerobot`, `shards`, ...) has one table, beside the checks that use
it; `vlatool verify --codes` and docs/findings.md list them all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vlatool.errors import DataError

# error: unusable or lost data; warning: usable, but surprising; info: worth knowing.
Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One defect or oddity.

    Attributes:
        code: Stable dotted id such as `spartan.length_mismatch`.
        severity: `error`, `warning` or `info`.
        message: What was found, in a sentence.
        place: Where: path, episode, camera, field, frame, line, shard, sample; JSON-serialisable.
        action: What to do about it; may be empty.
    """

    code: str
    severity: Severity
    message: str
    place: Mapping[str, Any] = field(default_factory=dict[str, Any])
    action: str = ""

    def document(self) -> dict[str, Any]:
        """The finding for programs."""
        return {
            "code": self.code,
            "severity": self.severity,
            "place": dict(self.place),
            "message": self.message,
            "action": self.action,
        }


@dataclass(frozen=True)
class Kind:
    """What a code stands for, in one line, and what to do about it."""

    severity: Severity
    meaning: str
    action: str = ""


@dataclass(frozen=True)
class Family:
    """The codes that begin with `name`."""

    name: str
    kinds: Mapping[str, Kind]

    def __call__(self, code: str, message: str, **place: Any) -> Finding:
        """A finding of this family; parts of the place that are None are left out.

        Args:
            code: The part behind the family's name.
            message: What was found.
            **place: Where.
        """
        kind = self.kinds[code]
        known = {part: value for part, value in place.items() if value is not None}
        return Finding(f"{self.name}.{code}", kind.severity, message, known, kind.action)

    def rows(self) -> Iterator[dict[str, str]]:
        """`code`, `severity`, `meaning` and `action` of each code."""
        for code, kind in self.kinds.items():
            yield {
                "code": f"{self.name}.{code}",
                "severity": kind.severity,
                "meaning": kind.meaning,
                "action": kind.action,
            }


def finding_of_error(error: DataError, **place: Any) -> Finding:
    """The refusal of a reader as a finding with the same code."""
    return Finding(error.code, "error", error.message, {**place, **_place(error)}, error.hint)


def _place(error: DataError) -> dict[str, Any]:
    """The parts of a place that errors call by other names in their details."""
    names = {"path": "path", "file": "path", "key": "field", "shard": "shard"}
    names |= {name: name for name in ("field", "frame", "camera", "line", "row")}
    found = {names[key]: value for key, value in error.details.items() if key in names}
    return {part: value for part, value in found.items() if value is not None}
