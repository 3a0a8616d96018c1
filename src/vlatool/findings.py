"""Findings of checks: a stable code, a severity, a place and an action.

Each group of codes (`spartan`, `lerobot`, `shards`, ...) has one table next to the checks that use
it; `vlatool verify --codes` and docs/reference/findings.md list all of them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePath
from typing import Any, Literal, TypeVar

from vlatool.errors import DataError

T = TypeVar("T")

# error: unusable or lost data; warning: usable, but unexpected; info: no action needed.
Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
# Keys of `Finding.place`; the details of errors use the same keys.
PLACE_KEYS = ("path", "episode", "camera", "field", "frame", "row", "line", "shard", "sample")


@dataclass(frozen=True)
class Finding:
    """Defect or anomaly."""

    code: str  # stable dotted identifier such as `spartan.length_mismatch`
    severity: Severity  # `error`, `warning` or `info`
    message: str  # description of the defect, in a sentence
    # position of the defect, with the keys `PLACE_KEYS`; JSON-serializable
    place: Mapping[str, Any] = field(default_factory=dict[str, Any])
    action: str = ""  # action that solves the problem; may be empty

    def document(self) -> dict[str, Any]:
        """JSON form of the finding."""
        return {
            "code": self.code,
            "severity": self.severity,
            "place": dict(self.place),
            "message": self.message,
            "action": self.action,
        }


@dataclass(frozen=True)
class FindingCode:
    """Severity, one-line meaning and action of a code."""

    severity: Severity
    meaning: str
    action: str = ""


error, warning, info = (partial(FindingCode, severity) for severity in SEVERITIES)


class FindingCodes:
    """Table of the codes that start with `name`.

    Attributes:
        name: Part of the codes before the dot.
        codes: Part behind the dot to severity, meaning and action.
        error_codes: `finding` in the details of a `DataError` to the code of this table with the
            same meaning; those with the same name need no entry.
    """

    def __init__(
        self,
        name: str,
        codes: Mapping[str, FindingCode] | None = None,
        /,
        error_codes: Mapping[str, str] | None = None,
        **named: FindingCode,
    ) -> None:
        self.name = name
        self.codes: Mapping[str, FindingCode] = {**(codes or {}), **named}
        self.error_codes = error_codes or {}

    def __call__(self, code: str, message: str, **place: Any) -> Finding:
        """Returns a finding with a code of this table; `place`: position of the defect; values that
        are None are left out.
        """
        entry = self.codes[code]
        known = {key: value for key, value in place.items() if value is not None}
        return Finding(f"{self.name}.{code}", entry.severity, message, known, entry.action)

    def at(
        self, code: str, path: PurePath | str, reason: object, *, line: int = 0, **place: Any
    ) -> Finding:
        """Returns the finding `PATH: REASON`, or `PATH:LINE: REASON`, with the path in its place;
        `line`: line of the file, from 1; 0 if unknown.
        """
        position = {"path": str(path)} | ({"line": line} if line else {})
        message = f"{path}:{line}: {reason}" if line else f"{path}: {reason}"
        return self(code, message, **position, **place)

    def error(
        self, code: str, path: PurePath | str, *parts: object, hint: str = "", **details: Any
    ) -> DataError:
        """Returns the error `PATH: PART: PART` with the action of a code of this table as hint.

        Its details name the code as `finding`.
        """
        reason = ": ".join(map(str, filter(None, parts)))
        hint = hint or self.codes[code].action
        return DataError.at(path, reason, hint=hint, code="data.broken", finding=code, **details)

    def from_error(self, error: DataError, code: str = "", **place: Any) -> Finding:
        """Converts the error of a reader to a finding, with a code of this table if it has one."""
        finding = finding_of_error(error, **place)
        name = str(error.details.get("finding", ""))
        name = code or self.error_codes.get(name, name)
        return self(name, error.message, **finding.place) if name in self.codes else finding

    def rows(self) -> Iterator[dict[str, str]]:
        """Yields `code`, `severity`, `meaning` and `action` of each code."""
        for code, entry in self.codes.items():
            yield {
                "code": f"{self.name}.{code}",
                "severity": entry.severity,
                "meaning": entry.meaning,
                "action": entry.action,
            }


def finding_of_error(error: DataError, **place: Any) -> Finding:
    """Converts the error of a reader to a finding with the same code."""
    known = {key: error.details[key] for key in PLACE_KEYS if error.details.get(key) is not None}
    return Finding(error.code, "error", error.message, {**known, **place}, error.hint)


class Collector:
    """Collector of findings, with which reading and checking share each rule.

    Reading is strict: the first error is raised. Checking keeps every error as a finding and
    continues.
    """

    def __init__(self, codes: FindingCodes, *, strict: bool, **place: Any) -> None:
        """Starts without findings; `place` is added to the place of each finding."""
        self.strict = strict  # raise errors instead of collecting them
        self.findings: list[Finding] = []  # findings so far, in order
        self._codes = codes
        self._place = place

    def note(self, code: str, message: str, **place: Any) -> None:
        """Adds a finding with a code of `codes`; never raises."""
        self.add(self._codes, code, message, **place)

    def add(self, codes: FindingCodes, code: str, message: str, /, **place: Any) -> None:
        """Adds a finding with a code of another table; never raises.

        A strict collector adds an error as a warning, because reading tolerated it.
        """
        finding = codes(code, message, **self._place, **place)
        if self.strict and finding.severity == "error":
            finding = replace(finding, severity="warning")
        self.findings.append(finding)

    def add_error(self, error: DataError, code: str = "", **place: Any) -> None:
        """Raises the error if strict, else adds it; `code` as in `FindingCodes.from_error`."""
        if self.strict:
            raise error
        self.findings.append(self._codes.from_error(error, code, **self._place, **place))

    def attempt(self, step: Callable[[], T], code: str = "", **place: Any) -> T | None:
        """Result of `step`; None if it raises a `DataError`, which is added as a finding."""
        try:
            return step()
        except DataError as error:
            self.add_error(error, code, **place)
            return None
