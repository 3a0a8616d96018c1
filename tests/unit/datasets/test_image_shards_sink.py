"""`preprocess images`: tars with published names, keys and order, indexes and lists."""

import io
import json
import os
import shutil
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from tests.builders.images import HEIGHT, WIDTH, image, image_shards, saved, window_tree, write
from tests.builders.s3_runs import digests, upload
from tests.builders.sink_checks import check_sink
from vlatool.config.resolve import Override, load_config
from vlatool.datasets.image_shards.writer import ImageShardsSink
from vlatool.errors import PartialFailure, VlatoolError
from vlatool.media.tar import index_by_headers, index_path, read_index
from vlatool.storage.remote_path import RemotePath
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.verify import VerifyConfig, verify

PUBLISHED = "titok-images-published"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return window_tree(tmp_path / "A")


def with_preset(name: str, source: Path, output: Path, **options: object) -> None:
    keys = {"format": "images", "sources": str(source), "output": str(output), "workers": "1"}
    typed = [Override(key, str(value), key) for key, value in {**keys, **options}.items()]
    preprocess(load_config(PreprocessConfig, presets=[name], overrides=typed).config)


def members(tar: Path) -> dict[str, bytes]:
    """Name to content, in the order of the tar."""
    with tarfile.open(tar) as file:
        return {member.name: file.extractfile(member).read() for member in file}  # pyright: ignore[reportOptionalMemberAccess]


def samples(tar: Path) -> list[dict[str, Any]]:
    """Samples of a tar, read by the webdataset library."""
    return list(wds.WebDataset(str(tar), shardshuffle=False))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def files_of(tree: Path, episode: int = 0) -> list[bytes]:
    folder = tree / f"images/episode_{episode:06d}"
    return [path.read_bytes() for path in sorted(folder.iterdir())]


def error_of(source: Path, output: Path, **options: Any) -> VlatoolError:
    with pytest.raises(VlatoolError) as caught:
        image_shards(source, output, **options)
    return caught.value


def test_a_tar_per_episode_holds_images_in_the_published_order(tree: Path) -> None:
    output = tree.parent / "shards"

    with_preset(PUBLISHED, tree, output, resize_images_size="24,16")

    tars = sorted(path.name for path in output.glob("*.tar"))
    assert tars == [f"train-episode_{number:06d}.tar" for number in range(3)]
    images = members(output / tars[1])
    assert [*images] == [f"{key:08d}.jpg" for key in range(4)]
    for data, number in zip(images.values(), (4, 5, 6, 7), strict=True):  # main, then wrist
        difference = pixels(data).astype(int) - np.asarray(image(number))
        # 4:2:0 blurs noise; another image is twice as far away.
        assert np.abs(difference).mean() < 50

    with_preset(PUBLISHED, tree, tree.parent / "published")
    (data, *_) = members(tree.parent / "published/train-episode_000000.tar").values()
    squashed = image(0).resize((256, 256), Image.Resampling.LANCZOS)
    expected = saved(squashed, "JPEG", quality=100, subsampling="4:2:0")
    assert np.array_equal(pixels(data), pixels(expected))


def test_stored_images_are_copied_unchanged_with_unique_keys(tree: Path) -> None:
    image_shards(tree / "images", tree.parent / "shards", label=0)

    stored = samples(tree.parent / "shards/train-episode_000001.tar")
    assert [member["png"] for member in stored] == files_of(tree, 1)
    assert [member["__key__"] for member in stored] == [f"{key:08d}" for key in range(4)]
    assert [member["cls"] for member in stored] == [b"0"] * 4
    assert json.loads(stored[2]["json"]) == {
        "key": "A/episode_000001/image/000002",
        "dataset": "A",
        "episode": "episode_000001",
        "camera": "image",
        "frame": 2,
        "file": "LIBERO_wrist_image_episode_000001_frame_000000.png",
    }
    assert verify(VerifyConfig(location=str(tree.parent / "shards"))).findings == ()
    for tar in (tree.parent / "shards").glob("*.tar"):
        index = read_index(index_path(tar))
        assert index is not None
        assert index.ranges() == index_by_headers(tar).ranges()
        assert len(index.ranges()) == 4
    image_shards(tree, tree.parent / "single", max_episodes=1, val_ratio=0.01)
    assert not list((tree.parent / "single").glob("*.txt"))  # one shard is not split


def test_frames_of_any_reader_are_written_camera_by_camera(tmp_path: Path) -> None:
    raw, output = tmp_path / "raw", tmp_path / "shards"
    sample(SampleConfig(layout="lerobot", output=str(raw), episodes=1, frames=3, workers=1))

    image_shards(raw, output, format="lerobot")

    (tar,) = output.glob("*.tar")
    metadata = [json.loads(entry["json"]) for entry in samples(tar)]
    cameras = list(dict.fromkeys(entry["camera"] for entry in metadata))
    assert len(cameras) > 1
    expected = [(camera, frame) for camera in cameras for frame in range(3)]
    assert [(entry["camera"], entry["frame"]) for entry in metadata] == expected
    assert len({entry["key"] for entry in metadata}) == len(metadata)


def only(tree: Path, **options: Any) -> bytes:
    """The first written image."""
    image_shards(tree, tree.parent / "shards", max_episodes=1, **options)
    (data, *_) = members(tree.parent / "shards/train-episode_000000.tar").values()
    return data


@pytest.mark.parametrize(
    ("subsampling", "blocks"),
    [("4:4:4", [(1, 1)] * 3), ("4:2:0", [(2, 2), (1, 1), (1, 1)])],
)
def test_jpeg_options_are_applied(
    tree: Path, subsampling: str, blocks: list[tuple[int, int]]
) -> None:
    data = only(tree, image_format="jpeg", jpeg_quality=90, jpeg_subsampling=subsampling)
    with Image.open(io.BytesIO(data)) as written:
        actual: Any = written
        assert [(across, down) for _, across, down, _ in actual.layer] == blocks
        with Image.open(io.BytesIO(saved(image(0), "JPEG", quality=90))) as alike:
            expected: Any = alike
            assert actual.quantization == expected.quantization


@pytest.mark.parametrize(
    ("kind", "image_format", "is_same"),
    [
        ("JPEG", None, True),
        ("JPEG", "jpeg", True),
        ("JPEG", "png", False),
        ("PNG", "png", True),
        ("PNG", "jpeg", False),
        ("WEBP", None, False),
    ],
)
def test_bytes_are_copied_where_nothing_changes(
    tree: Path, kind: str, image_format: str | None, is_same: bool
) -> None:
    stored = saved(image(9), kind)
    write(tree, f"images/episode_000000/A.{kind.lower()}", stored)
    data = only(tree, image_format=image_format, resize_images_size=[WIDTH, HEIGHT])
    assert (data == stored) == is_same


def test_images_are_resized_to_a_published_number_and_others_written_without_loss(
    tree: Path,
) -> None:
    assert pixels(only(tree, resize_images_size=8)).shape == (8, 8, 3)
    shutil.rmtree(tree.parent / "shards")
    assert only(tree, resize_images_size=0) == files_of(tree)[0]
    shutil.rmtree(tree.parent / "shards")
    write(tree, "images/episode_000000/A.bmp", saved(image(9), "BMP"))
    assert np.array_equal(pixels(only(tree)), np.asarray(image(9)))


@pytest.mark.slow  # dozens of runs
def test_the_sink_fulfills_the_sink_contract() -> None:
    check_sink(ImageShardsSink, {"val_ratio": 0.4, "image_format": "jpeg"})


def test_images_in_s3_give_the_same_shards_in_s3(tree: Path, s3_bucket: str) -> None:
    bucket = RemotePath(f"s3://{s3_bucket}")
    image_shards(tree, tree.parent / "here", val_ratio=0.5)
    image_shards(upload(tree, bucket / "A"), bucket / "there", val_ratio=0.5)
    assert digests(bucket / "there") == digests(tree.parent / "here")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("z.png", b"", "data.broken"),
        ("z.png", saved(image(0))[:-30], "data.broken"),
        ("z.jpg", saved(image(0), "JPEG")[:-30], "data.broken"),
        (
            "z.png",
            saved(Image.fromarray(np.full((4, 4), 500, np.uint16))),
            "data.broken",
        ),
    ],
)
def test_an_episode_with_a_bad_image_is_listed_and_the_others_are_written(
    tree: Path, name: str, content: bytes, code: str
) -> None:
    bad = write(tree, f"images/episode_000001/{name}", content)

    error = error_of(tree, tree.parent / "shards", val_ratio=0.5)

    assert isinstance(error, PartialFailure)
    (failure,) = error.details["failures"]
    assert (failure["episode"], failure["code"]) == ("episode_000001", code)
    assert str(bad) in failure["message"]
    lists = [tree.parent / "shards" / name for name in ("train_files.txt", "val_files.txt")]
    assert [path.read_text() for path in lists] == [
        "train-episode_000002.tar\n",
        "train-episode_000000.tar\n",
    ]


def test_a_folder_without_images_and_a_dead_link_are_listed(tree: Path) -> None:
    write(tree, "images/episode_000005/notes.txt")
    os.symlink("nowhere.png", tree / "images/episode_000000/z.png")

    error = error_of(tree, tree.parent / "shards")

    codes = [failure["code"] for failure in error.details["failures"]]
    assert codes == ["data.missing", "data.missing"]
    error = error_of(tree, tree.parent / "lbm", sink="lbm")
    assert (error.code, error.exit_code) == ("data.missing", 3)


def test_pixels_of_a_png_are_decoded_with_verify_pixels(tree: Path) -> None:
    whole = saved(image(0))
    # Pixels that cannot be decompressed, with a valid checksum.
    part = b"IDAT" + b"no pixels"
    broken = struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    write(tree, "images/episode_000000/z.png", whole[:33] + broken + whole[-12:])
    assert image_shards(tree, tree.parent / "a").failures == ()
    assert error_of(tree, tree.parent / "b", verify_pixels=True).exit_code == 4


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (saved(image(0).convert("RGBA")), "image_shards.converted"),
        (saved(image(0, 8, 8)), "image_shards.mixed_sizes"),
        (
            saved(image(0), "GIF", save_all=True, append_images=[image(1)]),
            "image_shards.several_frames",
        ),
    ],
)
def test_anomalies_are_reported_and_written(tree: Path, content: bytes, warning: str) -> None:
    write(tree, "images/episode_000000/z.png", content)
    result = image_shards(tree, tree.parent / "shards")
    assert [warned.partition(":")[0] for warned in result.warnings] == [warning]
    assert result.samples == 13
