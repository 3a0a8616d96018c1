"""Files that are under their final name only when whole, on disk and in S3."""

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
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vlatool.errors import StorageError
from vlatool.storage.crash_points import crash_point
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.writer import abort_uploads, delete_below, open_upload, upload_folder

_HINTS = {
    errno.ENOSPC: "free space there, then run the same command again",
    errno.EDQUOT: "free space there, then run the same command again",
    errno.EACCES: "make it writable or choose another place, then run the same command again",
    errno.EPERM: "make it writable or choose another place, then run the same command again",
    errno.EROFS: "choose a place that can be written, then run the same command again",
    errno.EFBIG: "choose a place that takes files of this size, then run the same command again",
}
_ANY_HINT = "check free space and permissions, then run the same command again"

# File systems that cannot sync a folder by itself have no need of it.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES)
# As the names below are made: others may have hidden files of their own.
_PARTIAL = re.compile(r"\..+\.(\d+)(-[0-9a-f]+)?\.partial")

_LOGGER = logging.getLogger(__name__)


@contextmanager
def open_atomic(path: Path, *, synced: bool = True) -> Generator[IO[bytes]]:
    """A binary file that appears as `path` when the block ends normally, else not at all.

    In S3 large files are sent while they are written; they cannot be sought in.

    Args:
        path: Its final name.
        synced: Whether it is on the disk when the block ends; without, a power cut may tear it.

    Raises:
        StorageError: The file cannot be written. Errors of the block that have other causes pass.
    """
    if isinstance(path, RemotePath):
        with open_upload(path.address) as file:
            yield file
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with as_storage_error(path), crash_point("create", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BufferedWriter(GuardedFile(partial, path))
        with file:
            yield file
            with as_storage_error(path):
                file.flush()
                if synced:
                    with crash_point("sync", path):
                        os.fsync(file.fileno())
        with as_storage_error(path):
            with crash_point("rename", path):
                partial.replace(path)
            if synced:
                sync_folder(path.parent)
    finally:
        with suppress(OSError):  # there may be no folder; the error above is the one to tell
            partial.unlink()


def write_bytes(path: Path, data: bytes, *, synced: bool = True) -> None:
    """Writes a whole file atomically."""
    with open_atomic(path, synced=synced) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Writes a whole UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Writes strict JSON (no NaN or infinity) atomically, with a newline at the end."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """A local folder whose content appears as `path` when the block ends normally, else not at all.

    On disk, files are synced before the folder is renamed. In S3, files appear one after the other
    in the order in which they were written, so that the one that marks a folder as complete has to
    be written last. An existing `path` is replaced.
    """
    if isinstance(path, RemotePath):
        with _staging(path) as folder:
            yield folder
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
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


def remove_partials(folder: Path, *, below: bool = True) -> None:
    """Removes what killed runs left under temporary names, or unfinished in S3, at and below.

    Args:
        folder: Where.
        below: Also in the folders below a local one.
    """
    if isinstance(folder, RemotePath):
        _remove_unfinished(folder)
        return
    for partial in list(folder.rglob(".*.partial") if below else folder.glob(".*.partial")):
        if _PARTIAL.fullmatch(partial.name):
            with crash_point("remove", partial):
                _remove(partial)


def remove_partials_of(path: Path) -> None:
    """Removes what killed writers of one local file left beside it; there may be others, who live.

    For files outside of outputs, which have a lock.
    """
    if isinstance(path, RemotePath):
        return
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        match = _PARTIAL.fullmatch(partial.name)
        if match is not None and not _is_running(int(match[1])):
            remove_file(partial)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        pass
    return True


def remove_tree(path: Path) -> None:
    """Removes a folder and everything below; one that is not there is fine.

    Raises:
        StorageError: Something cannot be removed.
    """
    if isinstance(path, RemotePath):
        delete_below(path.address)
        return
    removing = crash_point("remove", path, lambda: _remove_half(path))
    with as_storage_error(path, "removed"), suppress(FileNotFoundError), removing:
        shutil.rmtree(path)


def remove_atomically(folder: Path) -> None:
    """Removes a local folder at once: a removal that is cut short leaves nothing under its name.

    Raises:
        StorageError: It cannot be removed.
    """
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    with as_storage_error(folder, "removed"), crash_point("rename", folder):
        folder.rename(hidden)
    remove_tree(hidden)


def remove_empty(folder: Path) -> None:
    """Removes the empty folders at and below a local `folder`; S3 has none."""
    if isinstance(folder, RemotePath):
        return
    for path, _, _ in sorted(os.walk(folder), reverse=True):
        with suppress(OSError), crash_point("remove", path):  # not empty
            Path(path).rmdir()


def remove_file(path: Path) -> None:
    """Removes a file; one that is not there is fine.

    Raises:
        StorageError: It cannot be removed.
    """
    with as_storage_error(path, "removed"), crash_point("remove", path):
        path.unlink(missing_ok=True)


class GuardedFile(io.FileIO):
    """A file whose failures to write are told with its final path.

    Only here, so that an error of the block around it with another cause, such as an input that is
    missing, is not taken for one.
    """

    def __init__(self, partial: Path, path: Path) -> None:
        super().__init__(partial, "w")
        self._path = path

    def write(self, data: Any, /) -> int:
        """Writes like any file.

        Raises:
            StorageError: The disk is full, for example.
        """
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
    """Operating system errors as storage errors; those that name a file not `below` pass."""
    try:
        yield
    except OSError as error:
        named = None if error.filename is None else Path(os.fsdecode(error.filename))
        if below is not None and named is not None and not named.is_relative_to(below):
            raise
        raise StorageError(
            f"{path}: cannot be {verb}: {error.strerror or error}",
            hint=_HINTS.get(error.errno or 0, _ANY_HINT),
            code="storage.write",
            details={"path": str(path)},
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


def _remove_unfinished(folder: RemotePath) -> None:
    try:
        abort_uploads(folder.address)
    except StorageError as error:
        # Listing uploads is a permission of its own and some servers do not offer it; what stays
        # behind is invisible and costs space only.
        if error.code not in ("storage.forbidden", "storage.unsupported"):
            raise
        _LOGGER.warning("%s; unfinished uploads are left there", error.message)


def _sync_all(folder: Path) -> None:
    """Brings what is below to the disk, with the mode of all files that are not made private."""
    mode = folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(mode)
            _sync(path)
        elif path.is_dir():
            _sync(path)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    with crash_point("sync", folder):
        try:
            _sync(folder)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_half(folder: Path) -> None:
    """What a run that is ended while it removes a folder may have got done."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    for file in files[: -(-len(files) // 2)]:
        file.unlink()
