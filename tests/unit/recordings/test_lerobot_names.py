"""Names of the dimensions of LeRobot vectors."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders.lerobot import lerobot_dataset
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader

GROUPS = {"state": {"arm": {"start": 0, "end": 2}, "gripper": {"start": 2, "end": 3}}}


def dataset(root: Path, names: Any, modality: str | None = None) -> Path:
    """A data set whose state [3] has `names`."""
    lerobot_dataset(root, (4,), cameras={})
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["observation.state"]["names"] = names
    path.write_text(json.dumps(info))
    if modality is not None:
        (root / "meta/modality.json").write_text(modality)
    return root


def names_of(root: Path) -> tuple[str, ...]:
    reader = LeRobotReader(LeRobotConfig())
    refs = list(reader.discover([root]))
    episode = reader.read(refs[0])
    names = tuple(episode.dimension_names.get("observation.state", ()))
    assert reader.survey(refs).fields["observation.state"].names == names
    return names


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["hip", "knee", "toe"], ("hip", "knee", "toe")),
        ([["hip", "knee", "toe"]], ("hip", "knee", "toe")),
        ({"motors": ["hip", "knee", "toe"]}, ("hip", "knee", "toe")),
        ({"left": ["hip", "knee"], "right": ["hip"]}, ("left.hip", "left.knee", "right.hip")),
        ({"hip": 0, "knee": 1, "toe": 2}, ("hip", "knee", "toe")),
        (["hip", "knee"], ()),
        (None, ()),
    ],
)
def test_names_of_a_feature(names: Any, expected: tuple[str, ...], tmp_path: Path) -> None:
    assert names_of(dataset(tmp_path, names)) == expected


@pytest.mark.parametrize(
    ("names", "modality", "expected"),
    [
        (None, json.dumps(GROUPS), ("arm.0", "arm.1", "gripper")),
        (["motor_0", "motor_1", "motor_2"], json.dumps(GROUPS), ("arm.0", "arm.1", "gripper")),
        (["hip", "knee", "toe"], json.dumps(GROUPS), ("hip", "knee", "toe")),
        (None, "[" * 100_000, ()),
        (None, "3", ()),
        (None, '{"state": 3}', ()),
        (None, '{"state": {"arm": {"start": 0, "end": 1000000000}}}', ()),
    ],
)
def test_usable_groups_name_numbered_dimensions(
    names: Any, modality: str, expected: tuple[str, ...], tmp_path: Path
) -> None:
    assert names_of(dataset(tmp_path, names, modality)) == expected


def test_unreadable_groups_are_reported(tmp_path: Path) -> None:
    reader = LeRobotReader(LeRobotConfig())
    list(reader.discover([dataset(tmp_path, None, "no json")]))
    assert "lerobot.bad_modality" in [finding.code for finding in reader.source_findings]
