"""Headers and damage of stored images."""

import numpy as np
import pytest
from PIL import Image

from tests.builders.images import HEIGHT, WIDTH, image, saved
from vlatool.artifacts.stored_image import image_info

PNG = saved(image(0))


@pytest.mark.parametrize(("kind", "name"), [("PNG", "png"), ("JPEG", "jpeg")])
def test_rgb_of_eight_bits_is_plain(kind: str, name: str) -> None:
    info = image_info(saved(image(0), kind))
    assert (info.format, info.size, info.is_plain) == (name, (HEIGHT, WIDTH), True)


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG")]
)
def test_gray_alpha_palette_and_print_colors_are_not_plain(mode: str, kind: str) -> None:
    assert not image_info(saved(image(0).convert(mode), kind)).is_plain


def test_one_transparent_color_is_not_plain() -> None:
    assert not image_info(saved(image(0), transparency=(1, 2, 3))).is_plain


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_frames_of_an_animation_are_counted(kind: str) -> None:
    more = [image(1), image(2)]
    info = image_info(saved(image(0), kind, save_all=True, append_images=more))
    assert (info.frames, info.is_plain) == (3, False)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no image", id="text"),
        pytest.param(PNG[:-1], id="cut by a byte"),
        pytest.param(PNG[: len(PNG) // 2], id="cut in half"),
        pytest.param(PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:], id="a bit of a pixel"),
        pytest.param(PNG[:19] + b"\xff" + PNG[20:], id="header"),
        pytest.param(saved(Image.fromarray(np.ones((4, 4), np.uint16))), id="depth"),
        pytest.param(b"\xff\xd8\xff" + bytes(50), id="head of a JPEG"),
    ],
)
def test_broken_image_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        image_info(data)
