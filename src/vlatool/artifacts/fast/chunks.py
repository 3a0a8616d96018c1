"""Action chunks of training data on disk: raw windows, or shards of samples.

Legend of shapes: N chunks, H steps, D action dimensions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.artifacts.base import other_contents_error
from vlatool.artifacts.fields import recorded_names
from vlatool.artifacts.lines import LINES_SUFFIX
from vlatool.artifacts.shards.format import ShardFolder
from vlatool.artifacts.tar import open_shard
from vlatool.artifacts.windows.format import (
    DATA_NAME,
    Window,
    lines_files,
    read_manifest,
    read_windows,
)
from vlatool.episode import Array
from vlatool.errors import DataError, UsageError
from vlatool.jobs.record import read_valid_record
from vlatool.transforms.relative import SUFFIX


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
        shapes = {chunk.shape for chunk in chunks}
        if len(shapes) > 1:
            raise _chunks_error(self.path, f"has chunks of the shapes {sorted(shapes)}")
        stacked = np.stack(chunks) if chunks else np.zeros((0, 0, 0), np.float32)
        if not np.isfinite(stacked).all():
            index = int(np.argwhere(~np.isfinite(stacked))[0][0])
            raise _chunks_error(self.path, f"chunk {index} has an action that is not finite")
        return stacked

    def _windows(self) -> Iterator[Array]:
        """One chunk per step: a step may have two lines, one of each kind."""
        previous: Window | None = None
        for window in read_windows(self.path):
            if (
                previous is None
                or window.images != previous.images
                or not _is_pair(window, previous)
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
                    chunk = _concatenate([arrays[name] for name in self.fields])[self.first :]
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
    lines = lines_files(folder)
    if lines:
        return _of_windows(folder, lines, fields)
    shards = ShardFolder.find(folder)
    if shards is None:
        raise other_contents_error(
            folder,
            "windows or shards of samples",
            "write them with `vlatool preprocess SOURCE --output DIR`",
            "data.no_chunks",
        ) or DataError.at(
            folder,
            f"no action chunks here: neither {DATA_NAME}/*{LINES_SUFFIX} nor shards",
            hint="give a folder that `vlatool preprocess` wrote",
            code="data.no_chunks",
        )
    return _of_shards(shards, fields)


def _of_windows(folder: Path, lines: Sequence[Path], fields: Sequence[str]) -> ChunkSource:
    manifest, record = read_manifest(folder), read_valid_record(folder)
    if manifest is None and record is not None and not record.is_download:
        raise record.no_manifest_error(folder)
    recorded = () if manifest is None else manifest.action_fields
    if fields and tuple(fields) != recorded:
        raise UsageError(
            f"{folder}: actions of windows are made of {', '.join(recorded) or 'unknown fields'}",
            hint="leave --action-fields out, or choose them with `vlatool preprocess`",
            code="usage.action_fields",
        )
    names = () if manifest is None else manifest.action_names
    is_relative = manifest is not None and bool(manifest.relative_dimensions)
    files = tuple(ChunkFile(path) for path in lines)
    return ChunkSource(files, names=names, is_relative=is_relative)


def _of_shards(shards: ShardFolder, fields: Sequence[str]) -> ChunkSource:
    options = shards.options()
    chosen = tuple(fields) or _recorded_fields(options)
    if not chosen:
        raise UsageError(
            f"{shards.path}: does not record the action fields",
            hint="add --action-fields FIELD,FIELD; `vlatool inspect` shows the fields",
            code="usage.action_fields",
        )
    past = options.get("past_lowdim_steps")
    first = past if isinstance(past, int) and past >= 0 else 0
    files = (
        ChunkFile(shard.path, chosen, first) for shard in shards.shards() if shard.num_sequences
    )
    recorded = recorded_names(options)
    names = [f"{field}.{name}" for field in chosen for name in recorded.get(field, ())]
    is_whole = all(field in recorded for field in chosen) and len(set(names)) == len(names)
    return ChunkSource(tuple(files), chosen, tuple(names) if is_whole else ())


def _recorded_fields(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Action fields that shards were made with, poses absolute where the format names them."""
    stored, published = (
        tuple(map(str, names)) if isinstance(names := options.get(key), list) else ()
        for key in ("action_fields", "action_key_fields")
    )
    absolute = {name.removesuffix(SUFFIX) for name in stored}
    return published if not stored or absolute == {*published} else stored


def _is_pair(window: Window, previous: Window) -> bool:
    """True if a line is of the other kind and the same step."""
    return window.kind != previous.kind and window.actions == previous.actions


def _concatenate(arrays: Sequence[Array]) -> Array:
    columns = [array.reshape(len(array), -1) for array in arrays]
    return np.concatenate(columns, axis=1).astype(np.float32)


_chunks_error = partial(
    DataError.at,
    hint="write the folder again with `vlatool preprocess`, or copy it again",
    code="data.broken_window",
)
