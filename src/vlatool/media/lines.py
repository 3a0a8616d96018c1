"""Files of JSON lines, with an index of the byte range of each line.

The index has the format of the index of a tar, with lines instead of samples.
Source: reference/order 11.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from vlatool.jobs.files import FileEntry
from vlatool.media.tar import INDEX_SUFFIX, ShardIndex
from vlatool.storage.atomic import open_atomic, write_bytes
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.tree import file_names

LINES_SUFFIX = ".jsonl"
# Two hundred times a published window; a line without an end must not fill the memory.
LARGEST_LINE = 2**20


class LinesWriter:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._lengths: list[int] = []

    def append(self, line: bytes) -> None:
        """Appends a line, which includes its newline."""
        self._file.write(line)
        self._digest.update(line)
        self._lengths.append(len(line))

    def index(self) -> ShardIndex:
        """Byte ranges of the lines."""
        lengths = np.array(self._lengths, np.int64)
        return ShardIndex(np.cumsum(lengths) - lengths, lengths, int(lengths.sum()))

    def entry(self, name: str) -> FileEntry:
        return FileEntry(name, sum(self._lengths), self._digest.hexdigest(), len(self._lengths))


def write_lines(output: Path, name: str, lines: Iterable[bytes]) -> tuple[FileEntry, FileEntry]:
    """Writes a file of lines, then its index; returns the entries of both.

    `output`: folder that entries are relative to; `name`: path of the file, relative to `output`.
    """
    path = output / name
    with open_atomic(path) as file:
        writer = LinesWriter(file)
        for line in lines:
            writer.append(line)
    entry = writer.entry(name)
    index = writer.index().content()
    index_file = lines_index_path(path)
    write_bytes(index_file, index, synced=False)  # can be derived from the lines
    index_name = index_file.relative_to(output).as_posix()
    digest = hashlib.sha256(index).hexdigest()
    return entry, FileEntry(index_name, len(index), digest, entry.samples)


def lines_index_path(lines: Path) -> Path:
    """Path of the index of a file of lines, in the same folder."""
    return lines.with_name(f"{lines.name.removesuffix(LINES_SUFFIX)}{INDEX_SUFFIX}")


def unpaired_indexes(folder: Path) -> list[Path]:
    """Indexes in a folder whose files of lines are missing, sorted by name."""
    names = file_names(folder)
    unpaired: list[Path] = []
    for name in sorted(names):
        if name.endswith(INDEX_SUFFIX):
            lines = f"{name.removesuffix(INDEX_SUFFIX)}{LINES_SUFFIX}"
            if lines not in names:
                unpaired.append(folder / name)
    return unpaired


def first_line(files: Iterable[Path]) -> bytes | None:
    """First line of the first file that is not empty; None if there is none."""
    for path in files:
        for line in read_lines(path):
            return line
    return None


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, without their newlines, empty ones included."""
    with open_file(path) as file:
        while line := file.readline(LARGEST_LINE):
            if not line.endswith(b"\n"):
                cut = len(line) < LARGEST_LINE
                raise ValueError("is truncated" if cut else f"is over {LARGEST_LINE:,} bytes long")
            yield line[:-1]


def line_ranges(path: Path) -> list[tuple[int, int]]:
    """(offset, length) in bytes of each line, its newline included; reads the whole file.

    Raises ValueError or OSError as `read_lines`.
    """
    ranges: list[tuple[int, int]] = []
    start = 0
    for line in read_lines(path):
        length = len(line) + 1
        ranges.append((start, length))
        start += length
    return ranges
