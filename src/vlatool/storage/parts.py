"""Parts of files, so that of a large remote file only what is needed is fetched."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from vlatool.storage import s3_reader
from vlatool.storage.background import in_parallel
from vlatool.storage.s3_path import S3Path

_AT_ONCE = 8


class Part(NamedTuple):
    """Bytes `start` to `stop` of a file."""

    path: Path
    start: int
    stop: int


def read_part(part: Part) -> bytes:
    """The bytes of a part, fewer where the file ends; one request where it is remote.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path, start, stop = part
    if isinstance(path, S3Path):
        return s3_reader.read_range(path.address, start, stop)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def read_parts(parts: Iterable[Part]) -> Iterator[bytes]:
    """The bytes of each part in order; remote ones are fetched eight at a time."""
    wanted = iter(parts)
    first = next(wanted, None)
    if first is None:
        return
    every = chain([first], wanted)
    if isinstance(first.path, S3Path):
        yield from in_parallel(read_part, every, _AT_ONCE)
    else:
        yield from map(read_part, every)


def open_part(part: Part) -> IO[bytes]:
    """A file positioned at the start of a part; what is behind the part is not read ahead."""
    path, start, stop = part
    if isinstance(path, S3Path):
        return s3_reader.open_range(path.address, start, stop)
    file = path.open("rb")
    file.seek(start)
    return file


def open_from_end(path: Path) -> IO[bytes]:
    """A file of which the end is wanted first, as of archives with their directory there."""
    if isinstance(path, S3Path):
        return s3_reader.open_reader(path.address, from_end=True)
    return path.open("rb")
