"""What a check has found: a stable code, how bad it is, where, and what to do about it.

Each family of codes (`spartan`, `lerobot`, `shards`, ...) has one table, beside the checks that use
it; `vlatool verify --codes` and docs/findings.md list them all.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from vlatool.errors import DataError

T = TypeVar("T")

# error: unusable or lost data; warning: usable, but surprising; info: worth knowing.
Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
# The words of a place; details of errors use the same.
PLACE_KEYS = ("path", "episode", "camera", "field", "frame", "row", "line", "shard", "sample")


@dataclass(frozen=True)
class Finding:
    """One defect or oddity.

    Attributes:
        code: Stable dotted id such as `spartan.length_mismatch`.
        severity: `error`, `warning` or `info`.
        message: What was found, in a sentence.
        place: Where, in the words of `PLACES`; JSON-serialisable.
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
class FindingCode:
    """What a code stands for, in one line, and what to do about it."""

    severity: Severity
    meaning: str
    action: str = ""


@dataclass(frozen=True)
class FindingCodes:
    """The codes that begin with `name`.

    Attributes:
        name: The part before the dot.
        kinds: Code behind the dot to what it stands for.
        refusals: Code of a reader's refusal, behind `data.`, to the code here that says the same;
            refusals that are called alike need no entry.
    """

    name: str
    codes: Mapping[str, FindingCode]
    error_codes: Mapping[str, str] = field(default_factory=dict[str, str])

    def __call__(self, code: str, message: str, **place: Any) -> Finding:
        """A finding of this family; parts of the place that are None are left out.

        Args:
            code: The part behind the family's name.
            message: What was found.
            **place: Where.
        """
        kind = self.codes[code]
        known = {part: value for part, value in place.items() if value is not None}
        return Finding(f"{self.name}.{code}", kind.severity, message, known, kind.action)

    def from_error(self, error: DataError, code: str = "", **place: Any) -> Finding:
        """The refusal of a reader as a finding of this family, where it has such a code.

        Args:
            error: The refusal.
            code: The part behind the family's name, where the error alone does not tell it.
            **place: Where, besides what the error says.
        """
        told = finding_of_error(error, **place)
        name = error.code.removeprefix("data.")
        name = code or self.error_codes.get(name, name)
        return self(name, error.message, **told.place) if name in self.codes else told

    def rows(self) -> Iterator[dict[str, str]]:
        """`code`, `severity`, `meaning` and `action` of each code."""
        for code, kind in self.codes.items():
            yield {
                "code": f"{self.name}.{code}",
                "severity": kind.severity,
                "meaning": kind.meaning,
                "action": kind.action,
            }


def finding_of_error(error: DataError, **place: Any) -> Finding:
    """The refusal of a reader as a finding with the same code."""
    told = {part: error.details[part] for part in PLACE_KEYS if error.details.get(part) is not None}
    return Finding(error.code, "error", error.message, {**told, **place}, error.hint)


class Collector:
    """Takes what a walk over data meets, so that each rule stands once, for reading and checking.

    Reading is strict: the first error is raised. Checking keeps every error as a finding and goes
    on with what is left.

    Attributes:
        strict: Whether errors are raised.
        found: Findings so far, in order.
    """

    def __init__(self, family: FindingCodes, *, strict: bool, **place: Any) -> None:
        """Begins empty; `place` is where every finding is."""
        self.strict = strict
        self.findings: list[Finding] = []
        self._family = family
        self._place = place

    def note(self, code: str, message: str, **place: Any) -> None:
        """Keeps a finding of the family; never raises."""
        self.add(self._family, code, message, **place)

    def add(self, family: FindingCodes, code: str, message: str, /, **place: Any) -> None:
        """Keeps a finding of another family; never raises.

        An error that reading tolerates is a warning there.
        """
        finding = family(code, message, **self._place, **place)
        if self.strict and finding.severity == "error":
            finding = replace(finding, severity="warning")
        self.findings.append(finding)

    def add_error(self, error: DataError, code: str = "", **place: Any) -> None:
        """Raises the error, or keeps it; `code` as in `Family.refusal`."""
        if self.strict:
            raise error
        self.findings.append(self._family.from_error(error, code, **self._place, **place))

    def attempt(self, step: Callable[[], T], code: str = "", **place: Any) -> T | None:
        """What a step returns; None where it refuses, which is kept.

        Raises:
            DataError: The step refuses, and the collector is strict.
        """
        try:
            return step()
        except DataError as error:
            self.add_error(error, code, **place)
            return None
