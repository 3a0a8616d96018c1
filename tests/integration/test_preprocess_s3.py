"""`vlatool preprocess` and commands on its output, with S3 on either side or on both."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.builders.lerobot import lerobot_dataset
from tests.builders.s3_runs import command, digests, finished, preprocess, upload
from tests.builders.s3_server import Proxy, Request
from tests.builders.spartan import TASK, Documents, spartan_task
from vlatool.cli import app
from vlatool.episode import EpisodeRef
from vlatool.jobs.executor import ProcessExecutor
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import output_lock
from vlatool.storage.atomic import write_text
from vlatool.storage.remote import connect
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import SPEED_VARIABLE
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessJob

EPISODES, FRAMES = 3, 12
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
    def test_both_with_two_workers_and_again(
        self, source: RemotePath, bucket: RemotePath, expected: dict[str, str]
    ) -> None:
        output = bucket / "a b/out"
        first = finished(command(source, output))
        assert first.returncode == 0, first.stderr
        assert digests(output) == expected
        assert not (output / ".vlatool/journal").exists()
        assert not (output / ".vlatool/lock").exists()
        before = (output / "shards/manifest.jsonl").stat().st_mtime

        assert preprocess(source, output) == 0
        assert (output / "shards/manifest.jsonl").stat().st_mtime == before

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

    def test_lerobot(self, bucket: RemotePath, tmp_path: Path, s3_proxy: Proxy) -> None:
        cameras = {"observation.images.front": "video", "observation.images.wrist": "image"}
        lerobot_dataset(tmp_path / "le", [FRAMES] * EPISODES, cameras=cameras)
        source = upload(tmp_path / "le", bucket / "le")
        assert preprocess(tmp_path / "le", tmp_path / "out", format="lerobot") == 0
        s3_proxy.faults.clear()

        assert preprocess(source, tmp_path / "from-s3", format="lerobot") == 0

        assert digests(tmp_path / "from-s3") == digests(tmp_path / "out")
        assert len(about(s3_proxy, "episode_000001.")) <= 20  # 13 measured


class TestOtherCommands:
    def test_other_commands_read_from_s3(
        self,
        source: RemotePath,
        raw: Path,
        bucket: RemotePath,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        output, page = bucket / "out", tmp_path / "page.html"
        assert preprocess(raw, tmp_path / "out") == 0
        upload(tmp_path / "out", output)
        merged = bucket / "merged.json"
        for words in (
            ["verify", source],
            ["inspect", source, "--html", page],
            ["inspect", output, "--html", page],
            ["stats", "merge", output, output / "shards/stats.json", "-o", merged],
        ):
            assert app.run([*map(str, words), "-q"]) == 0, capfd.readouterr().err

        assert b"<html" in page.read_bytes()[:200]
        assert json.loads(merged.read_text())


class TestRefusals:
    @pytest.mark.parametrize("which", ["source", "output"])
    def test_missing_bucket(
        self, raw: Path, bucket: RemotePath, which: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        missing = RemotePath("s3://no-such-bucket-here/x")

        pair = (missing, bucket / "out") if which == "source" else (raw, missing)
        assert preprocess(*pair) == 5
        two_lines(capfd, "no-such-bucket-here")

    def test_output_that_another_run_is_writing(
        self,
        raw: Path,
        bucket: RemotePath,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv(SPEED_VARIABLE, "40")
        with output_lock(bucket / "out", "vlatool preprocess spartan"):
            assert preprocess(raw, bucket / "out") == 2

        waits, *lines = capfd.readouterr().err.strip().splitlines()
        assert "waiting 90 s at most" in waits
        assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
        assert "vlatool preprocess spartan" in lines[0]
        assert preprocess(raw, bucket / "out") == 0


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
        assert len(about(s3_proxy, "episode_1", without="/out/episodes/")) <= 26  # 19 measured

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
        assert len(s3_proxy.faults.requests) <= 4

    def test_worker_has_one_client_for_all_its_episodes(
        self, source: RemotePath, bucket: RemotePath
    ) -> None:
        tree = {"format": "spartan", "sources": [str(source)], "output": str(bucket / "out")}
        job = PreprocessJob(PreprocessConfig.specialize(tree).model_validate(tree))

        with ProcessExecutor(1) as executor:
            outcomes = list(executor.map(_Counted(job.spec.work), job.items))

        assert len(outcomes) == EPISODES
        assert len({outcome.value for outcome in outcomes}) == 1
        assert outcomes[0].value is not None
        assert outcomes[0].value[0] != os.getpid()


@dataclass(frozen=True)
class _Counted:
    """Work on an episode that returns its process and client."""

    task: Callable[[EpisodeRef], Receipt]

    def __call__(self, ref: EpisodeRef) -> tuple[int, int]:
        assert self.task(ref).bytes
        return os.getpid(), id(connect(ref.path.address.root))


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


def two_lines(capfd: pytest.CaptureFixture[str], part: str) -> None:
    lines = capfd.readouterr().err.strip().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert part in "\n".join(lines)
