"""A run folder: configuration, metrics, checkpoints, and what evaluation needs beside them."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlatool.artifacts import provenance, stats
from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry
from vlatool.storage.atomic import write_json, write_text
from vlatool.storage.tree import sha256_of

MODEL = "model.safetensors"
EMA = "ema.safetensors"
TRAINER = "trainer.pt"
MANIFEST = "manifest.json"
WEIGHTS_SUFFIX = ".safetensors"
_EMA_SUFFIX = ".ema.safetensors"
# The part whose files have plain names.
_MAIN_PART = "model"
# The limit of the safetensors library itself.
_LARGEST_HEADER = 100_000_000
_STEP = "step_"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
LATEST = "latest.json"
CHECKPOINTS = "checkpoints"
PICTURES = "images"


@dataclass(frozen=True)
class CheckpointManifest:
    """manifest.json: written last, so that its presence marks a checkpoint complete.

    Attributes:
        facts: What else it says, such as `step` and `samples`.
        files: Name to size and digest of every other file of the folder.
    """

    facts: Mapping[str, Any]
    files: Mapping[str, FileEntry]

    @classmethod
    def of(cls, folder: Path, facts: Mapping[str, Any]) -> "CheckpointManifest":
        """Of the files that are in a folder."""
        files = {
            file.name: FileEntry(file.name, file.stat().st_size, sha256_of(file))
            for file in sorted(folder.iterdir())
            if file.name != MANIFEST
        }
        return cls(facts, files)

    def write(self, folder: Path) -> None:
        """Writes the file."""
        files = {
            name: {"bytes": one.bytes, "sha256": one.sha256} for name, one in self.files.items()
        }
        write_json(folder / MANIFEST, {**self.facts, "files": files})

    @classmethod
    def read(cls, folder: Path) -> "CheckpointManifest":
        """The manifest of a checkpoint.

        Raises:
            DataError: It is missing, no manifest, or names a file outside the folder.
        """
        path = folder / MANIFEST
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            files = {
                str(name): FileEntry(str(name), int(one["bytes"]), str(one["sha256"]))
                for name, one in facts.pop("files").items()
            }
            outside = [name for name in files if "/" in name or name in ("", "..")]
            if outside:
                raise ValueError(f"names {outside[0]!r}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: not the manifest of a checkpoint: {error}",
                hint="use another checkpoint of the run",
                code="data.broken_checkpoint",
                details={"path": str(path)},
            ) from None
        return cls(facts, files)


def part_weights(part: str, *, averaged: bool = False) -> str:
    """The file of a part's weights in a checkpoint: of `model` model.safetensors and ema.*."""
    if part == _MAIN_PART:
        return EMA if averaged else MODEL
    return f"{part}{_EMA_SUFFIX if averaged else WEIGHTS_SUFFIX}"


def is_checkpoint(location: Path) -> bool:
    """Whether a folder looks like a checkpoint, however damaged."""
    traces = [(location / name).is_file() for name in (MANIFEST, MODEL)]
    return all(traces) or (any(traces) and checkpoint_step(location.name) is not None)


def checkpoint_name(step: int) -> str:
    """The name of the checkpoint of a step."""
    return f"{_STEP}{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The step that the name of a checkpoint tells; None for another name."""
    digits = name.removeprefix(_STEP)
    return int(digits) if digits.isdecimal() and digits != name else None


@dataclass(frozen=True)
class WeightsFacts:
    """What the header of a safetensors file says; dtypes as it names them (`F32`)."""

    parameters: int
    tensors: int
    dtypes: tuple[str, ...]


def read_weights_header(path: Path) -> WeightsFacts:
    """Counts the parameters of a safetensors file without reading one.

    The file begins with the length of a JSON header, 8 bytes, little endian.
    Source: huggingface.co/docs/safetensors, format.

    Raises:
        DataError: It is missing, no safetensors file, or cut off.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        sizes = [math.prod(map(int, one["shape"])) for one in tensors.values()]
        end = 8 + length + max((int(one["data_offsets"][1]) for one in tensors.values()), default=0)
        if path.stat().st_size != end:
            raise ValueError(f"{path.stat().st_size} bytes, the header says {end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path}: weights cannot be read: {error}",
            hint="use another checkpoint of the run",
            code="data.broken_weights",
            details={"path": str(path)},
        ) from None
    dtypes = sorted({str(one.get("dtype")) for one in tensors.values()})
    return WeightsFacts(sum(sizes), len(sizes), tuple(dtypes))


class RunDir:
    """Paths in a run folder, and what its small files say.

    Attributes:
        root: The folder.
        config: The resolved, derived configuration.
        metrics: One JSON object per line.
        stats: Statistics of the fields that are used.
        options: How the first data set was preprocessed.
        latest_file: Names the newest checkpoint.
        checkpoints_folder: A folder per checkpoint.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / CONFIG
        self.metrics = root / METRICS
        self.stats = root / stats.NAME
        self.options = root / provenance.CONFIG_NAME
        self.latest_file = root / LATEST
        self.checkpoints_folder = root / CHECKPOINTS

    def checkpoint(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.checkpoints_folder / checkpoint_name(step)

    def picture(self, step: int, name: str) -> Path:
        """A sheet of pictures that was made at a step."""
        return self.root / PICTURES / f"{checkpoint_name(step)}_{name}.png"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every complete checkpoint, ascending."""
        whole = (one for one in self.checkpoint_folders() if (one / MANIFEST).is_file())
        steps = ((checkpoint_step(folder.name), folder) for folder in whole)
        return sorted((step, folder) for step, folder in steps if step is not None)

    def checkpoint_folders(self) -> list[Path]:
        """Folders of checkpoints, whole or not, by name; hidden ones are being written."""
        found = self.checkpoints_folder.iterdir() if self.checkpoints_folder.is_dir() else ()
        return sorted(one for one in found if one.is_dir() and not one.name.startswith("."))

    def latest(self) -> tuple[int, Path] | None:
        """The newest complete checkpoint."""
        found = self.checkpoints()
        return found[-1] if found else None

    def write_latest(self, step: int) -> None:
        """Names the newest checkpoint in latest.json."""
        name = str(self.checkpoint(step).relative_to(self.root))
        write_json(self.latest_file, {"checkpoint": name, "step": step})

    def read_latest(self) -> dict[str, Any]:
        """What latest.json says; empty where there is none.

        Raises:
            DataError: It is broken.
        """
        if not self.latest_file.exists():
            return {}
        try:
            content = json.loads(self.latest_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{self.latest_file}: {error}", code="data.broken_json") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.latest_file}: no JSON object", code="data.broken_json")
        return content

    def write_config(self, tree: Mapping[str, Any]) -> None:
        """Writes config.yaml."""
        write_text(self.config, yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True))

    def forget_progress(self) -> None:
        """Removes checkpoints and metrics of a run that is replaced."""
        for path in (self.config, self.latest_file, self.metrics):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints_folder, self.root / PICTURES):
            shutil.rmtree(folder, ignore_errors=True)

    def read_config(self) -> dict[str, Any] | None:
        """The tree of config.yaml; None where there is none."""
        with suppress(DataError):
            return self.config_tree()
        return None

    def config_tree(self) -> dict[str, Any]:
        """The tree of config.yaml.

        Raises:
            DataError: It is missing or broken.
        """
        try:
            content = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            raise DataError(f"{self.config}: {error}", code="data.broken_config") from None
        if not isinstance(content, dict):
            raise DataError(f"{self.config}: no mapping", code="data.broken_config")
        return content

    def truncate_metrics(self, last_step: int) -> None:
        """Forgets lines of steps after `last_step`, which are about to be done again."""
        if not self.metrics.is_file():
            return
        kept = [row for row in read_metrics(self.metrics) if row.get("step", 0) <= last_step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))


def is_run(location: Path) -> bool:
    """Whether a folder looks like a training run, however unfinished."""
    has_traces = any((location / name).exists() for name in (LATEST, METRICS, CHECKPOINTS))
    return has_traces and ((location / CONFIG).is_file() or (location / LATEST).is_file())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a line that a killed run cut off is left out."""
    return [row for row in scan_metrics(path) if row is not None]


def scan_metrics(path: Path) -> Iterator[dict[str, Any] | None]:
    """Each row of a metrics file, None for a line that is no JSON object."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield row if isinstance(row, dict) else None


def find_checkpoint(location: Path) -> tuple[RunDir, Path]:
    """The run and the checkpoint folder behind a run folder or a checkpoint folder.

    Raises:
        DataError: There is no checkpoint.
    """
    if (location / MANIFEST).is_file():
        return RunDir(location.parent.parent), location
    latest = RunDir(location).latest()
    if latest is None:
        raise DataError(
            f"{location}: no complete checkpoint here",
            hint="give a run folder of `vlatool train`, or one of its checkpoints/step_*",
            code="data.no_checkpoint",
            details={"path": str(location)},
        )
    return RunDir(location), latest[1]
