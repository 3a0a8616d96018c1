"""Report of a FAST folder: the tokenizer, the profile it was fitted with, and its quality."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.fast.format import REPORT_NAME, ignored_code, read_fast, read_report
from vlatool.artifacts.profile import NAME as PROFILE_NAME
from vlatool.artifacts.profile import NormalizationProfile, read_profile
from vlatool.inspection.report import (
    Findings,
    Problems,
    branch,
    findings_table,
    number_text,
    pairs,
    table,
)


@dataclass(frozen=True)
class FastReport:
    """Contents of a FAST folder.

    Attributes:
        folder: Path of the folder.
        ids: Size of the vocabulary; 0 if the tokenizer cannot be read.
        scale: Coefficients per unit.
        lowest: Coefficient with code point 0.
        digest: Digest of all that determines the ids.
        code: Files of code in the folder, which are not run.
        profile: Normalization of the actions; None if it is not stored.
        fitted: Report of the fit; empty if it is not stored.
        findings: Broken or missing files, with `code` and `message`.
    """

    folder: str
    ids: int
    scale: float
    lowest: int
    digest: str
    code: tuple[str, ...]
    profile: NormalizationProfile | None
    fitted: Mapping[str, Any]
    findings: Findings = ()
    kind: str = "fast"

    def document(self) -> dict[str, Any]:
        """Report as JSON values."""
        profile = None if self.profile is None else self.profile.document()
        return asdict(self) | {"profile": profile, "code": list(self.code)}

    def headline(self) -> str:
        """Summary in one line."""
        return f"action tokenizer with {self.ids} ids"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        info: dict[str, object] = {
            "rounding step": f"1 / {self.scale:g}",
            "lowest coefficient": self.lowest,
            "digest": self.digest[:16],
            "code that is not run": self.code,
        }
        return [pairs(info | self._quality()), findings_table(self.findings), self._dimensions()]

    def _quality(self) -> dict[str, object]:
        quality = branch(self.fitted, "quality")
        numbers = {
            "chunks fitted on": self.fitted.get("fitted_on"),
            "ids per chunk": quality.get("ids_per_chunk"),
            "values per id": quality.get("values_per_id"),
            "share of values decoded exactly": quality.get("exact"),
        }
        return {
            name: number_text(value)
            for name, value in numbers.items()
            if isinstance(value, int | float)
        }

    def _dimensions(self) -> str:
        if self.profile is None:
            return ""
        profile = self.profile
        rows = [
            (name, number_text(float(center)), number_text(float(scale)), _raw(profile, name))
            for name, center, scale in zip(
                profile.dimensions, profile.center, profile.scale, strict=True
            )
        ]
        return table(f"Profile {profile.name}", ("dimension", "minus", "divided by", ""), rows)


def inspect_fast(location: Path) -> FastReport:
    """Reads the tokenizer, its profile and the report of its fit."""
    findings = Problems()
    tokenizer = findings.read(read_fast, location)
    profile, fitted = None, None
    if (location / PROFILE_NAME).is_file():
        profile = findings.read(read_profile, str(location / PROFILE_NAME))
    if (location / REPORT_NAME).is_file():
        fitted = findings.read(read_report, location)
    return FastReport(
        folder=str(location),
        ids=0 if tokenizer is None else tokenizer.vocab_size,
        scale=0.0 if tokenizer is None else tokenizer.scale,
        lowest=0 if tokenizer is None else tokenizer.min_token,
        digest="" if tokenizer is None else tokenizer.digest,
        code=tuple(ignored_code(location)),
        profile=profile,
        fitted=fitted or {},
        findings=tuple(findings),
    )


def _raw(profile: NormalizationProfile, name: str) -> str:
    return "unchanged" if name in profile.raw else ""
