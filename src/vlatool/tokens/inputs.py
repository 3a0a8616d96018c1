"""Inputs of `build-dataset`, selected and checked before anything is written.

Source: reference/future-vla 5.1, 5.2.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlatool.artifacts.base import other_contents_error
from vlatool.artifacts.codes.format import (
    IMAGES_NAME,
    JSON_NAME,
    PACKED_NAME,
    CodesFolder,
    is_codes,
)
from vlatool.artifacts.fast.format import read_fast
from vlatool.artifacts.lines import LINES_SUFFIX
from vlatool.artifacts.profile import (
    PUBLISHED,
    Gripper,
    NormalizationProfile,
    check_same_profile,
    has_profile,
    read_profile,
)
from vlatool.artifacts.samples.format import is_inside, is_published, is_samples
from vlatool.artifacts.samples.lines import SampleSizes, question
from vlatool.artifacts.windows.format import DATA_NAME, is_windows, read_manifest
from vlatool.errors import DataError, UsageError
from vlatool.jobs.downloads import check_downloaded, contents_record
from vlatool.jobs.record import read_record
from vlatool.models.future_vla.token_ids import TokenIds
from vlatool.storage.documents import read_document
from vlatool.storage.uri import location
from vlatool.tokens.build import WindowFile
from vlatool.transforms.action_tokenizer import ActionTokenizer

_ROTATIONS = ("roll", "pitch", "yaw")
_TEXT_TOKENIZER = "tokenizer.json"
_MAX_ACTION_IDS = 2**16  # packed samples have 16 bits per id


def check_output_outside_input(output: Path, tree: Path) -> None:
    """Raises UsageError if the output is the input or inside one of its folders."""
    inputs = (tree / name for name in (DATA_NAME, IMAGES_NAME, PACKED_NAME, JSON_NAME))
    if output.resolve() == tree.resolve() or any(is_inside(output, path) for path in inputs):
        raise UsageError(
            f"{output}: belongs to the input, which is never modified",
            hint=f"use another --output, such as {tree / 'built'}",
            code="usage.output_is_input",
        )


def window_files(tree: Path, pattern: str) -> list[WindowFile]:
    """Files of windows in a tree, sorted by name.

    Raises:
        DataError: There are none, the folder holds samples, or its run has not finished.
    """
    may_be_mixed = is_published(tree)  # each of its files is read
    if is_samples(tree) and not may_be_mixed:
        raise DataError.at(
            tree,
            "holds samples already",
            hint="give the folder that `vlatool preprocess` wrote, not one of `build-dataset`",
            code="data.already_built",
        )
    is_known = may_be_mixed or is_windows(tree)
    if not is_known and (error := _other_contents_error(tree)) is not None:
        raise error
    record = contents_record(tree)
    if record is not None and read_manifest(tree) is None:
        raise record.no_manifest_error(tree)
    paths = sorted(path for path in tree.glob(pattern) if path.name.endswith(LINES_SUFFIX))
    files = [WindowFile(path.name.removesuffix(LINES_SUFFIX), path) for path in paths]
    if not files:
        raise DataError.at(
            tree,
            f"no file of windows matches {pattern}",
            hint="give the folder that `vlatool preprocess libero` wrote, or another --pattern",
            code="data.no_windows",
        )
    return files


def _other_contents_error(tree: Path) -> DataError | None:
    return other_contents_error(
        tree,
        "windows",
        "write windows with `vlatool preprocess SOURCE --sink jsonl --output DIR`",
        "data.no_windows",
    )


def select_codes(tree: Path, named: Path | None = None) -> CodesFolder:
    """Codes for a folder of windows; packed ones if both layouts exist.

    Args:
        tree: The folder of windows.
        named: Folder of the codes; None: the one in `tree`.

    Raises:
        UsageError: Both layouts exist, with codes of different tokenizers.
        DataError: There are no codes, they are incomplete, or they belong to earlier images.
    """
    folders = [tree / name for name in (PACKED_NAME, JSON_NAME)]
    present = [folder for folder in folders if is_codes(folder)] if named is None else [named]
    if not present:
        raise DataError.at(
            tree,
            f"has no codes: neither {PACKED_NAME}/ nor {JSON_NAME}/ exists",
            hint="encode its images first, or pass the folder as --tokens",
            code="data.no_codes",
        )
    opened = [CodesFolder.open(folder) for folder in present]
    for other in opened[1:]:
        if opened[0].manifest.identity() != other.manifest.identity():
            raise UsageError(
                f"{tree}: {PACKED_NAME}/ and {JSON_NAME}/ are codes of different tokenizers",
                hint=f"select one with --tokens {opened[0].path}",
                code="usage.two_codes",
            )
    _check_current(opened[0])
    return opened[0]


def _check_current(codes: CodesFolder) -> None:
    """Raises DataError if the images were written again after the codes."""
    record, above = read_record(codes.path), read_record(codes.path.parent)
    if record and above and record.parent and record.parent != above.fingerprint:
        raise DataError.at(
            codes.path,
            f"codes of earlier images; {codes.path.parent} was written again since",
            hint="encode the images again with --overwrite",
            code="data.stale_codes",
        )


def compatible_tokenizer(folder: Path) -> ActionTokenizer:
    """The action tokenizer in a folder; raises DataError if it has too many ids for samples."""
    check_downloaded(folder)
    tokenizer = read_fast(folder)
    if tokenizer.vocab_size > _MAX_ACTION_IDS:
        raise DataError.at(
            folder,
            f"{tokenizer.vocab_size} ids; samples support {_MAX_ACTION_IDS}",
            hint=f"fit a tokenizer with --vocab-size {_MAX_ACTION_IDS} or less",
            code="data.too_many_ids",
        )
    return tokenizer


def select_profile(name: str | None, fast: Path, gripper: Gripper | None) -> NormalizationProfile:
    """Profile by name or file; default: that of the action tokenizer, else `PUBLISHED`.

    Raises:
        DataError: `data.profile_mismatch`: the action tokenizer was fitted with another profile.
    """
    if not has_profile(fast):
        return read_profile(name or PUBLISHED, gripper)
    profile = read_profile(name or str(fast), gripper)
    check_same_profile(profile, read_profile(str(fast)))
    return profile


def check_factor(profile: NormalizationProfile, factor: float | None) -> None:
    """Checks the factor by which a profile scales rotations, if one is given.

    Raises:
        UsageError: The profile has another factor.
    """
    by_name = dict(zip(profile.dimensions, profile.factors, strict=True))
    if factor is not None and any(by_name.get(name) != factor for name in _ROTATIONS):
        raise UsageError(
            f"rpy_std_mult {factor:g} is not the factor of the profile {profile.name}",
            hint="write a profile with other factors and pass it as --profile FILE",
            code="usage.profile_factor",
        )


def read_text_tokenizer(text: str | None, sizes: SampleSizes) -> Any:
    """Tokenizer of a language model (`tokenizers.Tokenizer`); None if none is configured.

    Args:
        text: Location of a folder with a tokenizer.json; may be None.
        sizes: Sizes of codes and action ids, for which it must have room.

    Raises:
        DataError: The file is missing or broken, or lacks special tokens of the model.
        UsageError: It has too few ids for codes and action ids.
    """
    if text is None:
        return None
    from tokenizers import Tokenizer

    folder = location(text)
    try:
        tokenizer = Tokenizer.from_str(read_document(folder / _TEXT_TOKENIZER))
    except Exception as error:  # noqa: BLE001 - the parser raises this very class
        raise DataError(
            f"{folder / _TEXT_TOKENIZER}: not a tokenizer: {error}",
            hint="give the folder of a language model, or leave --tokenizer out",
            code="data.broken_tokenizer",
            details={"path": str(folder)},
        ) from None
    TokenIds.of(tokenizer, sizes)
    return tokenizer


def instructions_with_code_ids(
    tasks: Sequence[str], tokenizer: Any, sizes: SampleSizes
) -> list[str]:
    """Instructions whose token ids overlap with the ids of codes and actions.

    Args:
        tasks: The instructions.
        tokenizer: Result of `read_text_tokenizer`. None returns instructions with characters
            outside ASCII: the ids concerned are those of other scripts.
        sizes: Sizes of codes and action ids.
    """
    if tokenizer is None:
        return [task for task in tasks if not task.isascii()]
    ids = TokenIds.of(tokenizer, sizes)
    texts = {task: question("vla", task, 0, "") for task in tasks}
    return [
        task
        for task, text in texts.items()
        if ids.reserved(tokenizer.encode(text, add_special_tokens=False).ids)
    ]
