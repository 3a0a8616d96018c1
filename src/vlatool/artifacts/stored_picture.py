"""What the bytes of a picture say of it, and whether they are whole, without its pixels.

A picture that already is what is wanted goes through as it is; this says whether it is.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import simplejpeg

from vlatool.artifacts.picture import MOST_PIXELS, decoded_size, open_picture

PNG, JPEG = "png", "jpeg"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_CHUNK = struct.Struct(">L4s")
_HEADER = struct.Struct(">LLBBBBB")
_COLOUR = 2  # red, green, blue
# Chunks that make more of a picture than its pixels: transparency, and an animation.
_MORE = (b"tRNS", b"acTL")
# Pillow's modes of grey with more than 8 bits; brought to colours they would be white.
_NUMBERS = ("I", "F")


@dataclass(frozen=True)
class PictureFacts:
    """What a picture is.

    Attributes:
        format: `png`, `jpeg`, or another name in lower case.
        height: In pixels.
        width: In pixels.
        is_rgb: Whether its pixels are stored as 8-bit red, green and blue, and nothing else.
        frames: More than one in an animation.
    """

    format: str
    height: int
    width: int
    is_rgb: bool
    frames: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


def picture_facts(data: bytes) -> PictureFacts:
    """What the header says; of a PNG every checksum is compared, too.

    Raises:
        ValueError: It is no picture, cut off or damaged, has more than `MOST_PIXELS`, or numbers
            of more than 8 bits in place of colours, such as depth.
    """
    if data.startswith(_PNG_SIGNATURE):
        facts = _png_facts(data)
    elif data.startswith(_JPEG_SIGNATURE):
        facts = _jpeg_facts(data)
    else:
        facts = _other_facts(data)
    if facts.height * facts.width > MOST_PIXELS:
        raise ValueError(f"{facts.width} x {facts.height} pixels; the limit is {MOST_PIXELS}")
    return facts


def check_pixels(data: bytes) -> None:
    """Decodes a picture; ValueError where that is not possible."""
    decoded_size(data)


def _png_facts(data: bytes) -> PictureFacts:
    chunks = list(_png_chunks(data))
    kinds = [kind for kind, _ in chunks]
    if kinds[0] != b"IHDR" or b"IDAT" not in kinds or len(chunks[0][1]) != _HEADER.size:
        raise ValueError("a PNG without a header or without pixels")
    width, height, depth, colour, *_ = _HEADER.unpack(chunks[0][1])
    if (depth, colour) != (8, _COLOUR) or any(kind in _MORE for kind in kinds):
        return replace(_other_facts(data), is_rgb=False)
    return PictureFacts(PNG, height, width, is_rgb=True)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and content of each chunk up to the end mark; ValueError where there is none."""
    view, position = memoryview(data), len(_PNG_SIGNATURE)
    while position + _CHUNK.size <= len(view):
        length, kind = _CHUNK.unpack_from(view, position)
        start = position + _CHUNK.size
        stop = start + length
        checksum = view[stop : stop + 4]
        if len(checksum) < 4:
            break
        if zlib.crc32(view[position + 4 : stop]) != int.from_bytes(checksum):
            raise ValueError(f"the checksum of its part {kind.decode('latin1')!r} is wrong")
        yield kind, view[start:stop]
        if kind == b"IEND":
            return
        position = stop + 4
    raise ValueError(f"a PNG that is cut off after {len(data)} bytes")


def _jpeg_facts(data: bytes) -> PictureFacts:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _other_facts(data)
    return PictureFacts(JPEG, int(height), int(width), colours == "YCbCr")


def _other_facts(data: bytes) -> PictureFacts:
    with open_picture(data) as picture:
        name = (picture.format or "").lower()
        frames = int(getattr(picture, "n_frames", 1))
        if picture.mode.startswith(_NUMBERS):
            raise ValueError(f"numbers in place of colours (mode {picture.mode!r}), such as depth")
        is_rgb = picture.mode == "RGB" and frames == 1
        return PictureFacts(name, picture.height, picture.width, is_rgb, frames)
