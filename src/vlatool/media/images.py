"""Stored images: decoding and encoding of JPEG and PNG, headers, integrity.

Headers decide if a stored image can be copied unchanged, and if a tokenizer may be trained on it or
encode it. Source: formats/lbm-preprocessing 2.4, formats/image-shards 4.1.
"""

import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageDraw

from vlatool.episode import Array, UInt8Array
from vlatool.report.episodes import FrameView
from vlatool.storage.byte_ranges import read_file

# Larger images are not decoded; no robot has such a camera.
MAX_PIXELS = 2**26
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_JPEG_START = b"\xff\xd8\xff"
# Published progressive images have about 10 scans; each takes the time of decoding the image.
MAX_SCANS = 100
_JPEG_SCAN = 0xFFDA
_JPEG_MARKERS = 0xFF00
_JPEG_HEADER = struct.Struct(">2H")  # marker, and number of bytes after it
# Headers of a frame: sequential, and progressive or unusual.
_JPEG_SEQUENTIAL = (0xFFC0, 0xFFC1)
_JPEG_FRAMES = frozenset((*_JPEG_SEQUENTIAL, 0xFFC2, 0xFFC3, *range(0xFFC5, 0xFFC8)))
# Errors of Pillow for data that is no image; the warning is raised where warnings are errors.
_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)

_PNG_START = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">2I5B")
_CHUNK = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4
_RGB = 2
_BITS = 8
# Transparent color, animation, palette: readers decode them differently.
_NOT_PLAIN = {b"tRNS", b"acTL", b"PLTE"}
_CRITICAL = {b"IHDR", b"IDAT", b"IEND", b"PLTE"}
PNG = "png"
JPEG = "jpeg"
# Least width of an image under a label, height of the label, distances; in pixels.
_LABELED_WIDTH = 160
_LABEL_HEIGHT = 18
_GAP = 4
# Pillow's gray modes with more than 8 bits; converted to RGB they would be white.
_NUMERIC_MODES = ("I", "F")

# Chroma subsampling: full resolution, or one chroma sample per 2 x 2 pixels.
Subsampling = Literal["4:4:4", "4:2:0"]


def encode_jpeg(
    pixels: UInt8Array, quality: int, subsampling: Subsampling = "4:2:0", *, optimize: bool = False
) -> bytes:
    """JPEG of uint8 [H, W, 3]; `optimize`: code tables for each image, which take 5 % less space
    and twice the time.
    """
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, optimize=optimize)
    return buffer.getvalue()


def encode_png(values: Array) -> bytes:
    """PNG of uint16 [H, W] or uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def labeled_png(images: Mapping[str, UInt8Array]) -> bytes:
    """PNG of images side by side, each under its label; `images`: label to image uint8 [H, W, 3],
    all of one size; small ones are enlarged.
    """
    height, width = next(iter(images.values())).shape[:2]
    scale = -(-_LABELED_WIDTH // width)
    size = (width * scale, height * scale)
    step = width * scale + _GAP
    sheet = Image.new("RGB", (step * len(images) - _GAP, size[1] + _LABEL_HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, pixels) in enumerate(images.items()):
        draw.text((column * step + _GAP, _GAP), label, fill=(40, 40, 40))
        image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
        sheet.paste(image, (column * step, _LABEL_HEIGHT))
    return encode_png(np.asarray(sheet))


def decode_rgb(data: bytes, buffer: UInt8Array | None = None) -> UInt8Array:
    """Pixels uint8 [H, W, 3]; `buffer`: uint8 [K], used for the result if it is large enough."""
    pixels = _decode_valid_jpeg(data, buffer)
    if pixels is not None:
        return pixels
    with open_image(data) as image:
        return np.asarray(image.convert("RGB"))


def decode_values(data: bytes) -> Array:
    """Values [H, W] of an image with one channel, such as 16-bit PNG of depth."""
    with open_image(data) as image:
        values = np.asarray(image)
    if values.ndim != 2:
        raise ValueError(f"has {values.shape[-1]} channels, not one")
    return values


def decoded_size(data: bytes) -> tuple[int, int]:
    """(width, height) of an image after decoding it; raises ValueError if it cannot be decoded."""
    pixels = _decode_valid_jpeg(data)
    if pixels is not None:
        return pixels.shape[1], pixels.shape[0]
    with open_image(data) as image:
        image.load()
        return image.size


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """The image; its pixels are decoded lazily."""
    try:
        _check_scans(data)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_size(image.width, image.height)
            yield image
    except Image.UnidentifiedImageError:
        raise ValueError(f"not an image: {data[:8].hex(' ') or 'empty'}") from None
    except _BROKEN as error:
        raise ValueError(str(error)) from None


def _decode_valid_jpeg(data: bytes, buffer: UInt8Array | None = None) -> UInt8Array | None:
    """Pixels of a valid JPEG, equal to Pillow's in two thirds of the time.

    None for other data, which Pillow decodes: it tolerates some errors.
    """
    if not data.startswith(_JPEG_START):
        return None
    _check_scans(data)
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        height = int(height)
        width = int(width)
        _check_size(width, height)
        if colors not in ("YCbCr", "Gray"):
            return None
        if buffer is None or buffer.size < height * width * 3:
            return simplejpeg.decode_jpeg(data)
        return simplejpeg.decode_jpeg(data, buffer=buffer)
    except ValueError:
        return None


def _check_size(width: int, height: int) -> None:
    if not (width and height):
        raise ValueError(f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; the limit is {MAX_PIXELS}")


def _check_scans(data: bytes) -> None:
    """Raises ValueError for a JPEG whose many scans each take the time of an image."""
    if not data.startswith(_JPEG_START) or _has_one_scan(data):
        return
    scans = data.count(_JPEG_SCAN.to_bytes(2))  # cannot be part of compressed values
    if scans > MAX_SCANS:
        raise ValueError(f"a JPEG of {scans} scans; the limit is {MAX_SCANS}")


def _has_one_scan(data: bytes) -> bool:
    """True if decoders read only the first scan, because it has all colors in full precision.

    Reads the headers before it: counting the scans takes a tenth of the time of decoding.
    """
    at = 2
    is_progressive = True
    colors = -1
    while at + 9 < len(data):
        marker, length = _JPEG_HEADER.unpack_from(data, at)
        if marker == _JPEG_SCAN:
            return not is_progressive and data[at + 4] == colors
        if marker in _JPEG_FRAMES:
            is_progressive = marker not in _JPEG_SEQUENTIAL
            colors = data[at + 9]
        elif marker < _JPEG_MARKERS:
            return False
        at += 2 + length
    return False


@dataclass(frozen=True)
class PngInfo:
    """Size and pixel format of an intact PNG."""

    size: tuple[int, int]  # (height, width) in pixels
    # True if pixels are 8-bit RGB, not interlaced, without transparency: every reader decodes the
    # same pixels
    is_plain_rgb: bool


def is_png(data: bytes) -> bool:
    return data.startswith(_PNG_START)


def png_info(data: bytes) -> PngInfo:
    """Size and pixel format of a PNG; checks the checksum and order of all chunks, and the end."""
    kinds: list[bytes] = []
    header = b""
    for kind, content in _chunks(data):
        if not kinds:
            header = bytes(content)
        kinds.append(kind)
    is_whole = kinds[0] == b"IHDR" and kinds.count(b"IHDR") == 1 and b"IDAT" in kinds
    if not is_whole or len(header) != _HEADER.size:
        raise ValueError("an incomplete PNG: it lacks chunks of an image")
    width, height, bits, colors, *methods = _HEADER.unpack(header)
    first = kinds.index(b"IDAT")
    count = kinds.count(b"IDAT")
    is_one_run = kinds[first : first + count].count(b"IDAT") == count
    # Chunks that are needed to decode the image begin with a capital.
    is_known = all(kind[0] & 0x20 or kind in _CRITICAL for kind in kinds)
    is_plain = is_one_run and is_known and _NOT_PLAIN.isdisjoint(kinds) and not any(methods)
    return PngInfo((height, width), is_plain and (bits, colors) == (_BITS, _RGB))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(type, content) of each chunk, up to the end of the file.

    With `verify` of Pillow in its place, copying the images of LIBERO (4,000 of 99 kB) takes 7 to
    25 % more processor time (five runs in turn).
    """
    view = memoryview(data)
    at = len(_PNG_START)
    kind = b""
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


@dataclass(frozen=True)
class ImageInfo:
    format: str  # `png`, `jpeg`, or another name in lower case
    height: int  # in pixels
    width: int  # in pixels
    # True if it is stored as 8-bit RGB and nothing else: every reader decodes the same pixels
    is_plain: bool
    frames: int = 1  # number of frames; more than one in an animation

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


def image_info(data: bytes) -> ImageInfo:
    """Format and size from the header; all checksums of a PNG are compared too."""
    if is_png(data):
        info = _png_image_info(data)
    elif data.startswith(_JPEG_START):
        _check_scans(data)
        info = _jpeg_image_info(data)
    else:
        info = _pillow_image_info(data)
    _check_size(info.width, info.height)
    return info


class NotRgbError(ValueError):
    """An image is not stored as 8-bit RGB, or has several frames."""


def decode_plain(data: bytes, *, convert: bool = False) -> UInt8Array:
    """Pixels uint8 [H, W, 3] of an image that all readers decode alike."""
    info = image_info(data)
    if not convert and info.frames > 1:
        raise NotRgbError("has several frames")
    if not convert and not info.is_plain:
        raise NotRgbError("is not stored as 8-bit RGB (gray, palette or alpha)")
    return decode_rgb(data)


def _png_image_info(data: bytes) -> ImageInfo:
    info = png_info(data)
    if not info.is_plain_rgb:
        return replace(_pillow_image_info(data), is_plain=False)
    return ImageInfo(PNG, *info.size, is_plain=True)


def _jpeg_image_info(data: bytes) -> ImageInfo:
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return _pillow_image_info(data)
    return ImageInfo(JPEG, int(height), int(width), colors == "YCbCr")


def _pillow_image_info(data: bytes) -> ImageInfo:
    with open_image(data) as image:
        name = (image.format or "").lower()
        frames = int(getattr(image, "n_frames", 1))
        if image.mode.startswith(_NUMERIC_MODES):
            raise ValueError(f"values instead of colors (mode {image.mode!r}), such as depth")
        is_plain = image.mode == "RGB" and frames == 1
        return ImageInfo(name, image.height, image.width, is_plain, frames)


def file_view(path: Path) -> FrameView:
    try:
        return FrameView(visible_image(read_file(path)))
    except FileNotFoundError:
        return FrameView(None, problem="is missing")
    except (OSError, ValueError):
        return FrameView(None, problem="cannot be decoded")


def visible_image(data: bytes) -> Image.Image:
    """Decodes a JPEG or PNG as RGB; depth and labels of 16 bits as gray values."""
    with open_image(data) as image:
        if image.mode.startswith("I"):
            # Depth or labels of 16 bits, scaled to visible gray values; 0 stays black.
            values = np.asarray(image, np.float64)
            positive = values[values > 0]
            if not positive.size:
                return Image.new("RGB", image.size)
            low = positive.min()
            high = positive.max()
            gray = 60 + 195 * (values - low) / max(high - low, 1)
            return Image.fromarray(np.where(values > 0, gray, 0).astype(np.uint8)).convert("RGB")
    return Image.fromarray(decode_rgb(data))
