"""Which fields are commands, by their names and by their numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.folder import write_video
from vlatool.episode import Episode
from vlatool.errors import VlatoolError
from vlatool.jobs.record import read_record
from vlatool.recordings.commands import later_values, named_commands
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.verify import InspectConfig, inspect

FRAMES = 24


@pytest.mark.parametrize(
    ("command", "measured"),
    [
        ("target_q", "q"),
        ("q_target", "q"),
        ("qTarget", "q"),
        ("targetq", "q"),
        ("q_des", "q"),
        ("joint_setpoint", "joint_pos"),
        ("leader_joints", "follower_joints"),
        ("master.pos", "puppet.pos"),
        ("desired_position", "actual_position"),
        ("reference.tcp", "tcp"),
    ],
)
def test_a_word_for_a_command_beside_the_same_name(command: str, measured: str) -> None:
    assert named_commands({measured: 7, command: 7}) == (command,)


@pytest.mark.parametrize("other", ["target_object", "goal", "controller_pos", "next_q", "ctrl"])
def test_other_names_are_no_commands(other: str) -> None:
    assert named_commands({"q": 7, other: 7}) == ()


def test_a_command_has_the_width_of_what_it_commands() -> None:
    assert named_commands({"q": 7, "target_q": 6}) == ()


def moving(seed: int, width: int = 3) -> np.ndarray[Any, Any]:
    return np.sin(np.arange(FRAMES + 8)[:, None] * 0.4 + np.arange(width) + seed)


def episode(seed: int = 0, lag: int = 1, **others: np.ndarray[Any, Any]) -> Episode:
    path = moving(seed)
    lowdim = {"q": path[:FRAMES], "later": path[lag : FRAMES + lag], **others}
    return Episode(id=f"e{seed}", task="", fps=10, num_frames=FRAMES, cameras={}, lowdim=lowdim)


def test_equal_to_later_values_to_the_rounding_of_float32() -> None:
    rounded = moving(0)[2 : FRAMES + 2].astype(np.float32).astype(np.float64)
    found = later_values([episode(lag=2, later=rounded)])
    assert [(later.field, later.state, later.lag, later.is_only) for later in found] == [
        ("later", "q", 2, True)
    ]


def test_one_lag_in_all_episodes() -> None:
    assert later_values([episode(0, lag=1), episode(1, lag=1)])
    assert not later_values([episode(0, lag=1), episode(1, lag=2)])


def test_a_share_of_other_rows_is_no_command() -> None:
    changed = moving(0)[1 : FRAMES + 1].copy()
    changed[::8] += 0.1
    assert not later_values([episode(later=changed)])


@pytest.mark.parametrize(
    "values",
    [
        moving(0)[:FRAMES],  # a copy
        np.tile(np.arange(1.0, FRAMES + 1)[:, None], (1, 3)),  # a counter
        np.zeros((FRAMES, 3)),
        moving(0)[6 : FRAMES + 6],  # too late
    ],
)
def test_copies_counters_constants_and_late_values_are_none(values: np.ndarray[Any, Any]) -> None:
    counter = np.tile(np.arange(0.0, FRAMES)[:, None], (1, 3))
    assert not later_values([episode(later=values, counter=counter)])


def test_a_field_named_after_the_past_has_no_command() -> None:
    path = moving(0)
    lowdim = {"prev_q": path[:FRAMES], "q": path[1 : FRAMES + 1]}
    past = Episode(id="e", task="", fps=10, num_frames=FRAMES, cameras={}, lowdim=lowdim)
    assert not later_values([past])


def recording(root: Path, *names: str) -> Path:
    """Two episodes with `q`, and fields of these names that are `q` one frame later."""
    for number in range(2):
        folder = root / f"episode_{number}"
        write_video(folder / "front.mp4", FRAMES)
        path = moving(number)
        columns = [path[:FRAMES]] + [path[1 : FRAMES + 1]] * len(names)
        header = ",".join(f"{name}{joint}" for name in ("q", *names) for joint in range(3))
        rows = "\n".join(",".join(map(str, row)) for row in np.hstack(columns))
        (folder / "data.csv").write_text(f"{header}\n{rows}\n")
    return root


def convert(source: Path, **keys: Any) -> Any:
    config = PreprocessConfig.specialize({"format": "folder", "sink": keys.pop("sink", "frames")})
    output = source.parent / "out"
    return preprocess(
        config(format="folder", sources=[str(source)], output=str(output), workers=1, **keys)
    )


def test_a_command_by_name_is_the_action(tmp_path: Path) -> None:
    result = convert(recording(tmp_path / "in", "target_q"))
    assert (result.action_fields, result.proprioception_fields) == (("target_q",), ("q",))


def test_the_only_other_field_is_taken_by_its_numbers_and_recorded(tmp_path: Path) -> None:
    result = convert(recording(tmp_path / "in", "zz"))
    assert (result.action_fields, result.proprioception_fields) == (("zz",), ("q",))
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record.options["action_fields"] == ["zz"]


def test_of_several_fields_all_are_proposed_and_none_is_taken(tmp_path: Path) -> None:
    source = recording(tmp_path / "in", "zz", "yy")
    facts = inspect(InspectConfig(location=str(source))).report.facts
    assert {later["field"] for later in facts["possible_actions"]} == {"zz", "yy"}
    with pytest.raises(VlatoolError) as raised:
        convert(source)
    assert (raised.value.exit_code, raised.value.code) == (2, "usage.missing_key")
    assert set(raised.value.details["known"]) == {"q", "zz", "yy"}
    assert not (tmp_path / "out").exists()


def test_none_writes_data_without_actions_and_suggests_no_training(tmp_path: Path) -> None:
    result = convert(recording(tmp_path / "in", "target_q"), action_fields=["none"])
    assert result.action_fields == ()
    assert "train" not in result.next


def test_other_sinks_need_no_action(tmp_path: Path) -> None:
    assert convert(recording(tmp_path / "in", "zz", "yy"), sink="lerobot").action_fields == ()


def test_a_field_that_shows_the_answer_is_not_observed(tmp_path: Path) -> None:
    source = recording(tmp_path / "in", "u")
    for folder in source.iterdir():
        header, *rows = (folder / "data.csv").read_text().splitlines()
        lines = [f"{header},grip_cmd", *(f"{row},{number % 2}" for number, row in enumerate(rows))]
        (folder / "data.csv").write_text("\n".join(lines) + "\n")
    result = convert(source)
    assert (result.action_fields, result.proprioception_fields) == (("grip_cmd",), ("q",))
