""".vlatool/files.jsonl: size and digest of every file of an output.

The published layout has no such list; readers of the data never need it. It names everything but
`.vlatool/` itself and `processing_metadata.json`, which differs from run to run.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from vlatool.errors import DataError
from vlatool.storage.atomic import write_text
from vlatool.storage.digest import sha256_of
from vlatool.storage.tree import files_below

NAME = ".vlatool/files.jsonl"
UNLISTED = "processing_metadata.json"


@dataclass(frozen=True)
class FileEntry:
    """One file of an output.

    Attributes:
        path: Relative to the output, with `/`.
        bytes: Its size.
        sha256: Hexadecimal digest of its content.
        samples: Samples in it, for tar files.
    """

    path: str
    bytes: int
    sha256: str
    samples: int | None = None


def write_file_list(folder: Path, entries: Sequence[FileEntry]) -> None:
    """Writes the list of an output atomically, one JSON object per line, sorted by path."""
    rows = (json.dumps(_row(entry)) + "\n" for entry in sorted(entries, key=lambda e: e.path))
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
        raise _broken(path, 1) from None
    return [_entry(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def changed_files(folder: Path) -> list[str]:
    """Listed files that are missing or have another size or, where small, another content.

    The list itself if it is missing. `vlatool verify` looks at the content of large ones as well.
    """
    entries = read_file_list(folder)
    if entries is None:
        return [NAME]
    sizes = {file.name: file.bytes for file in files_below(folder)}
    return [
        entry.path
        for entry in entries
        if sizes.get(entry.path) != entry.bytes
        or (entry.samples is None and sha256_of(folder / entry.path) != entry.sha256)
    ]


def file_entry(folder: Path, name: str) -> FileEntry:
    """The entry of a small file as it is now."""
    content = (folder / name).read_bytes()
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest())


def is_listed(path: str) -> bool:
    """Whether the list of an output names files such as `path`, relative to the output."""
    return path.rpartition("/")[2] != UNLISTED and not path.startswith(".vlatool/")


def _row(entry: FileEntry) -> dict[str, Any]:
    row: dict[str, Any] = {"path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256}
    return row if entry.samples is None else {**row, "samples": entry.samples}


def _entry(path: Path, number: int, line: str) -> FileEntry:
    try:
        row: dict[str, Any] = json.loads(line)
        name, samples = str(row["path"]), row.get("samples")
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise _broken(path, number)
        count = None if samples is None else int(samples)
        return FileEntry(name, int(row["bytes"]), str(row["sha256"]), count)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _broken(path, number) from None


def _broken(path: Path, number: int) -> DataError:
    return DataError(
        f'{path}:{number}: expected {{"path": ..., "bytes": ..., "sha256": ...}}',
        hint="run the command that wrote the output again; it writes the list anew",
        code="data.broken_file_list",
        details={"path": str(path), "line": number},
    )
