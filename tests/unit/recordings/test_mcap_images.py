"""Encodings of images in bags: colors, YUV, Bayer patterns, depth, labels."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import hdf5
from tests.builders import mcap as build
from vlatool.episode import Episode
from vlatool.errors import DataError
from vlatool.recordings.mcap.reader import McapConfig, McapReader

TOPIC = "/front/image_raw"


def read(path: Path, mapping: str = "") -> Episode:
    options: dict[str, Any] = {"fps": 10}
    if mapping:
        (path.parent / "mapping.yaml").write_text(mapping)
        options["mapping"] = str(path.parent / "mapping.yaml")
    reader = McapReader(McapConfig(**options))
    return reader.read(next(iter(reader.discover([path]))))


def raw_bag(folder: Path, pixels: np.ndarray, encoding: str, topic: str = TOPIC) -> Path:
    sent = [(topic, 0.0, build.image(pixels, encoding, padding=6)), ("/a", 0.0, build.numbers(1))]
    return build.bag(folder / "a.mcap", sent)


def file_bag(folder: Path, data: bytes, form: str, topic: str = "/front") -> Path:
    sent = [(topic, 0.0, build.encoded(data, form=form)), ("/a", 0.0, build.numbers(1))]
    return build.bag(folder / "a.mcap", sent)


def codes(episode: Episode) -> list[str]:
    return [finding.code for finding in episode.findings]


@pytest.mark.parametrize(
    ("encoding", "channels", "scale"),
    [
        ("rgba8", [0, 1, 2, 0], 1),
        ("bgra8", [2, 1, 0, 0], 1),
        ("RGB8", [0, 1, 2], 1),
        ("rgb16", [0, 1, 2], 257),
        ("bgra16", [2, 1, 0, 0], 257),
    ],
)
def test_colors_are_rgb_of_8_bits(
    encoding: str, channels: list[int], scale: int, tmp_path: Path
) -> None:
    stored = hdf5.image(1)[..., channels].astype(np.uint16) * scale
    kind = np.uint8 if scale == 1 else np.uint16
    episode = read(raw_bag(tmp_path, stored.astype(kind), encoding))
    np.testing.assert_array_equal(episode.cameras["front"].read([0])[0], hdf5.image(1))


@pytest.mark.parametrize(
    ("bgr", "is_bgr"), [("", True), (", bgr: true", True), (", bgr: false", False)]
)
@pytest.mark.parametrize("encoding", ["8UC3", "8UC4"])
def test_colors_without_an_order_are_bgr_unless_a_mapping_says_otherwise(
    encoding: str, bgr: str, is_bgr: bool, tmp_path: Path
) -> None:
    stored = hdf5.image(1)[..., [2, 1, 0, 0] if is_bgr else [0, 1, 2, 0]]
    path = raw_bag(tmp_path, stored[..., : int(encoding[-1])], encoding)
    mapping = f"{{cameras: {{front: {{path: {TOPIC}{bgr}}}}}, fields: {{a: /a}}}}"
    episode = read(path, mapping)
    np.testing.assert_array_equal(episode.cameras["front"].read([0])[0], hdf5.image(1))
    assert ("mcap.color_order" in codes(episode)) == (not bgr)


def test_a_proposal_says_the_order_of_colors_that_is_taken(tmp_path: Path) -> None:
    path = raw_bag(tmp_path, hdf5.image(1)[..., ::-1], "8UC3")
    text = McapReader.propose(path) or ""
    assert f"{{path: {TOPIC!r}, bgr: true}}".replace("'", '"') in text
    episode = read(path, text)
    np.testing.assert_array_equal(episode.cameras["front"].read([0])[0], hdf5.image(1))
    assert "mcap.color_order" not in codes(episode)


def test_a_mapping_swaps_colors_that_are_named_wrongly(tmp_path: Path) -> None:
    path = raw_bag(tmp_path, hdf5.image(1), "bgr8")
    mapping = f"{{cameras: {{front: {{path: {TOPIC}, bgr: true}}}}, fields: {{a: /a}}}}"
    np.testing.assert_array_equal(read(path, mapping).cameras["front"].read([0])[0], hdf5.image(1))


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv"])
def test_yuv_has_the_colors_of_bt_601(encoding: str, tmp_path: Path) -> None:
    levels = np.arange(16, 236, 4, dtype=np.uint8)[:48].reshape(1, 48).repeat(24, axis=0)
    red = np.tile(np.array([90, 240], np.uint8), (24, 24))  # U, V of saturated red
    is_luma_first = encoding.startswith("yuy") or encoding.endswith("yuy2")
    pixels = np.dstack([levels, red] if is_luma_first else [red, levels])
    (image,) = read(raw_bag(tmp_path, pixels, encoding)).cameras["front"].read([0])
    luma = (levels.astype(float) - 16) * 1.164
    expected = [luma + 1.596 * 112, luma - 0.391 * -38 - 0.813 * 112, luma + 2.018 * -38]
    assert np.abs(image - np.stack(expected, -1).clip(0, 255)).max() <= 4


@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_planes_of_colors_follow_those_of_brightness(encoding: str, tmp_path: Path) -> None:
    luma = np.full((24, 48), 100, np.uint8)
    chroma = np.tile(np.array([90, 240] if encoding == "nv12" else [240, 90], np.uint8), (12, 24))
    message = build.image(luma, encoding)
    message.data = np.concatenate([luma, chroma]).ravel()
    sent = [(TOPIC, 0.0, message), ("/a", 0.0, build.numbers(1))]
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    (image,) = episode.cameras["front"].read([0])
    assert image.shape == (24, 48, 3)
    assert np.abs(image.astype(int) - [255, 22, 21]).max() <= 4


@pytest.mark.parametrize("size", [(24, 32), (25, 33)])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_bayer_pattern_of_one_color_is_that_color(
    pattern: str, bits: int, size: tuple[int, int], tmp_path: Path
) -> None:
    levels = {"r": 200, "g": 100, "b": 30}
    cell = np.array([levels[color] for color in pattern]).reshape(2, 2)
    pixels = np.tile(cell, (13, 17))[: size[0], : size[1]]
    stored = pixels.astype(np.uint8) if bits == 8 else (pixels * 257).astype(np.uint16)
    (image,) = read(raw_bag(tmp_path, stored, f"bayer_{pattern}{bits}")).cameras["front"].read([0])
    assert image.shape == (*size, 3)
    assert np.abs(image.astype(int) - [200, 100, 30]).max() <= 1


def test_gray_of_16_bits_is_a_camera_unless_it_is_named_depth(tmp_path: Path) -> None:
    pixels = hdf5.image(1)[..., 0].astype(np.uint16) * 257
    camera = read(raw_bag(tmp_path, pixels, "mono16")).cameras["front"]
    np.testing.assert_array_equal(camera.read([0])[0], hdf5.image(1)[..., [0, 0, 0]])
    depth = read(raw_bag(tmp_path, pixels, "mono16", "/front/depth")).depth["front"]
    np.testing.assert_array_equal(depth.read([0])[0], pixels)
    mapping = f"{{depth: {{ir: {TOPIC}}}, fields: {{a: /a}}}}"
    ir = read(raw_bag(tmp_path, pixels, "mono16"), mapping).depth["ir"]
    np.testing.assert_array_equal(ir.read([0])[0], pixels)


def test_images_named_after_segments_are_labels(tmp_path: Path) -> None:
    labels = np.arange(24 * 32).reshape(24, 32) % 5
    episode = read(raw_bag(tmp_path, labels.astype(np.uint8), "mono8", "/front/segmentation"))
    np.testing.assert_array_equal(episode.labels["front_segmentation"].read([0])[0], labels)
    episode = read(raw_bag(tmp_path, labels.astype(np.int32), "32SC1"))
    np.testing.assert_array_equal(episode.labels["front"].read([0])[0], labels)


# Depth in files


def millimeters() -> np.ndarray:
    depth = (np.arange(24 * 32).reshape(24, 32) * 37 % 5000).astype(np.uint16)
    depth[3:5, 4:20] = 0
    return depth


HEAD = struct.pack("<iff", 0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("form", "head"),
    [
        ("16UC1; compressedDepth png", HEAD),
        ("16UC1; compressedDepth", HEAD),
        ("16UC1; compressedDepth png", b""),
        ("16UC1; png compressed ", b""),
        ("png", b""),
    ],
)
def test_depth_in_files_is_in_millimeters_and_no_camera(
    form: str, head: bytes, tmp_path: Path
) -> None:
    episode = read(file_bag(tmp_path, head + hdf5.encoded(millimeters()), form))
    assert [*episode.cameras] == []
    assert episode.depth["front"].size == (24, 32)
    np.testing.assert_array_equal(episode.depth["front"].read([0])[0], millimeters())
    assert episode.depth["front"].encoded(0) is None


def test_quantized_depth_is_in_millimeters(tmp_path: Path) -> None:
    meters = millimeters() / 1000.0
    quantum, offset = 100.0 * 101.0, 1.0 - 100.0 * 101.0 / 10.0
    with np.errstate(divide="ignore"):
        levels = np.where(meters > 0.2, np.round(quantum / meters + offset), 0)
    stored = np.where(levels > 0, levels, 0).astype(np.uint16)
    data = struct.pack("<iff", 1, quantum, offset) + hdf5.encoded(stored)
    path = file_bag(tmp_path, data, "32FC1; compressedDepth png")
    depth = read(path).depth["front"].read([0])[0].astype(int)
    expected = np.where(stored > 0, millimeters(), 0).astype(int)
    assert np.abs(depth - expected).max() <= 5
    assert (depth[stored == 0] == 0).all()


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("16UC1; compressedDepth png", b""),
        ("16UC1; compressedDepth png", HEAD),
        ("16UC1; compressedDepth rvl", HEAD + b"\x10\0\0\0\x10\0\0\0\xff\xff\xff\xff"),
    ],
)
def test_depth_of_other_forms_is_left_out_with_its_form(
    form: str, data: bytes, tmp_path: Path
) -> None:
    episode = read(file_bag(tmp_path, data, form))
    assert not episode.depth
    (part,) = [part for part in episode.parts if part.path == "/front"]
    assert part.is_loss
    assert f"neither JPEG nor PNG, but '{form}'" in part.note


# One verdict


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("cameras: {a: {path: /depth}}", "which are no color"),
        ("cameras: {a: {path: /png}}", "name it under depth"),
        ("depth: {a: /color}", "depth must have one channel"),
        ("labels: {a: /color}", "labels must have one channel"),
        ("cameras: {a: {path: /odd}}", "is encoded as '64FC1'"),
    ],
)
def test_images_of_another_kind_than_the_mapping_says_are_an_error_of_survey_and_read(
    key: str, reason: str, tmp_path: Path
) -> None:
    sent = [
        ("/depth", 0.0, build.image(millimeters(), "16UC1")),
        ("/color", 0.0, build.image(hdf5.image(1), "rgb8")),
        ("/png", 0.0, build.encoded(hdf5.encoded(millimeters()))),
        ("/odd", 0.0, build.image(np.zeros((24, 32)), "64FC1")),
    ]
    path = build.bag(tmp_path / "a.mcap", sent)
    (tmp_path / "mapping.yaml").write_text(key)
    reader = McapReader(McapConfig(fps=10, mapping=str(tmp_path / "mapping.yaml")))
    refs = list(reader.discover([path]))
    with pytest.raises(DataError, match=reason):
        reader.read(refs[0])
    with pytest.raises(DataError, match=reason):
        reader.survey(refs)


def test_an_encoding_that_is_not_known_is_left_out_with_its_name(tmp_path: Path) -> None:
    episode = read(raw_bag(tmp_path, np.zeros((24, 32)), "64FC1"))
    (part,) = [part for part in episode.parts if part.path == TOPIC]
    assert (part.role, part.content) == ("left_out", "images")
    assert "is encoded as '64FC1'" in part.note
    assert "left_out.wanted" in codes(episode)


def test_video_of_an_unknown_codec_is_left_out(tmp_path: Path) -> None:
    message = build.foxglove("CompressedVideo", data=b"\0\0\1", format="av1")
    sent = [("/front", 0.0, message), ("/a", 0.0, build.numbers(1))]
    episode = read(build.bag(tmp_path / "a.mcap", sent))
    assert ([*episode.cameras], "left_out.wanted" in codes(episode)) == ([], True)
