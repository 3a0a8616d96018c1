"""Report of a FAST folder: the action tokenizer, its profile and its fit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlatool.datasets.fast import layout as fast_layout
from vlatool.datasets.samples.profile import NAME as PROFILE_NAME
from vlatool.datasets.samples.profile import NormalizationProfile, read_profile
from vlatool.report.facts import Problems, Report, Table, branch
from vlatool.report.text import number_text


def inspect(location: Path) -> Report:
    """Reads the tokenizer, its profile and the report of its fit.

    Its facts: `ids` is the size of the vocabulary, `scale` coefficients per unit, `lowest` the
    coefficient with code point 0; they are 0 if the tokenizer cannot be read. `code` lists files of
    code in the folder, which are not run; `profile` is None and `fitted` empty if not stored.
    """
    findings = Problems()
    facts: dict[str, Any] = {
        "folder": str(location),
        "ids": 0,
        "scale": 0.0,
        "lowest": 0,
        "digest": "",
        "code": list(fast_layout.ignored_code(location)),
        "profile": None,
        "fitted": {},
    }
    tokenizer = findings.read(fast_layout.read_fast, location)
    if tokenizer is not None:
        facts["ids"] = tokenizer.vocab_size
        facts["scale"] = tokenizer.scale
        facts["lowest"] = tokenizer.min_token
        facts["digest"] = tokenizer.digest
    tables: list[Table] = []
    if (location / PROFILE_NAME).is_file():
        profile = findings.read(read_profile, str(location / PROFILE_NAME))
        if profile is not None:
            facts["profile"] = profile.document()
            tables.append(_profile_table(profile))
    if (location / fast_layout.REPORT_NAME).is_file():
        facts["fitted"] = findings.read(fast_layout.read_report, location) or {}
    return Report(
        kind="fast",
        headline=f"action tokenizer with {facts['ids']} ids",
        facts=facts,
        summary={
            "rounding step": f"1 / {facts['scale']:g}",
            "lowest coefficient": facts["lowest"],
            "digest": facts["digest"][:16],
            "code that is not run": facts["code"],
            **_quality(facts["fitted"]),
        },
        tables=tables,
        findings=findings,
    )


def _quality(fitted: Mapping[str, Any]) -> dict[str, str]:
    quality = branch(fitted, "quality")
    numbers = {
        "chunks fitted on": fitted.get("fitted_on"),
        "ids per chunk": quality.get("ids_per_chunk"),
        "values per id": quality.get("values_per_id"),
        "share of values decoded exactly": quality.get("exact"),
    }
    texts: dict[str, str] = {}
    for name, value in numbers.items():
        if isinstance(value, int | float):
            texts[name] = number_text(value)
    return texts


def _profile_table(profile: NormalizationProfile) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, center, scale in zip(profile.dimensions, profile.center, profile.scale, strict=True):
        unchanged = "unchanged" if name in profile.raw else ""
        rows.append((name, number_text(float(center)), number_text(float(scale)), unchanged))
    return Table(("dimension", "minus", "divided by", ""), rows, f"Profile {profile.name}")
