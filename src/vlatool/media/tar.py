"""Tars of samples: writing, scanning of headers, reading sample by sample, indexes.

Members of a sample are contiguous and tar blocks are 512 bytes, so a sample is a byte range that
can be copied from one tar to another. Source: formats/lbm 2.5. The rules come from webdataset:
the first dot of a member's name separates key and suffix, suffixes compare in lower case. The index
file of a tar holds the byte range of each sample; readers of the published layout need none.
Source: reference/order 11.
"""

import errno
import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import IO

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError, StorageError
from vlatool.media import npz, tar_sample
from vlatool.storage.byte_ranges import open_file, read_file
from vlatool.storage.cache import FileCache, FileVersion
from vlatool.storage.uri import is_remote

_META_NAME = re.compile(r"^__.*__$")
# Errors of tarfile for files that are no tar or have wrong sizes.
_BROKEN_TAR = (tarfile.TarError, EOFError, ValueError, OverflowError)
_END_BYTES = 2 * tarfile.BLOCKSIZE
# Most bytes of a member that `OpenShard` reads, far above any image.
_MAX_MEMBER_BYTES = 2**26
# Limit of long names and other extended headers.
_MAX_HEADER_BYTES = 2**20
INDEX_SUFFIX = ".index.npz"


def is_shard(location: Path) -> bool:
    """True if a location is a tar."""
    return location.suffix == ".tar" and location.is_file()


def member_bytes(name: str, data: bytes) -> bytes:
    """Header, content and padding of a tar member, without time and owner."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    header = info.tobuf(format=tarfile.PAX_FORMAT)
    return header + data + bytes(-len(data) % tarfile.BLOCKSIZE)


class TarWriter:
    """Writer that appends samples to an open file and finishes it as a tar."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.position = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes written so far."""
        return self._digest.hexdigest()

    def append(self, data: bytes) -> tuple[int, int]:
        """Appends whole members; returns their (offset, length)."""
        start = self.position
        self._write(data)
        return start, len(data)

    def finish(self) -> None:
        """Writes the end marker and fills the last record."""
        self._write(bytes(_END_BYTES + -(self.position + _END_BYTES) % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.position += len(data)


class _Members(Mapping[str, bytes]):
    """Members of a sample, read lazily."""

    def __init__(
        self, ranges: Mapping[str, tuple[int, int]], read: Callable[[int, int], bytes]
    ) -> None:
        self._ranges = ranges
        self._read = read

    def __getitem__(self, suffix: str) -> bytes:
        return self._read(*self._ranges[suffix])

    def __contains__(self, suffix: object) -> bool:
        return suffix in self._ranges

    def __iter__(self) -> Iterator[str]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)


@dataclass
class TarSample:
    """Position of a sample in a tar."""

    key: str  # name of the sample, without dots
    start: int  # offset of its first header
    end: int  # end of its last member, padding included
    # suffix, as stored, to (offset, size) of the content
    members: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def stored(self, data: bytes) -> tar_sample.StoredSample:
        """The sample, its members sliced from its bytes."""
        view = memoryview(data)

        def read(offset: int, size: int) -> bytes:
            return bytes(view[offset - self.start : offset - self.start + size])

        return tar_sample.StoredSample(self.key, _Members(self.members, read))


@dataclass(frozen=True)
class TarProblem:
    """Problem of a tar: finding code of `shards`, message, and sample if it concerns one."""

    code: str
    message: str
    sample: str | None = None


@dataclass
class TarScan:
    """Samples and problems found in the headers of a tar."""

    samples: list[TarSample] = field(default_factory=list[TarSample])
    problems: list[TarProblem] = field(default_factory=list[TarProblem])

    @property
    def damage(self) -> str:
        """Why the tar could not be scanned to its end; empty if it could."""
        for problem in self.problems:
            if problem.code == "broken_tar":
                return problem.message
        return ""


def scan_tar(path: Path) -> TarScan:
    """Scans all headers; contents are skipped."""
    with open_file(path) as file:
        return _scan(file)


@dataclass(frozen=True)
class OpenShard:
    """Open tar with scanned headers."""

    path: Path  # the file
    scan: TarScan
    file: IO[bytes]

    @cached_property
    def members(self) -> Mapping[str, Mapping[str, tuple[int, int]]]:
        """Map from key to (offset, size) of each member, in the order of the tar."""
        by_key: dict[str, dict[str, tuple[int, int]]] = {}
        for sample in self.scan.samples:
            by_key.setdefault(sample.key, {}).update(sample.members)
        return by_key

    @property
    def keys(self) -> list[str]:
        """Keys of the samples, in order."""
        return list(self.members)

    @property
    def damage(self) -> str:
        """Reason why the tar could not be scanned to its end; empty if it could."""
        return self.scan.damage.removeprefix("is ")

    @contextmanager
    def reading(self, key: str) -> Generator[tar_sample.StoredSample]:
        """A sample with members that are read lazily."""
        try:
            yield tar_sample.StoredSample(key, _Members(self.members[key], self._read))
        except (KeyError, ValueError, OSError) as error:
            reason = f"has no {error.args[0]}" if isinstance(error, KeyError) else str(error)
            raise DataError(
                f"{self.path.name}: sample {key}: {reason}",
                hint="preprocess or copy the data again",
                code="data.broken",
                details={"path": str(self.path), "sample": key},
            ) from None

    def _read(self, offset: int, size: int) -> bytes:
        if size > _MAX_MEMBER_BYTES:
            raise ValueError(f"a member has {size} bytes; the limit is {_MAX_MEMBER_BYTES}")
        self.file.seek(offset)
        return self.file.read(size)


@contextmanager
def open_shard(path: Path) -> Generator[OpenShard]:
    """Opens a tar and scans its headers."""
    try:
        file = open_file(path)
    except OSError as error:
        raise _shard_error(path, f"cannot be opened: {error.strerror or error}") from None
    with file:
        shard = OpenShard(path, _scan(file), file)
        if shard.damage and not shard.scan.samples:
            raise _shard_error(path, f"not a readable tar file: {shard.damage}")
        yield shard


_shard_error = partial(DataError.at, hint="copy or write the shard again", code="data.broken")


class _Headers(io.BufferedIOBase):
    """Open tar; header sizes and positions out of bounds raise ValueError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int | None = -1, /) -> bytes:
        """Next bytes of a header."""
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, position: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return self._file.seek(position, whence)
        except OSError as error:  # beyond all files of the file system
            if error.errno != errno.EINVAL:
                raise
            raise ValueError(f"a member ends at byte {position}") from None

    def tell(self) -> int:
        return self._file.tell()


def _scan(file: IO[bytes]) -> TarScan:
    scan = TarScan()
    end = 0
    try:
        with tarfile.open(
            fileobj=_Headers(file), mode="r:", tarinfo=tar_sample.LimitedHeader
        ) as tar:
            for member in tar:
                if member.size < 0:  # ends before it starts: tarfile would loop
                    raise ValueError(f"a member of {member.size} bytes")
                size = member.size if member.isfile() else 0
                end = member.offset_data + size + -size % tarfile.BLOCKSIZE
                _add_member(scan, member, end)
        _check_end(scan, _Headers(file), end)
    except _BROKEN_TAR as error:
        scan.problems.append(TarProblem("broken_tar", f"is truncated or damaged: {error}"))
    first: dict[str, TarSample] = {}
    for sample in scan.samples:
        other = first.setdefault(sample.key, sample)
        if other is sample:
            continue
        code = "duplicate_sample"
        message = f"sample {sample.key} occurs twice"
        if not set(other.members) & set(sample.members):
            code = "scattered_sample"
            message = f"the members of sample {sample.key} are not contiguous"
        scan.problems.append(TarProblem(code, message, sample.key))
    return scan


def _add_member(scan: TarScan, member: tarfile.TarInfo, end: int) -> None:
    """Adds a member to the current sample, or to a new one."""
    # Key and suffix, separated by the first dot of the file name, as in webdataset.
    folder, slash, file = member.name.rpartition("/")
    stem, _, suffix = file.partition(".")
    key = f"{folder}{slash}{stem}"
    problem = _member_problem(member, file, suffix)
    if problem is not None:
        scan.problems.append(TarProblem(*problem, sample=key))
        if problem[0] in ("not_a_file", "meta_name"):
            return
    current = scan.samples[-1] if scan.samples else None
    names = {name.lower() for name in current.members} if current else set()
    is_again = current is not None and current.key == key and suffix == next(iter(current.members))
    if current is None or current.key != key or is_again:
        current = TarSample(key, member.offset, end)
        scan.samples.append(current)
    elif suffix.lower() in names:
        message = f"sample {key} has {suffix!r} twice"
        scan.problems.append(TarProblem("duplicate_member", message, key))
    current.members[suffix] = (member.offset_data, member.size)
    current.end = end


def _member_problem(member: tarfile.TarInfo, base: str, suffix: str) -> tuple[str, str] | None:
    name = member.name
    if not member.isfile() or member.issparse():
        return "not_a_file", f"{name!r} is not a regular file"
    if name.startswith("/") or ".." in name.split("/"):
        return "unsafe_name", f"{name!r} leads out of the folder it is extracted to"
    if _META_NAME.match(base):
        return "meta_name", f"{name!r} is a name reserved by loaders"
    for known in (tar_sample.ARRAYS, tar_sample.METADATA):
        if suffix.lower().endswith(f".{known}"):
            return "dotted_key", f"{name!r}: the key of the sample has a dot"
    if suffix != suffix.lower():
        return "upper_case_member", f"{name!r} has capital letters; loaders read it in lower case"
    return None


def _check_end(scan: TarScan, file: "_Headers", end: int) -> None:
    file.seek(end)
    marker = file.read(_END_BYTES)
    if any(marker):
        scan.problems.append(TarProblem("broken_tar", f"is damaged after byte {end}"))
    elif len(marker) < _END_BYTES:
        scan.problems.append(TarProblem("broken_tar", "is truncated: no end marker"))


@dataclass(frozen=True)
class ShardIndex:
    """Byte ranges of the samples of a tar, in order."""

    offsets: Array  # int64 [S], offset of the first header of each sample
    lengths: Array  # int64 [S], bytes up to the end of its last member, padding included
    shard_bytes: int  # size of the tar; the index is invalid for a tar of another size

    def ranges(self) -> list[tuple[int, int]]:
        """(offset, length) of each sample."""
        return list(zip(self.offsets.tolist(), self.lengths.tolist(), strict=True))

    def content(self) -> bytes:
        """Bytes of the file; equal indexes give equal bytes."""
        return npz.write_arrays(
            {
                "offsets": np.asarray(self.offsets, np.int64),
                "lengths": np.asarray(self.lengths, np.int64),
                "shard_bytes": np.array(self.shard_bytes, np.int64),
            }
        )


def index_path(shard: Path) -> Path:
    """Path of the index of a shard, in the same folder."""
    return shard.with_name(f"{shard.name.removesuffix('.tar')}{INDEX_SUFFIX}")


def read_index(path: Path) -> ShardIndex | None:
    """The index at `path`; None if there is none or it cannot be read."""
    try:
        return parse_index(read_file(path))
    except OSError:
        return None


def parse_index(content: bytes) -> ShardIndex | None:
    """The index in the bytes of its file; None if they are not an index."""
    try:
        arrays = npz.read_arrays(content, ("offsets", "lengths", "shard_bytes"))
    except (KeyError, ValueError):
        return None
    offsets = arrays["offsets"]
    lengths = arrays["lengths"]
    shapes = (offsets.ndim, lengths.shape, arrays["shard_bytes"].ndim)
    if shapes != (1, offsets.shape, 0) or any(array.dtype.kind != "i" for array in arrays.values()):
        return None
    index = ShardIndex(offsets, lengths, int(arrays["shard_bytes"]))
    return index if _is_in_order(index) else None


def _is_in_order(index: ShardIndex) -> bool:
    """True if samples ascend without overlap inside the tar; a damaged index may not."""
    end = 0  # of the sample before
    for offset, length in index.ranges():
        if offset < end or length <= 0:
            return False
        end = offset + length
    return end <= index.shard_bytes


def index_by_headers(path: Path, copy: IO[bytes] | None = None) -> ShardIndex:
    """Index of a tar, from its headers; a remote tar is read once, as a stream."""
    with nullcontext(copy) if copy is not None else open_file(path) as file:
        scan = _scan(file)
        size = file.seek(0, 2)
    if scan.damage:
        raise _shard_error(path, scan.damage)
    # A member without a dot belongs to no sample, as in webdataset.
    samples = [sample for sample in scan.samples if any(sample.members)]
    starts = np.array([sample.start for sample in samples], np.int64)
    ends = np.array([sample.end for sample in samples], np.int64)
    return ShardIndex(starts, ends - starts, size)


def cached_index(cache: FileCache, version: FileVersion) -> ShardIndex | None:
    """Returns the index beside a shard or the cached one; None if there is none.

    An index that records another size of the shard is ignored.
    """
    index = read_index(index_path(version.path))
    if index is None or index.shard_bytes != version.size:
        content = cache.get(version, INDEX_SUFFIX)
        index = None if content is None else parse_index(content)
    return None if index is None or index.shard_bytes != version.size else index


def shard_index(
    cache: FileCache, version: FileVersion, copy: IO[bytes] | None = None
) -> ShardIndex:
    """Returns the index beside a shard; if there is none, scans the shard and caches the index;
    `copy`: open copy of the same shard, scanned in place of the file.
    """
    index = read_index(index_path(version.path))
    if index is not None and index.shard_bytes == version.size:
        return index
    try:
        content = cache.get_or_create(
            version, INDEX_SUFFIX, lambda: index_by_headers(version.path, copy).content()
        )
    except StorageError:
        if is_remote(version.path):
            raise
        return index_by_headers(version.path, copy)  # a scan takes milliseconds
    index = parse_index(content)
    if index is None or index.shard_bytes != version.size:
        raise DataError.at(
            cache.folder,
            f"the cached index of {version.path} is broken",
            hint="delete the content of that folder, then run the same command again",
            code="data.broken",
        )
    return index
