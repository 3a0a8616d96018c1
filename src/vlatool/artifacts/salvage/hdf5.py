"""HDF5 files that were not closed or are cut off.

The superblock of a copy is set to the size that its metadata expect, so that the library opens it;
rows whose bytes lie beyond the end of the original are lost, never zeros.
Source: HDF5 File Format Specification, sections II.A (superblock) and VII.A (checksum).
"""

import io
import struct
from collections import Counter
from collections.abc import Container, Iterator
from itertools import count
from math import prod
from operator import floordiv
from pathlib import Path
from typing import IO, Any

from vlatool.artifacts.salvage.base import NothingWhole, Salvaged
from vlatool.errors import installed
from vlatool.events import counted

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_COPIED_AT_ONCE = 2**26  # bytes of rows
_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError)


def is_whole(path: Path) -> bool:
    """True if the library opens the file and every object in it."""
    h5py = installed("h5py")
    try:
        with h5py.File(path, "r") as file:
            file.visititems(lambda _name, item: dict(item.attrs) and None)
    except _ERRORS:
        return False
    return True


def salvage(path: Path, target: Path, others: Iterator[Path]) -> Salvaged:
    """Writes a healthy file with the whole rows of a damaged one."""
    h5py = installed("h5py")
    with path.open("rb") as damaged:
        try:
            file = h5py.File(_Mended(damaged), "r")
        except _ERRORS as error:
            raise NothingWhole(f"its root group is lost: {error}") from error
        with file, h5py.File(target, "w") as healthy:
            copy = _Copy(file, healthy, path.stat().st_size)
            episodes = copy.run()
    if not copy.rows:
        raise NothingWhole("; ".join(["it has no whole rows", *copy.lost[:1]]))
    content = f"{counted(copy.rows, 'row')} of {counted(episodes, 'episode')}"
    return Salvaged(content, tuple(copy.lost))


class _Mended(io.RawIOBase):
    """A file whose superblock has no marks of a writer and an end that is right.

    What its metadata expect behind its last byte reads as zeros.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._position = file, 0
        self._size = file.seek(0, 2)
        file.seek(0)
        head = bytearray(file.read(48))
        version = head[8] if len(head) == 48 and head.startswith(_SIGNATURE) else None
        place = {0: 40, 1: 44, 2: 28, 3: 28}.get(-1 if version is None else version)
        offset_size = head[9:10] if version in (2, 3) else head[13:14]
        if place is None or offset_size != b"\x08":
            raise NothingWhole("it does not begin as an HDF5 file")
        self._end = max(*struct.unpack_from("<Q", head, place), self._size)
        struct.pack_into("<Q", head, place, self._end)
        if version in (2, 3):
            head[11] = 0
            struct.pack_into("<I", head, 44, _lookup3(bytes(head[:44])))
        self._head = bytes(head)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._end)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._end - self._position))
        self._file.seek(min(self._position, self._size))
        data = self._file.read(count).ljust(count, b"\0")
        if (covered := self._head[self._position :][:count]) and self._position < len(self._head):
            data = covered + data[len(covered) :]
        view[:count] = data
        self._position += count
        return count


def _lookup3(data: bytes) -> int:
    """Jenkins' hash of bytes whose number is no multiple of 12, with the initial value 0."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask

    def turned(value: int, bits: int) -> int:
        return (value << bits | value >> (32 - bits)) & mask

    whole = len(data) // 12 * 12
    for start in range(0, whole, 12):
        x, y, z = struct.unpack_from("<III", data, start)
        a, b, c = (a + x) & mask, (b + y) & mask, (c + z) & mask
        for bits in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & mask) ^ turned(c, bits)
            c = (c + b) & mask
            a, b, c = b, c, a
    x, y, z = struct.unpack("<III", data[whole:].ljust(12, b"\0"))
    turns = ((c + z) & mask, (b + y) & mask, (a + x) & mask)
    for bits in (14, 11, 25, 16, 4, 14, 24):
        first, second, third = turns
        turns = (third, ((first ^ second) - turned(second, bits)) & mask, second)
    return turns[1]


class _Copy:
    """Copy of an opened file into a new one, episode by episode."""

    def __init__(self, file: Any, healthy: Any, size: int) -> None:
        self._file, self._healthy, self._size = file, healthy, size
        self.rows, self.lost = 0, list[str]()
        self._unopened = 0  # members that are damaged

    def run(self) -> int:
        """Copies everything; returns the number of episodes in the copy."""
        file, healthy = self._file, self._healthy
        data = self._member(file, "data", "/data") if "data" in self._names(file, "/") else None
        names = self._names(data, "/data") if _is_group(data) else []
        members = {name: self._member(data, name, f"/data/{name}") for name in names}
        demos = {name: member for name, member in members.items() if _is_group(member)}
        if not demos:
            return int(self._copy_episode(file, healthy, "/") > 0)
        copied = healthy.create_group("data")
        episodes = 0
        for name, demo in demos.items():
            group = copied.create_group(name)
            rows = self._copy_episode(demo, group, f"/data/{name}")
            episodes += rows > 0
            if not rows:
                del copied[name]
            elif "num_samples" in group.attrs:
                group.attrs["num_samples"] = rows
        self._copy_members(data, copied, "/data", None, done={*demos})
        self._copy_members(file, healthy, "/", None, done={"data"})
        if "total" in copied.attrs:
            copied.attrs["total"] = self.rows
        return episodes

    def _copy_episode(self, source: Any, target: Any, place: str) -> int:
        """Copies a group as far as all that has a row per frame is whole; returns the rows.

        A group of which a member cannot be opened has no whole rows.
        """
        unopened = self._unopened
        lengths = {
            name: (len(dataset), _whole_rows(dataset, self._size))
            for name, dataset in self._datasets(source, place)
            if dataset.shape
        }
        counts = [length for length, _ in lengths.values()]
        frames = max(set(counts), key=lambda n: (counts.count(n), n), default=0)
        rows = min((whole for length, whole in lengths.values() if length == frames), default=0)
        rows = 0 if self._unopened > unopened else rows
        if rows < frames or not rows:
            self.lost.append(f"{place}: rows {rows} to {frames}" if rows else f"{place}: all rows")
        if rows:
            self._copy_members(source, target, place, (frames, rows))
        self.rows += rows
        return rows

    def _copy_members(
        self,
        source: Any,
        target: Any,
        place: str,
        cut: tuple[int, int] | None,
        done: Container[str] = (),
    ) -> None:
        """Copies attributes and members; datasets with `cut[0]` rows get `cut[1]`."""
        try:
            for name, value in source.attrs.items():
                target.attrs[name] = value
        except _ERRORS as error:
            self._lose(place, f"attributes: {error}")
        for name in self._names(source, place):
            path = f"{place.rstrip('/')}/{name}"
            item = None if name in done else self._member(source, name, path)
            if _is_group(item):
                self._copy_members(item, target.create_group(name), path, cut)
            elif item is not None:
                length = len(item) if item.shape else 1
                whole = _whole_rows(item, self._size)
                rows = cut[1] if cut is not None and item.shape and length == cut[0] else length
                if whole < rows:
                    self.lost.append(f"{path}: rows {whole} to {length}")
                else:
                    _copy_rows(item, target, path.rpartition("/")[2], rows)

    def _datasets(self, group: Any, place: str) -> Iterator[tuple[str, Any]]:
        for name in self._names(group, place):
            path = f"{place.rstrip('/')}/{name}"
            item = self._member(group, name, path)
            if _is_group(item):
                yield from self._datasets(item, path)
            elif item is not None:
                yield path, item

    def _names(self, group: Any, place: str) -> list[str]:
        try:
            return sorted(group)
        except _ERRORS as error:
            self._unopened += 1
            self._lose(place, f"its list of members: {error}")
            return []

    def _member(self, group: Any, name: str, place: str) -> Any:
        """A member that is stored in this file; None, and a lost part, if it cannot be opened."""
        h5py = installed("h5py")
        try:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.HardLink):
                return group[name]
            reason = "a link to another place"
        except _ERRORS as error:
            self._unopened += 1
            reason = str(error)
        self._lose(place, reason)
        return None

    def _lose(self, place: str, reason: str) -> None:
        if (part := f"{place}: {reason}") not in self.lost:
            self.lost.append(part)


def _is_group(item: Any) -> bool:
    return hasattr(item, "create_group")


def _whole_rows(dataset: Any, size: int) -> int:
    """Number of rows before the first one of which bytes are missing or cannot be decoded."""
    length = len(dataset) if dataset.shape else 1
    if dataset.external or dataset.is_virtual or not dataset.size:
        return 0 if dataset.size else length
    if dataset.chunks is None:
        start, stored = dataset.id.get_offset(), dataset.id.get_storage_size()
        if start is None or not stored:  # compact data lie in the header; unwritten ones nowhere
            return length if stored else 0
        whole = length * max(0, min(size - start, stored)) // stored
        is_elsewhere = dataset.dtype.hasobject  # texts are in a heap of the file
        return whole if not is_elsewhere or _is_readable(dataset, ()) else 0
    rows = dataset.chunks[0]
    sides = zip(dataset.shape[1:], dataset.chunks[1:], strict=True)
    chunks_per_row = prod(-(-size // side) for size, side in sides)
    present: Counter[int] = Counter()
    try:
        infos = [*map(dataset.id.get_chunk_info, range(dataset.id.get_num_chunks()))]
    except _ERRORS:  # its index is lost
        return 0
    for info in infos:
        place = tuple(map(floordiv, info.chunk_offset, dataset.chunks))
        is_stored = info.byte_offset + info.size <= size
        present[place[0]] += is_stored and _is_readable(dataset, place)
    whole = next(number for number in count() if present[number] < chunks_per_row)
    return min(whole * rows, length)


def _is_readable(dataset: Any, place: tuple[int, ...]) -> bool:
    sides = zip(place, dataset.chunks or (), strict=True)
    try:
        dataset[tuple(slice(number * side, (number + 1) * side) for number, side in sides)]
    except _ERRORS:
        return False
    return True


def _copy_rows(dataset: Any, target: Any, name: str, rows: int) -> None:
    """Copies the first rows of a dataset, with its storage options."""
    if not dataset.shape or rows == len(dataset):
        dataset.file.copy(dataset, target, name)
        return
    options = {key: getattr(dataset, key) for key in ("compression", "compression_opts")}
    chunks = dataset.chunks and (min(dataset.chunks[0], rows), *dataset.chunks[1:])
    copy = target.create_dataset(
        name,
        (rows, *dataset.shape[1:]),
        dataset.dtype,
        chunks=chunks,
        maxshape=dataset.maxshape if chunks else None,
        shuffle=dataset.shuffle,
        fletcher32=dataset.fletcher32,
        **options,
    )
    copy.attrs.update(dataset.attrs)
    step = max(1, _COPIED_AT_ONCE // max(1, dataset.nbytes // len(dataset)))
    for start in range(0, rows, step):
        copy[start : min(start + step, rows)] = dataset[start : min(start + step, rows)]
