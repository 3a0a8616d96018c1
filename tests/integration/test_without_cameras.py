"""Policies that see no image: states and the instruction alone."""

from pathlib import Path

import numpy as np
import pytest

import vlatool
from tests.builders.recording import Recorder
from tests.builders.serving import served
from tests.builders.training import HAND, HAND_COMMAND, ROT, TINY, XYZ, tiny_overrides, world_shards
from vlatool.checkpoints.layout import read_metrics
from vlatool.config.resolve import load_config, parse_override
from vlatool.errors import VlatoolError
from vlatool.evaluation.config import RolloutConfig, SamplingOptions
from vlatool.evaluation.policy_runner import open_policy
from vlatool.training.config import TrainConfig
from vlatool.workflows.export import ExportConfig
from vlatool.workflows.open_loop import OpenLoopConfig
from vlatool.workflows.predict import PredictConfig


def trained(
    data: Path,
    run: Path,
    preset: str = "policy-state",
    recorder: Recorder | None = None,
    **changes: object,
) -> Path:
    of_images = [key for key in TINY if key.endswith(("channels", "num_keypoints"))]
    keys = tiny_overrides(data, run, total_train_steps=2, **changes)
    overrides = [parse_override(f"{key}={keys[key]}") for key in keys if key not in of_images]
    config = load_config(TrainConfig, presets=[preset], overrides=overrides).config
    vlatool.train(config, reporter=recorder or Recorder())
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_shards(tmp_path_factory.mktemp("world"), cameras=["none"])


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(data, tmp_path_factory.mktemp("runs") / "run")


def test_images_of_the_data_change_nothing(run: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    with_images = trained(world_shards(tmp_path), tmp_path / "run", recorder=recorder)
    assert "data.constant_images" not in dict(recorder.warnings)
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (run, with_images))
    assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]


def test_policy_is_evaluated_and_predicts_from_raw_episodes(
    run: Path, data: Path, tmp_path: Path
) -> None:
    config = OpenLoopConfig(checkpoint=str(run), data=str(data), output=str(tmp_path / "loop"))
    assert vlatool.open_loop(config).samples > 0
    config = PredictConfig(
        checkpoint=str(run), source=str(data.parent / "raw"), output=str(tmp_path / "look"), frame=3
    )
    assert HAND_COMMAND in vlatool.predict(config).fields


def test_policy_acts_in_an_environment(run: Path, tmp_path: Path) -> None:
    config = RolloutConfig(
        checkpoint=str(run),
        env="vlatool/PickPlace-v0",
        episodes=1,
        max_steps=3,
        output=str(tmp_path / "rollout"),
    )
    assert len(vlatool.rollout(config).figures["rollouts"]) == 1


def test_policy_is_served_without_images(run: Path) -> None:
    fields = {XYZ: np.zeros(3), ROT: np.zeros(6), HAND: np.zeros(1)}
    observation = {**fields, "instruction": "stop"}
    with served(open_policy(str(run), "auto", SamplingOptions())[0]) as url:
        chunk = vlatool.connect(url).act(observation)
    expected = vlatool.load_policy(str(run)).act(observation)
    np.testing.assert_array_equal(chunk[HAND_COMMAND], expected[HAND_COMMAND])


def test_published_program_has_no_such_policy(run: Path, tmp_path: Path) -> None:
    with pytest.raises(VlatoolError, match="no text_backbone"):
        vlatool.export(ExportConfig(source=str(run), output=str(tmp_path / "exported")))


def test_keypoint_policy_without_cameras_is_a_policy_from_states(
    data: Path, tmp_path: Path
) -> None:
    run = trained(data, tmp_path / "run", "diffusion-policy-tiny")
    config = (run / "config.yaml").read_text()
    assert "text_backbone" in config
