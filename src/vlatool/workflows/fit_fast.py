"""Fits a FAST action tokenizer on the action chunks of training data.

Legend of shapes: N chunks, H steps, D action dimensions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from vlatool.artifacts import fast, profile
from vlatool.artifacts.action_chunks import ChunkFile, ChunkSource, find_chunks
from vlatool.artifacts.profile import (
    GRIPPER,
    Gripper,
    NormalizationProfile,
    computed_profile,
    no_gripper,
    read_profile,
)
from vlatool.config.base import ConfigModel, check_required, required_field
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.record import OutputRecord, resumable_record
from vlatool.jobs.single_output import single_output
from vlatool.parallel.engines import make_executor
from vlatool.parallel.executor import default_workers
from vlatool.storage.atomic import write_json
from vlatool.storage.uri import location, require_existing
from vlatool.transforms.action_quality import code_quality, coefficient_range
from vlatool.transforms.action_tokenizer import ActionTokenizer, byte_characters, fit_tokenizer

Alphabet = Literal["bytes", "published"]

COMPUTE = "compute"
_FILES = (*fast.NAMES, profile.NAME, fast.REPORT_NAME)
_FEW_IDS = 100  # left for runs of coefficients; fewer shorten little


class FitFastConfig(ConfigModel):
    """What a FAST tokenizer is fitted on."""

    no_effect_on_output: ClassVar[frozenset[str]] = frozenset({"workers", "overwrite", "dry_run"})

    sources: list[str] = required_field([], "Folders of raw windows or of shards, of any scheme.")
    output: str = required_field("", "Folder for the tokenizer, its profile and the report.")
    scale: float = Field(
        default=10.0, gt=0, description="Coefficients per unit; the rounding step is 1 / scale."
    )
    vocab_size: int = Field(default=1024, ge=257, le=2**20, description="Ids at most.")
    alphabet: Alphabet = Field(
        default="bytes",
        description="Ids that are there in any case: one per byte, so that all can be written, or, "
        "as the published fit has it, one per coefficient.",
    )
    profile: str = Field(
        default=COMPUTE,
        description="How actions are normalised: a profile's name or file, or `compute`.",
    )
    gripper: Gripper = Field(
        default="raw",
        description="Whether a dimension called gripper is left as it is, unless a profile "
        "normalises it.",
    )
    raw: list[str] = Field(
        default=[],
        description="Dimensions, by name or number, that a computed profile leaves as they are.",
    )
    action_fields: list[str] = Field(
        default=[], description="Fields of the action, for shards; default: as they were made."
    )
    limit: int | None = Field(
        default=100_000, ge=1, description="Fit on so many chunks at most, drawn with the seed."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the drawing.")
    workers: int | None = Field(
        default=None, ge=1, description="Processes that read; null for one per processor."
    )
    overwrite: bool = Field(default=False, description="Replace a tokenizer that is there.")
    dry_run: bool = Field(default=False, description="Read, say what would be done, write nothing.")


@dataclass(frozen=True)
class FitFastResult:
    """What was fitted, and how well it writes the chunks.

    Attributes:
        output: The folder.
        chunks: Chunks that were read.
        fitted_on: Those of them that the vocabulary was made from.
        steps: H.
        width: D.
        lowest: Coefficient with code point 0.
        highest: Largest coefficient.
        profile: Name of the profile.
        profile_digest: Of its numbers.
        quality: Size of the vocabulary, ids per chunk, share of chunks that come back exactly and
            of coefficients in range, error per dimension; empty for a plan.
        digest: Of what decides the ids; empty for a plan.
        status: `written`, `already complete` or `planned`.
        next: The command to go on with, if there is one.
    """

    output: str
    chunks: int
    fitted_on: int
    steps: int
    width: int
    lowest: int
    highest: int
    profile: str
    profile_digest: str
    quality: Mapping[str, Any]
    digest: str = ""
    status: str = "written"
    next: str = ""

    def document(self) -> dict[str, Any]:
        """The result for programs."""
        return asdict(self)

    def text(self) -> str:
        """The result for people."""
        shape = f"{self.chunks:,} chunks of {self.steps} x {self.width}"
        span = f"coefficients from {self.lowest} to {self.highest}, profile {self.profile}"
        if self.status == "planned":
            return f"{self.output}: would be fitted on {self.fitted_on:,} of {shape}\n{span}"
        found = self.quality
        fitted = f"{found['ids']} ids, fitted on {self.fitted_on:,} of {shape}"
        counts = f"{found['fewest_ids']} to {found['most_ids']}"
        exact = f"{found['exact']:.2%} of the chunks come back exactly to the rounding step"
        lines = [
            f"{self.output}: {fitted}; {self.status}",
            f"{span}; {found['in_range']:.2%} of them are in range",
            f"ids per chunk: {found['ids_per_chunk']:.1f} ({counts})",
            f"values per id: {found['values_per_id']:.1f}",
            exact,
            "error in units of the action (rms, largest):",
        ]
        lines += [
            f"   {name:12} {row['rms']:.3g}, {row['largest']:.3g}"
            for name, row in found["error"].items()
        ]
        return "\n".join([*lines, *([f"next: {self.next}"] if self.next else [])])


def fit_fast(config: FitFastConfig, *, reporter: Reporter = NULL) -> FitFastResult:
    """Fits a tokenizer and measures it on all chunks; the same bytes every time.

    Raises:
        UsageError: The output holds something else, or options do not fit the data.
        DataError: There are no chunks, or they are broken or of several shapes.
    """
    check_required(config, "vlatool tokenizer fit-fast DATA --output DIR")
    sources = [require_existing(source) for source in config.sources]
    found = [find_chunks(source, config.action_fields) for source in sources]
    chunks = _all_chunks(found, config.workers, reporter)
    actions = _profile(config, chunks, found)
    target = location(config.output)
    record = _record(config, sources, actions, chunks)
    before = resumable_record(
        target, record, lambda: record.inputs, overwrite=config.overwrite, owned=_FILES
    )
    if before is not None and before.complete:
        return _earlier_result(config, target, found)
    normalized = actions.normalize(chunks)
    chosen = _select_chunks(config, len(chunks))
    planned = _plan(config, normalized, len(chosen), actions)
    alphabet = _alphabet(config, planned, reporter)
    if config.dry_run:
        return planned
    tokenizer = fit_tokenizer(
        normalized[chosen],
        scale=config.scale,
        vocab_size=config.vocab_size,
        lowest=planned.lowest,
        alphabet=alphabet,
    )
    result = replace(
        planned,
        quality=_quality(tokenizer, normalized, actions),
        digest=tokenizer.digest,
        status="written",
        next=_next(config, found),
    )
    with single_output(target, record, _FILES):
        _write(target, tokenizer, actions, result)
    return result


def _quality(
    tokenizer: ActionTokenizer, values: Array, profile: NormalizationProfile
) -> dict[str, Any]:
    """Measured quality of the ids; errors in the unit of each dimension."""
    found = code_quality(tokenizer, values)
    return {
        "ids": tokenizer.vocab_size,
        "ids_per_chunk": float(found.lengths.mean()),
        "fewest_ids": int(found.lengths.min()),
        "most_ids": int(found.lengths.max()),
        "values_per_id": values.size / int(found.lengths.sum()),
        "exact": found.exact,
        "in_range": found.in_range,
        "error": {
            name: {"rms": float(rms), "largest": float(largest)}
            for name, rms, largest in zip(
                profile.dimensions,
                found.rms * profile.spread,
                found.largest * profile.spread,
                strict=True,
            )
        },
    }


@dataclass(frozen=True)
class _ReadChunks:
    """Reads one file; picklable."""

    def __call__(self, file: ChunkFile) -> Array:
        return file.read()


def _all_chunks(sources: Sequence[ChunkSource], workers: int | None, reporter: Reporter) -> Array:
    """All chunks, float32 [N, H, D], in order."""
    files = [file for source in sources for file in source.files]
    parts: list[Array] = []
    count = min(workers or default_workers(), len(files))
    with (
        make_executor(max(count, 1)) as executor,
        reporter.progress("chunks", len(files), "files") as bar,
    ):
        for outcome in executor.map(_ReadChunks(), files):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None
            if len(outcome.value):
                parts.append(outcome.value)
            _check_shape(outcome.item.path, parts)
            bar.advance(1)
    if not parts:
        raise DataError(
            "there is no chunk in any of the sources",
            hint="is the path right? `vlatool inspect` shows what is there",
            code="data.no_chunks",
        )
    return np.concatenate(parts)


def _check_shape(path: Path, parts: Sequence[Array]) -> None:
    if parts and parts[-1].shape[1:] != parts[0].shape[1:]:
        here, first = (" x ".join(map(str, one.shape[1:])) for one in (parts[-1], parts[0]))
        raise DataError(
            f"{path}: has chunks of {here} values, the first file of {first}",
            hint="fit one tokenizer for each kind of chunk",
            code="data.chunk_shape",
            details={"path": str(path)},
        )


def _profile(
    config: FitFastConfig, chunks: Array, sources: Sequence[ChunkSource]
) -> NormalizationProfile:
    width = chunks.shape[2]
    if config.profile != COMPUTE:
        if config.raw:
            raise UsageError(
                "--raw is for a computed profile",
                hint="leave it out; a profile says itself what is raw",
                code="usage.conflict",
            )
        known = read_profile(config.profile, config.gripper)
        if known.width != width:
            raise DataError(
                f"profile {known.name} has {known.width} dimensions, the actions have {width}",
                hint="use --profile compute",
                code="data.profile_mismatch",
            )
        return known
    stated = sources[0].names
    names = stated if len(stated) == width else tuple(map(str, range(width)))
    raw = [_dimension(one, names) for one in config.raw]
    has_gripper = GRIPPER in names
    if config.gripper == "normalised" and not has_gripper:
        raise no_gripper(COMPUTE, names)
    if config.gripper == "raw" and has_gripper:
        raw.append(GRIPPER)
    # The first action of each chunk is the present one: each row counts once.
    return computed_profile("computed", chunks[:, 0], names, sorted(set(raw)))


def _dimension(word: str, names: Sequence[str]) -> str:
    if word in names:
        return word
    if word.isdecimal() and int(word) < len(names):
        return names[int(word)]
    raise UsageError(
        f"--raw {word}: no such dimension",
        hint=f"the dimensions are {', '.join(names)}",
        code="usage.unknown_dimension",
    )


def _select_chunks(config: FitFastConfig, count: int) -> Array:
    """Indices of the chunks to fit on, in order."""
    if config.limit is None or config.limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(config.seed).choice(count, config.limit, replace=False))


def _plan(
    config: FitFastConfig, normalized: Array, fitted_on: int, actions: NormalizationProfile
) -> FitFastResult:
    lowest, highest = coefficient_range(config.scale, normalized)
    return FitFastResult(
        output=config.output,
        chunks=len(normalized),
        fitted_on=fitted_on,
        steps=normalized.shape[1],
        width=normalized.shape[2],
        lowest=lowest,
        highest=highest,
        profile=actions.name,
        profile_digest=actions.digest,
        quality={},
        status="planned",
    )


def _alphabet(config: FitFastConfig, planned: FitFastResult, reporter: Reporter) -> list[str]:
    span = planned.highest - planned.lowest + 1
    published = config.alphabet == "published"
    count = span if published else len(byte_characters())
    if count > config.vocab_size:
        raise UsageError(
            f"--vocab-size {config.vocab_size} has no room for the {span} coefficients from "
            f"{planned.lowest} to {planned.highest}",
            hint="raise it, lower --scale, or use --alphabet bytes",
            code="usage.vocab_size",
        )
    if config.vocab_size - count < _FEW_IDS:
        reporter.warn(
            "small_vocabulary",
            f"only {config.vocab_size - count} of {config.vocab_size} ids are left for runs of "
            "coefficients: chunks will have many ids",
        )
    return [chr(code) for code in range(span)] if published else sorted(byte_characters())


def _record(
    config: FitFastConfig, sources: Sequence[Path], actions: NormalizationProfile, chunks: Array
) -> OutputRecord:
    left_out = {"output", "sources", "profile", *config.no_effect_on_output}
    options = {
        **config.model_dump(mode="json", exclude=left_out),
        "sources": [source.name for source in sources],
        "profile": _profile_label(config, actions),
    }
    digest = sha256(repr(chunks.shape).encode() + chunks.tobytes()).hexdigest()
    inputs = {"chunks": len(chunks), "digest": digest}
    # The original reader may be copied beside them.
    return OutputRecord("tokenizer fit-fast", options, inputs, volatile=(fast.CODE_NAME,))


def _profile_label(config: FitFastConfig, actions: NormalizationProfile) -> str:
    """The profile in the record; a computed one follows from the input."""
    return COMPUTE if config.profile == COMPUTE else f"{actions.name} {actions.digest[:16]}"


def _write(
    target: Path, tokenizer: ActionTokenizer, actions: NormalizationProfile, result: FitFastResult
) -> None:
    told = {
        key: value
        for key, value in result.document().items()
        if key not in ("output", "status", "next")
    }
    fast.clear_fast(target)
    profile.write_profile(target / profile.NAME, actions)
    write_json(target / fast.REPORT_NAME, told)
    fast.write_fast(target, tokenizer)


def _earlier_result(
    config: FitFastConfig, target: Path, found: Sequence[ChunkSource]
) -> FitFastResult:
    """What an equal run found."""
    report = fast.read_report(target)
    where = {"output": config.output, "status": "already complete", "next": _next(config, found)}
    return FitFastResult(**{**report, **where})


def _next(config: FitFastConfig, found: Sequence[ChunkSource]) -> str:
    if found[0].fields:  # samples are built from windows
        return ""
    how = config.profile if config.profile != COMPUTE else f"{config.output}/{profile.NAME}"
    built = f"--fast {config.output} --profile {how} --output {config.output}-built"
    return f"vlatool build-dataset {config.sources[0]} {built}"
