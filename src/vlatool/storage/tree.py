"""Local and remote folders and the files below them."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlatool.errors import StorageError
from vlatool.storage import listing
from vlatool.storage.background import in_parallel
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.remote import ObjectInfo, find_object, is_listable
from vlatool.storage.remote_path import RemotePath

LINKS_VARIABLE = "VLATOOL_FOLLOW_LINKS"
_MAX_CONCURRENT = 8
_DIGITS = re.compile(r"(\d+)")


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yields (folder, folder names, file names) from the top.

    Names that the caller removes are not entered. Links to folders are followed; each folder is
    entered once, and folders that contain this one, such as `/`, are not. Yields nothing if the
    folder does not exist.
    """
    if isinstance(folder, RemotePath):
        levels = listing.levels(folder.address)
        pending = [""]
        while pending:
            below = pending.pop()
            folders, files = levels[below]
            yield folder / below, folders, files
            pending += [f"{below}/{name}".lstrip("/") for name in reversed(folders)]
        return
    if not os.path.exists(folder):
        return
    above = (os.stat(parent) for parent in folder.resolve().parents)
    seen = {(status.st_dev, status.st_ino) for status in above}
    for name, folders, files in os.walk(folder, followlinks=True, onerror=_raise_unreadable):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:  # a cycle of links
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield Path(name), folders, files


def _raise_unreadable(error: OSError) -> None:
    """A folder that cannot be listed is not empty; one that is removed meanwhile is."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise StorageError.at(
            error.filename,
            f"the folder cannot be listed: {error.strerror}",
            hint="check the permissions and the disk, or move the folder away",
            code="storage.unreadable",
        ) from error


def real_folders(source: Path) -> tuple[Path, ...]:
    """Folders, with links resolved, whose files belong to a local folder or file.

    A snapshot in the cache of the hub holds links into the folder `blobs` of its repository, which
    belongs to it. With the environment variable VLATOOL_FOLLOW_LINKS every file belongs to it.
    """
    if os.environ.get(LINKS_VARIABLE) == "1":
        return (Path("/"),)
    real = source.resolve()
    folders = [real]
    if not source.is_dir():
        folders = [real.parent, source.absolute().parent.resolve()]
    for above in real.parents:
        if above.name == "snapshots":
            folders.append(above.parent / "blobs")
    return tuple(folders)


def first_link_out(path: Path, folders: Sequence[Path], inside: set[str]) -> Path | None:
    """Returns a file or folder at or below a local path that a link leads out of all `folders`.

    None if there is none. `inside` are folders that are known to be in them; this adds to it, so
    that neighboring files cost one look each.
    """
    parent = os.path.dirname(path)
    is_plain = parent in inside and not path.is_symlink()
    if not is_plain:
        if not _is_below(path, folders):
            return path
        if _is_below(Path(parent), folders):
            inside.add(parent)
    pending = [path] if path.is_dir() else []
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    if not _is_below(Path(entry.path), folders):
                        return Path(entry.path)
                elif entry.is_dir():
                    pending.append(Path(entry.path))
    return None


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    real = os.path.realpath(path)
    if not os.path.exists(real):
        return True  # a link to nothing, or in a loop, leads nowhere
    return any(Path(real).is_relative_to(folder) for folder in folders)


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sort key that compares numbers by value: episode_2 before episode_10."""
    parts = _DIGITS.split(str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def file_names(folder: Path) -> frozenset[str]:
    """Names of the files directly in a folder; empty if the folder does not exist."""
    try:
        return frozenset(path.name for path in folder.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


@dataclass(frozen=True)
class FileInfo:
    """Name, size and time of a file below a folder."""

    name: str  # Path relative to the folder; empty if the given path is the file itself
    bytes: int  # size in bytes
    modified_ns: int  # time of modification, nanoseconds since 1970 (whole seconds in S3)
    etag: str = ""  # of a remote file without a time


def files_below(path: Path) -> list[FileInfo]:
    """Files below a folder, or the file itself, sorted by name; empty if nothing exists.

    One request if `path` is remote and has a suffix exactly if it is a file.
    """
    if isinstance(path, RemotePath):
        lookups = [_itself, _listed] if path.suffix else [_listed, _itself]
        for look in lookups if is_listable(path.address) else [_itself]:
            found = look(path)
            if found:
                return found
        return []
    if path.is_file():
        return _info(path, "")
    files: list[FileInfo] = []
    for folder, _, names in walk(path):
        for name in names:
            file = folder / name
            # Broken links, and files that were removed meanwhile, are left out.
            files += _info(file, file.relative_to(path).as_posix())
    return sorted(files, key=lambda file: file.name)


def files_in(folder: Path) -> list[FileInfo]:
    """Files directly in a local folder, sorted by name; files removed meanwhile are left out."""
    return [file for name in sorted(file_names(folder)) for file in _info(folder / name, name)]


def files_named(folder: Path, names: Sequence[str]) -> list[Path]:
    """Paths of the named files that exist in a folder; the folder is not listed."""
    paths = [folder / name for name in names]
    if isinstance(folder, RemotePath):
        existing = in_parallel(RemotePath.with_info, map(RemotePath, paths), _MAX_CONCURRENT)
        return [path for path in existing if path is not None and path.is_file()]
    return [path for path in paths if path.is_file()]


def files_below_each(paths: Sequence[Path]) -> list[list[FileInfo]]:
    """`files_below` of each path; remote paths are listed concurrently."""
    if any(isinstance(path, RemotePath) for path in paths):
        return list(in_parallel(files_below, paths, _MAX_CONCURRENT))
    return [files_below(path) for path in paths]


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of the content of a file; memory does not grow with the file."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_text(count: int) -> str:
    """Number of bytes as text, in B, kB, MB or GB."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def parse_size(text: str) -> int:
    """Number of bytes of a text such as `80GB`, `512 MiB` or `1000`."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kMGT]i?)?B?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is no size; write one such as 80GB or 512MiB")
    unit = (match[2] or "").lower()
    base = 1024 if unit.endswith("i") else 1000
    size = int(float(match[1]) * base ** " kmgt".index(unit[:1] or " "))
    if size < 1:
        raise ValueError(f"{text!r} is no size above 0")
    return size


def _info(path: Path, name: str) -> list[FileInfo]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    if not stat.S_ISREG(status.st_mode):
        return []
    return [FileInfo(name, status.st_size, status.st_mtime_ns)]


def _itself(path: RemotePath) -> list[FileInfo]:
    info = find_object(path.address)
    return [] if info is None or info.is_dir else [_remote_file("", info)]


def _listed(path: RemotePath) -> list[FileInfo]:
    found = [
        _remote_file(name, info) for name, info in listing.tree(path.address) if not info.is_dir
    ]
    return sorted(found, key=lambda file: file.name)


def _remote_file(name: str, info: ObjectInfo) -> FileInfo:
    seconds = int(info.modified)
    return FileInfo(name, info.size, seconds * 10**9, "" if seconds else info.etag)
