"""A file of JSON lines with an index beside it, which says where each line is.

The index is that of a tar of samples, a line in place of a sample. Source: reference/order 11.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from vlatool.artifacts.shard import INDEX_SUFFIX, ShardIndex
from vlatool.jobs.files import FileEntry
from vlatool.storage.atomic import open_atomic, write_bytes

LINES_SUFFIX = ".jsonl"
# Two hundred times a published window; a line that has no end shall not fill the memory.
LARGEST_LINE = 2**20


class LinesWriter:
    """Appends lines to an open file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._lengths: list[int] = []

    def append(self, line: bytes) -> None:
        """Appends a line that ends with its newline."""
        self._file.write(line)
        self._digest.update(line)
        self._lengths.append(len(line))

    def index(self) -> ShardIndex:
        """Where the lines are."""
        lengths = np.array(self._lengths, np.int64)
        return ShardIndex(np.cumsum(lengths) - lengths, lengths, int(lengths.sum()))

    def entry(self, name: str) -> FileEntry:
        """The file as it stands in the list of its output."""
        return FileEntry(name, sum(self._lengths), self._digest.hexdigest(), len(self._lengths))


def write_lines(output: Path, name: str, lines: Iterable[bytes]) -> tuple[FileEntry, FileEntry]:
    """Writes a file of lines, then its index; returns their entries.

    Args:
        output: The folder that entries are relative to.
        name: Of the file, relative to it.
        lines: Each with its newline.
    """
    path = output / name
    with open_atomic(path) as file:
        writer = LinesWriter(file)
        for line in lines:
            writer.append(line)
    entry, index = writer.entry(name), writer.index().content()
    beside = lines_index_path(path)
    write_bytes(beside, index, synced=False)  # it follows from the file
    index_name = beside.relative_to(output).as_posix()
    digest = hashlib.sha256(index).hexdigest()
    return entry, FileEntry(index_name, len(index), digest, entry.samples)


def lines_index_path(lines: Path) -> Path:
    """Where the index of a file of lines is: beside it."""
    return lines.with_name(f"{lines.name.removesuffix(LINES_SUFFIX)}{INDEX_SUFFIX}")


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, without their newlines; an empty one counts.

    Raises:
        ValueError: A line has over 1 MiB, or the last one has no newline: it may be cut off.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        while line := file.readline(LARGEST_LINE):
            if not line.endswith(b"\n"):
                cut = len(line) < LARGEST_LINE
                raise ValueError("is cut off" if cut else f"is over {LARGEST_LINE:,} bytes long")
            yield line[:-1]
