"""Headers of PNG files, read without decompressing pixels."""

import io
import zlib

import pytest
from PIL import Image

from vlatool.artifacts.png import is_png, png_info


def png(mode: str = "RGB", size: tuple[int, int] = (4, 3), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_chunk(kind: bytes, content: bytes, *, before: bytes = b"IDAT") -> bytes:
    data = png()
    at = data.index(before) - 4
    chunk = kind + content
    whole = len(content).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4)
    return data[:at] + whole + data[at:]


def interlaced() -> bytes:
    """PNG with an interlaced header; the pixels do not matter here."""
    data = bytearray(png())
    data[28] = 1
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


def test_size_is_height_and_width() -> None:
    assert png_info(png()).size == (3, 4)


@pytest.mark.parametrize("data", [png(), png(compress_level=1), with_chunk(b"tEXt", b"a\0b")])
def test_rgb_of_8_bits_is_plain(data: bytes) -> None:
    assert png_info(data).is_plain_rgb


@pytest.mark.parametrize(
    "data",
    [
        png("L"),
        png("P"),
        png("RGBA"),
        png("I;16"),
        interlaced(),
        png("RGB", transparency=(0, 0, 0)),
        with_chunk(b"acTL", bytes(8)),
        with_chunk(b"ABcD", b""),
        with_chunk(b"PLTE", bytes(3)),
    ],
)
def test_other_pixel_formats_are_not_plain(data: bytes) -> None:
    assert not png_info(data).is_plain_rgb


@pytest.mark.parametrize("at", [0, 12, 20, 30, 45, -10, -1])
def test_a_changed_byte_is_detected(at: int) -> None:
    data = bytearray(png())
    data[at] ^= 1
    with pytest.raises(ValueError, match="PNG"):
        png_info(bytes(data))


@pytest.mark.parametrize("length", [0, 4, 8, 20, 33, -13, -1])
def test_truncation_is_detected(length: int) -> None:
    with pytest.raises(ValueError, match="PNG"):
        png_info(png()[:length])


def test_bytes_after_the_end_are_detected() -> None:
    with pytest.raises(ValueError, match="after its end"):
        png_info(png() + b"\0")


def test_jpeg_is_not_png() -> None:
    assert not is_png(b"\xff\xd8\xff")
