"""Augmentation and padding of images; mixtures of different data sets.

Source: formats/lbm 5.1.
"""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import vlatool
from tests.builders.errors import fails
from tests.builders.loading import FIELD, OBSERVED, SAMPLES, opened, write_shards
from tests.builders.spartan import spartan_task
from tests.builders.toy_images import write_image_shards
from vlatool.datasets.stats.layout import StatsPart, merge_parts, read_mergeable
from vlatool.errors import DataError
from vlatool.loading.base import SampleRef
from vlatool.loading.loader import LoaderPlan, build_loader, read_samples
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.loading.shared_memory import stack_rows
from vlatool.models.backbones.config import ByteTextConfig, KeypointBackboneConfig
from vlatool.models.diffusion_policy.batch import PolicyBatcher, example_batch
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig
from vlatool.transforms.augmentation import central_box

LEFT, RIGHT = "scene_right_0", "wrist_left_minus"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("raw"), 2, SAMPLES // 2)


@pytest.fixture(scope="module")
def folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cameras, images of 24 x 32."""
    return write_shards(raw, tmp_path_factory.mktemp("both"), SAMPLES)


@pytest.fixture(scope="module")
def lone(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One camera, another window, less data."""
    options = {"camera_names": [LEFT], "past_lowdim_steps": 2, "max_padding_left": 3}
    options |= {"max_episodes": 1}
    return write_shards(raw, tmp_path_factory.mktemp("lone"), SAMPLES, **options)


def read(*folders: Path, **keys: Any) -> list[DecodedSample]:
    return list(
        vlatool.open_dataset(*folders, shuffle=False, raw=True, action_fields=[FIELD], **keys)
    )


def image_keys(**image: Any) -> dict[str, Any]:
    return {"image": image}


def crop_offsets(small: np.ndarray, whole: np.ndarray) -> set[tuple[int, int]]:
    """All offsets at which an image is a crop of another."""
    height, width = small.shape[:2]
    return {
        (top, left)
        for top in range(whole.shape[0] - height + 1)
        for left in range(whole.shape[1] - width + 1)
        if np.array_equal(whole[top : top + height, left : left + width], small)
    }


# crops and colors

RANDOM = image_keys(crop={"enabled": True, "shape": [12, 10]})
JITTER = image_keys(color_jitter={"enabled": True})


def test_all_images_of_a_sample_have_the_same_crop(folder: Path) -> None:
    offsets: set[tuple[int, int]] = set()
    disabled = {**RANDOM, "enabled": False}
    center = image_keys(crop={"enabled": True, "shape": [12, 10], "mode": "center"})
    sections = ({}, RANDOM, disabled, center)
    samples = (read(folder, augmentation=section) for section in sections)
    for whole, cropped, same, centered in zip(*samples, strict=True):
        pairs = zip(cropped.images, whole.images, strict=True)
        shared = set.intersection(*(crop_offsets(*pair) for pair in pairs))
        assert len(shared) >= 1
        offsets |= shared
        assert cropped.instruction == whole.instruction
        np.testing.assert_array_equal(same.images, whole.images)
        np.testing.assert_array_equal(centered.images, whole.images[:, 6:18, 11:21])

    assert len(offsets) > SAMPLES // 2


def test_color_jitter_is_the_same_for_all_images_of_a_sample(folder: Path) -> None:
    section = image_keys(
        color_jitter={"enabled": True, "contrast": 0, "saturation": 0, "hue": [0, 0]}
    )
    factors: set[float] = set()

    for plain, changed in zip(read(folder), read(folder, augmentation=section), strict=True):
        bright = plain.images > 40
        ratio = (changed.images + 0.5)[bright] / plain.images[bright]
        inside = changed.images[bright] < 255
        assert np.ptp(ratio[inside]) < 0.05
        factors.add(round(float(np.median(ratio[inside])), 2))

    assert len(factors) > SAMPLES // 3


@pytest.mark.parametrize("section", [RANDOM, JITTER])
def test_augmentation_depends_on_seed_and_position_only(
    folder: Path, section: dict[str, Any]
) -> None:
    first = read(folder, augmentation=section, seed=1)
    data = vlatool.open_dataset(
        folder, shuffle=False, raw=True, action_fields=[FIELD], augmentation=section, seed=1
    )

    np.testing.assert_array_equal(data[7].images, first[7].images)
    assert not np.array_equal(read(folder, augmentation=section, seed=2)[7].images, first[7].images)
    assert not np.array_equal(data.epoch(1)[7].images, first[7].images)


@pytest.mark.parametrize("shape", [[12, 10], [0.5, 0.5]])
def test_validation_images_have_a_center_crop_and_no_jitter(
    folder: Path, shape: list[float]
) -> None:
    section = image_keys(color_jitter={"enabled": True}, crop={"enabled": True, "shape": shape})
    config, info = opened(folder, augmentation=section, val_dataset_manifest=[str(folder)])
    validation = RoboticsKind().validation(config)
    assert validation is not None
    data = vlatool.open_dataset(folder, shuffle=False, raw=True, action_fields=[FIELD])
    reader = RoboticsKind().reader(validation, info)

    first, second = (reader.read(data._order.refs([3]), [np.random.default_rng(n)]) for n in (1, 2))

    box = central_box((24, 32), shape)
    np.testing.assert_array_equal(first[0].images[0], box.of(data[3].images[0]))
    np.testing.assert_array_equal(first[0].images, second[0].images)


def test_policy_gets_a_center_crop_of_recorded_images(folder: Path, tmp_path: Path) -> None:
    config, info = opened(folder, augmentation=RANDOM)
    RoboticsKind().save_assets(config, info, tmp_path)
    shape = RoboticsKind().load_assets(config, tmp_path).images
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)

    assert shape.size == (24, 32)
    np.testing.assert_array_equal(shape.apply(LEFT, image), image[6:18, 11:21])


def test_crops_and_sizes_that_do_not_fit_the_images_raise_an_error(
    folder: Path, tmp_path: Path
) -> None:
    large = image_keys(crop={"enabled": True, "shape": [25, 10]})
    with fails("data.mismatch", 3):
        read(folder, augmentation=large)
    copy = shutil.copytree(folder, tmp_path / "copy")
    _set_options(copy, resize_images_size=[32, 24])
    with fails("data.mismatch"):  # at the start
        opened(copy, augmentation=large)
    other = shutil.copytree(folder, tmp_path / "other")
    _set_options(other, resize_images_size=[64, 48])
    with fails("data.mismatch"):
        opened(copy, other)


# cameras


def test_missing_camera_is_black_and_masked(folder: Path, lone: Path) -> None:
    samples = read(folder, lone, pad_missing_images=True)

    assert len({sample.images.shape for sample in samples}) == 1
    assert {sample.dataset for sample in samples} == {0, 1}
    for sample in samples:
        assert sample.image_mask is not None
        assert sample.image_mask.tolist() == [True, sample.dataset == 0] * 2
        assert sample.images[sample.image_mask].any()
        assert not sample.images[~sample.image_mask].any()
    keys: dict[str, Any] = {"shuffle": False, "action_fields": [FIELD]}
    data = vlatool.open_dataset(folder, lone, pad_missing_images=True, **keys)
    for plain, sample in zip(data, samples, strict=True):
        assert plain[f"observation.images.{LEFT}_is_pad"].tolist() == [False, False]
        assert plain[f"observation.images.{RIGHT}_is_pad"].tolist() == [sample.dataset == 1] * 2


def test_names_of_lerobot_get_no_second_prefix(folder: Path) -> None:
    rename = {
        "cameras.observation.images.left": LEFT,
        "fields.observation.state": FIELD,
    }
    keys: dict[str, Any] = {"action_fields": ["observation.state"], "rename": rename}
    data = vlatool.open_dataset(folder, proprioception_fields=["observation.state"], **keys)
    assert "observation.images.left" in data[0]
    assert "observation.state" in data[0]


@pytest.mark.parametrize(
    ("cameras", "pads", "hint"),
    [([LEFT, RIGHT], False, "pad_missing_images"), ([LEFT, "wrist_left_mnius"], True, RIGHT)],
)
def test_missing_camera_without_padding_or_with_an_unknown_name_raises_an_error(
    folder: Path, lone: Path, cameras: list[str], pads: bool, hint: str
) -> None:
    with fails("data.unknown_field") as caught:
        opened(folder, lone, camera_names=cameras, pad_missing_images=pads)
    assert hint in caught.value.hint
    assert pads or str(lone) in caught.value.message


def test_validation_data_are_padded_like_the_training_data(folder: Path, lone: Path) -> None:
    config, _ = opened(folder, pad_missing_images=True, val_dataset_manifest=[str(lone)])
    section = RoboticsKind().validation(config)
    assert section is not None
    info = RoboticsKind().load_info(section)

    derived, _ = RoboticsKind().derive(section, info)

    assert derived.camera_names == [LEFT, RIGHT]
    sample = (
        RoboticsKind()
        .reader(derived, info)
        .read([SampleRef(0, 0, 0)], [np.random.default_rng(0)])[0]
    )
    assert isinstance(sample, DecodedSample)
    assert sample.image_mask is not None
    assert sample.image_mask.tolist() == [True, False] * 2


@pytest.mark.parametrize(("pads", "cameras"), [(False, [LEFT, RIGHT]), (True, [RIGHT])])
def test_validation_data_without_any_used_camera_raise_an_error(
    folder: Path, lone: Path, pads: bool, cameras: list[str]
) -> None:
    keys = {"pad_missing_images": pads, "camera_names": cameras}
    config, _ = opened(folder, **keys, val_dataset_manifest=[str(lone)])
    section = RoboticsKind().validation(config)
    assert section is not None

    with fails("data.unknown_field", 3):
        RoboticsKind().derive(section, RoboticsKind().load_info(section))


@pytest.mark.parametrize("masked", [True, False])
def test_batch_has_a_mask_of_padded_images_with_mask_padded_images(
    folder: Path, lone: Path, masked: bool
) -> None:
    keys = {"pad_missing_images": True, "mask_padded_images": masked}
    config, info = opened(folder, lone, **keys)
    backbone = KeypointBackboneConfig(text_encoder=ByteTextConfig(), num_cameras=2, num_times=2)
    model = DiffusionPolicyConfig(vision_language_backbone=backbone)
    normalizer = RoboticsKind().make_assets(config, info).normalizer
    samples = [sample for sample in read(folder, lone, **keys) if sample.dataset][:2]

    batch = PolicyBatcher(model, config, normalizer)(samples)

    assert batch["dataset"].tolist() == [1, 1]
    assert ("image_mask" in batch) == masked
    if masked:
        assert batch["image_mask"].tolist() == [[True, False] * 2] * 2
    example = example_batch(model, config, 2)
    assert {name: example[name].dtype for name in set(example) - {"keys"}} == {
        name: batch[name].dtype for name in set(batch) - {"keys"}
    }
    assert isinstance(batch["images"], torch.Tensor)


# shared buffers

CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "crop": {"augmentation": RANDOM},
    "jitter": {"augmentation": JITTER},
    "padded": {"pad_missing_images": True},
}


@pytest.mark.parametrize("case", list(CASES))
def test_images_in_a_buffer_are_those_of_separate_samples(
    folder: Path, lone: Path, case: str
) -> None:
    folders = [folder, lone] if case == "padded" else [folder]
    config, info = opened(*folders, **CASES[case])
    order = SampleOrder(info.datasets, OrderOptions())
    positions = range(order.size)
    expected = read_samples(order, RoboticsKind().reader(config, info), positions, 1)
    reader = RoboticsKind().reader(config, info)

    # The first call does not know the size of the buffer.
    read_samples(order, reader, positions, 1, allocate=used_memory)
    samples = read_samples(order, reader, positions, 1, allocate=used_memory)

    joined = stack_rows([sample.images for sample in samples])
    assert np.shares_memory(joined, samples[0].images)
    np.testing.assert_array_equal(joined, [sample.images for sample in expected])


def used_memory(size: int) -> np.ndarray:
    """Memory that is not zero."""
    return np.full(size, 7, np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kept_alive", [True, False])
def test_batches_contain_the_images_of_their_samples(
    folder: Path, workers: int, kept_alive: bool
) -> None:
    config, info = opened(folder, num_workers=workers)
    backbone = KeypointBackboneConfig(text_encoder=ByteTextConfig(), num_cameras=2, num_times=2)
    kind, model = RoboticsKind(), DiffusionPolicyConfig(vision_language_backbone=backbone)
    order = SampleOrder(info.datasets, OrderOptions(seed=1))
    batcher = PolicyBatcher(model, config, kind.make_assets(config, info).normalizer)
    plan = LoaderPlan(SAMPLES, num_workers=workers)
    by_key = {sample.key: sample.images for sample in read(folder)}

    with build_loader(plan, order, kind.reader(config, info), batcher, dict) as loader:
        batches = itertools.islice(loader, 16)
        for batch in [*batches] if kept_alive else batches:
            images = batch.batch["images"].permute(0, 1, 3, 4, 2).numpy()
            expected = np.stack([by_key[name] for name in batch.samples])
            np.testing.assert_array_equal(images, expected)


# mixtures


@pytest.mark.parametrize("weights", [[], [3.0, 1.0]])
def test_statistics_of_a_mixture_have_its_weights_and_the_common_steps(
    folder: Path, lone: Path, tmp_path: Path, weights: list[float]
) -> None:
    scaled = {"method": "min_max", "scope": "per_timestep"}
    keys = {"dataset_weighting": weights, "camera_names": [LEFT], "normalization": scaled}
    config, info = opened(folder, lone, **keys)

    shares: list[float | None] = [*weights] if weights else [None, None]
    files = [read_mergeable(row / "stats.json") for row in (folder, lone)]
    parts = [StatsPart(*row) for row in zip(files, (1, 2), shares, strict=True)]
    expected = merge_parts(parts).statistics[FIELD]
    assert info.statistics[FIELD]["mean"] == expected["mean"]
    assert (info.statistics_past, info.past) == (1, 1)
    assert len(info.statistics[FIELD]["mean_per_timestep"]) == 4
    assert config.lowdim_past_timesteps == 1

    RoboticsKind().save_assets(config, info, tmp_path)
    values = np.random.default_rng(0).normal(size=(4, 3))
    loaded, made = (
        assets.normalizer.normalize(FIELD, values)
        for assets in (
            RoboticsKind().load_assets(config, tmp_path),
            RoboticsKind().make_assets(config, info),
        )
    )
    np.testing.assert_array_equal(loaded, made)


def test_samples_of_different_windows_get_the_common_window(folder: Path, lone: Path) -> None:
    samples = read(folder, lone, camera_names=[LEFT])

    assert {sample.fields[FIELD].shape for sample in samples} == {(4, 3)}
    (first,) = [sample for sample in samples if sample.dataset == 0][:1]
    (same,) = [
        sample
        for sample in samples
        if sample.dataset == 1
        and sample.metadata["anchor_timestep"] == first.metadata["anchor_timestep"]
        and sample.metadata["episode_id"] == first.metadata["episode_id"]
    ]
    np.testing.assert_array_equal(same.fields[FIELD], first.fields[FIELD])


def test_field_that_a_data_set_lacks_raises_an_error_only_if_it_is_used(
    raw: Path, folder: Path, tmp_path: Path
) -> None:
    less = write_shards(raw, tmp_path / "less", SAMPLES, data_discard_keys=[OBSERVED])
    opened(folder, less, proprioception_fields=[FIELD])

    with pytest.raises(DataError) as caught:
        opened(folder, less, proprioception_fields=[OBSERVED])

    assert (caught.value.code, caught.value.details["field"]) == ("data.mismatch", OBSERVED)


def _set_options(folder: Path, **options: Any) -> None:
    path = folder / "preprocessing_config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **options}))


# normalization


def test_dataset_is_normalized_like_training(folder: Path) -> None:
    section = {"method": "percentile_1_99", "centered_norm": True}
    keys: dict[str, Any] = {"shuffle": False, "raw": True, "action_fields": [FIELD]}
    keys |= {"normalization": section}
    plain = vlatool.open_dataset(folder, **keys)
    data = vlatool.open_dataset(folder, **keys, normalize=True)

    normalizer = RoboticsKind().make_assets(data.config, data.info).normalizer
    scaled = normalizer.normalize(FIELD, plain[2].fields[FIELD])
    np.testing.assert_array_equal(data[2].fields[FIELD], scaled)
    np.testing.assert_array_equal(data.epoch(1)[2].fields[FIELD], scaled)
    assert not np.array_equal(plain[2].fields[FIELD], scaled)


def test_data_without_fields_cannot_be_normalized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shards = write_image_shards(tmp_path / "shards")
    size = {"crop_size": 8}

    with fails("usage.unsupported"):
        vlatool.open_dataset(shards, kind="images", preprocessing=size, normalize=True)
