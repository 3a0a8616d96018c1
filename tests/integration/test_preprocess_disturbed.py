"""Runs that are killed, lack resources or lose their input: they resume without loss."""

import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.builders.preprocessing import (
    FRAMES,
    contents,
    failure_of,
    has_message_and_hint,
    metadata,
    options_for,
    processed,
    refusal,
    run,
    samples,
)
from tests.builders.spartan import CAMERAS, Documents, session_folder, spartan_task
from vlatool.errors import PartialFailure, VlatoolError
from vlatool.events import NullProgress, NullReporter
from vlatool.jobs.record import read_record
from vlatool.recordings.spartan.config import _ACTION_WIDTHS


class SimulatedKill(BaseException):
    """Simulated kill of a run."""


class After(NullReporter, NullProgress):
    """Reporter that calls a function after a number of episodes."""

    def __init__(self, episodes: int, action: Callable[[], None]) -> None:
        self._left = episodes
        self._action = action

    def progress(self, name: str, total: int | None, unit: str) -> "After":
        del total, unit
        self._counts = name == "episodes"
        return self

    def advance(self, amount: int = 1, **fields: float | int | str) -> None:
        del fields
        self._left -= amount if self._counts else 0
        if self._left == 0:
            self._left = -1
            self._action()


def kill() -> None:
    raise SimulatedKill


EPISODES = 3


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("pristine") / "raw", EPISODES, FRAMES)


@pytest.fixture(scope="module")
def undisturbed(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("quiet") / "out"
    run(pristine, output)
    return contents(output)


@pytest.fixture
def source(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "raw"))


def killed_run(source: Path, output: Path, after: int = 2) -> None:
    with pytest.raises(SimulatedKill):
        run(source, output, reporter=After(after, kill))


def episode_folder(source: Path, number: int) -> Path:
    return session_folder(source) / f"episode_{number}"


@pytest.mark.parametrize(
    "victim", ["", "processed/observations.npz", "processed/metadata.yaml"], ids=str
)
def test_source_removed_during_the_run_fails_only_its_episode(
    source: Path, tmp_path: Path, victim: str
) -> None:
    path = episode_folder(source, 1) / victim

    def vanish() -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    with pytest.raises(VlatoolError) as caught:
        run(source, tmp_path / "out", reporter=After(1, vanish))

    assert (caught.value.exit_code, failure_of(caught.value)["code"]) == (4, "data.missing")
    remaining = {metadata(sample)["episode_id"][-1] for sample in samples(tmp_path / "out/shards")}
    assert remaining == {"0", "2"}


JOURNAL, TARS = ".vlatool/journal/items/*", "episodes/*.tar"


@pytest.mark.parametrize(
    ("files", "spoil"),
    [
        ("", None),
        (JOURNAL, lambda data: data[: len(data) // 2]),
        (JOURNAL, lambda data: bytes(len(data))),
        (JOURNAL, lambda data: b""),
        (JOURNAL, lambda data: bytes(byte ^ 0xFF * (at == 999) for at, byte in enumerate(data))),
        (JOURNAL, None),
        (TARS, None),
        (TARS, lambda data: data[: len(data) // 2]),
    ],
)
def test_killed_run_resumes_with_what_is_whole_and_gives_the_undisturbed_bytes(
    source: Path,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    files: str,
    spoil: Callable[[bytes], bytes] | None,
) -> None:
    killed_run(source, tmp_path / "out")
    if files:
        path = min((tmp_path / "out").glob(files))
        path.write_bytes(spoil(path.read_bytes())) if spoil else path.unlink()

    result = run(source, tmp_path / "out")

    assert result.resumed == (1 if files else 2)
    assert contents(tmp_path / "out") == undisturbed


def test_episode_whose_source_changed_after_the_kill_is_done_again(
    source: Path, tmp_path: Path
) -> None:
    killed_run(source, tmp_path / "out")
    shutil.rmtree(episode_folder(source, 0))
    spartan_task(source, 1, FRAMES + 2)

    result = run(source, tmp_path / "out")
    run(source, tmp_path / "fresh")

    assert result.resumed == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def command_line(source: Path, output: Path, **options: Any) -> list[str]:
    """Command line of a small run."""
    tree = options_for(source, output, **options)
    words = ["--json", "preprocess", tree.pop("format"), *tree.pop("sources")]
    return words + [f"--{key.replace('_', '-')}={value}" for key, value in tree.items()]


def exit_code_and_error(
    words: list[str], prepare: Callable[[], None]
) -> tuple[int, dict[str, Any]]:
    """Exit code and error of a command that fails, in a process that is prepared first."""
    words = [sys.executable, "-m", "vlatool", *words]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, preexec_fn=prepare)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)["error"] if done.returncode else {}


def test_file_size_limit_ends_with_exit_code_5_and_the_run_resumes(
    source: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    largest = max(len(data) for name, data in undisturbed.items() if name.startswith("episodes/"))
    code, error = exit_code_and_error(
        command_line(source, tmp_path / "out"),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, largest - 1)),
    )
    assert (code, error["code"]) == (5, "storage.write")
    assert has_message_and_hint(error)

    run(source, tmp_path / "out")

    assert contents(tmp_path / "out") == undisturbed


def like_other_users() -> None:
    """Drops the capability of root to bypass permissions, in a child before it starts."""
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails for others


@pytest.mark.skipif(sys.platform != "linux", reason="root cannot lay down its rights elsewhere")
@pytest.mark.parametrize("location", ["processed", "processed/observations.npz"])
def test_source_without_read_permission_is_reported(
    source: Path, tmp_path: Path, location: str
) -> None:
    locked = episode_folder(source, 1) / location
    locked.chmod(0)

    code, error = exit_code_and_error(command_line(source, tmp_path / "out"), like_other_users)
    locked.chmod(0o700)

    assert code in (3, 4, 5)
    assert "episode_1" in json.dumps(error)


# reuse of journal entries


def partial_run(source: Path, output: Path, **options: Any) -> None:
    """Runs with a broken second episode, which is left out; the journal remains."""
    with pytest.raises(PartialFailure):
        run(source, output, **options)


def break_actions(source: Path) -> bytes:
    path = processed(source) / "actions.npz"
    content = path.read_bytes()
    path.write_bytes(b"cut")
    return content


def action_file(path: Path, names: list[str]) -> Path:
    stops = np.cumsum(list(_ACTION_WIDTHS.values())).tolist()
    path.write_text(yaml.safe_dump({"action_key_fields": names, "action_index_fields": stops}))
    return path


def test_other_content_of_a_side_file_is_another_run(source: Path, tmp_path: Path) -> None:
    names = list(_ACTION_WIDTHS)
    path = action_file(tmp_path / "fields.yaml", names)
    run(source, tmp_path / "out", source={"action_fields_config_path": str(path)})
    action_file(path, [f"my_{name}" for name in names])

    error = refusal(source, tmp_path / "out", source={"action_fields_config_path": str(path)})

    assert error.code == "usage.output_differs"


def test_pose_groups_of_an_action_file_reach_the_workers(source: Path, tmp_path: Path) -> None:
    path = action_file(tmp_path / "fields.yaml", list(_ACTION_WIDTHS))

    result = run(
        source, tmp_path / "out", source={"action_fields_config_path": str(path)}, workers=2
    )

    assert not any(name.endswith("_relative") for name in result.action_fields)
    stats = json.loads((tmp_path / "out/shards/stats.json").read_text())
    assert not any(name.endswith("_relative") for name in stats)


def test_repaired_first_episode_with_more_cameras_gives_the_undisturbed_bytes(
    tmp_path: Path,
) -> None:
    def one_camera(documents: Documents) -> None:
        (first, name), *_ = CAMERAS.items()
        documents["metadata"]["camera_id_to_semantic_name"] = {first: name}

    source = spartan_task(tmp_path / "raw", 3, FRAMES, changes={1: one_camera})
    path = processed(source, 0) / "actions.npz"
    content = path.read_bytes()
    path.write_bytes(b"cut")
    partial_run(source, tmp_path / "out")
    path.write_bytes(content)

    run(source, tmp_path / "out")
    run(source, tmp_path / "fresh")

    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_killed_overwrite_uses_nothing_of_the_earlier_run(source: Path, tmp_path: Path) -> None:
    output, content = tmp_path / "out", break_actions(source)
    partial_run(source, output, jpeg_quality=50)
    (processed(source) / "actions.npz").write_bytes(content)
    record = read_record(output)
    assert record is not None
    # After the new record is written and before the old data are removed.
    options = {**record.options, "jpeg_quality": 95}
    journal = output / ".vlatool/journal"
    assert journal.is_dir()
    type(record)(record.command, options).save(output)

    run(source, output, jpeg_quality=95)
    run(source, tmp_path / "fresh", jpeg_quality=95)

    assert contents(output) == contents(tmp_path / "fresh")


def test_same_layout_at_another_location_is_read_again(tmp_path: Path) -> None:
    def shifted(documents: Documents) -> None:
        documents["observations"]["robot__version"] += 1

    here = spartan_task(tmp_path / "a/raw", 3, FRAMES)
    there = spartan_task(tmp_path / "b/raw", 3, FRAMES, changes=dict.fromkeys(range(3), shifted))
    break_actions(here)
    partial_run(here, tmp_path / "out")

    run(there, tmp_path / "out")
    run(there, tmp_path / "fresh")

    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_file_edited_in_place_with_the_same_size_is_detected(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    path = processed(source) / "observations.npz"
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))

    error = refusal(source, tmp_path / "out")

    assert error.code == "usage.output_differs"
    assert "its last change was at" in error.message
