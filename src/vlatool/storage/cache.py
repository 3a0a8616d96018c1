"""Copies of remote files, and what was found out about them, in a folder that processes share."""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vlatool.errors import StorageError
from vlatool.storage.atomic import atomic_folder, open_atomic, write_bytes
from vlatool.storage.background import in_parallel
from vlatool.storage.remote import find_object
from vlatool.storage.remote_path import RemotePath

_COPY_SUFFIX = ".copy"
_FOLDER_SUFFIX = ".folder"
_PIECE = 1 << 20
_AT_ONCE = 8
_LOCKS = 256
# Another process may make room between a copy and its being opened.
_ATTEMPTS = 3
# What nobody wrote to for so long was left by a process that was killed.
_ABANDONED_S = 3600.0
# A folder that nobody asked for in so long makes room; its files are opened when they are needed.
_UNUSED_S = 30 * 86400.0


def default_cache_folder() -> Path:
    """`vlatool` in the user's cache folder, which XDG_CACHE_HOME names."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(folder)) / "vlatool"


@dataclass(frozen=True)
class FileVersion:
    """A remote file as it is now; another content has another name in the cache.

    Attributes:
        path: Where it is.
        size: Bytes.
        tag: Changes with the content, as far as the storage tells.
    """

    path: Path
    size: int
    tag: str

    @classmethod
    def of(cls, path: Path) -> "FileVersion":
        """One request; FileNotFoundError where there is no such file."""
        if not isinstance(path, RemotePath):
            status = path.stat()
            return cls(path, status.st_size, str(status.st_mtime_ns))
        info = find_object(path.address)
        if info is None or info.is_dir:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return cls(path, info.size, info.etag)

    @property
    def name(self) -> str:
        """A name for what is kept of it."""
        text = f"{self.path} {self.size} {self.tag}"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class FileCache:
    """A folder of copies.

    Attributes:
        folder: Local; made when it is first written to.
        limit: Most bytes of whole files; None for any number.
    """

    folder: Path
    limit: int | None = None

    def get(self, file: FileVersion, suffix: str) -> bytes | None:
        """What is known of a file, where somebody found it out before."""
        return _read(self.folder / f"{file.name}{suffix}")

    def get_or_create(self, file: FileVersion, suffix: str, make: Callable[[], bytes]) -> bytes:
        """What is known of a file; made by one process where nobody did so before."""
        path = self.folder / f"{file.name}{suffix}"
        known = _read(path)
        if known is not None:
            return known
        with self._locked(file.name):
            known = _read(path)
            if known is None:
                known = make()
                write_bytes(path, known, synced=False)
        return known

    def open_copy(self, file: FileVersion) -> IO[bytes]:
        """A whole file, fetched by one process where nobody did so before.

        Copies that were not opened for the longest time make room.

        Raises:
            FileNotFoundError: The remote file is gone.
            StorageError: The folder cannot be written.
        """
        path = self.folder / f"{file.name}{_COPY_SUFFIX}"
        for _ in range(_ATTEMPTS):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.utime(path)
                return path.open("rb", buffering=0)
            with self._locked(file.name):
                if not path.is_file():
                    self._make_room(file.size)
                    self._fetch(file, path)
        raise StorageError(
            f"{path}: is taken away as soon as it is there",
            hint="raise data.dataset_cache.cache_size_gb",
            code="storage.cache",
            details={"path": str(path)},
        )

    def local_copy(self, folder: Path, names: Sequence[str]) -> Path:
        """A local folder with some files of a remote one, for what must have names on the disk.

        It is made once for the versions that the files have now; those that nobody asked for in
        a month go when another is made.

        Args:
            folder: Remote.
            names: Relative to it.

        Raises:
            FileNotFoundError: One does not exist.
            StorageError: The storage or the cache fails.
        """
        files = list(in_parallel(FileVersion.of, [folder / name for name in names], _AT_ONCE))
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
        for path in self.folder.glob(f"*{_FOLDER_SUFFIX}*"):  # what was left half made as well
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _UNUSED_S:
                    shutil.rmtree(path)

    def _fetch(self, file: FileVersion, path: Path) -> None:
        with file.path.open("rb") as source, open_atomic(path, synced=False) as target:
            shutil.copyfileobj(source, target, _PIECE)
            if target.tell() != file.size:
                raise StorageError(
                    f"{file.path}: {target.tell()} bytes came, it had {file.size}",
                    hint="it changes while it is read; run the same command again",
                    code="storage.changed",
                    details={"path": str(file.path)},
                )

    def _make_room(self, wanted: int) -> None:
        """Copies being fetched count; those of a process that was killed go."""
        if self.limit is None:
            return
        found: list[tuple[int, int, Path]] = []
        fetched = 0
        for path in self.folder.glob(f"*{_COPY_SUFFIX}*"):
            with suppress(FileNotFoundError):  # another process makes room as well
                status = path.stat()
                if path.name.endswith(_COPY_SUFFIX):
                    found.append((status.st_mtime_ns, status.st_size, path))
                elif time.time() - status.st_mtime > _ABANDONED_S:
                    path.unlink()
                else:
                    fetched += status.st_size
        used = fetched + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used + wanted <= self.limit:
                return
            path.unlink(missing_ok=True)
            used -= size

    @contextmanager
    def _locked(self, name: str) -> Generator[None]:
        """One process at a time; a few files serve for all names."""
        path = self.folder / f".{int(name, 16) % _LOCKS:02x}.lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError as error:
            raise StorageError(
                f"{self.folder}: the cache cannot be written: {error.strerror}",
                hint="name another folder with data.dataset_cache.cache_dir",
                code="storage.write",
                details={"path": str(self.folder)},
            ) from None
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
