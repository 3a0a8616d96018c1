"""Decoding of samples, and checks before the first batch. Source: formats/lbm 5, 6.2."""

import io
import itertools
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.builders.errors import fails
from tests.builders.loading import (
    FIELD,
    FUTURE,
    OBSERVED,
    PAST,
    SAMPLES,
    batches,
    names,
    opened,
    write_shards,
)
from tests.builders.spartan import spartan_task
from vlatool.errors import DataError
from vlatool.loading.loader import LoaderPlan
from vlatool.loading.robotics.reader import DecodedSample, SampleDecoder
from vlatool.loading.robotics.statistics import Normalizer
from vlatool.media.tar import index_by_headers
from vlatool.media.tar_sample import StoredSample, read_members

KEY = "sample"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of shards to a shard folder; all have the same samples."""
    raw = spartan_task(tmp_path_factory.mktemp("raw"), 2, SAMPLES // 2)
    root = tmp_path_factory.mktemp("lbm")
    return {count: write_shards(raw, root / str(count), SAMPLES // count) for count in (1, 3)}


@pytest.fixture
def copy(folders: dict[int, Path], tmp_path: Path) -> Path:
    """A shard folder that a test may modify."""
    shutil.copytree(folders[3], tmp_path / "shards")
    return tmp_path / "shards"


# decoding


@pytest.fixture
def raw_sample(folders: dict[int, Path]) -> dict[str, bytes]:
    shard = folders[1] / "shard_000000.tar"
    start, length = index_by_headers(shard).ranges()[0]
    return read_members(shard.read_bytes()[start : start + length]).contents


def decode(folder: Path, raw_sample: dict[str, bytes], **keys: Any) -> DecodedSample:
    config, _ = opened(folder, **keys)
    return SampleDecoder(config)(StoredSample(KEY, raw_sample), np.random.default_rng(0))


def stored(raw_sample: dict[str, bytes]) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(raw_sample["lowdim.npz"])) as arrays:
        return dict(arrays)


def with_members(raw_sample: dict[str, bytes], **members: bytes) -> dict[str, bytes]:
    """Adds or replaces members of the npz of a sample."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(raw_sample["lowdim.npz"])) as old,
        zipfile.ZipFile(result, "w") as new,
    ):
        for name in old.namelist():
            if name.removesuffix(".npy") not in members:
                new.writestr(name, old.read(name))
        for name, data in members.items():
            new.writestr(f"{name}.npy", data)
    return {**raw_sample, "lowdim.npz": result.getvalue()}


def decode_error(folder: Path, raw_sample: dict[str, bytes], **keys: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        decode(folder, raw_sample, **keys)
    return caught.value


def test_decoded_sample_equals_the_stored_one(
    folders: dict[int, Path], raw_sample: dict[str, bytes]
) -> None:
    changed = with_members(raw_sample, robot__version=b"broken", junk=b"broken")  # not used
    sample = decode(folders[1], changed)

    np.testing.assert_array_equal(sample.fields[FIELD], stored(raw_sample)[FIELD])
    assert sample.past_mask.tolist() == stored(raw_sample)["past_mask"].tolist()
    assert sample.future_mask.tolist() == stored(raw_sample)["future_mask"].tolist()
    assert sample.instruction == "put the cup on the saucer"
    cameras = ("scene_right_0", "wrist_left_minus")
    for index, (time, camera) in enumerate(itertools.product((-1, 0), cameras)):
        with Image.open(io.BytesIO(raw_sample[f"{camera}_t{time}.jpg"])) as image:
            assert (sample.images[index] == np.asarray(image)).all()


def test_broken_npz_raises_an_error_with_the_sample(
    folders: dict[int, Path], raw_sample: dict[str, bytes]
) -> None:
    broken = with_members(raw_sample, **{FIELD: b"broken"})
    error = decode_error(folders[1], broken)
    assert (error.code, error.details["sample"]) == ("data.broken", KEY)

    array = io.BytesIO()
    np.save(array, np.full((PAST + 1 + FUTURE, 3), 1234.5))
    other = with_members(raw_sample, **{FIELD: array.getvalue()})
    changed = other["lowdim.npz"].replace(np.float64(1234.5).tobytes(), bytes(8))
    assert decode_error(folders[1], {**other, "lowdim.npz": changed}).code == "data.broken"

    # Compressed content in the middle of the file; 0xff is an invalid deflate block type.
    data = bytearray(raw_sample["lowdim.npz"])
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        start = archive.getinfo(f"{FIELD}.npy").header_offset + 30 + len(FIELD) + 4 + 20
    data[start : start + 40] = b"\xff" * 40
    raw_sample["lowdim.npz"] = bytes(data)
    assert decode_error(folders[1], raw_sample).code == "data.broken"


@pytest.mark.parametrize("member", ["scene_right_0_t0.jpg", "lowdim.npz", "metadata.json"])
def test_truncated_or_missing_member_raises_an_error_with_its_name(
    folders: dict[int, Path], raw_sample: dict[str, bytes], member: str
) -> None:
    whole = raw_sample.pop(member)
    error = decode_error(folders[1], raw_sample)
    assert (error.code, error.details["member"]) == ("data.broken", member)
    cut = {**raw_sample, member: whole[: len(whole) // 2]}
    assert decode_error(folders[1], cut).code == "data.broken"
    if member == "metadata.json":  # an anchor without its window
        for text in (b'{"anchor_relative_idx": 0}', b'{"anchor_relative_idx": 9}', b"{}"):
            error = decode_error(folders[1], {**raw_sample, member: text})
            assert error.code == "data.broken"


def test_window_is_cropped_around_the_anchor(
    folders: dict[int, Path], raw_sample: dict[str, bytes]
) -> None:
    keys = {"lowdim_past_timesteps": 0, "lowdim_future_timesteps": 1}

    sample = decode(folders[1], raw_sample, **keys)

    expected = stored(raw_sample)
    np.testing.assert_array_equal(sample.fields[FIELD], expected[FIELD][PAST : PAST + 2])
    assert sample.future_mask.tolist() == expected["future_mask"][PAST : PAST + 2].tolist()
    assert sample.past_mask.tolist() == expected["past_mask"][PAST : PAST + 2].tolist()


def test_png_with_the_suffix_of_a_jpg_is_decoded_and_no_other_image(
    folders: dict[int, Path], raw_sample: dict[str, bytes]
) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (32, 24), (9, 8, 7, 255)).save(buffer, "PNG")
    raw_sample["scene_right_0_t0.jpg"] = buffer.getvalue()
    raw_sample["wrist_left_minus_t0.jpg"] = b"broken"

    sample = decode(folders[1], raw_sample, camera_names=["scene_right_0"], image_indices=[0])

    assert sample.images.shape == (1, 24, 32, 3)
    assert sample.images[0, 0, 0].tolist() == [9, 8, 7]


@pytest.mark.parametrize(
    ("language", "kinds", "expected"),
    [
        ({"original": ["a"]}, ["original"], {"a"}),
        ({"original": "a"}, ["original"], {"a"}),
        ({"original": ["a"], "verbose": ["b"]}, ["original", "verbose"], {"a", "b"}),
        ({"original": ["a"], "verbose": ["b"]}, ["verbose"], {"b"}),
        ({"original": ["a"]}, ["verbose"], {""}),
        ({}, ["original"], {""}),
        (None, ["original"], {""}),
        ("no member", ["original"], {""}),
    ],
)
def test_instruction_is_one_of_the_configured_kinds(
    folders: dict[int, Path],
    raw_sample: dict[str, bytes],
    language: Any,
    kinds: list[str],
    expected: set[str],
) -> None:
    raw_sample["language_instructions.json"] = json.dumps(language).encode()
    if language == "no member":
        del raw_sample["language_instructions.json"]
    config, _ = opened(folders[1], language_instruction_types=kinds)
    rng = np.random.default_rng(0)

    instructions = {
        SampleDecoder(config)(StoredSample(KEY, raw_sample), rng).instruction for _ in range(20)
    }

    assert instructions == expected


# checks before the first batch


def test_unset_values_are_derived_from_the_data(folders: dict[int, Path]) -> None:
    config, info = opened(folders[1], action_fields=[])

    assert info.num_samples == SAMPLES
    assert config.camera_names == ["scene_right_0", "wrist_left_minus"]
    assert config.image_indices == [-1, 0]
    assert (config.lowdim_past_timesteps, config.lowdim_future_timesteps) == (PAST, FUTURE)
    assert (config.action_dim, config.proprioception_dim) == (20, 20)
    assert len(config.action_fields) == 6


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10240])


def _drop_field(path: Path) -> None:
    path.write_text(path.read_text().replace(FIELD, "other"))


@pytest.mark.parametrize(
    ("name", "damage", "code"),
    [
        ("shard_000001.tar", Path.unlink, "data.missing"),
        ("manifest.jsonl", Path.unlink, "data.no_manifest"),
        ("stats.json", Path.unlink, "data.missing"),
        ("preprocessing_config.yaml", Path.unlink, "data.missing"),
        ("shard_000001.tar", _cut, "data.broken"),
        ("stats.json", _drop_field, "data.unknown_field"),
    ],
)
def test_damaged_file_raises_an_error_before_the_first_batch(
    copy: Path, name: str, damage: Callable[[Path], None], code: str
) -> None:
    damage(copy / name)
    with fails(code, 3):
        opened(copy)


def test_downloaded_layout_is_read(copy: Path, folders: dict[int, Path]) -> None:
    """The manifest is in the parent folder of the shards and names them with their folder."""
    root = copy.parent
    entries = [json.loads(line) for line in (copy / "manifest.jsonl").read_text().splitlines()]
    lines = [json.dumps({**entry, "shard": f"shards/{entry['shard']}"}) + "\n" for entry in entries]
    (root / "manifest.jsonl").write_text("".join(lines))
    for name in ("stats.json", "preprocessing_config.yaml"):
        (copy / name).rename(root / name)

    paths = (root / "manifest.jsonl", folders[3])
    actual, expected = (batches(opened(path), LoaderPlan(SAMPLES), 1) for path in paths)

    assert names(actual) == names(expected)


# normalization


def test_field_can_have_its_own_normalization(folders: dict[int, Path]) -> None:
    section = {"field_configs": {OBSERVED: {"enabled": False}}}
    config, info = opened(folders[1], normalization=section, proprioception_fields=[OBSERVED])
    normalizer = Normalizer(config, info.statistics, info.statistics_past)
    values = np.full((PAST + 1, 3), 7.0)

    assert (normalizer.normalize(OBSERVED, values) == 7).all()
    assert not (normalizer.normalize(FIELD, values) == 7).any()
