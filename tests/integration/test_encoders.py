"""Encoders of images and videos: what a sink does by default, and outputs that others began."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.builders.preprocessing import contents, processed
from tests.builders.spartan import spartan_task
from vlatool.errors import PartialFailure, UsageError
from vlatool.media.images import encode_jpeg
from vlatool.media.video import encode_video
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

# Options with which a sink does what version 0.3 did; its records lack the two new keys.
FORMER: dict[str, dict[str, Any]] = {
    "frames": {"jpeg_optimize": True},
    "lerobot": {"video_crf": 18, "video_preset": "medium"},
}


def write(source: Path, output: Path, sink: str, **options: Any) -> None:
    tree = {"format": "spartan", "sources": [str(source)], "output": str(output), "workers": 1}
    config = PreprocessConfig.specialize(tree | {"sink": {"type": sink, **options}})
    preprocess(config.model_validate(tree | {"sink": {"type": sink, **options}}))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return spartan_task(tmp_path / "raw", 3, 16)


@pytest.mark.parametrize("sink", FORMER)
def test_output_of_an_earlier_version_goes_on_with_its_encoder(
    source: Path, tmp_path: Path, sink: str
) -> None:
    write(source, tmp_path / "whole", sink, **FORMER[sink])
    actions = processed(source) / "actions.npz"
    content = actions.read_bytes()
    actions.write_bytes(b"cut")
    with pytest.raises(PartialFailure):
        write(source, tmp_path / "out", sink, **FORMER[sink])
    actions.write_bytes(content)

    write(source, tmp_path / "out", sink)

    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("sink", "other", "difference"),
    [
        ("frames", {"jpeg_optimize": False}, "jpeg_optimize true (now false)"),
        ("lerobot", {"video_preset": "fast"}, "video_preset medium (now fast)"),
        ("lerobot", {"video_crf": 20}, "video_crf 18 (now 20)"),
    ],
)
def test_another_encoder_is_refused(
    source: Path, tmp_path: Path, sink: str, other: dict[str, Any], difference: str
) -> None:
    write(source, tmp_path / "out", sink, **FORMER[sink])
    with pytest.raises(UsageError, match=re.escape(difference)):
        write(source, tmp_path / "out", sink, **other)


def test_encoder_of_an_output_is_kept_by_its_next_run(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path / "out", "lerobot", video_crf=30)
    before = contents(tmp_path / "out")
    write(source, tmp_path / "out", "lerobot")
    assert contents(tmp_path / "out") == before


PIXELS = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)


def test_code_tables_change_the_size_and_no_pixel() -> None:
    plain = encode_jpeg(PIXELS, 95)
    optimized = encode_jpeg(PIXELS, 95, optimize=True)
    assert len(optimized) < len(plain)
    decoded = [np.asarray(Image.open(io.BytesIO(data))) for data in (plain, optimized)]
    np.testing.assert_array_equal(*decoded)


@pytest.mark.parametrize(
    ("sink", "is_optimized"), [("frames", False), ("lbm", True), ("image-shards", True)]
)
def test_published_shards_alone_have_code_tables_of_their_own(
    source: Path, tmp_path: Path, sink: str, is_optimized: bool
) -> None:
    options: dict[str, Any] = {"image_format": "jpeg"} if sink == "image-shards" else {}
    for value in (True, False):
        write(source, tmp_path / str(value), sink, jpeg_optimize=value, **options)
    write(source, tmp_path / "default", sink, **options)
    written = contents(tmp_path / "default")
    assert written == contents(tmp_path / str(is_optimized))
    assert written != contents(tmp_path / str(not is_optimized))


def test_videos_are_equal_for_equal_images_whatever_the_memory_held() -> None:
    generator = np.random.default_rng(0)
    images = [np.roll(PIXELS[:24, :32], step, axis=1) for step in range(16)]
    videos: set[bytes] = set()
    for _ in range(300):
        sizes = (2 ** generator.uniform(6, 19, 60)).astype(int)
        garbage = [np.full(size, generator.integers(256), np.uint8) for size in sizes]
        del garbage
        videos.add(encode_video(images, 30))
    assert len(videos) == 1
