"""Checkpoint folder: weights, trainer state, and the manifest of both.

Frozen weights are the same in all checkpoints of a run. They are stored once, in the folder that
holds the checkpoint folders, in a file whose name has their digest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry
from vlatool.storage.atomic import write_json
from vlatool.storage.background import in_parallel
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.documents import parse_json, read_json
from vlatool.storage.manifest import Count, parse_values
from vlatool.storage.tree import sha256_of

MODEL = "model.safetensors"
EMA = "ema.safetensors"
TRAINER = "trainer.pt"
MANIFEST = "manifest.json"
WEIGHTS_SUFFIX = ".safetensors"
# Key of the metadata of a weights file: name of the file with the frozen weights of the part.
FROZEN = "frozen"
_METADATA = "__metadata__"
_EMA_SUFFIX = ".ema.safetensors"
# Digits of the digest in the name of a file of frozen weights.
_NAME_DIGITS = 16
# Part without a prefix in the names of its files.
_MAIN_PART = "model"
# Limit of the safetensors library.
_MAX_HEADER_BYTES = 100_000_000
_STEP = "step_"
# Number of files that are digested in parallel.
_DIGESTS_AT_ONCE = 4
# Key of checkpoints at steps that were not planned.
_STOPPED = "stopped"
# Key of the files of frozen weights.
_BESIDE = "beside"


@dataclass(frozen=True)
class _Row:
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class _Content:
    step: Count
    samples: Count
    files: Mapping[str, _Row]
    stopped: bool = False
    beside: Mapping[str, _Row] = field(default_factory=dict[str, _Row])


@dataclass(frozen=True)
class CheckpointManifest:
    """Content of manifest.json, which is written last and marks a checkpoint as complete."""

    step: int  # number of optimizer steps
    samples: int  # number of consumed positions of the data order
    # map from name to size and digest of every other file of the folder
    files: Mapping[str, FileEntry]
    # True if the checkpoint is not one of the plan: it was written because the run was stopped, or
    # by the clock
    stopped: bool = False
    # map from name to size and digest of the files of frozen weights, which are next to the folder
    beside: Mapping[str, FileEntry] = field(default_factory=dict[str, FileEntry])

    @classmethod
    def of(
        cls,
        folder: Path,
        step: int,
        samples: int,
        *,
        stopped: bool = False,
        beside: Mapping[str, FileEntry] | None = None,
    ) -> "CheckpointManifest":
        """Manifest of the files in a folder, and of given files next to it."""
        files: dict[str, FileEntry] = {}
        for file in sorted(folder.iterdir()):
            if file.name != MANIFEST:
                files[file.name] = FileEntry(file.name, file.stat().st_size, sha256_of(file))
        return cls(step, samples, files, stopped, beside or {})

    def write(self, folder: Path) -> None:
        document: dict[str, Any] = {"step": self.step, "samples": self.samples}
        if self.stopped:
            document[_STOPPED] = True
        document["files"] = _rows(self.files)
        if self.beside:
            document[_BESIDE] = _rows(self.beside)
        write_json(folder / MANIFEST, document)

    @classmethod
    def read(cls, folder: Path) -> "CheckpointManifest":
        """Manifest of a checkpoint; raises DataError if it is missing or damaged."""
        path = folder / MANIFEST
        try:
            content = parse_values(_Content, read_json(path))
            for name in (*content.files, *content.beside):
                if "/" in name or name in ("", ".."):
                    raise ValueError(f"names {name!r}")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise checkpoint_error(path, f"not the manifest of a checkpoint: {reason}") from None
        files = _entries(content.files)
        return cls(content.step, content.samples, files, content.stopped, _entries(content.beside))

    def paths(self, folder: Path, names: Sequence[str] | None = None) -> list[Path]:
        """Paths of files of the checkpoint, and of the frozen weights next to it.

        `names`: names of files in the folder; None: those that inference needs, which are all but
        the trainer state.
        """
        if names is None:
            names = [name for name in self.files if name != TRAINER]
        paths = [folder / name for name in names]
        paths += [frozen_path(folder, name) for name in self.beside]
        return paths

    def check(self, folder: Path, names: Sequence[str] | None = None) -> None:
        """Checks that the files of the checkpoint are unchanged; reads all of them.

        `names`: files to check, with the frozen weights; None for all; empty: only the step.

        About 1.5 GB/s per core from memory, else limited by the disk.
        """
        named = checkpoint_step(folder.name)
        if named not in (None, self.step):
            raise checkpoint_error(
                folder / MANIFEST, f"is of step {self.step}, its folder of step {named}"
            )

        def problem(file: Path) -> str:
            entry = self.files.get(file.name) or self.beside[file.name]
            try:
                size = file.stat().st_size
                if size != entry.bytes:
                    return f"has {size} bytes, expected {entry.bytes} ({MANIFEST})"
                is_same = sha256_of(file) == entry.sha256
            except OSError as error:
                return f"cannot be read: {error.strerror or error}"
            return "" if is_same else f"does not match its digest in {MANIFEST}"

        chosen = list(self.files) if names is None else names
        paths = self.paths(folder, chosen) if chosen else []
        problems = in_parallel(problem, paths, _DIGESTS_AT_ONCE)
        for path, reason in zip(paths, problems, strict=True):
            if reason:
                raise checkpoint_error(path, reason)


def _rows(entries: Mapping[str, FileEntry]) -> dict[str, Any]:
    return {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in entries.items()}


def _entries(rows: Mapping[str, _Row]) -> dict[str, FileEntry]:
    return {name: FileEntry(name, row.bytes, row.sha256) for name, row in rows.items()}


def checkpoint_error(path: Path, problem: str) -> DataError:
    """Error for a missing or damaged file of a checkpoint."""
    hint = (
        "copy the checkpoint again, or use an earlier one: if this folder is removed, the run "
        "resumes from the checkpoint before it"
    )
    if path.name.startswith(f"{FROZEN}_"):
        hint = f"copy {path.name} again; all checkpoints of the run need it"
    return DataError.at(path, problem, hint=hint, code="data.broken")


def part_weights(part: str, *, averaged: bool = False) -> str:
    """File name of a part's weights; for `model` model.safetensors and ema.safetensors."""
    if part == _MAIN_PART:
        return EMA if averaged else MODEL
    return part + (_EMA_SUFFIX if averaged else WEIGHTS_SUFFIX)


def frozen_weights(digest: str) -> str:
    """File name of frozen weights with a digest of their tensors."""
    return f"{FROZEN}_{digest[:_NAME_DIGITS]}{WEIGHTS_SUFFIX}"


def frozen_path(folder: Path, name: str) -> Path:
    """Path of frozen weights: in a folder if they were copied there, else next to it."""
    copied = folder / name
    return copied if copied.is_file() else folder.parent / name


def is_checkpoint(location: Path) -> bool:
    """True if a folder looks like a checkpoint, damaged or not."""
    has_manifest = (location / MANIFEST).is_file()
    has_weights = (location / MODEL).is_file()
    if has_manifest and has_weights:
        return True
    return (has_manifest or has_weights) and checkpoint_step(location.name) is not None


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"{_STEP}{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """Step in the folder name of a checkpoint; None for another name."""
    digits = name.removeprefix(_STEP)
    return int(digits) if digits.isdecimal() and digits != name else None


@dataclass(frozen=True)
class WeightsInfo:
    """Counts from the header of a safetensors file; dtypes by their names there (`F32`)."""

    parameters: int
    tensors: int
    dtypes: tuple[str, ...]

    def __add__(self, other: "WeightsInfo") -> "WeightsInfo":
        dtypes = tuple(sorted({*self.dtypes, *other.dtypes}))
        return WeightsInfo(self.parameters + other.parameters, self.tensors + other.tensors, dtypes)


def read_weights_header(path: Path) -> WeightsInfo:
    """Counts of the parameters of a safetensors file; only the header is read.

    The file starts with the length of a JSON header, 8 bytes, little endian. Source: formats/runs
    6.
    """
    return _read_header(path)[0]


def read_part_header(path: Path) -> WeightsInfo:
    """Counts of a part: of its weights file, and of the frozen weights that the file names."""
    info, frozen = _read_header(path)
    if frozen:
        info += read_weights_header(frozen_path(path.parent, frozen))
    return info


def _read_header(path: Path) -> tuple[WeightsInfo, str]:
    """Counts, and the name of the file of frozen weights; empty if there is none."""
    parameters = 0
    tensors = 0
    dtypes: set[str] = set()
    ends: list[int] = []  # of the tensors, after the header
    try:
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = parse_json(file.read(length))
        frozen = str(header.pop(_METADATA, {}).get(FROZEN, ""))
        for tensor in header.values():
            tensors += 1
            parameters += math.prod(map(int, tensor["shape"]))
            dtypes.add(str(tensor.get("dtype")))
            ends.append(int(tensor["data_offsets"][1]))
        end = max(ends, default=0)
        size = path.stat().st_size
        if size != 8 + length + end:
            raise ValueError(f"{size} bytes, the header says {8 + length + end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError.at(
            path,
            f"weights cannot be read: {error}",
            hint="use another checkpoint of the run",
            code="data.broken",
            finding="broken_weights",
        ) from None
    return WeightsInfo(parameters, tensors, tuple(sorted(dtypes))), frozen
