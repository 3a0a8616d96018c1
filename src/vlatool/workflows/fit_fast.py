"""Fitting of a FAST action tokenizer on the action chunks of training data.

Legend of shapes: N chunks, H steps, D action dimensions.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlatool.config.base import ConfigModel, check_required, option, required_field
from vlatool.datasets.codes.layout import JSON_NAME, PACKED_NAME, is_codes
from vlatool.datasets.fast import layout as fast_layout
from vlatool.datasets.samples import profile
from vlatool.datasets.samples import profile as profiles
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.command import make_executor
from vlatool.jobs.executor import default_workers
from vlatool.jobs.ownership import is_whole, plan_output, require_input, single_output
from vlatool.jobs.record import OutputRecord
from vlatool.results import Result, outcome
from vlatool.storage.atomic import write_json
from vlatool.storage.uri import location
from vlatool.transforms.action_tokenizer import (
    ActionTokenizer,
    action_quality,
    byte_characters,
    coefficient_range,
    fit_tokenizer,
)

Alphabet = Literal["bytes", "published"]

COMPUTE = "compute"
_FILES = (*fast_layout.NAMES, profile.NAME, fast_layout.REPORT_NAME)
_TINY_VOCABULARY = 256  # of the guide
_FEW_IDS = 100  # with fewer ids for runs of coefficients, chunks stay long


class FitFastConfig(ConfigModel):
    """Options of `vlatool tokenizer fit-fast`."""

    sources: list[str] = required_field([], "Folders of windows or of shards, of any scheme.")
    output: str = required_field("", "Folder for the tokenizer, its profile and the report.")
    scale: float = option(10.0, "Factor before rounding; the rounding step is 1 / scale.", gt=0)
    vocab_size: int = option(1024, "Largest number of ids.", ge=256, le=2**20)
    alphabet: Alphabet = option(
        "bytes",
        "Initial ids. bytes: one per byte, so that every chunk can be encoded; "
        "published: one per coefficient of the data, as in the published fit.",
    )
    profile: str = option(
        COMPUTE, "Normalization profile of actions: a name, a file, or `compute`."
    )
    gripper: profiles.Gripper = option(
        "raw", "raw: leave the dimension named gripper unchanged, unless a profile normalizes it."
    )
    raw: list[str] = option(
        [], "Dimensions, by name or index, that a computed profile leaves unchanged."
    )
    action_fields: list[str] = option(
        [], "Action fields of shards; default: all action fields of the shards."
    )
    limit: int | None = option(
        100_000, "Fit on at most N chunks, drawn at random with the seed.", ge=1
    )
    seed: int = option(0, "Seed of the random choice.", ge=0)
    workers: int | None = option(
        None, "Number of processes that read; null: one per processor.", ge=1, affects_output=False
    )
    overwrite: bool = option(False, "Replace an existing tokenizer.", affects_output=False)
    dry_run: bool = option(
        False, "Read the data, report the plan, write nothing.", affects_output=False
    )


@dataclass(frozen=True)
class FitFastResult(Result):
    """Fitted tokenizer and its quality on the chunks."""

    output: str
    chunks: int  # that were read
    fitted_on: int  # chunks that the vocabulary was fitted on
    steps: int  # H
    width: int  # D
    lowest: int  # coefficient with code point 0
    highest: int  # largest coefficient
    profile: str
    profile_digest: str
    # Size of the vocabulary, ids per chunk, share of chunks that are decoded exactly, share of
    # coefficients in range, error per dimension; empty for a dry run.
    quality: Mapping[str, Any]
    digest: str = ""  # of the tokenizer; empty for a dry run
    status: str = "written"  # or `already complete`, `planned`
    next: str = ""  # command for the next step

    def lines(self) -> Iterator[str]:
        shape = f"{counted(self.chunks, 'chunk')} of {self.steps} x {self.width}"
        span = f"coefficients from {self.lowest} to {self.highest}, profile {self.profile}"
        measured = self.quality
        yield outcome(
            self.output,
            self.status,
            f"{measured.get('ids')} ids, fitted on {self.fitted_on:,} of {shape}",
            f"would be fitted on {self.fitted_on:,} of {shape}",
        )
        if self.is_planned:
            yield span
            return
        yield f"{span}; {measured['in_range']:.2%} of them are in range"
        counts = f"{measured['fewest_ids']} to {measured['most_ids']}"
        yield f"ids per chunk: {measured['ids_per_chunk']:.1f} ({counts})"
        yield f"values per id: {measured['values_per_id']:.1f}"
        yield f"{measured['exact']:.2%} of the chunks are decoded exactly to the rounding step"
        yield "error in units of the action (RMS, maximum):"
        for name, row in measured["error"].items():
            yield f"   {name:12} {row['rms']:.3g}, {row['largest']:.3g}"


def fit_fast(config: FitFastConfig, *, reporter: Reporter = NULL) -> FitFastResult:
    """Fits a tokenizer and measures it on all chunks; equal inputs give equal bytes.

    Raises:
        UsageError: The output has different content, or options do not fit the data.
        DataError: There are no chunks, or they are broken or have different shapes.
    """
    check_required(config, "vlatool tokenizer fit-fast DATA --output DIR")
    sources = [require_input(source) for source in config.sources]
    chunk_sources = [fast_layout.find_chunks(source, config.action_fields) for source in sources]
    chunks = _all_chunks(chunk_sources, config.workers, reporter)
    normalization = _profile(config, chunks, chunk_sources)
    target = location(config.output)
    record = _record(config, sources, normalization, chunks)
    earlier = plan_output(
        target, record, lambda: record.inputs, overwrite=config.overwrite, owned=_FILES
    )
    if is_whole(target, earlier, reporter):
        report = fast_layout.read_report(target)
        current = {
            "output": config.output,
            "status": "already complete",
            "next": _next(config, chunk_sources),
        }
        return FitFastResult(**{**report, **current})
    normalized = normalization.normalize(chunks)
    indices = _select_chunks(config, len(chunks))
    lowest, highest = coefficient_range(config.scale, normalized)
    plan = FitFastResult(
        output=config.output,
        chunks=len(normalized),
        fitted_on=len(indices),
        steps=normalized.shape[1],
        width=normalized.shape[2],
        lowest=lowest,
        highest=highest,
        profile=normalization.name,
        profile_digest=normalization.digest,
        quality={},
        status="planned",
    )
    span = plan.highest - plan.lowest + 1
    published = config.alphabet == "published"
    count = span if published else len(byte_characters())
    if count > config.vocab_size:
        raise UsageError(
            f"--vocab-size {config.vocab_size} is too small for the {span} coefficients from "
            f"{plan.lowest} to {plan.highest}",
            hint="raise it, lower --scale, or use --alphabet bytes",
            code="usage.bad_value",
        )
    if config.vocab_size - count < _FEW_IDS:
        reporter.warn(
            "small_vocabulary",
            f"only {config.vocab_size - count} of {counted(config.vocab_size, 'id')} are left for "
            "sequences of coefficients, so chunks will have many ids; raise --vocab-size",
        )
    alphabet = [chr(code) for code in range(span)] if published else sorted(byte_characters())
    if config.dry_run:
        return plan
    tokenizer = fit_tokenizer(
        normalized[indices],
        scale=config.scale,
        vocab_size=config.vocab_size,
        lowest=plan.lowest,
        alphabet=alphabet,
    )
    result = replace(
        plan,
        quality=_quality(tokenizer, normalized, normalization),
        digest=tokenizer.digest,
        status="written",
        next=_next(config, chunk_sources),
    )
    with single_output(target, record, _FILES):
        _write(target, tokenizer, normalization, result)
    return result


def _quality(
    tokenizer: ActionTokenizer, values: Array, profile: profiles.NormalizationProfile
) -> dict[str, Any]:
    """Quality of the ids on the chunks; errors in the unit of each dimension."""
    measured = action_quality(tokenizer, values)
    return {
        "ids": tokenizer.vocab_size,
        "ids_per_chunk": float(measured.lengths.mean()),
        "fewest_ids": int(measured.lengths.min()),
        "most_ids": int(measured.lengths.max()),
        "values_per_id": values.size / int(measured.lengths.sum()),
        "exact": measured.exact,
        "in_range": measured.in_range,
        "error": {
            name: {"rms": float(rms), "largest": float(largest)}
            for name, rms, largest in zip(
                profile.dimensions,
                measured.rms * profile.scale,
                measured.largest * profile.scale,
                strict=True,
            )
        },
    }


def _all_chunks(
    sources: Sequence[fast_layout.ChunkSource], workers: int | None, reporter: Reporter
) -> Array:
    """Reads all chunks, float32 [N, H, D], in order."""
    files = [file for source in sources for file in source.files]
    parts: list[Array] = []
    count = min(workers or default_workers(), len(files))
    with (
        make_executor(max(count, 1)) as executor,
        reporter.progress("chunks", len(files), "files") as bar,
    ):
        for outcome in executor.map(fast_layout.ChunkFile.read, files):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None
            if len(outcome.value):
                parts.append(outcome.value)
            if parts and parts[-1].shape[1:] != parts[0].shape[1:]:
                last, first = (
                    " x ".join(map(str, part.shape[1:])) for part in (parts[-1], parts[0])
                )
                raise DataError.at(
                    outcome.item.path,
                    f"has chunks of {last} values, but the first file has chunks of {first}",
                    hint="call fit-fast once for each shape of chunks",
                    code="data.mismatch",
                )
            bar.advance(1)
    if not parts:
        raise DataError(
            "the sources hold no action chunk",
            hint="give windows or shards from `vlatool preprocess`",
            code="data.no_samples",
        )
    return np.concatenate(parts)


def _profile(
    config: FitFastConfig, chunks: Array, sources: Sequence[fast_layout.ChunkSource]
) -> profiles.NormalizationProfile:
    width = chunks.shape[2]
    if config.profile != COMPUTE:
        if config.raw:
            raise UsageError(
                "--raw is only for a computed profile",
                hint="leave --raw out: the profile itself lists its raw dimensions",
                code="usage.conflict",
            )
        # `raw` leaves the gripper as the profile has it.
        gripper = None if config.gripper == "raw" else config.gripper
        loaded = profiles.read_profile(config.profile, gripper)
        if loaded.width != width:
            raise DataError(
                f"profile {loaded.name} has {counted(loaded.width, 'dimension')}, but the actions "
                f"have {width}",
                hint="use --profile compute, which computes one from these actions",
                code="data.mismatch",
            )
        return loaded
    recorded_names = sources[0].names
    names = recorded_names if len(recorded_names) == width else tuple(map(str, range(width)))
    raw = [_dimension(dimension, names) for dimension in config.raw]
    has_gripper = profiles.GRIPPER in names
    if config.gripper == "normalised" and not has_gripper:
        raise profiles.no_gripper_error(COMPUTE, names)
    if config.gripper == "raw" and has_gripper:
        raw.append(profiles.GRIPPER)
    # The first action of each chunk is that of the anchor: each row counts once. Relative poses
    # grow along a chunk, so that all of its rows count.
    is_relative = any(source.is_relative for source in sources)
    rows = chunks.reshape(-1, width) if is_relative else chunks[:, 0]
    return profiles.compute_profile("computed", rows, names, sorted(set(raw)))


def _dimension(word: str, names: Sequence[str]) -> str:
    if word in names:
        return word
    if word.isdecimal() and int(word) < len(names):
        return names[int(word)]
    raise UsageError(
        f"--raw {word}: the actions have no such dimension",
        hint=f"the dimensions are {', '.join(names)}",
        code="usage.unknown_name",
    )


def _select_chunks(config: FitFastConfig, count: int) -> Array:
    if config.limit is None or config.limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(config.seed).choice(count, config.limit, replace=False))


def _record(
    config: FitFastConfig,
    sources: Sequence[Path],
    normalization: profiles.NormalizationProfile,
    chunks: Array,
) -> OutputRecord:
    excluded = {"output", "sources", "profile", *config.no_effect_on_output}
    options = {
        **config.model_dump(mode="json", exclude=excluded),
        "sources": [source.name for source in sources],
        "profile": (
            COMPUTE
            if config.profile == COMPUTE
            else f"{normalization.name} {normalization.digest[:16]}"
        ),
    }
    digest = sha256(repr(chunks.shape).encode() + chunks.tobytes()).hexdigest()
    inputs = {"chunks": len(chunks), "digest": digest}
    # The published code of the reader may be copied into the folder.
    return OutputRecord("tokenizer fit-fast", options, inputs, volatile=(fast_layout.CODE_NAME,))


def _write(
    target: Path,
    tokenizer: ActionTokenizer,
    normalization: profiles.NormalizationProfile,
    result: FitFastResult,
) -> None:
    report = {
        key: value
        for key, value in result.document().items()
        if key not in ("output", "status", "next")
    }
    fast_layout.clear_fast(target)
    profile.write_profile(target / profile.NAME, normalization)
    write_json(target / fast_layout.REPORT_NAME, report)
    fast_layout.write_fast(target, tokenizer)


def _next(config: FitFastConfig, chunk_sources: Sequence[fast_layout.ChunkSource]) -> str:
    if chunk_sources[0].fields:  # shards: samples are built from windows only
        return ""
    tree = location(config.sources[0])
    if not (is_codes(tree / PACKED_NAME) or is_codes(tree / JSON_NAME)):
        return ""  # the images are to be encoded before
    preset = " --preset future-vla-tiny-build" if config.vocab_size == _TINY_VOCABULARY else ""
    source = shlex.quote(config.sources[0])
    return f"vlatool build-dataset {source}{preset} --fast {shlex.quote(config.output)}"
