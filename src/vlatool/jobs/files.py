"""`.vlatool/files.jsonl`: size and digest of every file of an output.

The published layouts have no such list; readers of the data never need it. It names what a job
wrote but `.vlatool/` itself and the files that hold times. A folder with its own `.vlatool/` is an
output of its own and stands in its own list.
"""

import hashlib
import json
import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from vlatool.errors import DataError
from vlatool.storage.atomic import remove_file, remove_partials, write_text
from vlatool.storage.documents import parse_json
from vlatool.storage.tree import FileInfo, files_below, files_in, sha256_of
from vlatool.storage.uri import is_file_name, is_remote

FOLDER = ".vlatool"
NAME = f"{FOLDER}/files.jsonl"
_SHOWN = 100


@dataclass(frozen=True)
class FileEntry:
    """One file of an output, or one folder of many small ones.

    Attributes:
        path: Relative to the output, with `/`; ends with `/` for a folder.
        bytes: Its size, for a folder that of all files below.
        sha256: Hexadecimal digest of its content; for a folder of the sorted lines
            `name size digest` of its files.
        samples: Samples in it, for files of training data.
        count: Files below it, for a folder.
    """

    path: str
    bytes: int
    sha256: str
    samples: int | None = None
    count: int | None = None


def write_file_list(folder: Path, entries: Sequence[FileEntry]) -> None:
    """Writes the list of an output atomically, one JSON object per line, sorted by path."""
    rows = (json.dumps(row_of(entry)) + "\n" for entry in sorted(entries, key=lambda e: e.path))
    write_text(folder / NAME, "".join(rows))


def read_file_list(folder: Path) -> list[FileEntry] | None:
    """The list of an output; None where there is none.

    Raises:
        DataError: The list is broken or names a file outside the output; names the line.
    """
    path = folder / NAME
    try:
        lines = path.read_bytes().decode().split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise _broken_list_error(path, 1) from None
    return [_entry(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def changed_files(folder: Path) -> list[str]:
    """Listed files that are missing or have another size or, where small, another content.

    The list itself if it is missing, broken or empty. `vlatool verify` looks at the content of
    large ones as well.
    """
    try:
        entries = read_file_list(folder)
    except DataError:
        entries = None
    if not entries:
        return [NAME]
    found = output_files(folder)
    sizes = {file.name: file.bytes for file in found}
    sums = _folder_sums(found, {entry.path for entry in entries if entry.count is not None})
    return [entry.path for entry in entries if _is_changed(folder, entry, sizes, sums)]


def _folder_sums(files: Iterable[FileInfo], folders: Container[str]) -> dict[str, tuple[int, int]]:
    """(files, bytes) below each of the folders."""
    sums: dict[str, tuple[int, int]] = {}
    for file in files:
        for parent in PurePosixPath(file.name).parents:
            if (name := f"{parent}/") in folders:
                count, size = sums.get(name, (0, 0))
                sums[name] = (count + 1, size + file.bytes)
    return sums


def _is_changed(
    folder: Path,
    entry: FileEntry,
    sizes: Mapping[str, int],
    sums: Mapping[str, tuple[int, int]],
) -> bool:
    if entry.count is not None:
        return sums.get(entry.path) != (entry.count, entry.bytes)
    if sizes.get(entry.path) != entry.bytes:
        return True
    return entry.samples is None and sha256_of(folder / entry.path) != entry.sha256


def is_intact(folder: Path, entry: FileEntry) -> bool:
    """Whether a file is what was written.

    In S3, which keeps digests itself, by its size; a folder by the number and size of its files.
    """
    path = folder / entry.path
    try:
        if entry.count is not None:
            below = output_files(path)
            return (len(below), sum(file.bytes for file in below)) == (entry.count, entry.bytes)
        if path.stat().st_size != entry.bytes:
            return False
        return is_remote(path) or sha256_of(path) == entry.sha256
    except OSError:
        return False


def file_entry(folder: Path, name: str) -> FileEntry:
    """The entry of a small file as it is now."""
    content = (folder / name).read_bytes()
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest())


def folder_entry(name: str, files: Mapping[str, tuple[int, str]]) -> FileEntry:
    """The entry of a folder from the (size, sha256) of each file below it, by relative name."""
    lines = (f"{file} {size} {digest}\n" for file, (size, digest) in sorted(files.items()))
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    total = sum(size for size, _ in files.values())
    return FileEntry(f"{name.rstrip('/')}/", total, digest, count=len(files))


def digests_below(folder: Path) -> dict[str, tuple[int, str]]:
    """(size, sha256) of each file below a folder, as `folder_entry` takes them."""
    return {file.name: (file.bytes, sha256_of(folder / file.name)) for file in output_files(folder)}


def output_files(folder: Path) -> list[FileInfo]:
    """The files of an output: without `.vlatool/` and without outputs inside it."""
    if not is_remote(folder):
        return [
            replace(file, name=(place / file.name).relative_to(folder).as_posix())
            for place, is_own in _walk(folder)
            if is_own
            for file in files_in(place)
        ]
    found = files_below(folder)
    nested = _nested_in(found)
    return [file for file in found if not file.name.startswith((f"{FOLDER}/", *nested))]


def is_listed(path: str, volatile: Iterable[str]) -> bool:
    """Whether the list of an output names files such as `path`, relative to the output."""
    return not path.startswith(f"{FOLDER}/") and not any(fnmatch(path, one) for one in volatile)


def remove_owned(
    folder: Path, owned: Sequence[str], kept: Callable[[str], bool] = lambda name: False
) -> None:
    """Removes the files of `folder` that match a pattern; outputs inside it are left alone.

    Args:
        folder: The output.
        owned: The patterns.
        kept: Whether a file, by its relative name, stays nevertheless.
    """
    nested = _nested_names(folder) if owned else ()
    for pattern in owned:
        for path in list(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            is_folder = not is_remote(path) and path.is_dir()
            if not (is_folder or name.startswith(nested) or kept(name)):
                remove_file(path)


def remove_stale_files(
    folder: Path, owned: Sequence[str], volatile: Sequence[str], entries: Sequence[FileEntry]
) -> None:
    """Removes what an earlier, different state of the same run left among its files."""
    names = {entry.path for entry in entries if entry.count is None}
    folders = {entry.path for entry in entries if entry.count is not None}

    def is_listed_now(name: str) -> bool:
        above = (f"{parent}/" for parent in PurePosixPath(name).parents)
        return (
            name in names or not is_listed(name, volatile) or any(one in folders for one in above)
        )

    remove_owned(folder, owned, is_listed_now)


def remove_partial_files(folder: Path) -> None:
    """Removes what killed runs of an output left under temporary names or half sent."""
    if is_remote(folder):
        remove_partials(folder)
        return
    remove_partials(folder / FOLDER)
    for place, is_own in _walk(folder):
        if is_own:
            remove_partials(place, below=False)


def is_occupied(folder: Path) -> bool:
    """Whether there is anything in a folder but `.vlatool/` and outputs of their own."""
    if not folder.is_dir():
        return False
    return any(child.name != FOLDER and not (child / FOLDER).is_dir() for child in folder.iterdir())


def contains_only(folder: Path, owned: Sequence[str]) -> bool:
    """Whether every file of a folder matches a pattern."""
    return all(any(fnmatch(file.name, one) for one in owned) for file in output_files(folder))


def _nested_names(folder: Path) -> tuple[str, ...]:
    """Relative names, with `/` behind them, of the outputs inside an output."""
    if is_remote(folder):
        return _nested_in(files_below(folder))
    others = (place for place, is_own in _walk(folder) if not is_own)
    return tuple(f"{place.relative_to(folder).as_posix()}/" for place in others)


def _nested_in(files: Iterable[FileInfo]) -> tuple[str, ...]:
    marks = (file.name.partition(f"/{FOLDER}/") for file in files)
    return tuple(sorted({f"{name}/" for name, mark, _ in marks if mark}))


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Local folders at and below an output, and whether they are its own; others end there."""
    for name, folders, _ in os.walk(folder):
        place = Path(name)
        if place != folder and FOLDER in folders:
            folders.clear()
            yield place, False
            continue
        with suppress(ValueError):
            folders.remove(FOLDER)
        yield place, True


def row_of(entry: FileEntry) -> dict[str, Any]:
    """An entry as a JSON object."""
    row: dict[str, Any] = {"path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256}
    extra = {"samples": entry.samples, "count": entry.count}
    return row | {key: value for key, value in extra.items() if value is not None}


def entry_of(row: Mapping[str, Any]) -> FileEntry:
    """The entry behind a JSON object.

    Raises:
        ValueError: It is none, or names a file outside the output.
    """
    try:
        name = str(row["path"])
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not all(map(is_file_name, parts)):
            raise ValueError(f"{name[:_SHOWN]!r} is no name of a file of the output")
        counts = {key: row.get(key) for key in ("samples", "count")}
        known = {key: None if value is None else int(value) for key, value in counts.items()}
        return FileEntry(name, int(row["bytes"]), str(row["sha256"]), **known)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _entry(path: Path, number: int, line: str) -> FileEntry:
    try:
        return entry_of(parse_json(line))
    except ValueError:
        raise _broken_list_error(path, number) from None


def _broken_list_error(path: Path, number: int) -> DataError:
    return DataError(
        f'{path}:{number}: expected {{"path": ..., "bytes": ..., "sha256": ...}}',
        hint="run the command that wrote the output again; it writes the list anew",
        code="data.broken_file_list",
        details={"path": str(path), "line": number},
    )
