"""Atomic files and folders on disk and in S3: they get their final name when they are complete."""

import ctypes
import errno
import glob
import io
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from vlatool.errors import EnvironmentProblem, StorageError
from vlatool.storage.crash_points import crash_point
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.writer import abort_uploads, delete_below, open_upload, upload_folder

_NO_RENAME = (
    "this disk cannot rename files, such as a mounted bucket: give the bucket itself (--output "
    "s3://BUCKET/NAME), or another folder"
)
_HINTS = {
    errno.ENOSPC: "free space there, or raise your quota, then run the same command again",
    errno.EDQUOT: "your quota there is used up: free space or raise it, then run the same command "
    "again",
    errno.ENOSYS: _NO_RENAME,
    errno.EOPNOTSUPP: _NO_RENAME,
    errno.EACCES: "make it writable or choose another folder, then run the same command again",
    errno.EPERM: "make it writable or choose another folder, then run the same command again",
    errno.EROFS: "choose a writable folder, then run the same command again",
    errno.EFBIG: "choose a file system that supports files of this size, then run the same command"
    " again",
}
_ANY_HINT = "check free space and permissions, then run the same command again"

# File systems that cannot sync a folder do not need it.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
_COPIED_AT_ONCE = 4 * 2**20
_MANY = 50  # files of a folder
# Names of temporary files written here. Other programs may have other hidden files.
_PARTIAL = re.compile(r"\..+\.(\d+)(-[0-9a-f]+)?\.partial")

_NO_LIST_OF_UPLOADS = ("storage.forbidden", "storage.unsupported", "environment.credentials")

_LOGGER = logging.getLogger(__name__)


@contextmanager
def open_atomic(path: Path, *, synced: bool = True) -> Generator[IO[bytes]]:
    """Opens a binary file that is renamed to `path` if the block ends normally, else removed.

    In S3, large files are uploaded while they are written, and seeking is not possible.
    """
    if isinstance(path, RemotePath):
        with open_upload(path.address) as file:
            yield file
        return
    with _renamed(path, synced=synced) as partial:
        with as_storage_error(path), crash_point("create", path):
            file = io.BufferedWriter(_created(partial, path))
        with file:
            yield file
            with as_storage_error(path):
                file.flush()
                if synced:
                    with crash_point("sync", path):
                        os.fsync(file.fileno())


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yields a path for a library that writes a local file.

    The file is renamed to `path` if the block ends normally, else removed.
    """
    with _renamed(path) as partial:
        with as_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with as_storage_error(path):
            partial.chmod(path.parent.stat().st_mode & 0o666)  # some libraries write 0600
            sync_path(partial)


@contextmanager
def _renamed(path: Path, *, synced: bool = True) -> Generator[Path]:
    """Yields the temporary name of a file, which is renamed if the block ends normally."""
    partial = _partial_of(path)
    try:
        yield partial
        with as_storage_error(path):
            with crash_point("rename", path):
                partial.replace(path)
            if synced:
                sync_folder(path.parent)
    finally:
        with suppress(OSError):  # it is renamed, or the folder is missing
            partial.unlink(missing_ok=True)


def _partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


def _created(partial: Path, path: Path) -> "GuardedFile":
    try:
        return GuardedFile(partial, path)
    except FileNotFoundError:  # most folders exist
        path.parent.mkdir(parents=True, exist_ok=True)
        return GuardedFile(partial, path)


def write_bytes(path: Path, data: bytes | bytearray, *, synced: bool = True) -> None:
    """Writes a file atomically."""
    with open_atomic(path, synced=synced) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Writes strict JSON (no NaN or infinity) atomically, with a newline at the end."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def copy_file(source: Path, target: Path, check: Callable[[], None] = lambda: None) -> int:
    """Copies a local file atomically to any location; returns its size; `target`: its copy;
    `check`: called after each block; what it raises ends the copy, which is then not visible.
    """
    with source.open("rb") as file, open_atomic(target) as copy:
        while block := file.read(_COPIED_AT_ONCE):
            copy.write(block)
            check()
        return copy.tell()


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """Creates a local folder that becomes `path` if the block ends normally, else is removed.

    On disk, files are synced before the folder is renamed. In S3, files appear one by one in the
    order in which they were written: write the file that marks the folder as complete last. An
    existing `path` is replaced.
    """
    if isinstance(path, RemotePath):
        with _staging(path) as folder:
            yield folder
        return
    partial = _partial_of(path)
    try:
        with as_storage_error(path), crash_point("create", path):
            partial.mkdir(parents=True)
        with as_storage_error(path, below=partial):
            yield partial
        with as_storage_error(path):
            with crash_point("sync", path):
                _sync_all(partial)
            if path.exists():
                remove_tree(path)
            with crash_point("rename", path):
                partial.rename(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(
    folder: Path, *, below: bool = True, spared: Callable[[], Sequence[str]] = tuple
) -> None:
    """Removes temporary files and unfinished S3 uploads that killed runs left.

    Uploads with one of the relative prefixes that `spared` returns stay.
    """
    if isinstance(folder, RemotePath):
        try:
            abort_uploads(folder.address, spared)
        except (StorageError, EnvironmentProblem) as error:
            # Listing uploads needs a separate permission, and some servers do not support it. Parts
            # that remain are invisible and only take space.
            if error.code not in _NO_LIST_OF_UPLOADS:
                raise
            _LOGGER.warning("%s; unfinished uploads are not removed", error.message)
        return
    for unfinished in list(folder.rglob(".*.partial") if below else folder.glob(".*.partial")):
        if _PARTIAL.fullmatch(unfinished.name):
            with crash_point("remove", unfinished):
                if unfinished.is_dir():
                    shutil.rmtree(unfinished, ignore_errors=True)
                else:
                    unfinished.unlink(missing_ok=True)


def remove_partials_of(path: Path) -> None:
    """Removes temporary files that killed writers of one local file left next to it.

    Keeps files of writers that still run. For files outside of outputs (outputs have a lock).
    """
    if isinstance(path, RemotePath):
        return
    for unfinished in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        match = _PARTIAL.fullmatch(unfinished.name)
        if match is not None and not _is_running(int(match[1])):
            remove_file(unfinished)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # process of another user, or no valid process id
        pass
    return True


def remove_tree(path: Path) -> None:
    """Removes a folder with its content, if it exists."""
    if isinstance(path, RemotePath):
        delete_below(path.address)
        return
    removing = crash_point("remove", path, lambda: _remove_some_files(path))
    with as_storage_error(path, "removed"), suppress(FileNotFoundError), removing:
        shutil.rmtree(path)


def remove_atomically(folder: Path) -> None:
    """Removes a local folder; an interrupted removal leaves nothing under its name."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    with as_storage_error(folder, "removed"), crash_point("rename", folder):
        folder.rename(hidden)
    remove_tree(hidden)


def remove_empty(folder: Path) -> None:
    """Removes a local folder and its subfolders where they are empty; S3 has no empty folders."""
    if isinstance(folder, RemotePath):
        return
    for path, _, _ in sorted(os.walk(folder), reverse=True):
        with suppress(OSError), crash_point("remove", path):  # not empty
            Path(path).rmdir()


def remove_file(path: Path) -> None:
    """Removes a file, if it exists."""
    with as_storage_error(path, "removed"), crash_point("remove", path):
        path.unlink(missing_ok=True)


class GuardedFile(io.FileIO):
    """File that raises write errors as `StorageError` with the final path.

    The conversion is done here and not around the block of the caller, because the block may raise
    errors with other causes, such as a missing input.
    """

    def __init__(self, partial: Path, path: Path) -> None:
        super().__init__(partial, "w")
        self._path = path

    def write(self, data: Any, /) -> int:
        with (
            as_storage_error(self._path),
            crash_point("write", self._path, lambda: self._write_half(data)),
        ):
            return super().write(data)

    def _write_half(self, data: Any) -> None:
        super().write(memoryview(data).cast("B")[: len(data) // 2])


@contextmanager
def as_storage_error(
    path: Path, verb: str = "written", *, below: Path | None = None
) -> Generator[None]:
    """Converts `OSError` of the block to `StorageError`; errors of files outside `below` pass."""
    try:
        yield
    except OSError as error:
        file = None if error.filename is None else Path(os.fsdecode(error.filename))
        if below is not None and file is not None and not file.is_relative_to(below):
            raise
        raise StorageError.at(
            path,
            f"cannot be {verb}: {error.strerror or error}",
            hint=_HINTS.get(error.errno or 0, _ANY_HINT),
            code="storage.write",
        ) from error


@contextmanager
def _staging(path: RemotePath) -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="vlatool-") as temporary:
        folder = Path(temporary) / path.name
        with as_storage_error(path):
            folder.mkdir()
        with as_storage_error(path, below=folder):
            yield folder
        with as_storage_error(path):
            upload_folder(folder, path.address)


def _sync_all(folder: Path) -> None:
    """Syncs the content of a folder; its files get the read and write permissions of the folder.

    Many files are synced by one call if the system has `syncfs`, which waits for other files, too.
    """
    mode = folder.stat().st_mode & 0o666
    paths = [folder, *sorted(folder.rglob("*"))]
    for path in paths:
        if path.is_file():
            path.chmod(mode)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if len(paths) < _MANY or _syncfs()(descriptor):
            for path in paths:
                sync_path(path)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Syncs the entries of a folder to the disk."""
    with crash_point("sync", folder):
        try:
            sync_path(folder)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise


def sync_path(path: Path) -> None:
    """Syncs a file or the entries of a folder; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_some_files(folder: Path) -> None:
    """Removes half of the files, as a removal that is interrupted would (for crash tests)."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    for file in files[: -(-len(files) // 2)]:
        file.unlink()


@cache
def _syncfs() -> Callable[[int], int]:
    """Function `syncfs` of the system, which returns 0 on success; else one that returns -1."""
    return getattr(ctypes.CDLL(None), "syncfs", None) or (lambda _: -1)
