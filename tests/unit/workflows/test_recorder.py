"""Recording from Python."""

import cProfile
import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vlatool
from tests.builders.errors import fails
from vlatool.datasets.frames.layout import FramesFolder
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.inspection import verify_location
from vlatool.recordings.check import CheckOptions
from vlatool.recordings.detect import detect_source
from vlatool.workflows import recorder as recorder_module


def image(step: int) -> np.ndarray[Any, Any]:
    row, column = np.mgrid[:32, :48]
    return np.stack([row * 5 + step, column * 3, row + column], axis=-1).astype(np.uint8)


def step(recorder: Any, number: int, **changes: Any) -> None:
    values: dict[str, Any] = {
        "images": {"front": image(number)},
        "state": {"joints": [number, 0.5], "gripper": 0.1},
        "action": {"joints": [number + 1, 0.5]},
    }
    recorder.add(**{**values, **changes})


def record_episodes(
    output: Path, episodes: int, steps: int = 20, first: int = 0, **keys: Any
) -> None:
    with vlatool.record(output, fps=30, **keys) as recorder:
        for episode in range(first, first + episodes):
            for number in range(steps):
                step(recorder, number + 7 * episode)
            recorder.end_episode(instruction="put the cup on the plate", success=True)


def contents(output: Path) -> dict[str, bytes]:
    files = (path for path in output.rglob("*") if path.is_file() and ".vlatool" not in path.parts)
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def errors_of(output: Path) -> list[str]:
    found = verify_location(output, CheckOptions()).findings
    return [finding.code for finding in found if finding.severity == "error"]


def test_frames_hold_what_was_added(tmp_path: Path) -> None:
    record_episodes(tmp_path / "demos", 1)
    folder = FramesFolder(tmp_path / "demos")
    episode = folder.tar("000000").episode("000000")

    assert episode.language == {"original": ["put the cup on the plate"]}
    assert episode.success is True
    assert episode.action_fields == ("action.joints",)
    assert episode.proprioception_fields == ("state.joints", "state.gripper")
    assert episode.lowdim["state.joints"][:, 0].tolist() == list(range(20))
    shown = episode.cameras["front"].read([5])[0].astype(int)
    assert np.abs(shown - image(5).astype(int)).mean() < 3


def test_a_lerobot_set_is_read_with_its_values(tmp_path: Path) -> None:
    record_episodes(tmp_path / "demos", 2, form="lerobot")
    source = detect_source(tmp_path / "demos", None)
    episode = source.reader.read(source.refs[1])

    assert source.format == "lerobot"
    assert episode.num_frames == 20
    np.testing.assert_allclose(episode.lowdim["action"][:, 0], np.arange(20) + 8)


@pytest.mark.parametrize("form", ["frames", "lerobot"])
def test_recording_goes_on_where_it_ended(form: Any, tmp_path: Path) -> None:
    record_episodes(tmp_path / "apart", 1, form=form)
    record_episodes(tmp_path / "apart", 2, form=form)

    with vlatool.record(tmp_path / "apart", fps=30, form=form) as recorder:
        assert recorder.episodes == 3
    assert errors_of(tmp_path / "apart") == []


def test_an_episode_that_is_not_ended_is_dropped_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_episodes(tmp_path / "demos", 1)

    def interrupted() -> None:
        with vlatool.record(tmp_path / "demos", fps=30) as recorder:
            step(recorder, 0)
            raise ZeroDivisionError

    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
        interrupted()

    assert "the open episode of 1 step is dropped" in caplog.text
    assert len(FramesFolder(tmp_path / "demos").episodes) == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"images": {"front": image(0)[:16]}}, "48 x 16, not 48 x 32 as before"),
        ({"images": {"front": image(0).astype(float)}}, "float64"),
        ({"images": {}}, "lacks the camera 'front'"),
        ({"images": {"front": image(0), "top": image(0)}}, "camera 'top' was not recorded before"),
        ({"state": {"joints": [1.0], "gripper": 0.1}}, "has 1 numbers, not 2"),
        ({"state": {"joints": [1.0, 2.0]}}, "lacks the field 'state.gripper'"),
        ({"action": {"joints": [np.nan, 0.0]}}, "not finite"),
        ({"action": {"joints": [1e300, 0.0]}}, "not finite"),
        ({"images": None}, "images is a NoneType"),
        ({"action": {"joints": ["a", "b"]}}, "cannot be turned into an array"),
    ],
)
def test_a_wrong_step_is_an_error_at_the_call(
    changes: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    with vlatool.record(tmp_path / "demos", fps=30) as recorder:
        step(recorder, 0)
        with pytest.raises(DataError, match=problem):
            step(recorder, 1, **changes)
        step(recorder, 1)
        recorder.end_episode()

    assert FramesFolder(tmp_path / "demos").episodes[0].frames == 2


def test_a_wrong_step_into_an_existing_folder_is_an_error(tmp_path: Path) -> None:
    record_episodes(tmp_path / "demos", 1)

    with (
        vlatool.record(tmp_path / "demos", fps=30) as recorder,
        pytest.raises(DataError, match="the camera 'wrist' was not recorded before"),
    ):
        step(recorder, 0, images={"front": image(0), "wrist": image(0)})


@pytest.mark.parametrize(
    ("keys", "problem"),
    [({"fps": 10}, "fps"), ({"fps": 30, "form": "lerobot"}, "form"), ({"fps": 0}, "fps=0")],
)
def test_other_options_on_an_existing_folder_are_refused(
    keys: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    record_episodes(tmp_path / "demos", 1)

    with pytest.raises(UsageError, match=problem):
        vlatool.record(tmp_path / "demos", **keys)


def test_a_closed_recorder_takes_no_step(tmp_path: Path) -> None:
    recorder = vlatool.record(tmp_path / "demos", fps=float(np.float32(30)))
    recorder.close()

    with pytest.raises(UsageError, match="closed"):
        step(recorder, 0)


def test_a_damaged_folder_is_not_continued(tmp_path: Path) -> None:
    record_episodes(tmp_path / "demos", 2)
    (tmp_path / "demos/frames/episode_000000.tar").unlink()

    with pytest.raises(UsageError, match=r"episode_000000\.tar is missing"):
        vlatool.record(tmp_path / "demos", fps=30)


@pytest.mark.parametrize(
    "keys", [{"success": "no"}, {"instruction": 3}, {"instruction": "a\ud800"}]
)
def test_end_episode_takes_a_sentence_and_a_flag(keys: dict[str, Any], tmp_path: Path) -> None:
    with vlatool.record(tmp_path / "demos", fps=30) as recorder:
        step(recorder, 0)
        with pytest.raises(UsageError):
            recorder.end_episode(**keys)


def test_a_second_recorder_on_a_folder_is_refused(tmp_path: Path) -> None:
    with (
        vlatool.record(tmp_path / "demos", fps=30),
        pytest.raises(UsageError, match=r"vlatool\.record"),
    ):
        vlatool.record(tmp_path / "demos", fps=30)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")

    with pytest.raises(UsageError):
        vlatool.record(tmp_path, fps=30)


def test_images_that_cannot_be_written_are_an_error_at_a_later_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(recorder_module.JpegSpool):
        def add(self, image: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recorder_module, "JpegSpool", Full)

    def fill() -> None:
        with vlatool.record(tmp_path / "demos", fps=30) as recorder:
            for number in range(1000):
                step(recorder, number)

    with pytest.raises(StorageError, match="No space left"):
        fill()


def test_an_episode_that_does_not_fit_on_the_disk_can_be_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> Any:
        return open("/dev/full", "w+b")

    with vlatool.record(tmp_path / "demos", fps=30) as recorder:
        with monkeypatch.context() as patch:
            patch.setattr(recorder_module.tempfile, "TemporaryFile", full)
            step(recorder, 0)
            with pytest.raises(StorageError):
                recorder.end_episode()
        recorder.drop_episode()
        step(recorder, 1)
        recorder.end_episode()
    assert len(FramesFolder(tmp_path / "demos").episodes) == 1


@pytest.mark.parametrize("fps", [0, -1, 1e-9, 1e9, float("nan"), True, "30"])
def test_a_rate_that_no_robot_has_is_refused(fps: Any, tmp_path: Path) -> None:
    with fails("usage.bad_value", 2):
        vlatool.record(tmp_path / "demos", fps=fps)
    assert not (tmp_path / "demos").exists()


def test_an_episode_takes_as_much_work_as_the_ones_before(tmp_path: Path) -> None:
    calls: list[int] = []
    with vlatool.record(tmp_path / "demos", fps=30, form="lerobot") as recorder:
        for episode in range(25):
            step(recorder, episode)
            profile = cProfile.Profile()
            profile.runcall(recorder.end_episode, instruction="go")
            calls.append(sum(entry.callcount for entry in profile.getstats()))
    assert calls[24] < 1.2 * calls[4]


@pytest.mark.parametrize("form", ["frames", "lerobot"])
def test_episodes_recorded_one_by_one_give_the_files_of_all_at_once(
    form: Any, tmp_path: Path
) -> None:
    record_episodes(tmp_path / "whole", 3, steps=400, form=form)
    record_episodes(tmp_path / "parts", 2, steps=400, form=form)
    record_episodes(tmp_path / "parts", 1, steps=400, form=form, first=2)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("form", ["frames", "lerobot"])
def test_an_episode_whose_lists_cannot_be_written_is_kept_once(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("No space left on device")

    with vlatool.record(tmp_path / "demos", fps=30, form=form) as recorder:
        step(recorder, 0)
        with monkeypatch.context() as patch:
            patch.setattr(recorder_module, "write_file_list", full)
            with pytest.raises(StorageError, match="No space left"):
                recorder.end_episode()
        assert recorder.episodes == 1
        step(recorder, 1)
        recorder.end_episode()

    source = detect_source(tmp_path / "demos", None)
    assert [source.reader.read(ref).num_frames for ref in source.refs] == [1, 1]
    assert errors_of(tmp_path / "demos") == []


def test_no_image_is_dropped_when_encoding_falls_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder_module, "_LARGEST_QUEUE", 5000)  # one image
    with caplog.at_level(logging.WARNING):
        record_episodes(tmp_path / "demos", 1, steps=200)

    assert FramesFolder(tmp_path / "demos").episodes[0].frames == 200
    assert caplog.text.count("slower than your loop") <= 1
    assert errors_of(tmp_path / "demos") == []


KILLED = """
import os, signal, sys
import numpy as np
import vlatool
recorder = vlatool.record(sys.argv[1], fps=30, form=sys.argv[2])
image = np.zeros((32, 48, 3), np.uint8)
for episode in range(3):
    for step in range(20):
        recorder.add({"front": image + step}, state=[step, episode], action=[step, 1])
        if episode == 2 and step == 10:
            os.kill(os.getpid(), signal.SIGKILL)
    recorder.end_episode(instruction="go")
"""


@pytest.mark.parametrize("form", ["frames", "lerobot"])
def test_a_killed_process_loses_the_open_episode_alone(form: str, tmp_path: Path) -> None:
    output = tmp_path / "demos"
    killed = subprocess.run([sys.executable, "-c", KILLED, output, form], check=False)

    assert killed.returncode == -signal.SIGKILL
    assert "output.digest_mismatch" not in errors_of(output)
    with vlatool.record(output, fps=30, form=form) as recorder:  # pyright: ignore[reportArgumentType]
        assert recorder.episodes == 2
    assert not list((output / ".vlatool").glob("recording/*"))
