"""Shards to batches. Expectations: lbm-data 5, 8.2."""

import io
import itertools
import json
import random
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from tests.builders.spartan import spartan_task
from vlatool.artifacts.manifest import read_manifest
from vlatool.errors import DataError
from vlatool.loading.loader import LoaderPlan, SampleStream, Slot, build_loader, mixed
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.decode import DecodedSample, SampleDecoder
from vlatool.loading.robotics.facts import DatasetFacts, derive_data, read_facts
from vlatool.loading.robotics.normalizer import Normalizer
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

SAMPLES = 12
PAST, FUTURE = 1, 2
FIELD = "robot__action__poses__left::panda__xyz"
OBSERVED = "robot__actual__poses__left::panda__xyz"


def names_and_numbers(samples: Sequence[DecodedSample]) -> dict[str, Any]:
    """The simplest batcher: what tells samples apart."""
    return {
        "keys": [sample.key for sample in samples],
        "instructions": [sample.instruction for sample in samples],
    }


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("raw"), 2, SAMPLES // 2)


@pytest.fixture(scope="module")
def folders(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Number of shards to a shard folder; all hold the same samples."""
    root = tmp_path_factory.mktemp("lbm")
    return {count: write_shards(raw, root / str(count), SAMPLES // count) for count in (1, 3, 6)}


def write_shards(raw: Path, output: Path, per_shard: int, **options: Any) -> Path:
    tree = {
        "format": "spartan",
        "sources": [str(raw)],
        "output": str(output),
        "past_lowdim_steps": PAST,
        "future_lowdim_steps": FUTURE,
        "max_padding_right": FUTURE,
        "samples_per_shard": per_shard,
        "workers": 1,
        **options,
    }
    preprocess(PreprocessConfig.specialise(tree).model_validate(tree))
    return output / "shards"


@pytest.fixture
def copy(folders: dict[int, Path], tmp_path: Path) -> Path:
    """A shard folder that a test may break."""
    shutil.copytree(folders[3], tmp_path / "shards")
    return tmp_path / "shards"


def opened(folder: Path, **keys: Any) -> tuple[RoboticsDataConfig, DatasetFacts]:
    config = RoboticsDataConfig(
        dataset_manifest=[str(folder / "manifest.jsonl")],
        **{"num_workers": 0, "prefetch_factor": 1, "action_fields": [FIELD], **keys},
    )
    facts = read_facts(config)
    return derive_data(config, facts), facts


def refusal(folder: Path, **keys: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        opened(folder, **keys)
    return caught.value


def batches(folder: Path, plan: LoaderPlan, count: int, **keys: Any) -> list[list[str]]:
    loader = build_loader(*opened(folder, **keys), names_and_numbers, plan)
    return [batch["keys"] for batch in itertools.islice(loader, count)]


def all_keys(folder: Path) -> list[str]:
    urls = [str(shard.path) for shard in read_manifest(folder / "manifest.jsonl")]
    return [one["__key__"] for one in wds.WebDataset(urls, shardshuffle=False)]


def epoch_size(shards: int, slot: int, slots: int) -> int:
    """Samples of one epoch that a slot reads."""
    if shards % slots:
        return len(range(slot, SAMPLES, slots))
    return len(range(slot, shards, slots)) * (SAMPLES // shards)


def stream(folder: Path, slot: Slot, seed: int = 1, **keys: Any) -> Iterator[str]:
    config, facts = opened(folder, **keys)
    return (one["__key__"] for one in SampleStream(facts.shards[0], config, slot, seed))


# order


@pytest.mark.parametrize("shards", [1, 3, 6])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_slots_together_read_every_sample_once_per_epoch(
    folders: dict[int, Path], shards: int, ranks: int, workers: int, shuffle: bool
) -> None:
    slots = ranks * workers
    read: list[str] = []

    for slot in range(slots):
        keys = stream(folders[shards], Slot(slot, slots), shuffle=shuffle)
        read += itertools.islice(keys, epoch_size(shards, slot, slots))

    assert sorted(read) == sorted(all_keys(folders[shards]))


def test_every_epoch_is_complete_before_the_next_begins(folders: dict[int, Path]) -> None:
    keys = stream(folders[3], Slot(0, 1))

    for _ in range(3):
        assert sorted(itertools.islice(keys, SAMPLES)) == sorted(all_keys(folders[3]))


# A loader process takes seconds to start; the other combinations are those of the slots above.
@pytest.mark.parametrize(("ranks", "workers", "shards"), [(1, 0, 6), (2, 0, 1), (1, 2, 6)])
def test_loaders_together_read_every_sample_once_per_epoch(
    folders: dict[int, Path], ranks: int, workers: int, shards: int
) -> None:
    slots = ranks * max(workers, 1)
    read: list[str] = []

    for rank in range(ranks):
        mine = range(rank * slots // ranks, (rank + 1) * slots // ranks)
        sizes = [epoch_size(shards, slot, slots) for slot in mine]
        plan = LoaderPlan(batch_size=1, rank=rank, world_size=ranks)
        turns = batches(folders[shards], plan, max(sizes) * len(sizes), num_workers=workers)
        for worker, size in enumerate(sizes):
            read += [key for (key,) in turns[worker :: len(sizes)][:size]]

    assert sorted(read) == sorted(all_keys(folders[shards]))


def test_same_seed_gives_the_same_order(folders: dict[int, Path]) -> None:
    plan = LoaderPlan(batch_size=2, seed=5)

    assert batches(folders[3], plan, 12) == batches(folders[3], plan, 12)


def test_another_seed_gives_another_order(folders: dict[int, Path]) -> None:
    one, other = (batches(folders[3], LoaderPlan(2, seed=seed), 6) for seed in (5, 6))

    assert one != other


def test_another_epoch_gives_another_order(folders: dict[int, Path]) -> None:
    keys = batches(folders[3], LoaderPlan(SAMPLES), 2)

    assert keys[0] != keys[1]


def test_shuffle_mixes_samples_across_shards(folders: dict[int, Path]) -> None:
    first = next(iter(batches(folders[3], LoaderPlan(4), 1)))
    by_shard = [set(all_keys(folders[3])[start : start + 4]) for start in (0, 4, 8)]

    assert sum(bool(shard & set(first)) for shard in by_shard) > 1


def test_without_shuffle_the_order_is_that_of_the_shards(folders: dict[int, Path]) -> None:
    (keys,) = batches(folders[3], LoaderPlan(SAMPLES), 1, shuffle=False)

    assert keys == all_keys(folders[3])


@pytest.mark.parametrize(("workers", "skipped"), [(0, 1), (0, 5), (0, 13), (2, 3)])
def test_resumed_loader_goes_on_where_the_uninterrupted_one_would(
    folders: dict[int, Path], workers: int, skipped: int
) -> None:
    plan = LoaderPlan(batch_size=2, seed=3)

    uninterrupted = batches(folders[6], plan, skipped + 6, num_workers=workers)
    resumed = batches(folders[6], replace(plan, skip_batches=skipped), 6, num_workers=workers)

    assert resumed == uninterrupted[skipped:]


def test_resumed_loader_draws_the_same_sentences(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "language_dict: {PutCupOnSaucer: {original: [a, b, c, d, e, f, g, h]}}"
    )
    section = {"language_annotations_path": str(tmp_path / "a.yaml")}
    opened_data = opened(write_shards(raw, tmp_path / "out", 4, source=section))

    whole, resumed = (
        [
            batch["instructions"]
            for batch in itertools.islice(
                build_loader(*opened_data, names_and_numbers, LoaderPlan(2, skip_batches=skip)), 9
            )
        ]
        for skip in (0, 3)
    )

    assert resumed[:6] == whole[3:]
    assert len({sentence for batch in whole for sentence in batch}) > 1


@pytest.mark.parametrize(("weights", "share"), [([1.0, 1.0], 0.5), ([3.0, 1.0], 0.75)])
def test_mixture_draws_by_weight(
    folders: dict[int, Path], weights: list[float], share: float
) -> None:
    config, facts = opened(folders[6])
    halves = [facts.shards[0][:3], facts.shards[0][3:]]
    streams = [SampleStream(half, config, Slot(0, 1), 1) for half in halves]
    first = set(all_keys(folders[6])[: SAMPLES // 2])

    drawn = itertools.islice(mixed(streams, weights, seed=1), 400)

    # 400 draws have a standard deviation of at most 0.025.
    assert np.mean([one["__key__"] in first for one in drawn]) == pytest.approx(share, abs=0.1)


def test_zero_weight_excludes_a_data_set(folders: dict[int, Path]) -> None:
    config, facts = opened(folders[6])
    halves = [facts.shards[0][:3], facts.shards[0][3:]]
    streams = [SampleStream(half, config, Slot(0, 1), 1) for half in halves]
    first = set(all_keys(folders[6])[: SAMPLES // 2])

    drawn = Counter(
        one["__key__"] in first for one in itertools.islice(mixed(streams, [1, 0], 1), 30)
    )

    assert drawn == {True: 30}


# decoding


@pytest.fixture
def raw_sample(folders: dict[int, Path]) -> dict[str, Any]:
    url = str(folders[1] / "shard_000000.tar")
    return dict(next(iter(wds.WebDataset(url, shardshuffle=False))))


def decode(folder: Path, raw_sample: dict[str, Any], **keys: Any) -> DecodedSample:
    config, _ = opened(folder, **keys)
    return SampleDecoder(config)(raw_sample, random.Random(0))


def stored(raw_sample: dict[str, Any]) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(raw_sample["lowdim.npz"])) as arrays:
        return dict(arrays)


def with_members(raw_sample: dict[str, Any], **members: bytes) -> dict[str, Any]:
    """The sample with further members in its npz, or with others of the same name."""
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


def broken(folder: Path, raw_sample: dict[str, Any], **keys: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        decode(folder, raw_sample, **keys)
    return caught.value


def test_decoded_sample_holds_what_is_stored(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    sample = decode(folders[1], raw_sample)

    np.testing.assert_array_equal(sample.fields[FIELD], stored(raw_sample)[FIELD])
    assert sample.past_mask.tolist() == stored(raw_sample)["past_mask"].tolist()
    assert sample.future_mask.tolist() == stored(raw_sample)["future_mask"].tolist()
    assert sample.instruction == "put the cup on the saucer"


def test_pictures_come_time_outer_camera_inner(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    sample = decode(folders[1], raw_sample)

    cameras = ("scene_right_0", "wrist_left_minus")
    for index, (time, camera) in enumerate(itertools.product((-1, 0), cameras)):
        with Image.open(io.BytesIO(raw_sample[f"{camera}_t{time}.jpg"])) as picture:
            assert (sample.images[index] == np.asarray(picture)).all()


def test_only_the_pictures_that_are_asked_for_are_decoded(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    raw_sample["wrist_left_minus_t0.jpg"] = b"broken"

    sample = decode(folders[1], raw_sample, camera_names=["scene_right_0"], image_indices=[0])

    assert sample.images.shape == (1, 24, 32, 3)


def test_only_the_named_npz_members_are_read(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    spoiled = with_members(raw_sample, robot__version=b"broken", junk=b"broken")

    assert FIELD in decode(folders[1], spoiled).fields


def test_broken_member_that_is_asked_for_is_refused_by_sample(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    error = broken(folders[1], with_members(raw_sample, **{FIELD: b"broken"}))

    assert error.code == "data.broken_sample"
    assert error.details["sample"] == raw_sample["__key__"]


def test_damaged_npz_is_refused_by_sample(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    # Deflated content in the middle of the file; with 0xff the block type is invalid.
    data = bytearray(raw_sample["lowdim.npz"])
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        start = archive.getinfo(f"{FIELD}.npy").header_offset + 30 + len(FIELD) + 4 + 20
    data[start : start + 40] = b"\xff" * 40
    raw_sample["lowdim.npz"] = bytes(data)

    assert broken(folders[1], raw_sample).code == "data.broken_sample"


def test_changed_number_in_an_npz_is_noticed(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    array = io.BytesIO()
    np.save(array, np.full((PAST + 1 + FUTURE, 3), 1234.5))
    stored_sample = with_members(raw_sample, **{FIELD: array.getvalue()})
    changed = stored_sample["lowdim.npz"].replace(np.float64(1234.5).tobytes(), bytes(8))

    error = broken(folders[1], {**stored_sample, "lowdim.npz": changed})

    assert error.code == "data.broken_sample"


@pytest.mark.parametrize("member", ["scene_right_0_t0.jpg", "lowdim.npz", "metadata.json"])
def test_missing_member_is_named(
    folders: dict[int, Path], raw_sample: dict[str, Any], member: str
) -> None:
    del raw_sample[member]

    error = broken(folders[1], raw_sample)

    assert (error.code, error.details["member"]) == ("data.broken_sample", member)


@pytest.mark.parametrize("member", ["scene_right_0_t0.jpg", "lowdim.npz", "metadata.json"])
def test_damaged_member_is_a_data_error(
    folders: dict[int, Path], raw_sample: dict[str, Any], member: str
) -> None:
    raw_sample[member] = raw_sample[member][: len(raw_sample[member]) // 2]

    assert broken(folders[1], raw_sample).code == "data.broken_sample"


def test_window_is_cropped_around_the_anchor(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    keys = {"lowdim_past_timesteps": 0, "lowdim_future_timesteps": 1}

    sample = decode(folders[1], raw_sample, **keys)

    expected = stored(raw_sample)
    np.testing.assert_array_equal(sample.fields[FIELD], expected[FIELD][PAST : PAST + 2])
    assert sample.future_mask.tolist() == expected["future_mask"][PAST : PAST + 2].tolist()
    assert sample.past_mask.tolist() == expected["past_mask"][PAST : PAST + 2].tolist()


def test_png_under_the_name_of_a_jpg_is_decoded(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (32, 24), (9, 8, 7, 255)).save(buffer, "PNG")
    raw_sample["scene_right_0_t0.jpg"] = buffer.getvalue()

    sample = decode(folders[1], raw_sample, camera_names=["scene_right_0"], image_indices=[0])

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
    ],
)
def test_sentence_is_one_of_the_configured_kinds(
    folders: dict[int, Path],
    raw_sample: dict[str, Any],
    language: Any,
    kinds: list[str],
    expected: set[str],
) -> None:
    raw_sample["language_instructions.json"] = json.dumps(language).encode()
    config, _ = opened(folders[1], language_instruction_types=kinds)
    rng = random.Random(0)

    drawn = {SampleDecoder(config)(raw_sample, rng).instruction for _ in range(20)}

    assert drawn == expected


def test_sample_without_language_has_an_empty_sentence(
    folders: dict[int, Path], raw_sample: dict[str, Any]
) -> None:
    del raw_sample["language_instructions.json"]

    assert decode(folders[1], raw_sample).instruction == ""


# checks before the first batch


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"action_fields": ["robot__action__poses__left::panda__xyzz"]}, "data.unknown_field"),
        ({"proprioception_fields": ["robot__actual__nothing"]}, "data.unknown_field"),
        ({"camera_names": ["scene_rigth_0"]}, "data.unknown_camera_names"),
        ({"image_indices": [-2, 0]}, "data.unknown_image_indices"),
        ({"lowdim_past_timesteps": PAST + 1}, "data.window_too_large"),
        ({"lowdim_future_timesteps": FUTURE + 1}, "data.window_too_large"),
        ({"action_dim": 4}, "data.dimension_mismatch"),
    ],
)
def test_key_that_does_not_fit_the_data_is_refused_at_the_start(
    folders: dict[int, Path], keys: dict[str, Any], code: str
) -> None:
    error = refusal(folders[1], **keys)

    assert (error.code, error.exit_code) == (code, 3)


@pytest.mark.parametrize(
    ("keys", "nearest"),
    [
        ({"camera_names": ["scene_rigth_0"]}, "scene_right_0"),
        ({"action_fields": [FIELD + "z"]}, FIELD),
    ],
)
def test_misspelt_name_gets_the_nearest_one(
    folders: dict[int, Path], keys: dict[str, Any], nearest: str
) -> None:
    assert nearest in refusal(folders[1], **keys).hint


def test_what_is_left_open_is_taken_from_the_data(folders: dict[int, Path]) -> None:
    config, _ = opened(folders[1], action_fields=[])

    assert config.camera_names == ["scene_right_0", "wrist_left_minus"]
    assert config.image_indices == [-1, 0]
    assert (config.lowdim_past_timesteps, config.lowdim_future_timesteps) == (PAST, FUTURE)
    assert (config.action_dim, config.proprioception_dim) == (20, 20)
    assert len(config.action_fields) == 6


def test_number_of_samples_is_that_of_the_manifest(folders: dict[int, Path]) -> None:
    assert opened(folders[3])[1].num_samples == SAMPLES


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("shard_000001.tar", "data.missing_shard"),
        ("manifest.jsonl", "data.no_manifest"),
        ("stats.json", "data.no_statistics"),
        ("preprocessing_config.yaml", "data.no_preprocessing_config"),
    ],
)
def test_missing_file_is_refused_before_the_first_batch(copy: Path, name: str, code: str) -> None:
    (copy / name).unlink()

    error = refusal(copy)

    assert (error.code, error.exit_code) == (code, 3)


def test_cut_off_shard_is_refused_before_the_first_batch(copy: Path) -> None:
    shard = copy / "shard_000001.tar"
    shard.write_bytes(shard.read_bytes()[:-10240])

    assert refusal(copy).code == "data.short_shard"


def test_statistics_without_a_used_field_are_refused(copy: Path) -> None:
    stats = json.loads((copy / "stats.json").read_text())
    del stats[FIELD]
    (copy / "stats.json").write_text(json.dumps(stats))

    assert refusal(copy).code == "data.unknown_field"


def test_damaged_shard_is_a_data_error_and_not_skipped(copy: Path) -> None:
    shard = copy / "shard_000001.tar"
    content = bytearray(shard.read_bytes())
    content[:512] = b"\xaa" * 512
    shard.write_bytes(content)

    with pytest.raises(DataError) as caught:
        batches(copy, LoaderPlan(SAMPLES), 1)

    assert caught.value.code == "data.broken_shard"


def test_downloaded_layout_is_read(copy: Path, folders: dict[int, Path]) -> None:
    """The manifest lies above the shards and names them with their folder."""
    root = copy.parent
    entries = [json.loads(line) for line in (copy / "manifest.jsonl").read_text().splitlines()]
    lines = [json.dumps({**entry, "shard": f"shards/{entry['shard']}"}) + "\n" for entry in entries]
    (root / "manifest.jsonl").write_text("".join(lines))
    for name in ("stats.json", "preprocessing_config.yaml"):
        (copy / name).rename(root / name)

    (keys,) = batches(root, LoaderPlan(SAMPLES), 1)

    assert sorted(keys) == sorted(all_keys(folders[3]))


# normalisation


def test_normalised_values_of_a_cropped_window_use_the_statistics_of_their_steps(
    folders: dict[int, Path],
) -> None:
    section = {"scope": "per_timestep", "method": "min_max"}
    whole, facts = opened(folders[1], normalization=section)
    cropped, _ = opened(
        folders[1], normalization=section, lowdim_past_timesteps=0, lowdim_future_timesteps=1
    )
    values = np.random.default_rng(0).normal(size=(PAST + 1 + FUTURE, 3))

    all_steps, some_steps = (
        Normalizer(config, facts.statistics, facts.statistics_past) for config in (whole, cropped)
    )

    np.testing.assert_array_equal(
        some_steps.normalize(FIELD, values[PAST : PAST + 2]),
        all_steps.normalize(FIELD, values)[PAST : PAST + 2],
    )


def test_denormalised_values_are_the_values(folders: dict[int, Path]) -> None:
    config, facts = opened(folders[1])
    normalizer = Normalizer(config, facts.statistics, facts.statistics_past)
    values = np.random.default_rng(0).normal(size=(2, PAST + 1 + FUTURE, 3))

    restored = normalizer.denormalize(FIELD, normalizer.normalize(FIELD, values))

    np.testing.assert_allclose(restored, values, atol=1e-6)


def test_field_can_be_normalised_its_own_way(folders: dict[int, Path]) -> None:
    own = {"field_configs": {OBSERVED: {"enabled": False}}}
    config, facts = opened(folders[1], normalization=own, proprioception_fields=[OBSERVED])
    normalizer = Normalizer(config, facts.statistics, facts.statistics_past)
    values = np.full((PAST + 1, 3), 7.0)

    assert (normalizer.normalize(OBSERVED, values) == 7).all()
    assert not (normalizer.normalize(FIELD, values) == 7).any()
