"""A read-only folder or zip of Zarr v2 or v3, in which missing chunks are counted or refused.

Zarr leaves out chunks that only have the fill value, in both versions and in shards, so that a
missing chunk may be whole or lost. `read_rows` says how many it filled in. Zarr's own codecs
inflate a chunk to any size. Here it must have the size that its array declares.
"""

import asyncio
import bz2
import json
import lzma
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from numcodecs.registry import get_codec
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer, default_buffer_prototype
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.config import config
from zarr.registry import register_pipeline

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.media import limits
from vlatool.recordings.zarr.check import ZARR
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.tree import files_below
from vlatool.storage.uri import as_native_file, is_remote

METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")
_LARGEST_DOCUMENT = 2**24
_MOST_CHUNKS = 2**16  # that one read touches
_GZIP_OR_ZLIB = 47  # `wbits` of zlib
_CONCURRENT = 10  # chunks that Zarr decodes at once
_BESIDE = 64  # bytes of checksums in a chunk


@dataclass
class _MissingChunks:
    """Chunks that are missing in the rows that are read."""

    place: tuple[Path, str]  # store and key of the array
    may_fill: bool  # False: the first one is an error
    files: int = 0
    parts: int = 0  # of shards


_MISSING = ContextVar[_MissingChunks | None]("missing", default=None)
_LARGE_CHUNKS = Lock()  # a setting of Zarr applies to all threads
_BLOSC = struct.Struct("<4xI4xI")  # of a chunk: bytes when inflated, bytes as stored
# Names of codecs that only transform bytes; others, such as pickle, may run code.
_CODECS = re.compile(
    r"blosc|zlib|gzip|zstd|lz4|bz2|lzma|shuffle|delta|fixedscaleoffset|quantize|bitround|packbits"
    r"|crc32c?|adler32|fletcher32|jenkins_lookup3|bytes|transpose|endian|sharding_indexed"
    r"|vlen-(utf8|bytes|array)|imagecodecs_\w+"
)
_FILL_HINT = "copy the store again; if its writer left chunks out, use --missing-chunks fill"
_HEADERS = {"blosc": _BLOSC.size, "zstd": 6, "lz4": 4}  # bytes, at least
_COMPRESSIONS = ("blosc", "zstd", "lz4", "gzip", "zlib", "bz2", "lzma")


def inflated(codec: Any, data: Any, limit: int) -> Any:
    """Inflates a chunk with a codec of numcodecs.

    Raises ValueError if the content exceeds `limit` bytes (and 64 for checksums), or if the chunk
    is shorter than its header says: the library would then read foreign memory.
    """
    name = codec.codec_id
    if name in ("blosc", "zstd", "lz4"):
        size = _declared_size(name, data)
        if size is None:
            size = limit  # what does not fill it exactly is an error
        if size > limit + _BESIDE:
            raise ValueError(f"its header says {size:,} bytes, but the array {limit:,}")
        return codec.decode(data, np.empty(size, np.uint8))
    stream: Any = zlib.decompressobj(_GZIP_OR_ZLIB)
    if name == "bz2":
        stream = bz2.BZ2Decompressor()
    elif name == "lzma":
        filters = codec.filters if codec.format == lzma.FORMAT_RAW else None
        stream = lzma.LZMADecompressor(codec.format, filters=filters)
    content = stream.decompress(data, limit + _BESIDE + 1)
    if len(content) > limit + _BESIDE:
        raise ValueError(f"inflates to more than {limit:,} bytes")
    if not stream.eof:
        raise ValueError("is cut off")
    return content


def _declared_size(name: str, data: bytes) -> int | None:
    """Returns the size in bytes that a header declares; None if it declares none, as in a stream.

    ValueError if the chunk is cut off.
    """
    if len(data) < _HEADERS[name]:
        raise ValueError(f"is cut off: {len(data)} bytes, less than a header")
    if name == "lz4":
        return int.from_bytes(data[:4], "little")
    if name == "blosc":
        size, stored = _BLOSC.unpack_from(data)
        if stored > len(data):
            raise ValueError(f"is cut off: {len(data):,} of {stored:,} bytes")
        return size
    # A frame of Zstandard: RFC 8878, section 3.1.1.1.
    is_single = data[4] >> 5 & 1
    width = (is_single, 2, 4, 8)[data[4] >> 6]
    if not width:
        return None
    start = 6 - is_single + (0, 1, 2, 4)[data[4] & 3]
    size = int.from_bytes(data[start : start + width], "little")
    return size + 256 if width == 2 else size


class CheckedPipeline(BatchedCodecPipeline):
    """The codecs of an array or of the inner chunks of its shards, with bounds."""

    async def decode_batch(
        self, chunk_bytes_and_specs: Iterable[tuple[Buffer | None, ArraySpec]]
    ) -> Iterable[NDBuffer | None]:
        """The chunks of a batch; ValueError for one that is not what the array declares."""
        plain, compressions = self._divided()
        pairs: list[tuple[Buffer | None, ArraySpec]] = []
        for data, spec in chunk_bytes_and_specs:
            missing = _MISSING.get()
            if data is None and missing is not None:
                if not missing.may_fill:
                    reason = "a chunk in a shard is missing"
                    path, key = missing.place
                    raise ZARR.error("missing_chunk", path, key, reason, hint=_FILL_HINT)
                missing.parts += 1
            if data is not None:
                content = await asyncio.to_thread(
                    plain.content, compressions, data.as_numpy_array(), spec
                )
                data = spec.prototype.buffer.from_bytes(content)
            pairs.append((data, spec))
        return await BatchedCodecPipeline.decode_batch(plain, pairs)

    def _divided(self) -> "tuple[CheckedPipeline, list[Any]]":
        """The pipeline without compression, and the codecs of numcodecs that come before it."""
        compressions: list[Any] = []
        if isinstance(self.array_bytes_codec, V2Codec):
            stored = self.array_bytes_codec
            filters: list[Any] = [*(stored.filters or ())]
            if stored.compressor is not None:
                compressions.append(stored.compressor)
            while filters and filters[-1].codec_id in _COMPRESSIONS:
                compressions.append(filters.pop())
            others = replace(stored, filters=tuple(filters) or None, compressor=None)
            return replace(self, array_bytes_codec=others), compressions
        for codec in reversed(self.bytes_bytes_codecs):
            document: Any = codec.to_dict()
            name = document["name"].removeprefix("numcodecs.")
            options: dict[str, Any] = {"id": name}
            if name == "lzma":
                options |= document.get("configuration", {})
            compressions.append(get_codec(options))
        return replace(self, bytes_bytes_codecs=()), compressions

    def content(self, compressions: Sequence[Any], data: Any, spec: ArraySpec) -> Any:
        """A chunk without compression, at most as large as the array declares."""
        dtype = spec.dtype.to_native_dtype()
        stored: Any = self.array_bytes_codec
        if isinstance(stored, V2Codec):
            names = [codec.codec_id for codec in stored.filters or ()]
        else:
            names = [stored.to_dict()["name"]] + ["other"] * len(self.array_array_codecs)
        limit = limits.most_bytes()
        size = math.prod(spec.shape) * dtype.itemsize
        if names in ([], ["bytes"]) and dtype.kind not in "OT":
            if size > limit:
                raise ValueError(f"a chunk has {size:,} bytes; raise {limits.MEMORY_VARIABLE}")
            limit = size
        for codec in compressions:
            if codec.codec_id in _COMPRESSIONS:
                data = inflated(codec, data, limit)
            else:
                data = codec.decode(data)
        if names and names[0].startswith("vlen-"):
            count = int.from_bytes(data[:4], "little")
            if count != math.prod(spec.shape):
                raise ValueError(f"has {count:,} texts, but the array {math.prod(spec.shape):,}")
        return data


def use_checked_codecs() -> None:
    """Makes Zarr inflate with `CheckedPipeline`, in shards, too."""
    register_pipeline(CheckedPipeline)
    name = f"{CheckedPipeline.__module__}.{CheckedPipeline.__name__}"
    config.set({"codec_pipeline.path": name, "async.concurrency": _CONCURRENT})


def read_rows(array: Any, rows: slice, *, may_fill: bool) -> tuple[Array, int]:
    """Rows of an array, and the number of missing chunks in them, which have the fill value.

    Raises:
        DataError: They are too many bytes or chunks, or one is missing and `may_fill` is False.
    """
    path = array.store.path
    count = len(range(*rows.indices(array.shape[0])))
    row = math.prod(array.shape[1:])
    limits.check_bytes(ZARR, path, array.path, count * row * array.dtype.itemsize)
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    limits.check_bytes(ZARR, path, array.path, chunk)
    if array.shards is not None and len(array.metadata.codecs) > 1:  # inflated as a whole
        limits.check_bytes(ZARR, path, array.path, math.prod(array.shards) * array.dtype.itemsize)
    chunks = count // array.chunks[0] + 2
    for length, side in zip(array.shape[1:], array.chunks[1:], strict=True):
        chunks *= math.ceil(length / side)
    if chunks > _MOST_CHUNKS:
        reason = f"{count:,} rows are in {chunks:,} chunks; the limit is {_MOST_CHUNKS:,}"
        raise ZARR.error("too_large", path, array.path, reason)
    at_once = max(1, min(_CONCURRENT, limits.most_bytes() // max(1, 2 * chunk)))
    missing = _MissingChunks((path, array.path), may_fill)
    token = _MISSING.set(missing)
    try:
        if at_once == _CONCURRENT:
            values = np.asarray(array[rows])
        else:
            with _LARGE_CHUNKS, config.set({"async.concurrency": at_once}):
                values = np.asarray(array[rows])
    finally:
        _MISSING.reset(token)
    return values, missing.files if array.shards is None else missing.files + missing.parts


class CheckedStore(Store):
    """Keys of a store to bytes, from a folder of any scheme or from a zip."""

    def __init__(self, path: Path) -> None:
        super().__init__(read_only=True)
        self.path = path
        self.broken: dict[str, DataError] = {}  # by key, of attributes
        self._zip: zipfile.ZipFile | None = None
        self._names: dict[str, dict[str, None]] = {"": {}}  # of the zip, by folder
        if path.suffix == ".zip":
            try:
                self._zip = zipfile.ZipFile(as_native_file(path))  # closed with the process
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise ZARR.error("unreadable", path, f"cannot be read: {error}") from error
            self._list_zip(self._zip.namelist())

    def __eq__(self, value: object) -> bool:
        return isinstance(value, CheckedStore) and value.path == self.path

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def read(self, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
        """Bytes of a key, or a range of them; None if it is not there.

        DataError for a range that the file does not have: it would be read as the fill value.
        """
        is_metadata = key.endswith(METADATA)
        limit = _LARGEST_DOCUMENT if is_metadata else limits.most_bytes()
        try:
            data = self._bytes(key, limit, byte_range)
        except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise ZARR.error("unreadable", self.path, key, f"cannot be read: {error}") from error
        if data is not None and len(data) > limit:
            raise limits.too_large(ZARR, self.path, key, len(data))
        if data is not None and is_metadata:
            self._check_document(key, data)
        missing = _MISSING.get()
        if data is None and not is_metadata and missing is not None:
            if not missing.may_fill:
                reason = "the chunk is missing"
                raise ZARR.error("missing_chunk", self.path, key, reason, hint=_FILL_HINT)
            missing.files += 1
        return data

    def _bytes(self, key: str, limit: int, byte_range: ByteRequest | None = None) -> bytes | None:
        try:
            if self._zip is not None:
                file: IO[bytes] = self._zip.open(key)
            else:
                file = open_file(self.path / key)
        except KeyError:
            return None
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path = self.path / key
            if not is_remote(path) and os.path.lexists(path) and not key.endswith(METADATA):
                raise OSError("is a folder, a pipe or a link to nothing") from None
            return None
        with file:
            if byte_range is None:
                return file.read(limit + 1)
            size = file.seek(0, os.SEEK_END)
            start, stop = _span(byte_range, size)
            if not 0 <= start <= stop <= size:
                raise EOFError(f"bytes {start:,} to {stop:,} of {size:,}")
            file.seek(start)
            return file.read(min(stop - start, limit + 1))

    def _list_zip(self, names: Iterable[str]) -> None:
        for name in names:
            folder = ""
            for part in name.strip("/").split("/"):
                self._names[folder][part] = None
                folder = f"{folder}/{part}".lstrip("/")
                self._names.setdefault(folder, {})

    def _check_document(self, key: str, data: bytes) -> None:
        """Refuses codecs that are not known."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ZARR.error("unreadable", self.path, key, f"is not JSON: {error}") from error
        for name in _codec_names(document):
            if not _CODECS.fullmatch(name):
                raise ZARR.error("unsafe_codec", self.path, key, f"uses the codec {name!r}")

    def is_array(self, folder: str) -> bool:
        """True if a folder is an array of Zarr 3, or one whose document is damaged."""
        data = self._bytes(f"{folder}/zarr.json".lstrip("/"), _LARGEST_DOCUMENT)
        if data is None:
            return False
        try:
            return json.loads(data)["node_type"] == "array"
        except (ValueError, LookupError, TypeError, RecursionError):
            return {*self.names(folder)} <= {"zarr.json", "c"}

    # The interface of Zarr.

    supports_writes: bool = False  # pyright: ignore[reportIncompatibleMethodOverride]
    supports_deletes: bool = False  # pyright: ignore[reportIncompatibleMethodOverride]
    supports_listing: bool = True  # pyright: ignore[reportIncompatibleMethodOverride]

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        try:
            data = self.read(key, byte_range)
        except DataError as error:
            if not key.endswith(".zattrs"):
                raise
            self.broken[key] = error  # the array can be read without them
            return None
        if data is None:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def exists(self, key: str) -> bool:
        return self._bytes(key, 0) is not None

    async def set(self, key: str, value: Buffer) -> None:
        raise NotImplementedError(key, value)

    async def delete(self, key: str) -> None:
        raise NotImplementedError(key)

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        folder = f"{prefix.strip('/')}/".lstrip("/")
        if self._zip is None:
            for file in files_below(self.path / folder):
                yield f"{folder}{file.name}"
            return
        for name in self._zip.namelist():
            if name.startswith(folder):
                yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self.names(prefix):
            yield name

    def names(self, prefix: str) -> Iterator[str]:
        """Names directly below a prefix, in order."""
        if self._zip is not None:
            yield from sorted(self._names.get(prefix.strip("/"), ()))
            return
        folder = self.path
        if prefix.strip("/"):
            folder = self.path / prefix.strip("/")
        if folder.is_dir():
            yield from sorted(path.name for path in folder.iterdir())


def _span(request: ByteRequest, size: int) -> tuple[int, int]:
    """First byte of a range and the one after its last, in a file of `size` bytes."""
    if isinstance(request, RangeByteRequest):
        return request.start, request.end
    if isinstance(request, OffsetByteRequest):
        return request.offset, size
    return max(0, size - request.suffix), size


def _codec_names(document: Any) -> Iterator[str]:
    """Names of the codecs of an array, in v2, v3 and consolidated documents."""
    if isinstance(document, list):
        for item in document:
            yield from _codec_names(item)
    if not isinstance(document, dict):
        return
    for key, value in document.items():
        if key in ("compressor", "filters", "codecs", "index_codecs"):
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    yield str(item.get("id") or item.get("name")).removeprefix("numcodecs.")
        yield from _codec_names(value)
