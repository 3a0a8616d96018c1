"""Cache folder shared by processes: copies of remote files, and values computed from them."""

import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from vlatool.errors import StorageError
from vlatool.storage.atomic import atomic_folder, open_atomic, write_bytes
from vlatool.storage.background import in_parallel
from vlatool.storage.byte_ranges import open_file, read_file
from vlatool.storage.remote import find_object
from vlatool.storage.remote_path import RemotePath

_COPY_SUFFIX = ".copy"
_FOLDER_SUFFIX = ".folder"
_CHUNK_SIZE = 1 << 20
_MAX_CONCURRENT = 8
_LOCKS = 256
_KEYS = "XDG_CACHE_HOME, or for training data.dataset_cache.cache_dir,"
# Another process may remove a copy between its creation and its opening.
_ATTEMPTS = 3
# Partial copies that were not written to for this time belong to killed processes.
_ABANDONED_S = 3600.0
# Folders that were not requested for this time are removed.
_UNUSED_S = 30 * 86400.0
# Version of files whose server names none: copies count within this process and its children.
_UNVERSIONED = secrets.token_hex(8)

_LOGGER = logging.getLogger(__name__)


def default_cache_folder() -> Path:
    """Folder `vlatool` in the user's cache folder (XDG_CACHE_HOME, else `~/.cache`), or one in the
    temporary folder where that cannot be written, such as in a container without a home.
    """
    text = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    folder = Path(text) / "vlatool"
    for parent in (folder, *folder.parents):
        if os.path.exists(parent):
            is_writable = os.path.isdir(parent) and os.access(parent, os.W_OK)
            is_known = not text.startswith("~")  # the user has a home
            return folder if is_writable and is_known else _temporary_cache(folder)
    return folder


@cache
def _temporary_cache(unwritable: Path) -> Path:
    """Folder of this user in the temporary folder; warns once in a process."""
    folder = Path(tempfile.gettempdir()) / f"vlatool-cache-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise StorageError.at(
            folder,
            "is not a folder of this user, so it cannot be the cache",
            hint=f"set {_KEYS} to a folder that can be written",
            code="storage.write",
        )
    message = "the cache %s cannot be written, so it is in %s: set %s to another folder"
    _LOGGER.warning(message, unwritable, folder, _KEYS)
    return folder


def local_copy(folder: Path, names: Sequence[str]) -> Path:
    """Local folder with files of a folder of any scheme: a copy in the cache if it is remote."""
    if not isinstance(folder, RemotePath):
        return folder
    return FileCache(default_cache_folder()).local_copy(folder, names)


@dataclass(frozen=True)
class FileVersion:
    """Version of a remote file; each version has its own name in the cache."""

    path: Path  # location of the file
    size: int  # size in bytes
    tag: str  # ETag or time of modification, which changes with the content

    @classmethod
    def of(cls, path: Path) -> "FileVersion":
        """Returns the current version, with one request."""
        if not isinstance(path, RemotePath):
            status = path.stat()
            return cls(path, status.st_size, str(status.st_mtime_ns))
        info = find_object(path.address)
        if info is None or info.is_dir:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return cls(path, info.size, info.etag or f"{info.modified or _UNVERSIONED}")

    @property
    def name(self) -> str:
        """Name of the version in the cache, without suffix."""
        text = f"{self.path} {self.size} {self.tag}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class FileCache:
    folder: Path  # local folder; created on the first write
    limit: int | None = None  # maximum number of bytes of copied files; None for no limit

    def get(self, file: FileVersion, suffix: str) -> bytes | None:
        """Cached value of a file; None if there is none."""
        return _read(self.folder / f"{file.name}{suffix}")

    def get_or_create(self, file: FileVersion, suffix: str, make: Callable[[], bytes]) -> bytes:
        """Cached value of a file; if there is none, one process creates it with `make`."""
        path = self.folder / f"{file.name}{suffix}"
        value = _read(path)
        if value is not None:
            return value
        with self._locked(file.name):
            value = _read(path)
            if value is None:
                value = make()
                write_bytes(path, value, synced=False)
        return value

    def open_copy(self, file: FileVersion) -> IO[bytes]:
        """Opens a local copy of a file; if there is none, one process downloads it.

        The least recently opened copies are removed when the cache is full.
        """
        path = self.folder / f"{file.name}{_COPY_SUFFIX}"
        for _ in range(_ATTEMPTS):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.utime(path)
                copy = path.open("rb", buffering=0)
                if os.fstat(copy.fileno()).st_size == file.size:
                    return copy
                copy.close()  # torn by a power cut: copies are not synced
                path.unlink(missing_ok=True)
            with self._locked(file.name):
                if not path.is_file():
                    self._make_room(file.size)
                    self._fetch(file, path)
        raise StorageError.at(
            path,
            "other processes remove this copy before it is opened",
            hint="raise data.dataset_cache.cache_size_gb",
            code="storage.unreadable",
        )

    def local_copy(self, folder: Path, names: Sequence[str]) -> Path:
        """Local folder with copies of remote files, for libraries that need local file names.

        `names`: file names relative to the folder.

        One folder is created for the current versions of the files. Folders that were not requested
        for 30 days are removed when another one is created.
        """
        files = list(
            in_parallel(FileVersion.of, [folder / name for name in names], _MAX_CONCURRENT)
        )
        name = hashlib.blake2b(digest_size=16)
        for file in files:
            name.update(file.name.encode())
        copy = self.folder / f"{name.hexdigest()}{_FOLDER_SUFFIX}"
        with self._locked(name.hexdigest()):
            if not copy.is_dir():
                self._remove_unused()
                with atomic_folder(copy) as partial:
                    for file, below in zip(files, names, strict=True):
                        self._fetch(file, partial / below)
            os.utime(copy)
        return copy

    def _remove_unused(self) -> None:
        now = time.time()
        for path in self.folder.glob(f"*{_FOLDER_SUFFIX}*"):  # partial folders too
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _UNUSED_S:
                    shutil.rmtree(path)

    def _fetch(self, file: FileVersion, path: Path) -> None:
        with open_file(file.path) as source, open_atomic(path, synced=False) as target:
            shutil.copyfileobj(source, target, _CHUNK_SIZE)
            now = FileVersion.of(file.path)
            if target.tell() != file.size or now != file:
                reason = f"received {target.tell()} bytes instead of {file.size}"
                raise StorageError.at(
                    file.path,
                    reason if target.tell() != file.size else "received another version",
                    hint="the file changed while it was read; run the same command again",
                    code="storage.changed",
                )

    def _make_room(self, size: int) -> None:
        """Removes old copies until `size` bytes fit; running downloads of others count."""
        if self.limit is None:
            return
        copies: list[tuple[int, int, Path]] = []
        downloading = 0
        for path in self.folder.glob(f"*{_COPY_SUFFIX}*"):
            with suppress(FileNotFoundError):  # removed by another process
                status = path.stat()
                if path.name.endswith(_COPY_SUFFIX):
                    copies.append((status.st_mtime_ns, status.st_size, path))
                elif time.time() - status.st_mtime > _ABANDONED_S:
                    path.unlink()
                else:
                    downloading += status.st_size
        used = downloading + sum(copy_size for _, copy_size, _ in copies)
        for _, copy_size, path in sorted(copies):
            if used + size <= self.limit:
                return
            path.unlink(missing_ok=True)
            used -= copy_size

    @contextmanager
    def _locked(self, name: str) -> Generator[None]:
        """Holds the lock of a name; 256 lock files are shared by all names."""
        path = self.folder / f".{int(name, 16) % _LOCKS:02x}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError as error:
            raise StorageError.at(
                self.folder,
                f"the cache cannot be written: {error.strerror}",
                hint=f"set {_KEYS} to a folder that can be written",
                code="storage.write",
            ) from None
        with file:
            with suppress(OSError):  # a disk without locks: several processes do the same work
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except OSError:
        return None
