"""Header and integrity of PNG files, without decompressing pixels.

Source: formats/image-shards 4.1.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">2I5B")
_CHUNK = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4
_RGB, _BITS = 2, 8
# Transparent color, animation, palette: readers decode them differently.
_NOT_PLAIN = {b"tRNS", b"acTL", b"PLTE"}
_CRITICAL = {b"IHDR", b"IDAT", b"IEND", b"PLTE"}


@dataclass(frozen=True)
class PngInfo:
    """Size and pixel format of an intact PNG.

    Attributes:
        size: (height, width) in pixels.
        is_plain_rgb: True if pixels are 8-bit RGB, not interlaced, without transparency: every
            reader decodes the same pixels.
    """

    size: tuple[int, int]
    is_plain_rgb: bool


def is_png(data: bytes) -> bool:
    """True if the data starts with the PNG signature."""
    return data.startswith(_SIGNATURE)


def png_info(data: bytes) -> PngInfo:
    """Size and pixel format of a PNG; checks the checksum and order of all chunks, and the end.

    Raises:
        ValueError: It is damaged or truncated; names the byte.
    """
    kinds: list[bytes] = []
    header = b""
    for kind, content in _chunks(data):
        if not kinds:
            header = bytes(content)
        kinds.append(kind)
    is_whole = kinds[0] == b"IHDR" and kinds.count(b"IHDR") == 1 and b"IDAT" in kinds
    if not is_whole or len(header) != _HEADER.size:
        raise ValueError("an incomplete PNG: its chunks are not those of an image")
    width, height, bits, colors, *methods = _HEADER.unpack(header)
    positions = [index for index, kind in enumerate(kinds) if kind == b"IDAT"]
    is_one_run = positions[-1] - positions[0] + 1 == len(positions)
    is_known = not any(_is_critical(kind) and kind not in _CRITICAL for kind in kinds)
    is_plain = is_one_run and is_known and _NOT_PLAIN.isdisjoint(kinds) and not any(methods)
    return PngInfo((height, width), is_plain and (bits, colors) == (_BITS, _RGB))


def _is_critical(kind: bytes) -> bool:
    """True for chunks that are needed to decode the image: their first letter is a capital."""
    return not kind[0] & 0x20


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(type, content) of each chunk, up to the end of the file."""
    view, at, kind = memoryview(data), len(_SIGNATURE), b""
    if not is_png(data):
        raise ValueError(f"not a PNG: {data[:8].hex(' ') or 'empty'}")
    while kind != b"IEND":
        if at + _CHUNK.size + _CHECKSUM_BYTES > len(data):
            raise ValueError(f"a PNG truncated at byte {len(data)}")
        length, kind = _CHUNK.unpack_from(view, at)
        end = at + _CHUNK.size + length
        if end + _CHECKSUM_BYTES > len(data):
            raise ValueError(f"a PNG truncated at byte {len(data)}")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + _CHECKSUM_BYTES]):
            raise ValueError(f"a damaged PNG: wrong checksum at byte {at}")
        yield kind, view[at + _CHUNK.size : end]
        at = end + _CHECKSUM_BYTES
    if at != len(data):
        raise ValueError(f"a PNG with {len(data) - at} bytes after its end")
