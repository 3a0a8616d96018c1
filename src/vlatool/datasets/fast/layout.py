"""Folder of a FAST action tokenizer in the published layout, read without running its code.

    processor_config.json     rounding and the lowest coefficient
    tokenizer.json            byte-level BPE
    tokenizer_config.json, special_tokens_map.json     for the original reader
    processing_action_tokenizer.py     the original reader; optional, neither run nor written

Tokenizers fitted by vlatool also have the normalization profile of the actions, and a report.
Source: reference/future-vla 4.2.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.datasets.jsonl import layout as windows_layout
from vlatool.datasets.lbm.layout import ShardFolder
from vlatool.datasets.samples.profile import NAME as PROFILE_NAME
from vlatool.datasets.samples.profile import NormalizationProfile, write_profile
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.jobs.record import read_valid_record
from vlatool.media.lines import LINES_SUFFIX
from vlatool.media.tar import open_shard
from vlatool.recordings.artifact import other_contents_error
from vlatool.recordings.field_summary import recorded_names
from vlatool.report.facts import listed
from vlatool.storage.atomic import remove_file, write_bytes, write_json, write_text
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.documents import DocumentError, parse_json, read_document, read_json
from vlatool.storage.uri import can_list, hub_hint
from vlatool.transforms.action_tokenizer import ActionTokenizer
from vlatool.transforms.relative import SUFFIX

PROCESSOR_NAME = "processor_config.json"
TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
CODE_NAME = "processing_action_tokenizer.py"
REPORT_NAME = "fit_report.json"
NAMES = (PROCESSOR_NAME, TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, SPECIAL_TOKENS_NAME)

_CLASS = "UniversalActionProcessor"
_AUTO_MAP = {"AutoProcessor": f"{CODE_NAME.removesuffix('.py')}.{_CLASS}"}
_HINT = "give a folder written by `vlatool tokenizer fit-fast`, or a published FAST tokenizer"
_SHOWN = 40
_MAX_IDS = 2**20
_MAX_COPIED_BYTES = 10**6


def read_fast(folder: Path) -> ActionTokenizer:
    """The action tokenizer in a folder at any location; code in the folder is not run."""
    config = _read(folder / PROCESSOR_NAME)
    scale, min_token = _check_config(folder / PROCESSOR_NAME, config)
    document = _check_tokenizer(folder / TOKENIZER_NAME, config["vocab_size"])
    options = folder / TOKENIZER_CONFIG_NAME  # an optional file
    if options.is_file():
        _check_code(options, _read(options))
    tokenizer = ActionTokenizer(document, scale, min_token)
    try:
        tokenizer.load()
    except Exception as error:  # noqa: BLE001 - the parser raises this very class
        raise _fast_error(folder / TOKENIZER_NAME, f"not a tokenizer: {error}") from None
    return tokenizer


def write_fast(folder: Path, tokenizer: ActionTokenizer, vocab_size: int | None = None) -> None:
    """Writes the published files; equal tokenizers give equal bytes.

    The original reader finds its class by `auto_map` once `CODE_NAME` is copied to the folder.
    """
    config = {
        "action_dim": None,
        "auto_map": _AUTO_MAP,
        "min_token": tokenizer.min_token,
        "processor_class": _CLASS,
        "scale": int(tokenizer.scale) if tokenizer.scale.is_integer() else tokenizer.scale,
        "time_horizon": None,
        "vocab_size": vocab_size or tokenizer.vocab_size,
    }
    described = {
        "added_tokens_decoder": {},
        "clean_up_tokenization_spaces": False,
        "processor_class": _CLASS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    clear_fast(folder)
    write_text(folder / TOKENIZER_NAME, tokenizer.document)
    write_json(folder / TOKENIZER_CONFIG_NAME, described)
    write_json(folder / SPECIAL_TOKENS_NAME, {})
    write_json(folder / PROCESSOR_NAME, config)  # last: it marks the folder as a tokenizer


def copy_fast(source: Path, folder: Path, profile: NormalizationProfile | None = None) -> list[str]:
    """Copies an action tokenizer and its profile; returns the names of the written files.

    `folder`: folder for the copy.

    Code is not copied, and nothing of a tokenizer with more than `_MAX_COPIED_BYTES`.
    """
    contents: dict[str, bytes] = {}
    for name in (*NAMES, PROFILE_NAME):
        with suppress(FileNotFoundError):
            contents[name] = read_byte_range(ByteRange(source / name, 0, _MAX_COPIED_BYTES + 1))
    if sum(map(len, contents.values())) > _MAX_COPIED_BYTES:
        return []
    for name, content in contents.items():
        write_bytes(folder / name, content)
    if profile is None or PROFILE_NAME in contents:
        return [*contents]
    write_profile(folder / PROFILE_NAME, profile)
    return [*contents, PROFILE_NAME]


def clear_fast(folder: Path) -> None:
    """Removes the file that marks a folder as a tokenizer, before the others are written."""
    remove_file(folder / PROCESSOR_NAME)


def fast_digest(folder: Path) -> str:
    """Digest of the tokenizer in a folder; raises as `read_fast`."""
    return read_fast(folder).digest


def recognize(location: Path) -> str | None:
    return "fast" if is_fast(location) else None


def is_fast(folder: Path) -> bool:
    """True for a folder of an action tokenizer, or the output of a started run that fits one.

    Folders of models also have a `PROCESSOR_NAME`, but without `min_token`.
    """
    try:
        content = read_json(folder / PROCESSOR_NAME)
        if not isinstance(content, Mapping):
            return False
        return "min_token" in content or content.get("processor_class") == _CLASS
    except (DocumentError, OSError):
        return _is_unfinished(folder)


def _is_unfinished(folder: Path) -> bool:
    try:
        record = read_valid_record(folder)
    except DataError:
        return False
    return record is not None and PROCESSOR_NAME in record.owned


def ignored_code(folder: Path) -> list[str]:
    """Names of the Python files in a folder, which are never run."""
    if can_list(folder):
        return sorted(path.name for path in folder.iterdir() if path.suffix == ".py")
    return [CODE_NAME] if (folder / CODE_NAME).is_file() else []


def read_report(folder: Path) -> dict[str, Any]:
    """Report of the fit of the tokenizer in a folder; raises DataError if missing or broken."""
    return dict(_read(folder / REPORT_NAME))


def fitted_steps(folder: Path) -> int | None:
    """Steps of the chunks that the tokenizer in a folder was fitted on; None if it does not say."""
    for name, key in ((REPORT_NAME, "steps"), (PROCESSOR_NAME, "time_horizon")):
        with suppress(DataError):
            steps = _read(folder / name).get(key)
            if isinstance(steps, int) and steps > 0:
                return int(steps)
    return None


def _check_config(path: Path, config: Mapping[str, Any]) -> tuple[float, int]:
    """(scale, lowest coefficient)."""
    for key in ("scale", "vocab_size", "min_token"):
        if key not in config:
            raise _fast_error(path, f"lacks the key {key!r}")
    scale = config["scale"]
    size = config["vocab_size"]
    lowest = config["min_token"]
    if not _is_number(scale) or not 0 < scale <= sys.float_info.max:
        raise _fast_error(path, f"scale is {str(scale)[:_SHOWN]}, not a number above 0")
    if not _is_number(size, int) or not 0 < size <= _MAX_IDS:
        raise _fast_error(path, f"vocab_size is {size!r}, not a number of ids")
    if not _is_number(lowest, int) or abs(lowest) >= 2**31:
        raise _fast_error(path, f"min_token is {lowest!r}, not an integer")
    _check_code(path, config)
    return float(scale), int(lowest)


def _check_code(path: Path, config: Mapping[str, Any]) -> None:
    """Raises DataError if a folder requires a class of unknown code."""
    code = config.get("auto_map", {})
    classes = list(code.values()) if isinstance(code, Mapping) else [code]
    for name in (config.get("processor_class", _CLASS), *classes):
        class_name = str(name).rpartition("--")[2].rpartition(".")[2]
        if class_name != _CLASS:
            raise DataError(
                f"{path}: requires the class {name!r}; code from a folder is never run",
                hint=_HINT,
                code="data.unsafe",
                details={"finding": "remote_code", "path": str(path), "class": str(name)},
            )


def _check_tokenizer(path: Path, size: int) -> str:
    """Text of a tokenizer.json; raises DataError unless it works like the published one."""
    text = _text(path)
    content = _mapping(path, text)
    model = content.get("model")
    if not isinstance(model, Mapping) or model.get("type") != "BPE":
        raise _fast_error(path, "model is not a byte-pair encoding")
    for key in ("normalizer", "truncation", "padding"):
        if content.get(key) is not None:
            raise _fast_error(path, f"{key} is set; it would change the coefficients")
    if content.get("added_tokens"):
        raise _fast_error(path, "added_tokens is not empty; only coefficients have ids")
    for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _fast_error(path, f"model.{key} is set; it would change the coefficients")
    if model.get("byte_fallback"):
        raise _fast_error(path, "model.byte_fallback is set")
    _check_bytes_level(path, content)
    _check_vocabulary(path, model, size)
    return text


def _check_bytes_level(path: Path, content: Mapping[str, Any]) -> None:
    for key, is_needed in (("pre_tokenizer", True), ("decoder", True), ("post_processor", False)):
        part = content.get(key)
        if part is None and not is_needed:
            continue
        if not isinstance(part, Mapping) or part.get("type") != "ByteLevel":
            raise _fast_error(path, f"{key} is not of the type ByteLevel")
    if content["pre_tokenizer"].get("add_prefix_space", True):
        raise _fast_error(path, "pre_tokenizer.add_prefix_space is set; it would add a coefficient")


def _check_vocabulary(path: Path, model: Mapping[str, Any], size: int) -> None:
    vocabulary = model.get("vocab")
    merges = model.get("merges")
    if not isinstance(vocabulary, Mapping) or not vocabulary or not isinstance(merges, list):
        raise _fast_error(path, "model.vocab or model.merges is missing")
    ids = list(vocabulary.values())
    if not all(_is_number(value, int) for value in ids) or len(set(ids)) < len(ids):
        raise _fast_error(path, "model.vocab has an id that is not an integer, or occurs twice")
    if min(ids) < 0 or max(ids) >= size:
        where = f"{PROCESSOR_NAME} says vocab_size {size}"
        raise _fast_error(path, f"model.vocab has ids from {min(ids)} to {max(ids)}; {where}")
    if not all(_is_merge(value) for value in merges):
        raise _fast_error(path, "model.merges has an entry that is not a pair of tokens")


def _is_merge(value: object) -> bool:
    """True for a pair of tokens, as a list or with a space between them."""
    if isinstance(value, str):
        return " " in value
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    )


def _is_number(value: object, kind: Any = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _read(path: Path) -> Mapping[str, Any]:
    return _mapping(path, _text(path))


def _text(path: Path) -> str:
    try:
        return read_document(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DataError.at(
            path,
            "does not exist",
            hint=f"{_HINT}{hub_hint(path.parent)}",
            code="data.no_source",
        ) from None
    except DocumentError as error:
        raise _fast_error(path, error.reason) from None


def _mapping(path: Path, text: str) -> Mapping[str, Any]:
    try:
        content = parse_json(text)
    except DocumentError as error:
        raise _fast_error(path, error.reason) from None
    if not isinstance(content, Mapping):
        raise _fast_error(path, "expected a JSON object")
    return content


_fast_error = partial(DataError.at, hint=_HINT, code="data.broken")


@dataclass(frozen=True)
class ChunkFile:
    """File with action chunks; picklable."""

    path: Path  # lines of windows, or a tar of samples
    # fields of a sample that are concatenated to an action; empty for windows
    fields: tuple[str, ...] = ()
    first: int = 0  # row of the anchor in a sample's arrays

    def __str__(self) -> str:
        return str(self.path)

    def read(self) -> Array:
        """Action chunks float32 [N, H, D]; row 0 of each is the action of the anchor."""
        chunks = list(self._samples() if self.fields else self._windows())
        if not chunks:
            return np.zeros((0, 0, 0), np.float32)
        shapes = {chunk.shape for chunk in chunks}
        if len(shapes) > 1:
            raise _chunks_error(self.path, f"has chunks of the shapes {sorted(shapes)}")
        stacked = np.stack(chunks)
        if not np.isfinite(stacked).all():
            index = int(np.argwhere(~np.isfinite(stacked))[0][0])
            raise _chunks_error(self.path, f"chunk {index} has an action that is not finite")
        return stacked

    def _windows(self) -> Iterator[Array]:
        """One chunk per step: a step may have two lines, one of each kind."""
        previous: windows_layout.Window | None = None
        for window in windows_layout.read_windows(self.path):
            if (
                previous is None
                or window.images != previous.images
                or window.kind == previous.kind
                or window.actions != previous.actions
            ):
                with np.errstate(over="ignore"):  # `read` raises on infinity
                    chunk = np.array(window.actions, np.float32)
                yield chunk
            previous = window

    def _samples(self) -> Iterator[Array]:
        with open_shard(self.path) as tar:
            for key in tar.keys:
                with tar.reading(key) as sample:
                    arrays = sample.arrays(list(self.fields))
                    columns = [arrays[name].reshape(len(arrays[name]), -1) for name in self.fields]
                    chunk = np.concatenate(columns, axis=1).astype(np.float32)[self.first :]
                yield chunk
            if tar.damage:
                raise _chunks_error(self.path, tar.damage)


@dataclass(frozen=True)
class ChunkSource:
    """Files with action chunks."""

    files: tuple[ChunkFile, ...]  # in order
    fields: tuple[str, ...] = ()  # fields that are concatenated to an action; empty for windows
    names: tuple[str, ...] = ()  # names of the D dimensions in the data; empty if there are none
    is_relative: bool = False  # True for windows with poses relative to those at their anchors


def find_chunks(folder: Path, fields: Sequence[str] = ()) -> ChunkSource:
    """Action chunks in a folder of training data, at any location."""
    lines = windows_layout.lines_files(folder)
    if lines:
        return _of_windows(folder, lines, fields)
    shards = ShardFolder.find(folder)
    if shards is None:
        raise other_contents_error(
            folder,
            "windows or shards of samples",
            "write them with `vlatool preprocess SOURCE --output DIR`",
            "data.no_samples",
        ) or DataError.at(
            folder,
            f"no action chunks here: neither {windows_layout.DATA_NAME}/*{LINES_SUFFIX} nor shards",
            hint="give a folder that `vlatool preprocess` wrote",
            code="data.no_samples",
        )
    return _of_shards(shards, fields)


def _of_shards(shards: ShardFolder, fields: Sequence[str]) -> ChunkSource:
    options = shards.options()
    action_fields = tuple(fields) or _recorded_fields(options)
    if not action_fields:
        raise UsageError(
            f"{shards.path}: does not record the action fields",
            hint="add --action-fields FIELD,FIELD; `vlatool inspect` shows the fields",
            code="usage.unsupported",
        )
    past = options.get("past_lowdim_steps")
    first = past if isinstance(past, int) and past >= 0 else 0
    files: list[ChunkFile] = []
    for shard in shards.shards():
        if shard.size:
            files.append(ChunkFile(shard.location, action_fields, first))
    recorded = recorded_names(options)
    names: list[str] = []
    for field in action_fields:
        names += [f"{field}.{name}" for name in recorded.get(field, ())]
    is_whole = all(field in recorded for field in action_fields) and len(set(names)) == len(names)
    return ChunkSource(tuple(files), action_fields, tuple(names) if is_whole else ())


def _of_windows(folder: Path, lines: Sequence[Path], fields: Sequence[str]) -> ChunkSource:
    manifest = windows_layout.read_manifest(folder)
    record = read_valid_record(folder)
    if manifest is None and record is not None and not record.is_download:
        raise record.no_manifest_error(folder)
    recorded: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    is_relative = False
    if manifest is not None:
        recorded = manifest.action_fields
        names = manifest.action_names
        is_relative = bool(manifest.relative_dimensions)
    if fields and tuple(fields) != recorded:
        raise UsageError(
            f"{folder}: actions of windows are made of {', '.join(recorded) or 'unknown fields'}",
            hint="leave --action-fields out, or choose them with `vlatool preprocess`",
            code="usage.unsupported",
        )
    files = tuple(ChunkFile(path) for path in lines)
    return ChunkSource(files, names=names, is_relative=is_relative)


def _recorded_fields(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Action fields that shards were made with, poses absolute where the format names them."""
    stored = tuple(map(str, listed(options, "action_fields")))
    published = tuple(map(str, listed(options, "action_key_fields")))
    absolute = {name.removesuffix(SUFFIX) for name in stored}
    if not stored or absolute == {*published}:
        return published
    return stored


_chunks_error = partial(
    DataError.at,
    hint="write the folder again with `vlatool preprocess`, or copy it again",
    code="data.broken",
)
