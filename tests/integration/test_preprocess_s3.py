"""`vlatool preprocess` and commands on its output, with S3 on either side or on both."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.builders.folder import write_images, write_set
from tests.builders.lerobot import lerobot_dataset
from tests.builders.planted import PLANTS
from tests.builders.s3_runs import command, digests, finished, preprocess, upload
from tests.builders.s3_server import Faults, Proxy, Request
from tests.builders.spartan import CAMERAS as SPARTAN_CAMERAS
from tests.builders.spartan import TASK, Documents, spartan_task
from vlatool.inspection import verify_location
from vlatool.recordings.check import CheckOptions
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader
from vlatool.recordings.spartan.config import SpartanConfig
from vlatool.recordings.spartan.reader import SpartanReader
from vlatool.storage.atomic import write_text
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import SPEED_VARIABLE

EPISODES, FRAMES = 3, 12
KILLS = 4
SPEED = 20  # factor of the clock in runs with outages
STALE_SOON = {SPEED_VARIABLE: "100"}  # locks of killed runs
SAMPLES = EPISODES * 5  # the default window, with seven padded frames at most
CAMERAS = {f"CAM{number}": f"camera_{number}" for number in range(6)}
SETTINGS = {
    "annotations.yaml": f"language_dict: {{{TASK}: {{original: [do it]}}}}\n",
    "held_out.json": json.dumps({TASK: [1]}),
    "actions.yaml": "action_key_fields: [robot__action__poses__right::panda__xyz]\n"
    "action_index_fields: [3]\npose_groups: []\n",
    "run.yaml": "<<: !include size.yaml\nstride: 2\n",
    "size.yaml": "resize_images_size: [16, 12]\n",
    "preset.yaml": "jpeg_quality: 80\n",
    "rotations.yaml": "wrist_left_minus: 1\n",
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("raw") / "raw", EPISODES, FRAMES)


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Output of a run without S3."""
    output = tmp_path_factory.mktemp("local") / "out"
    assert preprocess(raw, output) == 0
    return digests(output)


@pytest.fixture
def bucket(s3_bucket: str) -> RemotePath:
    return RemotePath(f"s3://{s3_bucket}")


@pytest.fixture
def source(raw: Path, bucket: RemotePath) -> RemotePath:
    """Raw episodes in S3."""
    return upload(raw, bucket / "raw")


def about(proxy: Proxy, part: str, *, without: str = "\0") -> list[Request]:
    """Requests for paths that contain `part`."""
    paths = (request.path.replace("%2F", "/") for request in proxy.faults.requests)
    pairs = zip(paths, proxy.faults.requests, strict=True)
    return [request for path, request in pairs if part in path and without not in path]


def sent(requests: list[Request]) -> int:
    return sum(request.sent for request in requests)


class TestCombinations:
    def test_every_setting_in_s3(self, raw: Path, bucket: RemotePath, tmp_path: Path) -> None:
        for name, text in SETTINGS.items():
            (tmp_path / name).write_text(text)
            write_text(bucket / "settings" / name, text)
        source = upload(raw, bucket / "raw")

        assert preprocess(raw, tmp_path / "out", *settings(tmp_path)) == 0
        assert preprocess(source, bucket / "out", *settings(bucket / "settings")) == 0

        assert digests(bucket / "out") == digests(tmp_path / "out")
        assert len(list((bucket / "out/episodes").glob("*.tar"))) == EPISODES - 1
        options = (bucket / "out/shards/preprocessing_config.yaml").read_text()
        assert "s3://" not in options
        assert str(tmp_path) not in options


class TestEconomy:
    """Limits are measured numbers of requests, with slack."""

    @pytest.fixture
    def wide(self, bucket: RemotePath, tmp_path: Path) -> RemotePath:
        """Episodes of six cameras with depth and labels, too large for a range each."""
        local = spartan_task(
            tmp_path / "wide",
            2,
            20,
            size=(96, 128),
            cameras=CAMERAS,
            changes=dict.fromkeys(range(2), with_noise),
        )
        return upload(local, bucket / "wide")

    def test_only_selected_cameras_are_fetched(
        self, wide: RemotePath, bucket: RemotePath, s3_proxy: Proxy
    ) -> None:
        observations = next(wide.rglob("episode_1/processed/observations.npz"))
        s3_proxy.faults.clear()

        assert preprocess(wide, bucket / "out", "--camera-names", "camera_0,camera_3") == 0

        images = 2 * 20 * 96 * 128 * 3
        read = about(s3_proxy, "episode_1/processed")
        assert images < sent(read) < 1.5 * images < 0.3 * observations.stat().st_size
        assert (
            len(about(s3_proxy, "episode_1", without="/out/episodes/")) <= 38
        )  # 19 measured, 30 with the conventions

    def test_shards_take_one_request_for_each_sample_and_no_spare_bytes(
        self, raw: Path, bucket: RemotePath, s3_proxy: Proxy
    ) -> None:
        assert preprocess(raw, bucket / "out") == 0

        read = [request for request in about(s3_proxy, "/out/episodes/episode_") if request.range]
        shards = sum(path.stat().st_size for path in (bucket / "out/shards").glob("*.tar"))
        assert len(read) == SAMPLES
        assert sent(read) <= shards

    def test_discovery_takes_no_request_per_episode(
        self, bucket: RemotePath, s3_proxy: Proxy
    ) -> None:
        for number in range(40):
            write_text(bucket / f"many/a/b/episode_{number}/processed/metadata.yaml", "x")
        s3_proxy.faults.clear()

        assert preprocess(bucket / "many", bucket / "out", "--episodes", "99") == 3
        # The proxy may record the last PUT of the preparation late.
        asked = [request for request in s3_proxy.faults.requests if request.method != "PUT"]
        assert len(asked) <= 4


def settings(folder: Path) -> list[object]:
    """Options that name files below `folder`."""
    keys: Mapping[str, str] = {
        "--language-annotations-path": "annotations.yaml",
        "--validation-episodes-path": "held_out.json",
        "--action-fields-config-path": "actions.yaml",
        "--config": "run.yaml",
        "--preset": "preset.yaml",
    }
    options: list[object] = [word for key, name in keys.items() for word in (key, folder / name)]
    return [*options, "--camera-rotations", f"include {folder / 'rotations.yaml'}"]


def with_noise(documents: Documents) -> None:
    """Change to incompressible images, depth and labels."""
    arrays, random = documents["observations"], np.random.default_rng(0)
    for name in arrays:
        if name.startswith("CAM"):
            array = arrays[name]
            most = 255 if array.dtype == np.uint8 else 30_000
            arrays[name] = random.integers(0, most, array.shape).astype(array.dtype)


# while the storage fails or the run is killed


def fails_slowly(faults: Faults) -> None:
    faults.fail_every, faults.delay_s = 7, 0.02
    faults.cut_after, faults.cuts = 30_000, 6


def loses_answers_when_it_is_not_busy(faults: Faults) -> None:
    faults.status, faults.retry_after_s, faults.fail_next = 503, 1, 4
    faults.lose_answers, faults.only = 4, ("PUT", "POST", "DELETE")


@pytest.mark.parametrize("misbehave", [fails_slowly, loses_answers_when_it_is_not_busy])
def test_temporary_failures_change_nothing(
    source: RemotePath,
    bucket: RemotePath,
    s3_proxy: Proxy,
    expected: dict[str, str],
    misbehave: Callable[[Faults], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, str(SPEED))
    misbehave(s3_proxy.faults)

    assert preprocess(source, bucket / "out") == 0

    assert s3_proxy.faults.fail_next == 0
    s3_proxy.faults.clear()
    assert digests(bucket / "out") == expected


@pytest.mark.slow
def test_outage_longer_than_the_timeout_ends_the_run_and_the_next_resumes(
    source: RemotePath, bucket: RemotePath, s3_proxy: Proxy, expected: dict[str, str]
) -> None:
    s3_proxy.faults.clear()
    s3_proxy.faults.down_after = 75
    run = command(source, bucket / "out")

    ended = finished(run, {"VLATOOL_STORAGE_PATIENCE_S": "1"})

    assert ended.returncode == 5, ended.stderr
    messages = [line for line in ended.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert [line.partition(":")[0] for line in messages] == ["error", "hint"]
    assert "Traceback" not in ended.stderr
    s3_proxy.faults.clear()
    left = digests(bucket / "out")
    whole = {name: digest for name, digest in left.items() if name.endswith(".tar")}
    assert whole.items() <= expected.items()
    assert "shards/manifest.jsonl" not in left

    assert finished(run, STALE_SOON).returncode == 0
    assert digests(bucket / "out") == expected


@pytest.mark.slow
def test_repeatedly_killed_run_ends_with_the_same_bytes(
    source: RemotePath, bucket: RemotePath, s3_proxy: Proxy, expected: dict[str, str]
) -> None:
    rng = random.Random(os.environ.get("VLATOOL_KILL_SEED", "3"))
    s3_proxy.faults.delay_s = 0.02
    run = command(source, bucket / "out")
    for number in range(KILLS):
        process = subprocess.Popen(
            run, stderr=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **STALE_SOON}
        )
        time.sleep(rng.uniform(0.8, 5.0))
        if process.poll() is None:
            (os.killpg if number % 2 else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
    s3_proxy.faults.clear()

    done = finished(run, STALE_SOON)

    assert done.returncode == 0, done.stderr
    assert digests(bucket / "out") == expected
    assert not (bucket / "out/.vlatool/journal").exists()


# surveys


FIRST, SECOND = SPARTAN_CAMERAS


def requests_of(proxy: Proxy, episode: str) -> int:
    return sum(episode in request.path.replace("%2F", "/") for request in proxy.faults.requests)


def test_a_further_spartan_episode_takes_one_request(
    tmp_path: Path, s3_bucket: str, s3_proxy: Proxy
) -> None:
    remote = upload(spartan_task(tmp_path / "raw", 3, 6), RemotePath(f"s3://{s3_bucket}/raw"))
    reader = SpartanReader(SpartanConfig())
    refs = list(reader.discover([remote]))
    s3_proxy.faults.clear()

    survey = reader.survey(refs)

    assert (survey.episodes, survey.frames) == (3, None)
    local = SpartanReader(SpartanConfig())
    expected = local.survey(list(local.discover([tmp_path / "raw"])))
    assert (survey.cameras, survey.fields) == (expected.cameras, expected.fields)
    assert [requests_of(s3_proxy, f"episode_{number}/") for number in (1, 2)] == [1, 1]


def test_further_lerobot_episodes_take_no_request(
    tmp_path: Path, s3_bucket: str, s3_proxy: Proxy
) -> None:
    root = lerobot_dataset(tmp_path / "pick", [3, 4, 5])
    remote = upload(root, RemotePath(f"s3://{s3_bucket}/pick"))
    reader = LeRobotReader(LeRobotConfig())
    refs = list(reader.discover([remote]))
    s3_proxy.faults.clear()

    survey = reader.survey(refs)

    local = LeRobotReader(LeRobotConfig())
    assert survey == local.survey(list(local.discover([root])))
    assert [requests_of(s3_proxy, f"episode_00000{number}") for number in (1, 2)] == [0, 0]


def test_what_a_listing_says_of_lerobot_files_is_not_asked_again(
    tmp_path: Path, s3_bucket: str, s3_proxy: Proxy
) -> None:
    remote = upload(lerobot_dataset(tmp_path / "pick", [3, 4]), RemotePath(f"s3://{s3_bucket}/x"))
    reader = LeRobotReader(LeRobotConfig())
    refs = list(reader.discover([remote]))
    s3_proxy.faults.clear()

    for ref in refs:
        reader.read(ref)

    assert [request.path for request in s3_proxy.faults.requests if request.method == "HEAD"] == []


def test_a_folder_of_files_in_s3_gives_the_bytes_of_a_local_one(
    bucket: RemotePath, tmp_path: Path
) -> None:
    local = write_set(tmp_path / "raw", 2, frames=20)
    write_images(local / "episode_0/top", [f"{frame}.png" for frame in range(20)])
    write_images(local / "episode_1/top", [f"{frame}.png" for frame in range(20)])
    remote = upload(local, bucket / "raw")

    assert preprocess(local, tmp_path / "a", format="folder") == 0
    assert preprocess(remote, tmp_path / "b", format="folder") == 0

    assert digests(tmp_path / "b") == digests(tmp_path / "a")


@pytest.mark.parametrize("name", PLANTS)
def test_a_recording_in_s3_has_the_bytes_and_findings_of_a_local_one(
    name: str, bucket: RemotePath, tmp_path: Path
) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    local = PLANTS[name](folder)
    remote = upload(folder, bucket / "raw") / local.relative_to(folder).as_posix()
    rate = () if name == "lerobot" else ("--fps", 10)

    assert preprocess(local, tmp_path / "a", *rate, format=name) == 0
    assert preprocess(remote, tmp_path / "b", *rate, format=name) == 0

    assert digests(tmp_path / "b") == digests(tmp_path / "a")
    messages: list[list[str]] = []
    for source in (local, remote):
        findings = verify_location(source, CheckOptions()).findings
        messages.append([finding.message.replace(str(source), "") for finding in findings])
    assert messages[0] == messages[1]
