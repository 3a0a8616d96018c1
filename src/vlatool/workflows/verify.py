"""Whether anything in the table of artifacts, or a source, is whole and consistent."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from vlatool.config.base import ConfigModel, required_field
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.findings import SEVERITIES, Finding, finding_of_error
from vlatool.plugins import recognize
from vlatool.sources.detection import detect_source
from vlatool.storage.tree import size_text
from vlatool.storage.uri import require_existing
from vlatool.verification.check import CheckCounts, CheckOptions
from vlatool.verification.findings import code_rows
from vlatool.verification.source import check_source

# Findings kept of one code; all of them are counted.
_MAX_PER_CODE = 100
_MAX_SHOWN = 3


class VerifyConfig(ConfigModel):
    """What to verify, and how thoroughly."""

    location: str = required_field("", "Output, shard, run, checkpoint or source to verify.")
    format: str | None = Field(
        default=None, description="Format of raw episodes; null for the one that finds any."
    )
    episodes: str | None = Field(
        default=None,
        description="Raw episodes to verify, such as 0:4,7; the end of a range is excluded.",
    )
    full: bool = Field(
        default=False,
        description="Decode every picture, read every sample, recompute the statistics.",
    )
    quick: bool = Field(default=False, description="Compare sizes and headers, no digests.")
    samples: int = Field(
        default=200, ge=0, description="Samples whose contents are read, spread over all."
    )
    codes: bool = Field(default=False, description="List the codes of findings and stop.")


@dataclass(frozen=True)
class CodesResult:
    """Every code that a finding can have."""

    codes: Sequence[Mapping[str, str]]

    def document(self) -> dict[str, Any]:
        """The codes for programs."""
        return asdict(self)

    def rows(self) -> Iterable[Mapping[str, str]]:
        """One row per code."""
        return self.codes

    def text(self) -> str:
        """The codes for people."""
        return "\n".join(
            f"{row['code']:<34} {row['severity']:<8} {row['meaning']}" for row in self.codes
        )


@dataclass(frozen=True)
class VerifyResult:
    """What was found.

    Attributes:
        kind: Name in the table of artifacts, or `source`.
        location: What was verified, as given.
        findings: The first 100 of each code, in the order found.
        counts: Code to how many there are.
        severities: Severity to how many there are.
        checked: How much was looked at.
        format: Of a source.
    """

    kind: str
    location: str
    findings: tuple[Finding, ...]
    counts: Mapping[str, int]
    severities: Mapping[str, int]
    checked: Mapping[str, int] = field(default_factory=dict[str, int])
    format: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether there is no error."""
        return not self.severities["error"]

    def document(self) -> dict[str, Any]:
        """The result for programs."""
        return {
            "kind": self.kind,
            "location": self.location,
            **({} if self.format is None else {"format": self.format}),
            "whole": self.is_whole,
            "counts": self.severities,
            "codes": self.counts,
            "checked": self.checked,
            "findings": list(self.rows()),
        }

    def rows(self) -> Iterable[Mapping[str, Any]]:
        """One row per finding."""
        return [finding.document() for finding in self.findings]

    def text(self) -> str:
        """The result for people: findings by code, the worst first."""
        groups = [[one for one in self.findings if one.code == code] for code in self.counts]
        groups.sort(key=lambda group: SEVERITIES.index(group[0].severity))
        return "\n\n".join([*map(self._group, groups), self._last_line()])

    def _group(self, same: Sequence[Finding]) -> str:
        """The findings of one code."""
        first, count = same[0], self.counts[same[0].code]
        lines = [f"{first.severity} {first.code}" + (f", {count} times" if count > 1 else "")]
        lines += [f"  {finding.message}" for finding in same[:_MAX_SHOWN]]
        if count > _MAX_SHOWN:
            lines.append(f"  ... and {count - _MAX_SHOWN} more, with --json")
        if first.action:
            lines.append(f"  to do: {first.action}")
        return "\n".join(lines)

    def _last_line(self) -> str:
        amounts = [
            size_text(amount) if name == "bytes" else f"{amount} {name.replace('_', ' ')}"
            for name, amount in self.checked.items()
            if amount
        ]
        found = [
            f"{self.severities[one]} {one}{'' if one == 'info' else 's'}"
            for one in SEVERITIES
            if self.severities[one]
        ]
        state = "whole" if self.is_whole else "not whole"
        parts = [*found, f"checked {', '.join(amounts) or 'nothing'}"]
        return f"{state}: {self.location} ({'; '.join(parts)})"


def verify(config: VerifyConfig, *, reporter: Reporter = NULL) -> VerifyResult | CodesResult:
    """Looks for everything that is wrong at a location; nothing is written.

    Raises:
        UsageError: No location is given, options contradict each other, or several formats find
            episodes.
        DataError: Nothing known is there; or `data.verification_failed`, whose `result` has the
            findings, when one of them is an error.
    """
    if config.codes:
        return CodesResult(list(code_rows()))
    if not config.location:
        raise UsageError(
            "verify needs a location", hint="vlatool verify LOCATION", code="usage.missing_key"
        )
    if config.full and config.quick:
        raise UsageError(
            "--full and --quick exclude each other", hint="choose one", code="usage.conflict"
        )
    result = _verify(require_existing(config.location), config, reporter)
    if result.is_whole:
        return result
    problem = DataError(
        f"{config.location}: not whole: {result.severities['error']} errors",
        hint="each is listed with what to do about it",
        code="data.verification_failed",
        details={"counts": dict(result.severities), "codes": dict(result.counts)},
    )
    problem.result = result
    raise problem


def _verify(location: Path, config: VerifyConfig, reporter: Reporter) -> VerifyResult:
    samples = None if config.full else config.samples
    check = CheckOptions(samples, config.full, config.quick, reporter=reporter)
    known = recognize(location) if config.format is None else None
    if known is not None:
        kind, artifact = known
        root = location.parent if location.is_file() else location
        return _result(kind, config, artifact.load("verify")(location, check), root, check.counts)
    try:
        source = detect_source(location, config.format)
    except DataError as error:
        if error.code in ("data.no_episodes", "data.no_source"):
            raise
        # The format that knows it cannot list its episodes.
        return _result("source", config, [finding_of_error(error)], location, check.counts)
    found = check_source(location, source, config.episodes, check)
    result = _result("source", config, found, location, check.counts)
    return replace(result, format=source.format)


def _result(
    kind: str, config: VerifyConfig, found: Iterable[Finding], root: Path, checked: CheckCounts
) -> VerifyResult:
    """Counts findings and keeps the first of each code."""
    counts, severities = Counter[str](), Counter[str]()
    kept: list[Finding] = []
    for finding in found:
        counts[finding.code] += 1
        severities[finding.severity] += 1
        if counts[finding.code] <= _MAX_PER_CODE:
            kept.append(_relative(finding, root))
    return VerifyResult(
        kind,
        config.location,
        tuple(kept),
        dict(counts),
        {severity: severities[severity] for severity in SEVERITIES},
        asdict(checked),
    )


def _relative(finding: Finding, root: Path) -> Finding:
    """The finding with paths relative to what was verified, in its place and its message."""
    place = dict(finding.place)
    for part in ("path", "shard"):
        path = type(root)(str(place[part])) if part in place else None
        if path is not None and path.is_relative_to(root):
            place[part] = path.relative_to(root).as_posix()
    return replace(finding, place=place, message=finding.message.replace(f"{root}/", ""))
