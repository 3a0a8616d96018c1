"""Image shards as training data: discovery, reading, dropped samples, assets."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.toy_images import image, write_image_shards
from tests.builders.toy_runs import half_of, toy_config
from tests.builders.toys import install_toys
from tests.builders.verifying import verified
from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.loading.base import DroppedSample, SampleRef
from vlatool.loading.dataset import open_dataset
from vlatool.loading.images.config import ImageDataConfig
from vlatool.loading.images.kind import ImagesKind
from vlatool.media.images import decode_rgb
from vlatool.media.tar import index_by_headers, index_path
from vlatool.testing.models import check_model_type
from vlatool.workflows.train import train

SIZE = {"crop_size": 8, "random_crop": False}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vlatool"


def config_of(*shards: Path | str, **keys: Any) -> ImageDataConfig:
    return ImageDataConfig(shards=[str(path) for path in shards], **{"preprocessing": SIZE, **keys})


def samples_of(config: ImageDataConfig) -> list[Any]:
    """All samples of the first data set, in stored order."""
    info = ImagesKind().load_info(config)
    numbered = enumerate(info.datasets[0].shards)
    refs = [SampleRef(0, number, i) for number, shard in numbered for i in range(shard.size)]
    rngs = [np.random.default_rng(number) for number, _ in enumerate(refs)]
    return ImagesKind().reader(config, info).read(refs, rngs)


def test_samples_are_the_preprocessed_images(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file: the cache cannot be written")
    config = config_of(write_image_shards(tmp_path / "shards"))
    info = ImagesKind().load_info(config)
    assert [shard.size for shard in info.datasets[0].shards] == [5, 3, 4]
    samples = samples_of(config)
    assert len({sample.key for sample in samples}) == len(samples) == 12
    assert samples[0].key == "train-episode_000000/00000000"
    assert samples[5].key == "train-episode_000001/00000000"
    whole = decode_rgb(image(5))
    np.testing.assert_array_equal(samples[5].image, whole[:, 2:10])


def test_data_set_of_images_is_stacked(tmp_path: Path) -> None:
    shards = write_image_shards(tmp_path / "shards")
    first = samples_of(config_of(shards))[0].image
    data = open_dataset(shards, kind="images", shuffle=False, preprocessing=SIZE)

    batch = next(iter(DataLoader(data, batch_size=12)))

    np.testing.assert_array_equal(batch["image"][0], first.transpose(2, 0, 1))
    assert batch["image"].shape == (12, 3, 8, 8)


def test_shard_is_scanned_once_and_its_index_cached(tmp_path: Path, cache: Path) -> None:
    config, reporter = config_of(write_image_shards(tmp_path / "shards", (5,))), Recorder()
    before = ImagesKind().load_info(config, reporter).fingerprint
    [index] = cache.glob("*.index.npz")
    inode = index.stat().st_ino
    assert ImagesKind().load_info(config, reporter).fingerprint == before
    assert index.stat().st_ino == inode
    assert reporter.bars == [(f"first scan of {tmp_path / 'shards'}", 1)]
    index.unlink()
    [shard] = (tmp_path / "shards").iterdir()
    index_path(shard).write_bytes(index_by_headers(shard).content())  # is used
    assert ImagesKind().load_info(config_of(shard)).num_samples == 5
    assert not list(cache.glob("*.index.npz"))


def test_shard_that_changed_changes_the_fingerprint(tmp_path: Path) -> None:
    config = config_of(write_image_shards(tmp_path / "shards", (5,)))
    before = ImagesKind().load_info(config).fingerprint
    write_image_shards(tmp_path / "shards", (6,))
    assert ImagesKind().load_info(config).fingerprint != before
    moved = shutil.copytree(tmp_path / "shards", tmp_path / "moved")
    write_image_shards(moved, (5,))
    assert ImagesKind().load_info(config_of(moved)).fingerprint == before


def test_remote_shards_give_the_samples_of_local_ones(tmp_path: Path, memory: str) -> None:
    local = write_image_shards(tmp_path / "shards")
    from vlatool.storage.uri import location

    for path in local.iterdir():
        (location(memory) / path.name).write_bytes(path.read_bytes())
    remote = samples_of(config_of(f"{memory}/train-episode_{{000000..000002}}.tar"))
    for sample, expected in zip(remote, samples_of(config_of(local)), strict=True):
        assert sample.key == expected.key
        np.testing.assert_array_equal(sample.image, expected.image)


def broken() -> Mapping[int, dict[str, bytes]]:
    return {
        1: {"png": b"not an image"},
        2: {"json": b"{}"},
        6: {"png": image(6, mode="L")},
        7: {"png": image(7, mode="RGBA")},
        8: {"png": image(8)[:-40]},
    }


def test_sample_without_an_rgb_image_is_dropped_with_its_reason(tmp_path: Path) -> None:
    shards = write_image_shards(tmp_path / "s", change=broken())
    samples = samples_of(config_of(shards))
    drops = {
        i: sample.reason for i, sample in enumerate(samples) if isinstance(sample, DroppedSample)
    }
    other = {1: "broken_image", 2: "no_image", 8: "broken_image"}
    assert drops == {**other, 6: "not_rgb", 7: "not_rgb"}
    assert set(drops.values()) <= set(ImagesKind.drop_reasons)
    pixels = samples_of(config_of(shards, convert_colors=True))[6].image
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        (b'{"key": "A/episode_000000/image/000007"}', "A/episode_000000/image/000007"),
        (b'{"key": 7}', "train-episode_000000/00000000"),
        (b"[", "train-episode_000000/00000000"),
    ],
)
def test_name_of_an_image_is_that_of_its_metadata(
    tmp_path: Path, metadata: bytes, key: str
) -> None:
    change = {0: {"png": image(0), "json": metadata}}
    assert samples_of(config_of(write_image_shards(tmp_path / "s", change=change)))[0].key == key


def test_random_crop_depends_on_the_generator_only(tmp_path: Path) -> None:
    shards = write_image_shards(tmp_path / "s")
    config = config_of(shards, preprocessing={"crop_size": 4, "resize_shorter_edge": 8})
    info = ImagesKind().load_info(config)
    reader = ImagesKind().reader(config, info)
    refs = [SampleRef(0, 0, 0), SampleRef(0, 1, 2)]
    together = reader.read(refs, [np.random.default_rng(1), np.random.default_rng(2)])
    [single] = reader.read(refs[1:], [np.random.default_rng(2)])
    np.testing.assert_array_equal(together[1].image, single.image)


@pytest.mark.parametrize(
    ("name", "damage", "code"),
    [
        ("other", None, "data.no_source"),
        ("train-episode_000009.tar", None, "data.missing"),
        ("train-episode_000001.tar", lambda path: os.truncate(path, 1500), "data.broken"),
        (
            "list.txt",
            lambda path: path.write_text("train-episode_000000.tar\n" * 2),
            "data.broken",
        ),
    ],
)
def test_shards_that_cannot_be_read_raise_an_error(
    tmp_path: Path, name: str, damage: Any, code: str
) -> None:
    path = write_image_shards(tmp_path / "shards") / name
    if damage is not None:
        damage(path)
    with fails(code):
        ImagesKind().load_info(config_of(path))
    with fails("data.no_source"):
        ImagesKind().load_info(ImageDataConfig())


def test_validation_images_are_those_of_the_second_list(tmp_path: Path) -> None:
    folder = write_image_shards(tmp_path / "shards")
    (folder / "train_files.txt").write_text("train-episode_000000.tar\ntrain-episode_000002.tar\n")
    (folder / "val_files.txt").write_text("train-episode_000001.tar\n")
    config = config_of(folder, val_shards=[str(folder)], preprocessing={"crop_size": 8})
    section = ImagesKind().validation(config)
    assert isinstance(section, ImageDataConfig)
    assert ImagesKind().load_info(config).num_samples == 9
    assert ImagesKind().load_info(section).num_samples == 3
    assert not section.preprocessing.random_crop


def test_saved_assets_are_loaded_unchanged(tmp_path: Path) -> None:
    config = config_of(write_image_shards(tmp_path / "s"), preprocessing={"resize": "squash"})
    info = ImagesKind().load_info(config)
    ImagesKind().save_assets(config, info, tmp_path)
    assert ImagesKind().load_assets(config, tmp_path) == ImagesKind().make_assets(config, info)
    with fails("data.broken"):
        ImagesKind().load_assets(config_of(preprocessing={"crop_size": 16}), tmp_path)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install_toys(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


def image_run(root: Path, run: str, **changes: Any) -> Any:
    keys = {
        "data__folders": [str(root / "shards")],
        "data__val_shards": [str(root / "shards")],
        "data__preprocessing__crop_size": 8,
        "data__max_dropped_share": 0.5,
        "total_val_samples": 6,
        **changes,
    }
    return toy_config(root, "toy_images", run, **keys)


def test_resumed_run_on_images_has_the_same_weights_drops_and_assets(site: Path) -> None:
    write_image_shards(site / "shards", change={4: {"png": b"broken"}})
    result = train(image_run(site, "whole"))
    assert result.dropped == {"broken_image": 5}
    half_of(site, "whole", "half")
    train(image_run(site, "half", data__num_workers=1))
    whole, half = RunDir(site / "whole"), RunDir(site / "half")
    weights = [run.checkpoint(8) / "model.safetensors" for run in (whole, half)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    (row,) = read_metrics(whole.drops)
    assert (row["reason"], row["sample"]) == ("broken_image", "train-episode_000000/00000004")
    assert read_metrics(half.drops) == [row]

    assert not verified(whole.root).codes
    whole.options.unlink()
    assert verified(whole.root).codes == {"run.broken_kept": 1}


def test_model_type_of_images_passes_the_contract_checks(site: Path) -> None:
    from tests.builders.toy_images import ImageType

    write_image_shards(site / "shards")
    data = {"shards": [str(site / "shards")], "preprocessing": SIZE}
    check_model_type(ImageType, data=data)
