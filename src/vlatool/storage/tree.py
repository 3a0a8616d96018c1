"""Folders and the files below them, wherever they are."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlatool.storage.background import in_parallel
from vlatool.storage.s3_path import S3Path

_AT_ONCE = 8


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, folder names, file names) from the top; names taken out are not entered.

    Links to folders are followed.
    """
    if isinstance(folder, S3Path):
        yield from folder.walk()
        return
    for name, folders, files in os.walk(folder, followlinks=True):
        yield Path(name), folders, files


def file_names(folder: Path) -> frozenset[str]:
    """Names of the files directly in a folder; none where there is no folder."""
    try:
        return frozenset(path.name for path in folder.iterdir() if path.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def file_sizes(path: Path) -> list[tuple[str, int]]:
    """(name relative to `path`, bytes) of the files below a folder, or of the file itself; sorted.

    Nothing where nothing is. One request where `path` is remote and only files have a suffix.
    """
    if isinstance(path, S3Path):
        if path.suffix:
            return _size(path) or _listed_sizes(path)
        return _listed_sizes(path) or _size(path)
    if path.is_file():
        return _size(path)
    found: list[tuple[str, int]] = []
    for folder, _, files in walk(path):
        for name in files:
            file = folder / name
            # A link to nowhere, or a file that was taken away meanwhile, is no file.
            found += [(file.relative_to(path).as_posix(), size) for _, size in _size(file)]
    return sorted(found)


def sizes_of(paths: Sequence[Path]) -> list[list[tuple[str, int]]]:
    """`file_sizes` of each path; remote ones are asked for together."""
    if any(isinstance(path, S3Path) for path in paths):
        return list(in_parallel(file_sizes, paths, _AT_ONCE))
    return [file_sizes(path) for path in paths]


def _size(path: Path) -> list[tuple[str, int]]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    return [("", status.st_size)] if stat.S_ISREG(status.st_mode) else []


def _listed_sizes(path: Path) -> list[tuple[str, int]]:
    files = [one for one in path.rglob("*") if one.is_file()]
    return sorted((one.relative_to(path).as_posix(), one.stat().st_size) for one in files)
