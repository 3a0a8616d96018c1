"""`vlatool predict`: one action chunk at a frame of raw episodes or of preprocessed data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlatool
from tests.builders.errors import fails
from tests.builders.training import HAND_COMMAND, XYZ_COMMAND
from vlatool.evaluation.config import SamplingOptions
from vlatool.evaluation.control import chunk_seed
from vlatool.evaluation.policy_runner import open_policy
from vlatool.models.policy import in_batches
from vlatool.recordings.detect import detect_source
from vlatool.workflows.evaluate import recorded_pairs
from vlatool.workflows.predict import PredictConfig, PredictResult, predict

FRAMES = 12
RELATIVE = f"{XYZ_COMMAND}_relative"


@pytest.fixture(scope="module")
def run(trained_policy: Path) -> Path:
    return trained_policy


def predicted(run: Path, source: Path | str, output: Path, **keys: Any) -> PredictResult:
    values = {"checkpoint": str(run), "source": str(source), "output": str(output), **keys}
    return predict(PredictConfig(**values, inference_steps=2))


def test_first_frame_of_raw_episode_gives_the_chunk_of_a_control_loop_that_starts_there(
    run: Path, data: Path, tmp_path: Path
) -> None:
    result = predicted(run, data.parent / "raw", tmp_path, episode="1", seed=5)

    source = detect_source(data.parent / "raw", None)
    episode = source.reader.read(source.refs[1])
    loop = vlatool.load_policy(run, inference_steps=2, seed=5)
    sentence = episode.language["original"][0]
    chunk = loop.act(
        {
            **{name: episode.cameras[name].read([0])[0] for name in loop.cameras},
            **{name: episode.lowdim[name][0] for name in loop.fields},
            "instruction": sentence,
        }
    )
    assert result.episode == episode.id
    assert result.instruction == sentence
    for name, values in chunk.items():
        np.testing.assert_array_equal(result.fields[name].predicted, values)
    recorded = episode.lowdim[XYZ_COMMAND][: loop.horizon]
    np.testing.assert_array_equal(result.fields[XYZ_COMMAND].recorded, recorded)
    assert result.fields[XYZ_COMMAND].copy_last_per_dimension == []


def test_frame_of_preprocessed_data_gives_the_chunk_of_the_open_loop_evaluation(
    run: Path, data: Path, tmp_path: Path
) -> None:
    result = predicted(run, data, tmp_path / "by-number", episode="1", frame=7)
    by_id = predicted(run, data, tmp_path / "by-id", episode=result.episode, frame=7)

    policy, trained = open_policy(str(run), "auto", SamplingOptions(inference_steps=2))
    pairs = recorded_pairs(str(data), policy, trained, 0)
    rows = pairs.read(range(len(pairs)))
    index = [(target.episode, target.frame) for _, target in rows].index((result.episode, 7))
    chunk = in_batches(policy.act, [rows[index][0]], [chunk_seed(0, index)], 1)
    assert result.episode.endswith("episode_1")
    np.testing.assert_array_equal(result.fields[RELATIVE].predicted, chunk[RELATIVE][0])
    assert by_id.fields == result.fields


def test_data_without_a_tar_per_episode_are_searched(run: Path, data: Path, tmp_path: Path) -> None:
    whole = predicted(run, data, tmp_path / "whole", episode="1", frame=7)
    shuffled = predicted(run, data / "shards", tmp_path / "shuffled", episode="1", frame=7)

    assert shuffled.episode == whole.episode
    assert shuffled.fields[RELATIVE].recorded == whole.fields[RELATIVE].recorded


def test_recorded_steps_end_with_the_episode_and_errors_are_over_them(
    run: Path, data: Path, tmp_path: Path
) -> None:
    keys = {"frame": FRAMES - 3, "instruction": "stop"}
    result = predicted(run, data.parent / "raw", tmp_path, **keys)

    assert result.instruction == "stop"
    field = result.fields[HAND_COMMAND]
    assert len(field.recorded) == 3
    assert len(field.predicted) > 3
    by_hand = np.abs(np.subtract(field.predicted[:3], field.recorded)).mean(axis=0)
    np.testing.assert_allclose(field.mae_per_dimension, by_hand)
    assert len(field.copy_last_per_dimension) == 1
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["frame"] == FRAMES - 3
    assert (tmp_path / "report.html").stat().st_size > 1000
    assert "step 1" in result.text()


@pytest.mark.parametrize(
    ("source", "keys", "code"),
    [
        ("raw", {"episode": "4"}, "data.unknown_field"),
        ("raw", {"episode": "nine"}, "data.unknown_field"),
        ("raw", {"frame": FRAMES}, "data.unknown_field"),
        ("raw", {"format": "lerobot"}, "data.no_episodes"),
        ("data", {"episode": "4"}, "data.unknown_field"),
        ("data", {"frame": 99}, "data.unknown_field"),
        ("data/shards", {"frame": 99}, "data.unknown_field"),
        ("none", {}, "data.no_source"),
        ("", {}, "usage.missing_key"),
    ],
)
def test_what_is_not_there_is_an_error_before_anything_is_written(
    source: str, keys: dict[str, Any], code: str, run: Path, data: Path, tmp_path: Path
) -> None:
    location = str(data.parent / source) if source else ""
    with fails(code):
        predicted(run, location, tmp_path / "out", **keys)
    assert not (tmp_path / "out").exists()


def test_episode_of_another_robot_lacks_cameras_and_fields(
    run: Path, data: Path, tmp_path: Path
) -> None:
    from tests.builders.lerobot import lerobot_dataset

    with fails("data.unknown_field"):
        predicted(run, lerobot_dataset(tmp_path / "robot"), tmp_path / "out")
