"""Raw Spartan episodes to shards.

Source: formats/lbm 1, 2, 3, 4, 6.1; formats/lbm-preprocessing 2, 5; formats/spartan 10.
"""

import io
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.builders import spartan
from tests.builders.preprocessing import arrays, contents, metadata, refusal, run, samples
from tests.builders.recording import Recorder
from vlatool.datasets.lbm.layout import read_manifest
from vlatool.errors import PartialFailure, UsageError
from vlatool.workflows.preprocess import PreprocessResult

FRAMES = 9
PAST, FUTURE = 1, 3
T = PAST + 1 + FUTURE
EPISODES = 3
ACTUAL_XYZ = "robot__actual__poses__left::panda__xyz"


def without_camera(documents: spartan.Documents) -> None:
    del documents["metadata"]["camera_id_to_semantic_name"]["BFS_23595718"]


def with_nan(documents: spartan.Documents) -> None:
    documents["observations"][ACTUAL_XYZ][2] = np.nan


def without_actions(documents: spartan.Documents) -> None:
    del documents["actions"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan.spartan_task(tmp_path_factory.mktemp("raw"), EPISODES, FRAMES)


@pytest.fixture(scope="module")
def result(source: Path, tmp_path_factory: pytest.TempPathFactory) -> PreprocessResult:
    return run(source, tmp_path_factory.mktemp("out") / "lbm")


@pytest.fixture(scope="module")
def shards(result: PreprocessResult) -> Path:
    return Path(result.output) / "shards"


@pytest.fixture(scope="module")
def read_samples(shards: Path) -> list[dict[str, Any]]:
    return list(samples(shards))


# rules for writers. Source: formats/lbm 6.1


def test_every_anchor_is_a_sample_shuffled_in_shards_and_in_order_in_episodes(
    result: PreprocessResult, read_samples: list[dict[str, Any]], shards: Path
) -> None:
    anchors = defaultdict(set)
    for sample in read_samples:
        anchors[metadata(sample)["episode_id"]].add(metadata(sample)["anchor_timestep"])

    assert result.samples == len(read_samples) == EPISODES * FRAMES
    assert list(anchors.values()) == [set(range(FRAMES))] * EPISODES

    by_episode = list(samples(shards.parent / "episodes"))

    assert [metadata(sample)["anchor_timestep"] for sample in by_episode] == [
        *range(FRAMES)
    ] * EPISODES
    in_shards = {sample["__key__"]: sample["lowdim.npz"] for sample in read_samples}
    assert in_shards == {sample["__key__"]: sample["lowdim.npz"] for sample in by_episode}

    first = [metadata(sample)["anchor_timestep"] for sample in read_samples[:8]]

    assert first != sorted(first)
    assert len({metadata(sample)["episode_id"] for sample in read_samples[:8]}) > 1


def test_folder_has_the_files_and_options_that_readers_need(shards: Path, source: Path) -> None:
    files = {path.name for path in shards.iterdir() if not path.name.startswith("shard_")}

    assert files == {
        "manifest.jsonl",
        "stats.json",
        "stats_digests.npz",
        "preprocessing_config.yaml",
        "processing_metadata.json",
    }

    counts = [shard.size for shard in read_manifest(shards / "manifest.jsonl")]

    assert counts == [8, 8, 8, 3]

    options = yaml.safe_load((shards / "preprocessing_config.yaml").read_text())

    assert options["camera_names"] == list(spartan.CAMERAS.values())
    assert options["image_indices"] == [-1, 0]
    assert (options["past_lowdim_steps"], options["future_lowdim_steps"]) == (PAST, FUTURE)
    assert options["image_resizing_method"] == "CENTER_CROP"
    assert options["fps"] == 10.0
    assert len(options["action_fields"]) == 6
    assert list(options) == sorted(options)

    text = b"".join(path.read_bytes() for path in shards.iterdir() if path.suffix != ".tar")

    assert str(source).encode() not in text
    assert str(Path.home()).encode() + b"/" not in text


def test_sample_has_the_published_members_and_arrays(read_samples: list[dict[str, Any]]) -> None:
    members = [name for name in read_samples[0] if not name.startswith("__")]

    assert members == [
        "scene_right_0_t-1.jpg",
        "wrist_left_minus_t-1.jpg",
        "scene_right_0_t0.jpg",
        "wrist_left_minus_t0.jpg",
        "lowdim.npz",
        "metadata.json",
        "language_instructions.json",
    ]

    with Image.open(io.BytesIO(read_samples[0]["scene_right_0_t0.jpg"])) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 24))

    for sample in read_samples:
        assert {len(values) for values in arrays(sample).values()} == {T}

    for name, values in arrays(read_samples[0]).items():
        if name.endswith("_mask"):
            assert (values.shape, values.dtype) == ((T,), bool)
        elif name.startswith("robot__"):
            assert values.ndim == 2

    names = list(arrays(read_samples[0]))
    kinds = [
        "language_instruction",
        "robot__actual__grippers__right::panda_hand",
        "robot__action__grippers__left::panda_hand",
        "robot__actual__poses__right::panda__rot_6d_relative",
        "original_intrinsics.scene_right_0",
        "extrinsics.wrist_left_minus",
        "past_mask",
        "future_mask",
        "rescaled_intrinsics.scene_right_0",
    ]

    assert [names.index(kind) for kind in kinds] == sorted(names.index(kind) for kind in kinds)


def test_metadata_says_what_the_window_is(read_samples: list[dict[str, Any]]) -> None:
    first = next(sample for sample in read_samples if metadata(sample)["anchor_timestep"] == 0)
    info = metadata(first)

    expected = {
        "anchor_relative_idx": PAST,
        "image_timesteps": [0, 0],
        "lowdim_start_timestep": -1,
        "lowdim_end_timestep": 3,
        "past_padding": 1,
        "future_padding": 0,
        "camera_names": list(spartan.CAMERAS.values()),
        "original_episode_length": FRAMES,
        "original_image_sizes": {name: [32, 24] for name in spartan.CAMERAS.values()},
        "is_padded": True,
        "task": "PutCupOnSaucer",
    }
    assert {key: info[key] for key in expected} == expected
    assert info["sample_id"].startswith(first["__key__"])
    for other in map(metadata, read_samples):
        assert other["is_padded"] == (other["past_padding"] + other["future_padding"] > 0)
    assert not all(metadata(sample)["is_padded"] for sample in read_samples)


def test_each_frame_is_encoded_once(read_samples: list[dict[str, Any]]) -> None:
    encoded = defaultdict(set)
    for sample in read_samples:
        info = metadata(sample)
        for offset, frame in zip((-1, 0), info["image_timesteps"], strict=True):
            for camera in spartan.CAMERAS.values():
                origin = (info["episode_id"], camera, frame)
                encoded[origin].add(sample[f"{camera}_t{offset}.jpg"])

    assert len(encoded) == EPISODES * FRAMES * len(spartan.CAMERAS)
    assert {len(versions) for versions in encoded.values()} == {1}


# determinism


@pytest.mark.parametrize("workers", [1, 2])
def test_same_seed_gives_the_same_bytes_for_any_number_of_workers(
    source: Path, result: PreprocessResult, tmp_path: Path, workers: int
) -> None:
    run(source, tmp_path / "again", workers=workers)

    assert contents(tmp_path / "again") == contents(Path(result.output))


def test_another_seed_gives_another_order_and_another_location_the_same_bytes(
    source: Path, result: PreprocessResult, shards: Path, tmp_path: Path
) -> None:
    run(source, tmp_path / "seed", seed=7)
    folders = (shards, tmp_path / "seed/shards")
    order, other = ([sample["__key__"] for sample in samples(folder)] for folder in folders)
    assert order != other
    assert set(order) == set(other)

    shutil.copytree(source, tmp_path / "elsewhere")
    run(spartan.session_folder(tmp_path / "elsewhere"), tmp_path / "out")
    mine, theirs = contents(tmp_path / "out"), contents(Path(result.output))
    tars = [name for name in theirs if name.endswith(".tar")]
    assert {name: mine.get(name) for name in tars} == {name: theirs[name] for name in tars}


# failures


@pytest.mark.parametrize(
    ("change", "code", "broken"),
    [(with_nan, "data.not_finite", 0), (without_actions, "data.missing", 1)],
)
def test_broken_episode_is_reported_by_each_run_and_the_others_are_written(
    tmp_path: Path, change: spartan.Change, code: str, broken: int
) -> None:
    spartan.spartan_task(tmp_path, EPISODES, FRAMES, changes={broken: change})

    error = refusal(tmp_path, tmp_path / "out")

    assert isinstance(error, PartialFailure)
    assert error.exit_code == 4
    (failure,) = error.details["failures"]
    assert failure["code"] == code
    assert failure["path"].endswith(f"episode_{broken}")
    assert isinstance(error.result, PreprocessResult)
    assert error.result.samples == 2 * FRAMES
    episodes = {metadata(sample)["episode_id"][-1] for sample in samples(tmp_path / "out/shards")}
    assert episodes == {"0", "1", "2"} - {str(broken)}
    again = refusal(tmp_path, tmp_path / "out")
    assert (again.code, again.details) == (error.code, error.details)


def test_output_without_the_broken_episode_equals_that_of_the_good_ones(
    tmp_path: Path,
) -> None:
    spartan.spartan_task(tmp_path, EPISODES, FRAMES, changes={1: with_nan})
    refusal(tmp_path, tmp_path / "partial", workers=2)

    run(tmp_path, tmp_path / "good", episodes="0,2")

    assert contents(tmp_path / "partial") == contents(tmp_path / "good")


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"episodes": "1,2"}, "data.incomplete"),
        ({"on_error": "stop"}, "data.not_finite"),
        ({"max_failures": 1}, "data.incomplete"),
    ],
)
def test_run_that_gives_up_is_a_data_error_and_writes_no_manifest(
    tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    spartan.spartan_task(tmp_path, 4, FRAMES, changes=dict.fromkeys((1, 2), with_nan))

    error = refusal(tmp_path, tmp_path / "out", **options)

    assert (error.code, error.exit_code) == (code, 3)
    assert list(tmp_path.glob("out/**/manifest.jsonl")) == []


def test_episode_with_other_fields_is_reported_by_field(tmp_path: Path) -> None:
    def widen(documents: spartan.Documents) -> None:
        documents["observations"]["robot__version"] = np.zeros((FRAMES, 2))

    spartan.spartan_task(tmp_path, 2, FRAMES, changes={1: widen})

    (failure,) = refusal(tmp_path, tmp_path / "out").details["failures"]

    assert failure["code"] == "data.mismatch"
    assert failure["details"]["field"] == "robot__version"


def test_run_corrected_after_zero_samples_may_use_the_same_output(
    source: Path, tmp_path: Path
) -> None:
    error = refusal(source, tmp_path / "out", future_lowdim_steps=50, max_padding_right=0)

    assert error.details["dropped"] == {"padding": EPISODES * FRAMES}
    assert run(source, tmp_path / "out").samples == EPISODES * FRAMES


# cameras


def test_selected_cameras_are_in_the_given_order(source: Path, tmp_path: Path) -> None:
    cameras = ["wrist_left_minus", "scene_right_0"]

    run(source, tmp_path / "out", camera_names=cameras, image_indices=[0])

    sample = next(samples(tmp_path / "out/shards"))
    images = [name for name in sample if name.endswith(".jpg")]
    assert images == [f"{name}_t0.jpg" for name in cameras]
    assert metadata(sample)["camera_names"] == cameras


def test_episode_that_lacks_a_camera_is_kept_or_dropped_and_counted_with_the_option(
    tmp_path: Path,
) -> None:
    spartan.spartan_task(tmp_path, 2, FRAMES, changes={1: without_camera})

    assert run(tmp_path, tmp_path / "kept").samples == 2 * FRAMES
    cameras = {
        metadata(sample)["episode_id"][-1]: metadata(sample)["camera_names"]
        for sample in samples(tmp_path / "kept/shards")
    }
    assert cameras == {"0": ["scene_right_0", "wrist_left_minus"], "1": ["scene_right_0"]}

    result = run(tmp_path, tmp_path / "dropped", skip_episodes_missing_cameras=True)
    assert (result.samples, result.failures) == (FRAMES, ())
    assert result.dropped == {"episode_missing_camera": 1}


# running again


def test_second_run_does_nothing_other_options_are_rejected_and_overwrite_starts_again(
    source: Path, result: PreprocessResult, tmp_path: Path
) -> None:
    first = run(source, tmp_path / "out", samples_per_shard=1)
    before = contents(tmp_path / "out")

    second = run(source, tmp_path / "out", samples_per_shard=1, workers=2)
    assert second.status == "already complete"
    assert (second.samples, second.shards) == (first.samples, first.shards)
    assert contents(tmp_path / "out") == before

    error = refusal(source, tmp_path / "out", samples_per_shard=1, stride=2)
    assert isinstance(error, UsageError)
    assert (error.code, error.exit_code) == ("usage.output_differs", 2)
    assert error.details["differences"] == ["stride 1 (now 2)"]
    assert contents(tmp_path / "out") == before

    run(source, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == contents(Path(result.output))


def test_dry_run_counts_and_writes_nothing(source: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    planned = run(source, tmp_path / "out", dry_run=True, episodes="1:200", reporter=recorder)

    assert (planned.status, planned.samples, planned.shards) == ("planned", 18, 3)
    assert "episodes: 2 of 3 (--episodes 1:200)" in recorder.notes
    assert not (tmp_path / "out").exists()


def test_dry_run_counts_episodes_that_fail_and_estimates_without_them(
    source: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(source, tmp_path / "raw")
    missing = next(copy.rglob("episode_0/processed/observations.npz"))
    missing.unlink()

    planned = run(copy, tmp_path / "out", dry_run=True)

    assert (planned.status, planned.episodes, planned.samples) == ("planned", 2, 18)
    assert [failure["code"] for failure in planned.failures] == ["data.missing"]
    assert str(missing) in planned.text()
    assert refusal(copy, tmp_path / "out", dry_run=True, on_error="stop").code == "data.missing"
    assert not (tmp_path / "out").exists()

    hint = refusal(copy, tmp_path / "out").hint
    assert Path(next(word for word in hint.split() if word.endswith("run.json"))).is_file()
