"""`preprocess --engine ray` writes the same bytes as the local engine."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.jsonl_sink import ToySink
from tests.builders.lerobot import lerobot_dataset
from tests.builders.preprocessing import contents, refusal
from tests.builders.sink_checks import SinkChecks
from tests.builders.spartan import spartan_task
from vlatool.config.resolve import config_of
from vlatool.errors import PartialFailure
from vlatool.jobs.ray_executor import RayExecutor
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

ray = pytest.importorskip("ray")

EPISODES = 6


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Address of a cluster of two nodes with one CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def test_two_nodes_write_the_same_bytes_as_one_process_and_a_broken_episode_fails_alone(
    address: str, tmp_path: Path
) -> None:
    source = spartan_task(tmp_path / "raw", episodes=EPISODES, frames=9)
    broken = next(source.rglob("episode_1/processed/observations.npz"))
    broken.write_bytes(broken.read_bytes()[:500])

    local = refusal(source, tmp_path / "local")
    cluster = {"engine": "ray", "ray_address": address, "workers": None}
    distributed = refusal(source, tmp_path / "spread", **cluster)

    for error in (local, distributed):
        assert isinstance(error, PartialFailure)
        assert isinstance(error.result, PreprocessResult)
        assert (error.result.episodes, len(error.result.failures)) == (EPISODES - 1, 1)
    assert contents(tmp_path / "spread") == contents(tmp_path / "local")


@pytest.mark.slow  # final files are made by workers too, which the others do not prove
def test_two_nodes_write_the_same_lerobot_set_as_one_process(address: str, tmp_path: Path) -> None:
    source = lerobot_dataset(tmp_path / "raw", (6, 4, 5))
    tree = {"format": "lerobot", "sources": [str(source)], "sink": {"type": "lerobot"}}
    engines = {"local": {"workers": 1}, "spread": {"engine": "ray", "ray_address": address}}
    for name, keys in engines.items():
        options = {**tree, **keys, "output": str(tmp_path / name)}
        preprocess(config_of(PreprocessConfig, options))

    written = contents(tmp_path / "local")
    assert {"data/chunk-000/file-000.parquet", "meta/info.json"} <= {*written}
    assert contents(tmp_path / "spread") == written


def test_run_killed_on_a_cluster_is_resumed_there(address: str, tmp_path: Path) -> None:
    checks = SinkChecks(ToySink, ToySink.Config(), tmp_path)
    checks.check_quiet_run()
    checks.check_killed_run("killed on a cluster", lambda: RayExecutor(address=address), 1)
