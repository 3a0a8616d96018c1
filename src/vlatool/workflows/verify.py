"""Verification that an artifact or a source is complete and consistent."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from vlatool.artifacts.check import CheckOptions
from vlatool.config.base import ConfigModel, required_field
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.findings import SEVERITIES, Finding
from vlatool.inspection.verify import code_rows, verify_location
from vlatool.jobs.executor import default_workers
from vlatool.storage.tree import size_text
from vlatool.storage.uri import require_existing

# Findings of one code in a result; all are counted.
_MAX_PER_CODE = 100
_MAX_SHOWN = 3


class VerifyConfig(ConfigModel):
    """Options of `vlatool verify`."""

    location: str = required_field("", "Output, shard, run, checkpoint or source to verify.")
    format: str | None = Field(default=None, description="Format of raw episodes; null: detect it.")
    episodes: str | None = Field(
        default=None,
        description="Raw episodes to verify, such as 0:4,7; the end of a range is excluded.",
    )
    full: bool = Field(
        default=False,
        description="Decode every image, read every sample, recompute the statistics.",
    )
    quick: bool = Field(default=False, description="Compare sizes and headers, no digests.")
    samples: int = Field(
        default=200, ge=0, description="Number of samples whose contents are read, evenly spaced."
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Number of processes that check raw episodes; null: one per processor.",
    )
    codes: bool = Field(default=False, description="List all finding codes and exit.")


@dataclass(frozen=True)
class CodesResult:
    """All finding codes."""

    codes: Sequence[Mapping[str, str]]

    def document(self) -> dict[str, Any]:
        """The codes as a JSON-serializable mapping."""
        return asdict(self)

    def rows(self) -> Iterable[Mapping[str, str]]:
        """One row per code."""
        return self.codes

    def text(self) -> str:
        """The codes as text, one line each."""
        return "\n".join(
            f"{row['code']:<34} {row['severity']:<8} {row['meaning']}" for row in self.codes
        )


@dataclass(frozen=True)
class VerifyResult:
    """Findings of a verification.

    Attributes:
        kind: Kind of the artifact, or `source`.
        location: Verified location, as given.
        findings: The first 100 findings of each code, in order.
        counts: Map from code to number of findings.
        severities: Map from severity to number of findings.
        checked: Counts of what was checked.
        format: Format of a source.
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
        """True if no finding is an error."""
        return not self.severities["error"]

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping."""
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
        """The result as text: findings by code, most severe first."""
        groups = [
            [finding for finding in self.findings if finding.code == code] for code in self.counts
        ]
        groups.sort(key=lambda group: SEVERITIES.index(group[0].severity))
        return "\n\n".join([*map(self._group, groups), self._last_line()])

    def _group(self, findings: Sequence[Finding]) -> str:
        """Text of the findings of one code."""
        first, count = findings[0], self.counts[findings[0].code]
        lines = [f"{first.severity} {first.code}" + (f", {count} times" if count > 1 else "")]
        lines += [f"  {finding.message}" for finding in findings[:_MAX_SHOWN]]
        if count > _MAX_SHOWN:
            lines.append(f"  ... and {count - _MAX_SHOWN} more, with --json")
        if first.action:
            lines.append(f"  to do: {first.action}")
        return "\n".join(lines)

    def _last_line(self) -> str:
        counts = [
            size_text(count) if name == "bytes" else _checked_text(count, name)
            for name, count in self.checked.items()
            if count
        ]
        totals = [
            counted(self.severities[severity], severity, "info" if severity == "info" else "")
            for severity in SEVERITIES
            if self.severities[severity]
        ]
        state = "valid" if self.is_whole else "invalid"
        parts = [*totals, f"checked {', '.join(counts) or 'nothing'}"]
        return f"{state}: {self.location} ({'; '.join(parts)})"


def _checked_text(count: int, name: str) -> str:
    """A count with its key in words, such as `1 sample read`."""
    name_of_units, *others = name.replace("pictures", "images").split("_")
    return " ".join([counted(count, name_of_units.removesuffix("s")), *others])


def verify(config: VerifyConfig, *, reporter: Reporter = NULL) -> VerifyResult | CodesResult:
    """Checks the content of a location; writes nothing.

    Raises:
        UsageError: No location is given, options contradict each other, or several formats find
            episodes.
        DataError: The content is unknown; or `data.verification_failed`, whose `result` has the
            findings, if one of them is an error.
    """
    if config.codes:
        return CodesResult(list(code_rows()))
    if not config.location:
        raise UsageError(
            "no location is given", hint="run vlatool verify LOCATION", code="usage.missing_key"
        )
    if config.full and config.quick:
        raise UsageError(
            "--full and --quick exclude each other", hint="choose one", code="usage.conflict"
        )
    result = _verify(require_existing(config.location), config, reporter)
    if result.is_whole:
        return result
    problem = DataError(
        f"{config.location}: verification found {counted(result.severities['error'], 'error')}",
        hint="each finding says what to do",
        code="data.verification_failed",
        details={"counts": dict(result.severities), "codes": dict(result.counts)},
    )
    problem.result = result
    raise problem


def _verify(location: Path, config: VerifyConfig, reporter: Reporter) -> VerifyResult:
    """Counts findings and keeps the first ones of each code."""
    samples = None if config.full else config.samples
    workers = config.workers or default_workers()
    options = CheckOptions(samples, config.full, config.quick, workers, reporter=reporter)
    verification = verify_location(
        location, options, format_name=config.format, episodes=config.episodes
    )
    counts, severities = Counter[str](), Counter[str]()
    shown: list[Finding] = []
    for finding in verification.findings:
        counts[finding.code] += 1
        severities[finding.severity] += 1
        if counts[finding.code] <= _MAX_PER_CODE:
            shown.append(_relative(finding, verification.root))
    return VerifyResult(
        verification.kind,
        config.location,
        tuple(shown),
        dict(counts),
        {severity: severities[severity] for severity in SEVERITIES},
        asdict(options.counts),
        verification.format,
    )


def _relative(finding: Finding, root: Path) -> Finding:
    """The finding with paths in its place relative to the verified location.

    Its message keeps paths that open from the current folder.
    """
    location = dict(finding.place)
    for key in ("path", "shard"):
        path = type(root)(str(location[key])) if key in location else None
        if path is not None and path.is_relative_to(root):
            location[key] = path.relative_to(root).as_posix()
    return replace(finding, place=location)
