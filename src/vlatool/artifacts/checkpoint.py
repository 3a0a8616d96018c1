"""A checkpoint folder: its files, the manifest that marks it complete, headers of its weights."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.errors import DataError
from vlatool.storage.atomic import write_json
from vlatool.storage.tree import sha256_of

MODEL = "model.safetensors"
EMA = "ema.safetensors"
TRAINER = "trainer.pt"
MANIFEST = "manifest.json"
WEIGHTS_SUFFIX = ".safetensors"
# The limit of the safetensors library itself.
_LARGEST_HEADER = 100_000_000
_STEP = "step_"


@dataclass(frozen=True)
class CheckpointFile:
    """A file of a checkpoint; the digest is hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CheckpointManifest:
    """manifest.json: written last, so that its presence marks a checkpoint complete.

    Attributes:
        facts: What else it says, such as `step` and `samples`.
        files: Name to size and digest of every other file of the folder.
    """

    facts: Mapping[str, Any]
    files: Mapping[str, CheckpointFile]

    @classmethod
    def of(cls, folder: Path, facts: Mapping[str, Any]) -> "CheckpointManifest":
        """Of the files that are in a folder."""
        files = {
            file.name: CheckpointFile(file.stat().st_size, sha256_of(file))
            for file in sorted(folder.iterdir())
            if file.name != MANIFEST
        }
        return cls(facts, files)

    def write(self, folder: Path) -> None:
        """Writes the file."""
        files = {name: asdict(file) for name, file in self.files.items()}
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
                str(name): CheckpointFile(int(one["bytes"]), str(one["sha256"]))
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
