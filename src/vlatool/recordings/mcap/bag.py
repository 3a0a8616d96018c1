"""Bags and their messages in the order of the files, each as far as it goes."""

import struct
import zlib
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from vlatool.errors import DataError, VlatoolError, installed
from vlatool.findings import Finding
from vlatool.media import limits
from vlatool.recordings.mcap import ros
from vlatool.recordings.mcap.check import MCAP
from vlatool.recordings.mcap.files import local_file, parts_of_bag
from vlatool.storage.byte_ranges import ByteRange, open_file, read_byte_range
from vlatool.storage.uri import is_remote

_MAGIC = b"\x89MCAP0\r\n"
_HEAD = struct.Struct("<BQ")  # opcode and length of a record
_CHUNK = struct.Struct("<QQQII")  # start, end, size, CRC, length of the name of the compression
_LENGTH = struct.Struct("<Q")
_MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_SCHEMA = 3
_CHANNEL = 4
_MESSAGES = 5
_CHUNKS = 6
_ATTACHMENT = 9
_RECORD = 12
_ENDS = (2, 15)
_READ = {_SCHEMA: "Schema", _CHANNEL: "Channel", _RECORD: "Metadata"}
_CHUNK_OF_MCAP = 1  # kind of a segment
_TAIL = 37  # bytes of the footer and the magic
_LARGEST_SUMMARY = 2**28  # bytes
_FEWEST_RECORDS = 1024  # of a chunk, however few bytes it has
_MOST_DAMAGES = 100  # that are listed of a file
_RANGE = 2**20  # bytes of records outside of chunks that are read at once


class BagChannel(NamedTuple):
    """Kind of the messages of a topic."""

    topic: str
    encoding: str  # of messages: `cdr`, `ros1`, `protobuf`, ...
    type: str  # as `sensor_msgs/msg/JointState` or `foxglove.RawImage`
    schema: bytes


class Segment(NamedTuple):
    """A chunk, or records outside of chunks."""

    start: int  # byte in the file
    stop: int
    kind: int  # 0: records, 1: chunk of MCAP; of ROS 1 as `ros.KINDS`; -1: see `BagMessage`
    first: int = 0  # log time in nanoseconds
    last: int = 2**63 - 1


class BagMessage(NamedTuple):
    """Message as it is stored."""

    channel: BagChannel
    time: int  # log time, in nanoseconds
    # number of the file; start, stop and kind of the segment, start and length in it; of readers of
    # rosbags: number of the connection, log time, -1, number among equal times, 0
    position: tuple[int, int, int, int, int, int]
    data: bytes


class TimeSpan(NamedTuple):
    """Log times of an episode in nanoseconds, the end excluded."""

    start: int = 0
    stop: int = 2**63 - 1


@dataclass
class BagFile:
    """Everything in a file but its messages."""

    path: Path
    local: Path  # the file, or its copy in the cache
    segments: list[Segment] = field(default_factory=list[Segment])  # of MCAP
    channels: dict[int, BagChannel] = field(default_factory=dict[int, BagChannel])
    counts: Counter[int] = field(default_factory=Counter[int])  # messages of each channel
    metadata: dict[str, str] = field(default_factory=dict[str, str])  # `NAME@KEY` to value
    attachments: dict[str, int] = field(default_factory=dict[str, int])  # name to bytes
    findings: list[Finding] = field(default_factory=list[Finding])
    schemas: dict[int, tuple[str, bytes]] = field(default_factory=dict)
    chunk_count: int | None = None  # that the index states

    def report(self, code: str, reason: str) -> None:
        self.findings.append(MCAP.at(code, self.path, reason))

    def add_stored(self, opcode: int, body: bytes) -> None:
        """Adds a schema, a channel, metadata or the number of a message."""
        if opcode == _MESSAGES:
            self.counts[_MESSAGE.unpack_from(body)[0]] += 1
        elif opcode in _READ:
            stream = installed("mcap.data_stream").ReadDataStream(BytesIO(body))
            self.add(getattr(installed("mcap.records"), _READ[opcode]).read(stream))

    def add(self, record: Any) -> None:
        kind = type(record).__name__
        if kind == "Schema":
            is_short = record.encoding.startswith("ros") and record.name.count("/") == 1
            name = record.name.replace("/", "/msg/") if is_short else record.name
            self.schemas[record.id] = name, record.data
        elif kind == "Channel":
            schema = self.schemas.get(record.schema_id, ("", b""))
            self.channels[record.id] = BagChannel(record.topic, record.message_encoding, *schema)
        elif kind == "Metadata":
            for key, value in record.metadata.items():
                self.metadata[f"{record.name}@{key}"] = value
        elif kind == "AttachmentIndex":
            self.attachments[record.name] = record.data_size
        elif kind == "Statistics":
            self.counts.update(record.channel_message_counts)
            self.chunk_count = record.chunk_count
        elif kind == "MetadataIndex":
            stop = record.offset + min(record.length, _RANGE)
            data = read_byte_range(ByteRange(self.local, record.offset, stop))
            if data[:1] != bytes([_RECORD]):
                raise ValueError("the index leads to no metadata")
            self.add_stored(_RECORD, data[_HEAD.size :])
        elif kind == "ChunkIndex":
            start = record.chunk_start_offset
            stop = record.chunk_start_offset + record.chunk_length
            first = record.message_start_time
            self.segments.append(Segment(start, stop, 1, first, record.message_end_time))


def _broken() -> tuple[type[Exception], ...]:
    own: type[Exception] = installed("mcap.exceptions").McapError
    return ValueError, LookupError, ArithmeticError, OSError, struct.error, own


@contextmanager
def _readable(path: Path, place: str = "") -> Generator[None]:
    try:
        yield
    except VlatoolError:
        raise
    except Exception as error:
        reason = f"cannot be read: {str(error) or type(error).__name__}"
        hint = ""
        if ".db3" in path.name:
            hint = f"sqlite3 {path} .recover | sqlite3 whole.db3 saves what is whole"
        raise MCAP.error("unreadable", path, place, reason, hint=hint) from error


@lru_cache(maxsize=64)
def _bag_file(path: Path, size: int, changed: int) -> BagFile:
    with _readable(path):
        file = BagFile(path, local_file(path))
        if file.local.suffix != ".mcap":
            return _ros_file(file)
        if file.local != path:
            size = file.local.stat().st_size
        indexed = _by_summary(path, file.local, size)
        if indexed is not None and (is_remote(file.local) or _is_index_right(indexed)):
            return indexed
        if indexed is None:
            return _by_scan(file, size)
        with suppress(DataError):
            _by_scan(file, size)
        # Behind a chunk whose own header is damaged, only the index leads on.
        return file if len(file.segments) >= len(indexed.segments) else indexed


def _is_index_right(file: BagFile) -> bool:
    """True if each chunk of the index starts with the length and the times that it states."""
    with open_file(file.local) as stream:
        for segment in file.segments:
            stream.seek(segment.start)
            length = segment.stop - segment.start - _HEAD.size
            times = struct.pack("<QQ", segment.first, segment.last)
            expected = _HEAD.pack(_CHUNKS, length) + times
            if stream.read(len(expected)) != expected:
                return False
    return True


def _by_summary(path: Path, local: Path, size: int) -> BagFile | None:
    """The file by the summary at its end; None if there is none, or it is damaged."""
    tail = read_byte_range(ByteRange(local, max(0, size - _TAIL), size))
    start, _, crc = struct.unpack_from("<QQI", tail, 9) if len(tail) == _TAIL else (0, 0, 0)
    if tail[-8:] != _MAGIC or not 0 < start < size or size - start > _LARGEST_SUMMARY:
        return None
    data = read_byte_range(ByteRange(local, start, size))
    if crc and zlib.crc32(data[:-12]) != crc:
        return None
    file = BagFile(path, local)
    stream = installed("mcap.stream_reader")
    try:
        for record in stream.StreamReader(BytesIO(data), skip_magic=True).records:
            file.add(record)
    except _broken():
        return None
    file.segments.sort()
    end = 0
    for segment in file.segments:
        if segment.start < end or segment.stop > size:  # it names a chunk twice, or none
            return None
        end = segment.stop
    is_whole = file.channels.keys() >= file.counts.keys()
    is_whole = is_whole and file.chunk_count in (None, len(file.segments))
    return file if is_whole and bool(file.segments) == bool(file.counts) else None


def _by_scan(file: BagFile, size: int) -> BagFile:
    """The file by reading it once, up to the first record that is cut off."""
    file.report("bad_index", "has no usable index, so it is read from start to end")
    end = _find_segments(file, size)
    first_error = ""
    left_out = 0
    broken = _broken()
    for segment in file.segments:
        for opcode, _, body in _records(file, segment, file.findings):
            try:
                file.add_stored(opcode, body)
            except broken as error:
                text = f"byte {segment.start}: a record is left out: {error!r}"
                first_error = first_error or text
                left_out += 1
    if left_out:
        more = f", and {left_out - 1:,} more" if left_out > 1 else ""
        file.report("cut_off", first_error + more)
    if end is not None:
        count = file.counts.total()
        file.report("cut_off", f"is whole up to byte {end} of {size}; {count} messages are read")
    return file


def _find_segments(file: BagFile, size: int) -> int | None:
    """Adds all segments; returns the start of a record that is cut off, or None."""
    with open_file(file.local) as stream:
        if stream.read(8) != _MAGIC:
            raise MCAP.error("unreadable", file.path, "is not an MCAP file")
        stop = 8
        while True:
            start = stop
            head = stream.read(_HEAD.size)
            opcode, length = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
            stop = start + _HEAD.size + length
            last = file.segments[-1] if file.segments else Segment(0, 0, 1)
            is_apart = last.kind or last.stop < start or stop > last.start + _RANGE
            if opcode in _ENDS and stop <= size:
                return None
            if not opcode or stop > size:
                if opcode == _CHUNKS and size - start < limits.most_bytes():
                    file.segments.append(Segment(start, size, 1))
                return start
            if opcode == _ATTACHMENT:
                file.attachments[f"at byte {start}"] = length
            elif opcode == _CHUNKS or is_apart:
                file.segments.append(Segment(start, stop, int(opcode == _CHUNKS)))
            else:
                file.segments[-1] = last._replace(stop=stop)
            stream.seek(stop)


class _DamageError(Exception):
    pass


def _records(
    file: BagFile, segment: Segment, findings: list[Finding]
) -> Iterator[tuple[int, int, bytes]]:
    """(opcode, start in the segment, content) of records, up to the first damaged one."""
    offset = 0
    # Each record of a real chunk takes some bytes of it.
    left = max(_FEWEST_RECORDS, segment.stop - segment.start)
    try:
        data = _content(file.path, file.local, segment)
        if segment.kind in ros.KINDS.values():
            yield from islice(_ros_records(file, data), left)
            return
        while offset < len(data):
            left -= 1
            if left < 0:
                raise _DamageError("it has more records than bytes")
            opcode, length = _HEAD.unpack_from(data, offset)
            start = offset + _HEAD.size
            offset = offset + _HEAD.size + length
            if offset > len(data):
                raise _DamageError(f"a record of {length:,} bytes at {start} of {len(data):,}")
            yield opcode, start, data[start:offset]
    except (_DamageError, struct.error) as error:
        reason = f"the chunk at byte {segment.start} is damaged from its byte {offset} on: {error}"
        if len(findings) < _MOST_DAMAGES:
            findings.append(MCAP.at("damaged_chunk", file.path, reason))
        elif len(findings) == _MOST_DAMAGES:
            reason = "further damaged chunks are not listed"
            findings.append(MCAP.at("damaged_chunk", file.path, reason))


def _ros_records(file: BagFile, data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Messages of a chunk of ROS 1 as records of MCAP; adds the connections to the file."""
    for header, start, content in ros.records(data):
        kind = header.get_uint8("op")
        if kind == ros.CONNECTION:
            topic, name, schema = ros.connection(header, content)
            file.channels[header.get_uint32("conn")] = BagChannel(topic, "ros1", name, schema)
        elif kind == ros.MESSAGE:
            time = header.get_time("time")
            head = _MESSAGE.pack(header.get_uint32("conn"), 0, time, time)
            yield _MESSAGES, start - _MESSAGE.size, head + content


def _content(path: Path, local: Path, segment: Segment) -> bytes:
    """Records of a segment, or the first ones of a chunk that the end of the file cuts off."""
    place = f"byte {segment.start}"
    length = segment.stop - segment.start
    most = max(length, limits.most_bytes())
    data = read_byte_range(ByteRange(local, segment.start, segment.start + length))
    if segment.kind == 0:
        return data
    if segment.kind != _CHUNK_OF_MCAP:
        try:
            return ros.inflated(data, segment.kind, most)
        except (OSError, ValueError, EOFError, RuntimeError) as error:
            raise _DamageError(f"cannot be inflated: {error}") from error
    opcode, declared = _HEAD.unpack_from(data)
    if opcode != _CHUNKS:
        raise _DamageError(f"the record here is no chunk, but of the kind {opcode}")
    is_cut = declared > length - _HEAD.size
    data = data[_HEAD.size :]
    _, _, size, crc, name = _CHUNK.unpack_from(data)
    limits.check_bytes(MCAP, path, place, size, length)
    head = _CHUNK.size + name
    compression = data[_CHUNK.size : head]
    (stored,) = _LENGTH.unpack_from(data, head)
    data = data[head + _LENGTH.size :]
    if not is_cut and len(data) < stored:
        raise _DamageError(f"it has {len(data):,} of {stored:,} bytes")
    try:
        if compression == b"zstd":
            data = installed("zstandard").ZstdDecompressor().stream_reader(data).read(size + 1)
        elif compression == b"lz4":
            data = installed("lz4.frame").LZ4FrameDecompressor().decompress(data, size + 1)
        elif compression:
            raise _DamageError(f"unknown compression {compression!r}")
    except (RuntimeError, ValueError, EOFError, installed("zstandard").ZstdError) as error:
        raise _DamageError(f"cannot be inflated: {error}") from error
    if not is_cut and (len(data) != size or (crc and zlib.crc32(data) != crc)):
        raise _DamageError(f"wrong checksum or size: {len(data):,} of {size:,} bytes")
    return data


def _ros_file(file: BagFile) -> BagFile:
    reader = ros.open_reader(file.local)
    if reader is None:
        return _by_chunks(file)
    encoding = "ros1" if isinstance(reader, installed("rosbags.rosbag1").Reader) else "cdr"
    for link in reader.connections:
        if not isinstance(link.topic, str) or not isinstance(link.msgtype, str):
            raise TypeError("a topic has no name or no type")
        schema = link.msgdef.data.encode()
        file.channels[link.id] = BagChannel(link.topic, encoding, link.msgtype, schema)
        file.counts[link.id] = link.msgcount
    reader.close()
    return file


def _by_chunks(file: BagFile) -> BagFile:
    """A ROS 1 bag by reading it once, up to the first record that is cut off."""
    file.report("bad_index", "has no usable index, so it is read from start to end")
    size = file.local.stat().st_size
    is_cut = False
    for start, stop, kind in ros.chunks(file.local):
        segment = Segment(start, min(stop, size), kind)
        file.segments.append(segment)
        for opcode, _, body in _records(file, segment, file.findings):
            file.add_stored(opcode, body)
        is_cut = stop > size
    if not file.counts:
        hint = "check that it is a bag of ROS 1, or leave it out with --exclude"
        raise MCAP.error("unreadable", file.path, "has no whole message of ROS 1", hint=hint)
    if is_cut:
        start = file.segments[-1].start
        count = file.counts.total()
        reason = f"is cut off in the chunk at byte {start} of {size}; {count} messages are read"
        file.report("cut_off", reason)
    return file


@dataclass(frozen=True)
class Bag:
    """The files of one bag."""

    path: Path  # file, or folder with metadata.yaml
    parts: tuple[Path, ...]

    @property
    def files(self) -> list[BagFile]:
        """Their contents, which are found once in a process."""
        files: list[BagFile] = []
        for path in self.parts:
            with _readable(path):
                status = path.stat()
            files.append(_bag_file(path, status.st_size, status.st_mtime_ns))
        return files

    def messages(self, span: TimeSpan, findings: list[Finding]) -> Iterator[BagMessage]:
        """Messages in the order of the files; `findings` gets the damages of these."""
        for number, file in enumerate(self.files):
            findings += file.findings
            with _readable(file.path):
                if file.segments or file.local.suffix == ".mcap":
                    yield from _stored_messages(number, file, span, findings)
                else:
                    yield from _reader_messages(number, file, span, findings)


def _stored_messages(
    number: int, file: BagFile, span: TimeSpan, findings: list[Finding]
) -> Iterator[BagMessage]:
    unusable = Counter[int]()
    damages: list[Finding] = []
    for segment in file.segments:
        if segment.last < span.start or segment.first >= span.stop:
            continue
        place = segment.start, segment.stop, segment.kind
        for opcode, start, body in _records(file, segment, damages):
            if opcode != _MESSAGES or len(body) < _MESSAGE.size:
                continue
            key, _, time, _ = _MESSAGE.unpack_from(body)
            channel = file.channels.get(key)
            if channel is None or time >= TimeSpan().stop:
                unusable[key] += 1
            elif span.start <= time < span.stop:
                position = number, *place, start + _MESSAGE.size, len(body) - _MESSAGE.size
                yield BagMessage(channel, time, position, body[_MESSAGE.size :])
    known = {finding.message for finding in file.findings}
    findings += [finding for finding in damages if finding.message not in known]
    for channel, count in unusable.items():
        reason = f"left out: {count} messages of channel {channel} without description or time"
        findings.append(MCAP.at("cut_off", file.path, reason))


def _reader_messages(
    number: int, file: BagFile, span: TimeSpan, findings: list[Finding]
) -> Iterator[BagMessage]:
    reader = ros.open_reader(file.local)
    unusable = 0
    last: dict[int, tuple[int, int]] = {}  # connection to a time and the number of its messages
    for link, time, data in reader.messages(start=span.start, stop=span.stop):
        last_time, index = last.get(link.id, (-1, 0))
        index = index + 1 if last_time == time else 0
        last[link.id] = (time, index)
        position = (number, link.id, time, -1, index, 0)
        if isinstance(data, bytes) and isinstance(time, int):
            yield BagMessage(file.channels[link.id], time, position, data)
        else:
            unusable += 1
    reader.close()
    if unusable:
        reason = f"left out: {unusable} messages without data or time"
        findings.append(MCAP.at("cut_off", file.path, reason))


class TopicReader:
    """Reads messages by their positions; the last chunk stays in memory."""

    def __init__(self, bag: Bag) -> None:
        self._bag = bag
        self._local: dict[int, Path] = {}
        self._place: tuple[int, Segment] | None = None  # file and chunk that are in memory
        self._held: Any = b""  # content of the chunk, or the reader of ROS

    def __getstate__(self) -> dict[str, Any]:
        return {"_bag": self._bag, "_local": {}, "_place": None, "_held": b""}

    def read(self, position: Sequence[int]) -> bytes:
        number, *place, start, size = map(int, position)
        path = self._bag.parts[number]
        segment = Segment(*place)
        with _readable(path, f"byte {segment.start}"):
            if number not in self._local:
                self._local[number] = local_file(path)
            local = self._local[number]
            if segment.kind < 0:
                return self._read_by_reader(local, number, place[:2], start)
            if segment.kind == 0:
                start += segment.start
                return read_byte_range(ByteRange(local, start, start + size))
            if self._place != (number, segment):
                self._held = _content(path, local, segment)
                self._place = (number, segment)
            return self._held[start : start + size]

    def _read_by_reader(self, local: Path, number: int, place: Sequence[int], index: int) -> bytes:
        file = (number, Segment(0, 0, -1))
        if self._place != file:
            self._held = ros.open_reader(local)
            self._place = file
        link, time = place
        connections = [found for found in self._held.connections if found.id == link]
        return next(islice(self._held.messages(connections, time, time + 1), index, None))[2]


def bag_at(path: Path) -> Bag:
    """The bag of a file, or of a folder with metadata.yaml."""
    return Bag(path, parts_of_bag(path))
