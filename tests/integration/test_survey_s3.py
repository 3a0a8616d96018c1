"""Surveys of sources in S3: the same as those of local files, with few requests."""

from pathlib import Path

from tests.builders.lerobot import lerobot_dataset
from tests.builders.s3_runs import upload
from tests.builders.s3_server import Proxy
from tests.builders.spartan import CAMERAS, Documents, spartan_task
from vlatool.sources.lerobot.dataset import LeRobotConfig
from vlatool.sources.lerobot.reader import LeRobotReader
from vlatool.sources.spartan.config import SpartanConfig
from vlatool.sources.spartan.reader import SpartanReader
from vlatool.storage.remote_path import RemotePath

FIRST, SECOND = CAMERAS


def name_one_camera(documents: Documents) -> None:
    documents["metadata"]["camera_id_to_semantic_name"] = {FIRST: CAMERAS[FIRST]}


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


def test_a_camera_that_a_later_spartan_episode_names_is_found(
    tmp_path: Path, s3_bucket: str
) -> None:
    raw = spartan_task(tmp_path / "raw", 2, 6, changes={0: name_one_camera})
    remote = upload(raw, RemotePath(f"s3://{s3_bucket}/raw"))
    reader = SpartanReader(SpartanConfig())
    assert list(reader.survey(list(reader.discover([remote]))).cameras) == list(CAMERAS.values())


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
