"""Image shards as episodes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.builders.images import HEIGHT, WIDTH, image, image_shards, saved, window_tree, write
from tests.builders.toy_images import write_image_shards
from vlatool.config.base import ConfigModel
from vlatool.config.resolve import config_of
from vlatool.datasets.image_shards.reader import CAMERA, ImageShardsReader
from vlatool.episode import Episode
from vlatool.errors import DataError
from vlatool.loading.base import DroppedSample, SampleRef
from vlatool.loading.images.config import ImageDataConfig
from vlatool.loading.images.kind import ImagesKind
from vlatool.recordings.detect import detect_source
from vlatool.testing.readers import check_reader
from vlatool.tokens.images import EpisodeOpener
from vlatool.workflows.preprocess import PreprocessConfig, preprocess


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    image_shards(window_tree(tmp_path / "A"), tmp_path / "shards")
    return tmp_path / "shards"


def read(source: Path) -> list[Episode]:
    reader = ImageShardsReader(ConfigModel())
    return [reader.read(ref) for ref in reader.discover([source])]


def test_reader_passes_the_contract_checks(shards: Path) -> None:
    check_reader(ImageShardsReader, shards)


def test_format_is_detected_and_each_tar_is_an_episode(shards: Path) -> None:
    episodes = read(shards)
    assert [episode.id for episode in episodes] == [f"episode_{i:06d}" for i in range(3)]
    source = sorted((shards.parent / "A" / "images" / "episode_000001").iterdir())
    assert list(episodes[1].frame_metadata["file"]) == [path.name for path in source]
    images = episodes[1].cameras[CAMERA].read(range(4))
    expected = [np.asarray(Image.open(path)) for path in source]
    np.testing.assert_array_equal(images, expected)
    assert episodes[1].cameras[CAMERA].size == (HEIGHT, WIDTH)
    detected = detect_source(shards, None)
    assert detected.format == "image-shards"
    assert detected.reader.survey(detected.refs).frames == 12


@pytest.mark.parametrize("below", ["train_files.txt", "train-episode_000001.tar"])
def test_source_may_be_a_list_or_one_tar(shards: Path, below: str) -> None:
    write(shards, "train_files.txt", b"train-episode_000001.tar\n")
    assert [episode.id for episode in read(shards / below)] == ["episode_000001"]


def test_images_without_metadata_have_the_names_of_their_members(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert caught.value.code == "data.no_episodes"
    episode = read(write_image_shards(tmp_path / "published"))[1]
    assert list(episode.frame_metadata["file"]) == [f"{i:08d}.png" for i in range(3)]


def test_shards_of_shards_have_the_same_images(shards: Path) -> None:
    tree = {
        "format": "image-shards",
        "sources": [str(shards)],
        "output": str(shards.parent / "again"),
        "workers": 1,
        "sink": "image-shards",
    }
    preprocess(config_of(PreprocessConfig, tree))
    for before, after in zip(read(shards), read(shards.parent / "again"), strict=True):
        assert before.frame_metadata["file"][2] == after.frame_metadata["file"][2]
        indices = range(before.num_frames)
        np.testing.assert_array_equal(
            before.cameras[CAMERA].read(indices), after.cameras[CAMERA].read(indices)
        )


def _animation() -> bytes:
    return saved(image(1), "WEBP", save_all=True, append_images=[image(2)], lossless=True)


def _wrong_checksum() -> bytes:
    data = bytearray(saved(image(1)))
    data[-20] ^= 1  # in the checksum of the last IDAT or its end
    return bytes(data)


@pytest.mark.parametrize(
    ("make", "suffix"),
    [
        (lambda: saved(image(1)), "png"),
        (lambda: saved(image(1), "JPEG"), "jpg"),
        (lambda: saved(image(1).convert("L")), "png"),
        (lambda: saved(image(1).convert("P")), "png"),
        (lambda: saved(image(1).convert("CMYK"), "JPEG"), "jpg"),
        (lambda: saved(image(1), transparency=(0, 0, 0)), "png"),
        (lambda: saved(Image.new("I;16", (WIDTH, HEIGHT))), "png"),
        (_animation, "webp"),
        (_wrong_checksum, "png"),
        (lambda: saved(image(1))[:-30], "png"),
        (lambda: b"no image", "png"),
    ],
)
def test_encoding_refuses_the_images_that_training_drops(
    tmp_path: Path, make: Callable[[], bytes], suffix: str
) -> None:
    folder = write_image_shards(tmp_path, (1,), {0: {suffix: make()}})
    config = ImageDataConfig.model_validate(
        {"shards": [str(folder)], "preprocessing": {"crop_size": HEIGHT}}
    )
    kind = ImagesKind()
    info = kind.load_info(config)
    (sample,) = kind.reader(config, info).read([SampleRef(0, 0, 0)], [np.random.default_rng(0)])
    ref = next(ImageShardsReader(ConfigModel()).discover([folder]))
    images = EpisodeOpener("image-shards", ConfigModel())(ref)
    reasons = {"broken_image": "data.broken", "not_rgb": "data.mismatch"}
    if isinstance(sample, DroppedSample):
        with pytest.raises(DataError) as caught:
            list(images.read([0]))
        assert caught.value.code == reasons[sample.reason]
    else:
        assert next(images.read([0])).pixels.shape == (HEIGHT, WIDTH, 3)


def test_findings_name_the_tar_that_cannot_be_read(shards: Path) -> None:
    reader = ImageShardsReader(ConfigModel())
    ref = next(reader.discover([shards]))
    ref.path.write_bytes(json.dumps({}).encode())
    assert [finding.code for finding in reader.check(ref, deep=True)] == ["data.broken"]
