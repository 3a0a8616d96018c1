"""Files that are under their final name only when whole."""

import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vlatool.errors import StorageError


@contextmanager
def open_atomic(path: Path) -> Generator[IO[bytes]]:
    """A binary file that appears as `path` when the block ends normally, else not at all.

    Raises:
        StorageError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="check free space and permissions, then run the same command again",
            code="storage.write",
            details={"path": str(path)},
        ) from error
    finally:
        with suppress(OSError):  # there may be no folder; the error above is the one to tell
            partial.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file atomically."""
    with open_atomic(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes a whole UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Writes strict JSON (no NaN or infinity) atomically, with a newline at the end."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """A folder that appears as `path` when the block ends normally, else not at all.

    Files are synced to disk before the rename; an existing `path` is replaced.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                _sync(file)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="check free space and permissions, then run the same command again",
            code="storage.write",
            details={"path": str(path)},
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Removes what killed runs left under temporary names in `folder` and below."""
    for partial in folder.rglob(".*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
