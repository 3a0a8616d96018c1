"""Encoding, decoding, headers and damage of stored images."""

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.builders.images import HEIGHT, WIDTH, image, saved
from vlatool.media import images

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)


def stored(mode: str, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def with_size(data: bytes, side: int) -> bytes:
    """JPEG or PNG with another size in its header."""
    if data.startswith(b"\x89PNG"):
        head = b"IHDR" + side.to_bytes(4, "big") * 2 + data[24:29]
        return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + side.to_bytes(2, "big") * 2 + data[at + 4 :]


IMAGES = {
    "4:2:0": stored("RGB", "JPEG", quality=95, optimize=True),
    "4:2:2": stored("RGB", "JPEG", subsampling=1),
    "4:4:4": stored("RGB", "JPEG", subsampling=0),
    "progressive": stored("RGB", "JPEG", progressive=True),
    "gray": stored("L", "JPEG"),
    "CMYK": stored("CMYK", "JPEG"),
    "png": stored("RGB", "PNG"),
    "png with alpha": stored("RGBA", "PNG"),
    "png with palette": stored("P", "PNG"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_pixels_equal_those_of_pillow_and_the_size_is_width_height(name: str) -> None:
    assert (images.decode_rgb(IMAGES[name]) == by_pillow(IMAGES[name])).all()
    assert images.decoded_size(IMAGES[name]) == (56, 40)


@pytest.mark.parametrize(
    "flaw",
    [lambda data: data[:900] + b"\x00" * 90 + data[990:], lambda data: data + b"more"],
    ids=["overwritten", "trailing bytes"],
)
def test_flawed_jpeg_that_pillow_reads_has_pillows_pixels(flaw: Any) -> None:
    data = flaw(IMAGES["4:2:0"])

    assert (images.decode_rgb(data) == by_pillow(data)).all()


BROKEN = {
    "truncated": IMAGES["4:2:0"][:-200],
    "truncated progressive": IMAGES["progressive"][:-200],
    "truncated png": IMAGES["png"][:-200],
    "header alone": IMAGES["4:2:0"][:300],
    "start alone": b"\xff\xd8\xff",
    "empty": b"",
    "text": b"no image",
    "vector graphics": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "huge jpeg": with_size(IMAGES["4:2:0"], 40_000),
    "huge png": with_size(IMAGES["png"], 40_000),
    "large jpeg": with_size(IMAGES["4:2:0"], 9_000),
    "large png": with_size(IMAGES["png"], 9_000),
}


@pytest.mark.parametrize("read", [images.decode_rgb, images.decoded_size])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_is_refused(name: str, read: Any) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read(BROKEN[name])


def test_message_is_the_same_every_time() -> None:
    # Pillow's message contains the address of an object.
    messages = set()
    for _ in range(3):
        with pytest.raises(ValueError, match="not an image") as caught:
            images.decode_rgb(BROKEN["text"])
        messages.add(str(caught.value))

    assert len(messages) == 1


def test_jpeg_has_optimized_tables() -> None:
    assert images.encode_jpeg(PIXELS, 95, optimize=True) == IMAGES["4:2:0"]


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


def test_size_of_a_png_is_height_and_width_and_bytes_after_its_end_are_detected() -> None:
    assert images.png_info(png()).size == (3, 4)
    assert not images.is_png(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="after its end"):
        images.png_info(png() + b"\0")


@pytest.mark.parametrize(
    ("data", "is_plain"),
    [
        *((data, True) for data in (png(), png(compress_level=1), with_chunk(b"tEXt", b"a\0b"))),
        *((png(mode), False) for mode in ("L", "P", "RGBA", "I;16")),
        (interlaced(), False),
        (png("RGB", transparency=(0, 0, 0)), False),
        (with_chunk(b"acTL", bytes(8)), False),
        (with_chunk(b"ABcD", b""), False),
        (with_chunk(b"PLTE", bytes(3)), False),
    ],
)
def test_only_a_png_of_rgb_of_8_bits_is_plain(data: bytes, *, is_plain: bool) -> None:
    assert images.png_info(data).is_plain_rgb == is_plain


@pytest.mark.parametrize(
    "damage",
    [
        *(
            lambda data, at=at: data[:at] + bytes([data[at] ^ 1]) + data[at:][1:]
            for at in range(0, 60, 5)
        ),
        *(lambda data, stop=stop: data[:stop] for stop in (0, 4, 8, 20, 33, -13, -1)),
    ],
)
def test_a_changed_byte_and_truncation_are_detected(damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match="PNG"):
        images.png_info(damage(png()))


PNG = saved(image(0))


@pytest.mark.parametrize(("kind", "name"), [("PNG", "png"), ("JPEG", "jpeg")])
def test_rgb_of_eight_bits_is_plain(kind: str, name: str) -> None:
    info = images.image_info(saved(image(0), kind))
    assert (info.format, info.size, info.is_plain) == (name, (HEIGHT, WIDTH), True)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG")])
def test_gray_alpha_palette_print_and_transparent_colors_are_not_plain(
    mode: str, kind: str
) -> None:
    assert not images.image_info(saved(image(0).convert(mode), kind)).is_plain
    assert not images.image_info(saved(image(0), transparency=(1, 2, 3))).is_plain


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_frames_of_an_animation_are_counted(kind: str) -> None:
    more = [image(1), image(2)]
    info = images.image_info(saved(image(0), kind, save_all=True, append_images=more))
    assert (info.frames, info.is_plain) == (3, False)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no image", id="text"),
        pytest.param(PNG[:-1], id="cut by a byte"),
        pytest.param(PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], id="a bit of a pixel"),
        pytest.param(saved(Image.fromarray(np.ones((4, 4), np.uint16))), id="depth"),
        pytest.param(b"\xff\xd8\xff" + bytes(50), id="head of a JPEG"),
    ],
)
def test_header_of_a_broken_image_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        images.image_info(data)


@pytest.mark.parametrize("read", [images.decode_rgb, images.decoded_size, images.image_info])
def test_jpeg_of_more_scans_than_the_limit_and_png_without_pixels_are_refused(
    read: Callable[[bytes], object],
) -> None:
    data = IMAGES["progressive"]
    scan = data[data.rindex(b"\xff\xda") : -2]

    read(data[:-2] + scan * 10 + data[-2:])
    with pytest.raises(ValueError, match="scans"):
        read(data[:-2] + scan * images.MAX_SCANS + data[-2:])
    with pytest.raises(ValueError, match=r"0 x 0|not an image"):
        read(with_size(stored("RGB", "PNG"), 0))
