"""Folders and the files below them, wherever they are."""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlatool.storage.background import in_parallel
from vlatool.storage.remote import is_listable
from vlatool.storage.remote_path import RemotePath

_MAX_CONCURRENT = 8


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, folder names, file names) from the top; names taken out are not entered.

    Links to folders are followed, each folder is entered once.
    """
    if isinstance(folder, RemotePath):
        yield from folder.walk()
        return
    seen: set[tuple[int, int]] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield Path(name), folders, files


def file_names(folder: Path) -> frozenset[str]:
    """Names of the files directly in a folder; none where there is no folder."""
    try:
        return frozenset(path.name for path in folder.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


@dataclass(frozen=True)
class FileInfo:
    """A file below a folder.

    Attributes:
        name: Relative to the folder; empty for the folder's own path when that is a file.
        bytes: Its size.
        modified_ns: When it was last changed, nanoseconds since 1970 (in S3 whole seconds).
    """

    name: str
    bytes: int
    modified_ns: int


def files_below(path: Path) -> list[FileInfo]:
    """The files below a folder, or the file itself, sorted by name; nothing where nothing is.

    One request where `path` is remote and only files have a suffix.
    """
    if isinstance(path, RemotePath):
        if not is_listable(path.address):
            return _info(path, "")
        if path.suffix:
            return _info(path, "") or _listed(path)
        return _listed(path) or _info(path, "")
    if path.is_file():
        return _info(path, "")
    found: list[FileInfo] = []
    for folder, _, names in walk(path):
        for name in names:
            file = folder / name
            # A link to nowhere, or a file that was taken away meanwhile, is no file.
            found += _info(file, file.relative_to(path).as_posix())
    return sorted(found, key=lambda one: one.name)


def files_in(folder: Path) -> list[FileInfo]:
    """The files directly in a local folder, sorted by name; those that vanish are left out."""
    return [one for name in sorted(file_names(folder)) for one in _info(folder / name, name)]


def files_named(folder: Path, names: Sequence[str]) -> list[Path]:
    """Those of some files of a folder that are there; nothing is listed."""
    paths = [folder / name for name in names]
    if isinstance(folder, RemotePath):
        known = in_parallel(RemotePath.known, map(RemotePath, paths), _MAX_CONCURRENT)
        return [path for path in known if path is not None and path.is_file()]
    return [path for path in paths if path.is_file()]


def files_below_each(paths: Sequence[Path]) -> list[list[FileInfo]]:
    """`files_below` of each path; remote ones are asked for together."""
    if any(isinstance(path, RemotePath) for path in paths):
        return list(in_parallel(files_below, paths, _MAX_CONCURRENT))
    return [files_below(path) for path in paths]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal; memory does not grow with the file.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_text(count: int) -> str:
    """Bytes in a unit people read."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def _info(path: Path, name: str) -> list[FileInfo]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    if not stat.S_ISREG(status.st_mode):
        return []
    return [FileInfo(name, status.st_size, status.st_mtime_ns)]


def _listed(path: Path) -> list[FileInfo]:
    found = [
        one
        for file in path.rglob("*")
        if file.is_file()
        for one in _info(file, file.relative_to(path).as_posix())
    ]
    return sorted(found, key=lambda one: one.name)
