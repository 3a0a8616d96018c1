"""Recordings of unlike robots that become one training set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.recording import Recorder
from tests.builders.unlike_sets import ROBOTS, made_options, write_set
from vlatool.config.resolve import config_of
from vlatool.conventions.file import conventions_of
from vlatool.datasets.lbm.layout import read_preprocessing_config
from vlatool.episode import Array
from vlatool.loading.dataset import open_dataset
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.world.recording import expert_episode

NUMBERS = range(8)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same eight episodes, each by three robots."""
    root = tmp_path_factory.mktemp("raw")
    for robot in ROBOTS.values():
        write_set(root / robot.name, robot, NUMBERS, images=False)
    return root


def written(
    source: Path, output: Path, fps: float = 10, actions: Sequence[str] = (), **wrong: Any
) -> Path:
    options = made_options(ROBOTS[source.name], fps, **wrong)
    options["action_fields"] = [*actions] or options["action_fields"]
    tree = {"format": "hdf5", "sources": [str(source)], "output": str(output), "workers": 1}
    windows = {"type": "lbm", "past_lowdim_steps": 0, "future_lowdim_steps": 0}
    windows |= {"image_indices": [0], "max_padding_right": 0}
    sink = {key: options.pop(key) for key in ("pose_groups", "target")} | windows
    del options["rename"]["cameras"]
    tree |= options | {"sink": sink, "camera_names": ["none"]}
    preprocess(config_of(PreprocessConfig, tree))
    return output


def fields(folder: Path) -> dict[str, Array]:
    """Values of all frames by field, in the order of the frames."""
    names = ["hand__xyz", "width", "command__xyz", "command__rot_6d", "gripper"]
    samples = open_dataset(
        folder, raw=True, shuffle=False, proprioception_fields=names[:2], action_fields=names[2:]
    )
    keys = ("episode_id", "anchor_timestep")
    ordered = sorted(samples, key=lambda each: [each.metadata[name] for name in keys])
    return {name: np.concatenate([each.fields[name] for each in ordered]) for name in names}


@pytest.mark.parametrize("name", ROBOTS)
def test_recordings_of_unlike_robots_have_the_same_fields_afterwards(
    recordings: Path, tmp_path: Path, name: str
) -> None:
    folder = written(recordings / name, tmp_path / "data")

    conventions = conventions_of(folder)
    assert conventions is not None
    groups = {group.field: group for group in conventions.groups}
    command = groups["command__xyz"]
    assert (command.relation, command.lag) == (("absolute",), (1,))
    assert groups["gripper"].scale[0] > 0  # opens at the greater value
    stored = fields(folder)
    episodes = [expert_episode(0, number) for number in NUMBERS]
    if name != "c":  # whose frames lie between those of the others
        states, commands = (
            np.concatenate([getattr(episode, key) for episode in episodes])
            for key in ("states", "actions")
        )
        np.testing.assert_allclose(stored["hand__xyz"], states[:, :3], atol=1e-6)
        # The last step of an episode has no time in which the hand would get there.
        final = np.cumsum([len(episode) for episode in episodes]) - 1
        xyz, grip = (np.delete(stored[key], final, 0) for key in ("command__xyz", "gripper"))
        commands = np.delete(commands, final, 0)
        np.testing.assert_allclose(xyz, commands[:, :3], atol=1e-6)
        np.testing.assert_allclose(grip[:, 0], 10 * commands[:, 3], atol=1e-6)
    down = np.broadcast_to([1, 0, 0, 0, -1, 0], stored["command__rot_6d"].shape)
    np.testing.assert_allclose(stored["command__rot_6d"], down, atol=1e-6)


def test_a_measured_pose_that_is_an_action_too_stays_at_its_frame(
    recordings: Path, tmp_path: Path
) -> None:
    folder = written(recordings / "b", tmp_path / "data", actions=["hand__xyz_relative", "gripper"])
    states = np.concatenate([expert_episode(0, number).states for number in NUMBERS])
    np.testing.assert_allclose(fields(folder)["hand__xyz"], states[:, :3], atol=1e-6)


def test_training_names_sets_that_differ_and_records_how_each_was_made(
    recordings: Path, tmp_path: Path
) -> None:
    folders = [written(recordings / name, tmp_path / name) for name in "ab"]
    slow = written(recordings / "a", tmp_path / "slow", fps=5)
    recorder = Recorder()
    kind = RoboticsKind()
    config = RoboticsDataConfig(dataset_manifest=[*map(str, [*folders, slow])])
    info = kind.load_info(config)
    config, _ = kind.derive(config, info)

    kind.check_samples(config, info, recorder)
    kind.save_assets(config, info, tmp_path)

    differing = [text for code, text in recorder.warnings if code == "data.conventions_differ"]
    assert len(differing) == 1
    assert f"fps is 10 in {folders[0]}, but 5 in {slow}" in differing[0]
    rows = read_preprocessing_config(tmp_path)["data_sets"]
    groups = [row["conversions"]["pose_groups"][1] for row in rows]
    assert [group["relation"] for group in groups] == ["absolute", "delta", "absolute"]
