"""A folder or zip of Zarr v2 or v3, read only: nothing that is missing becomes zeros.

Zarr's own stores return the fill value for a chunk that is not there. Here it is an error in Zarr
2, unless the user allows it. Zarr 3 leaves out chunks that have only the fill value.
"""

import json
import math
import re
import struct
import zipfile
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.codecs import BloscCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.config import config
from zarr.registry import register_codec

from vlatool.formats.zarr.check import ZARR
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.uri import as_native_file

METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")
_LARGEST_DOCUMENT = 2**24
_LARGEST_CHUNK = 2**29
_BLOSC = struct.Struct("<4xI4xI")  # of a chunk: bytes when inflated, bytes as stored
# Names of codecs that only transform bytes; others, such as pickle, may run code.
_CODECS = re.compile(
    r"blosc|zlib|gzip|zstd|lz4|bz2|lzma|shuffle|delta|fixedscaleoffset|quantize|bitround|packbits"
    r"|crc32c?|adler32|fletcher32|jenkins_lookup3|bytes|transpose|endian|sharding_indexed"
    r"|vlen-(utf8|bytes|array)|imagecodecs_\w+"
)


def check_blosc(data: bytes, size: int | None) -> None:
    """Raises ValueError for a chunk of Blosc that is shorter than its header says, or that does not
    inflate to `size` bytes: the library would read or give memory that is not the chunk's.
    """
    if len(data) < _BLOSC.size:
        raise ValueError(f"is cut off: {len(data)} bytes, less than the header of Blosc")
    inflated, stored = _BLOSC.unpack_from(data)
    if stored > len(data):
        raise ValueError(f"is cut off: {len(data):,} of {stored:,} bytes")
    if inflated != size if size is not None else inflated > _LARGEST_CHUNK:
        raise ValueError(
            f"its header says {inflated:,} bytes, the array {size or _LARGEST_CHUNK:,}"
        )


class CheckedBlosc(BloscCodec):
    """The codec Blosc of Zarr 3, which looks at the header of a chunk first."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        dtype = chunk_spec.dtype.to_native_dtype()
        is_plain = dtype.kind in "fiub"
        size = math.prod(chunk_spec.shape) * dtype.itemsize if is_plain else None
        check_blosc(chunk_bytes.to_bytes(), size)
        return await super()._decode_single(chunk_bytes, chunk_spec)


def check_chunks_of_blosc() -> None:
    """Registers `CheckedBlosc` for arrays of Zarr 3, those in shards among them."""
    register_codec("blosc", CheckedBlosc)
    config.set({"codecs.blosc": f"{CheckedBlosc.__module__}.{CheckedBlosc.__name__}"})


class CheckedStore(Store):
    """Keys of a store to bytes, from a folder of any scheme or from a zip."""

    def __init__(self, path: Path, missing_chunks: str | None = None) -> None:
        """`missing_chunks`: `error` or `fill`; None: what the version of the format says."""
        super().__init__(read_only=True)
        self._path = path
        self._arrays: dict[str, Any] = {}  # folder to its document of Zarr 2, None without one
        self._zip: zipfile.ZipFile | None = None
        if path.suffix == ".zip":
            try:
                self._zip = zipfile.ZipFile(as_native_file(path))  # closed with the process
            except (zipfile.BadZipFile, OSError, ValueError) as error:
                raise ZARR.error("unreadable", path, f"cannot be read: {error}") from error
        is_latest = self._bytes("zarr.json", 0) is not None
        self._may_fill = missing_chunks == "fill" or (missing_chunks is None and is_latest)

    def __eq__(self, value: object) -> bool:
        return isinstance(value, CheckedStore) and value._path == self._path

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def read(self, key: str) -> bytes | None:
        """Bytes of a key; None if it is not there."""
        limit = _LARGEST_DOCUMENT if key.endswith(METADATA) else _LARGEST_CHUNK
        try:
            data = self._bytes(key, limit)
        except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise ZARR.error("unreadable", self._path, key, f"cannot be read: {error}") from error
        if data is not None and len(data) > limit:
            raise ZARR.error("too_large", self._path, key, f"more than {limit:,} bytes")
        if data is not None and key.endswith(METADATA):
            self._check_document(key, data)
        elif data is not None:
            self._check_blosc(key, data)
        if data is None and not key.endswith(METADATA) and not self._may_fill:
            hint = "--missing-chunks fill reads it as the fill value, which Zarr 3 leaves out"
            raise ZARR.error("missing_chunk", self._path, key, "the chunk is missing", hint=hint)
        return data

    def _bytes(self, key: str, limit: int) -> bytes | None:
        if self._zip is not None:
            try:
                with self._zip.open(key) as member:
                    return member.read(limit + 1)
            except KeyError:
                return None
        try:
            with open_file(self._path / key) as file:
                return file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def _check_document(self, key: str, data: bytes) -> None:
        """Refuses codecs that are not known, and chunks too large for memory."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ZARR.error("unreadable", self._path, key, f"is not JSON: {error}") from error
        for name in _codec_names(document):
            if not _CODECS.fullmatch(name):
                raise ZARR.error("unsafe_codec", self._path, key, f"uses the codec {name!r}")

    def is_array(self, folder: str) -> bool:
        """True if a folder is an array of Zarr 3."""
        data = self._bytes(f"{folder}/zarr.json".lstrip("/"), _LARGEST_DOCUMENT)
        try:
            return data is not None and json.loads(data).get("node_type") == "array"
        except (ValueError, AttributeError, RecursionError):
            return False

    def _check_blosc(self, key: str, data: bytes) -> None:
        """Refuses a chunk of Zarr 2 whose header of Blosc does not fit it or its array."""
        folder = key.rpartition("/")[0]
        if folder not in self._arrays:
            document = self._bytes(f"{folder}/.zarray".lstrip("/"), _LARGEST_DOCUMENT)
            self._arrays[folder] = None if document is None else json.loads(document)
        array = self._arrays[folder]
        if array is None or (array.get("compressor") or {}).get("id") != "blosc":
            return
        size = None
        if not array.get("filters") and isinstance(array.get("dtype"), str):
            size = math.prod(array["chunks"]) * np.dtype(array["dtype"]).itemsize
        try:
            check_blosc(data, size)
        except ValueError as error:
            raise ZARR.error("unreadable", self._path, key, str(error)) from error

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
        data = self.read(key)
        if data is None:
            return None
        if isinstance(byte_range, RangeByteRequest):
            data = data[byte_range.start : byte_range.end]
        elif isinstance(byte_range, OffsetByteRequest):
            data = data[byte_range.offset :]
        elif byte_range is not None:
            data = data[-byte_range.suffix :]
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
        raise NotImplementedError(prefix)
        yield ""

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in self.names(prefix):
            yield name

    def names(self, prefix: str) -> Iterator[str]:
        """Names directly below a prefix, in order."""
        if self._zip is not None:
            start = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
            below = (name[len(start) :] for name in self._zip.namelist() if name.startswith(start))
            yield from sorted({name.partition("/")[0] for name in below} - {""})
            return
        folder = self._path / prefix.strip("/") if prefix.strip("/") else self._path
        if folder.is_dir():
            yield from sorted(path.name for path in folder.iterdir())


def _codec_names(document: Any) -> Iterator[str]:
    """Names of the codecs of an array, in v2, v3 and consolidated documents."""
    if isinstance(document, list):
        for item in document:
            yield from _codec_names(item)
    if not isinstance(document, dict):
        return
    for key, value in document.items():
        if key in ("compressor", "filters", "codecs", "index_codecs"):
            items = value if isinstance(value, list) else [value]
            yield from (
                str(item.get("id") or item.get("name")).removeprefix("numcodecs.")
                for item in items
                if isinstance(item, dict)
            )
        yield from _codec_names(value)
