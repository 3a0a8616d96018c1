import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlatool.artifacts.image import decode_rgb, decoded_size, encode_jpeg, open_image

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
        import zlib

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
def test_pixels_equal_those_of_pillow(name: str) -> None:
    assert (decode_rgb(IMAGES[name]) == by_pillow(IMAGES[name])).all()


@pytest.mark.parametrize("name", IMAGES)
def test_decoded_size_is_width_height(name: str) -> None:
    assert decoded_size(IMAGES[name]) == (56, 40)


@pytest.mark.parametrize(
    "flaw",
    [lambda data: data[:900] + b"\x00" * 90 + data[990:], lambda data: data + b"more"],
    ids=["overwritten", "trailing bytes"],
)
def test_flawed_jpeg_that_pillow_reads_has_pillows_pixels(flaw: Any) -> None:
    data = flaw(IMAGES["4:2:0"])

    assert (decode_rgb(data) == by_pillow(data)).all()


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


@pytest.mark.parametrize("read", [decode_rgb, decoded_size])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_is_refused(name: str, read: Any) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read(BROKEN[name])


@pytest.mark.parametrize("name", ["large jpeg", "large png"])
def test_limit_is_checked_before_decoding(name: str) -> None:
    with pytest.raises(ValueError, match="9000 x 9000"), open_image(BROKEN[name]):
        pass


def test_message_is_the_same_every_time() -> None:
    # Pillow's message contains the address of an object.
    messages = set()
    for _ in range(3):
        with pytest.raises(ValueError, match="not an image") as caught:
            decode_rgb(BROKEN["text"])
        messages.add(str(caught.value))

    assert len(messages) == 1


def test_jpeg_has_optimized_tables() -> None:
    assert encode_jpeg(PIXELS, 95) == IMAGES["4:2:0"]
