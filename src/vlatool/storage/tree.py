"""Folders and the files below them, wherever they are."""

import os
from collections.abc import Iterator
from pathlib import Path

from vlatool.storage.s3_path import S3Path


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, folder names, file names) from the top; names taken out are not entered.

    Links to folders are followed.
    """
    if isinstance(folder, S3Path):
        yield from folder.walk()
        return
    for name, folders, files in os.walk(folder, followlinks=True):
        yield Path(name), folders, files


def file_sizes(path: Path) -> list[tuple[str, int]]:
    """(name relative to `path`, bytes) of the files below a folder, or of the file itself; sorted.

    Nothing where nothing is.
    """
    if path.is_file():
        return [("", path.stat().st_size)]
    if isinstance(path, S3Path):  # sizes come with the listing
        files = [one for one in path.rglob("*") if one.is_file()]
        return sorted((one.relative_to(path).as_posix(), one.stat().st_size) for one in files)
    found = [
        ((folder / name).relative_to(path).as_posix(), (folder / name).stat().st_size)
        for folder, _, files in walk(path)
        for name in files
    ]
    return sorted(found)
