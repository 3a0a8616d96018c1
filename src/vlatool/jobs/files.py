"""File list of an output, `.vlatool/files.jsonl`: size and digest of every file.

The published layouts have no such list, and readers of the data do not need it. It lists the files
that a job wrote, except `.vlatool/` itself and the files that hold times. A folder with its own
`.vlatool/` is a separate output with its own list.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from vlatool.errors import DataError
from vlatool.storage.atomic import remove_file, remove_partials, write_text
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.documents import parse_json
from vlatool.storage.tree import FileInfo, files_below, files_in, sha256_of, walk
from vlatool.storage.uri import is_file_name, is_remote

FOLDER = ".vlatool"
NAME = f"{FOLDER}/files.jsonl"
_SHOWN = 100
_NUMBERS = ("samples", "count", "modified_ns")  # keys that an entry may lack
_KEYS = {"path", "bytes", "sha256", *_NUMBERS}
_LARGEST = 2**63 - 1  # size or time


@dataclass(frozen=True)
class FileEntry:
    """One file of an output, or one folder of many small ones."""

    path: str  # relative to the output, with `/`; ends with `/` for a folder
    bytes: int  # size of the file, or of all files below the folder
    # hexadecimal digest of the content; for a folder, of the sorted lines `name size digest` of its
    # files
    sha256: str
    samples: int | None = None  # number of samples, for files of training data
    count: int | None = None  # number of files below a folder; None for a file
    # time of modification, nanoseconds since 1970. A file with the same size and time counts as
    # unchanged; None: its digest is compared
    modified_ns: int | None = None


def write_file_list(folder: Path, entries: Sequence[FileEntry]) -> None:
    """Writes the file list of an output atomically, one JSON object per line, sorted by path."""
    lines: list[str] = []
    for entry in sorted(entries, key=lambda entry: entry.path):
        lines.append(json.dumps(row_of(entry)) + "\n")
    write_text(folder / NAME, "".join(lines))


def read_file_list(folder: Path) -> list[FileEntry] | None:
    """File list of an output; None if there is none."""
    path = folder / NAME
    try:
        lines = read_file(path).decode().split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, IsADirectoryError):
        raise _broken_list_error(path, 1) from None
    entries: list[FileEntry] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            entries.append(_entry(path, number, line))
    return entries


def changed_files(folder: Path) -> list[str]:
    """Listed files that are missing, or differ in size or, except for shards, in content.

    If the list itself is missing, broken or empty, its own name. `vlatool verify` also compares the
    content of shards.
    """
    try:
        entries = read_file_list(folder)
    except DataError:
        entries = None
    if not entries:
        return [NAME]
    files = {file.name: file for file in output_files(folder)}
    # Number of files and bytes below each listed folder.
    counts = {entry.path: 0 for entry in entries if entry.count is not None}
    sizes = dict(counts)
    for file in files.values():
        for parent in PurePosixPath(file.name).parents:
            name = f"{parent}/"
            if name in counts:
                counts[name] += 1
                sizes[name] += file.bytes
    changed: list[str] = []
    for entry in entries:
        if entry.count is not None:
            is_equal = (counts[entry.path], sizes[entry.path]) == (entry.count, entry.bytes)
        else:
            file = files.get(entry.path)
            is_equal = file is not None and _is_equal(folder, entry, file)
        if not is_equal:
            changed.append(entry.path)
    return changed


def _is_equal(folder: Path, entry: FileEntry, file: FileInfo) -> bool:
    if file.bytes != entry.bytes:
        return False
    is_trusted = entry.samples is not None or file.modified_ns == entry.modified_ns
    return is_trusted or sha256_of(folder / entry.path) == entry.sha256


def is_intact(folder: Path, entry: FileEntry) -> bool:
    """True if a file is unchanged since it was written.

    Compares size and digest on disk, the size in S3 (which keeps digests itself), and the number
    and total size of the files of a folder.
    """
    path = folder / entry.path
    try:
        if entry.count is not None:
            below = output_files(path)
            return (len(below), sum(file.bytes for file in below)) == (entry.count, entry.bytes)
        status = path.stat()
        if status.st_size != entry.bytes:
            return False
        is_trusted = is_remote(path) or status.st_mtime_ns == entry.modified_ns
        return is_trusted or sha256_of(path) == entry.sha256
    except OSError:
        return False


def file_entry(folder: Path, name: str) -> FileEntry:
    """Entry of a small file, from its current content."""
    content = read_file(folder / name)
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest())


def folder_entry(name: str, files: Mapping[str, tuple[int, str]]) -> FileEntry:
    """Entry of a folder, from relative name to (size, sha256) of each file below it."""
    total = 0
    whole = hashlib.sha256()
    for file, (size, digest) in sorted(files.items()):
        whole.update(f"{file} {size} {digest}\n".encode())
        total += size
    return FileEntry(f"{name.rstrip('/')}/", total, whole.hexdigest(), count=len(files))


def digests_below(folder: Path) -> dict[str, tuple[int, str]]:
    """Map from relative name to (size, sha256) of each file below a folder, for `folder_entry`."""
    return {file.name: (file.bytes, sha256_of(folder / file.name)) for file in output_files(folder)}


def output_files(folder: Path) -> list[FileInfo]:
    """Files of an output, without `.vlatool/` and without outputs inside it."""
    if is_remote(folder):
        files = files_below(folder)
        others = (f"{FOLDER}/", *_nested_in(files))
        return [file for file in files if not file.name.startswith(others)]
    own_files: list[FileInfo] = []
    for path, is_own in _walk(folder):
        if not is_own:
            continue
        for file in files_in(path):
            name = (path / file.name).relative_to(folder).as_posix()
            own_files.append(replace(file, name=name))
    return own_files


def belongs_in_list(path: str, volatile: Iterable[str]) -> bool:
    """True if a file with this path, relative to the output, belongs in the file list."""
    is_volatile = any(fnmatch(path, pattern) for pattern in volatile)
    return not path.startswith(f"{FOLDER}/") and not is_volatile


def remove_owned(
    folder: Path, owned: Sequence[str], is_kept: Callable[[str], bool] = lambda name: False
) -> None:
    """Removes the files of `folder` that match a pattern, except files of outputs inside it.

    `is_kept` says for the relative name of a file whether it stays.
    """
    nested = nested_outputs(folder) if owned else ()
    for pattern in owned:
        for path in list(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            is_folder = not is_remote(path) and path.is_dir()
            if not (is_folder or name.startswith(nested) or is_kept(name)):
                remove_file(path)


def remove_stale_files(
    folder: Path, owned: Sequence[str], volatile: Sequence[str], entries: Sequence[FileEntry]
) -> None:
    """Removes owned files that are not in `entries`, left by an earlier state of the run."""
    listed = {entry.path for entry in entries}

    def is_kept(name: str) -> bool:
        if name in listed or not belongs_in_list(name, volatile):
            return True
        return any(f"{parent}/" in listed for parent in PurePosixPath(name).parents)

    remove_owned(folder, owned, is_kept)


def remove_partial_files(folder: Path) -> None:
    """Removes temporary files and unfinished uploads of killed runs of an output."""
    if is_remote(folder):
        remove_partials(folder, spared=partial(nested_outputs, folder))
        return
    remove_partials(folder / FOLDER)
    for path, is_own in _walk(folder):
        if is_own:
            remove_partials(path, below=False)


def is_occupied(folder: Path) -> bool:
    """True if a folder holds anything besides `.vlatool/` and nested outputs."""
    if not folder.is_dir():
        return False
    return any(child.name != FOLDER and not (child / FOLDER).is_dir() for child in folder.iterdir())


def contains_only(folder: Path, owned: Sequence[str]) -> bool:
    """True if every file of a folder matches a pattern."""
    names = [file.name for file in output_files(folder)]
    return all(any(fnmatch(name, pattern) for pattern in owned) for name in names)


def nested_outputs(folder: Path) -> tuple[str, ...]:
    """Relative names, with a trailing `/`, of the outputs inside an output."""
    if is_remote(folder):
        return _nested_in(files_below(folder))
    nested: list[str] = []
    for path, is_own in _walk(folder):
        if not is_own:
            nested.append(f"{path.relative_to(folder).as_posix()}/")
    return tuple(nested)


def _nested_in(files: Iterable[FileInfo]) -> tuple[str, ...]:
    nested: set[str] = set()
    for file in files:
        name, separator, _ = file.name.partition(f"/{FOLDER}/")
        if separator:
            nested.add(f"{name}/")
    return tuple(sorted(nested))


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """(folder, True) at and below a local output; (folder, False) for outputs inside it."""
    for path, folders, _ in walk(folder):
        if path != folder and FOLDER in folders:
            folders.clear()
            yield path, False
            continue
        with suppress(ValueError):
            folders.remove(FOLDER)
        yield path, True


def row_of(entry: FileEntry) -> dict[str, Any]:
    row = {"path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256}
    for key in _NUMBERS:
        value = getattr(entry, key)
        if value is not None:
            row[key] = value
    return row


def entry_of(row: Mapping[str, Any]) -> FileEntry:
    try:
        name = str(row["path"])
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or not all(map(is_file_name, parts)):
            raise ValueError(f"{name[:_SHOWN]!r} is not the name of a file of the output")
        size = int(row["bytes"])
        if size < 0:
            raise ValueError("a size below 0")
        numbers: dict[str, int] = {}
        for key in _NUMBERS:
            if row.get(key) is not None:
                numbers[key] = int(row[key])
        if any(abs(number) > _LARGEST for number in (size, *numbers.values())):
            raise ValueError("a number of more than 64 bits")
        return FileEntry(name, size, str(row["sha256"]), **numbers)
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from None


def _entry(path: Path, number: int, line: str) -> FileEntry:
    try:
        row = parse_json(line)
        if {*row} - _KEYS:
            raise ValueError("an unknown key")
        return entry_of(row)
    except (TypeError, ValueError):
        raise _broken_list_error(path, number) from None


def _broken_list_error(path: Path, number: int) -> DataError:
    return DataError(
        f'{path}:{number}: expected {{"path": ..., "bytes": ..., "sha256": ...}}',
        hint="run the command that wrote the output again; it rewrites the list",
        code="data.broken",
        details={"path": str(path), "line": number},
    )
