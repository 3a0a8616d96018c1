"""`preprocess --engine ray` writes the same bytes as the local engine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.builders.jsonl_sink import ToySink
from tests.builders.lerobot import lerobot_dataset
from tests.builders.preprocessing import contents, refusal, run
from tests.builders.spartan import spartan_task
from vlatool.cli.app import run as vlatool
from vlatool.errors import PartialFailure
from vlatool.jobs.ray_executor import RayExecutor
from vlatool.launching import ray_file
from vlatool.testing.sinks import SinkChecks
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

ray = pytest.importorskip("ray")

EPISODES = 6
WINDOWS = (
    *("--past-lowdim-steps", "1", "--future-lowdim-steps", "3", "--max-padding-right", "3"),
    *("--samples-per-shard", "8"),
)


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
        preprocess(PreprocessConfig.specialize(options).model_validate(options))

    written = contents(tmp_path / "local")
    assert {"data/chunk-000/file-000.parquet", "meta/info.json"} <= {*written}
    assert contents(tmp_path / "spread") == written


def test_launched_driver_writes_the_same_bytes_and_its_relative_paths_are_those_of_its_folder(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spartan_task(tmp_path / "raw", episodes=2, frames=9)
    run(tmp_path / "raw", tmp_path / "local")
    monkeypatch.chdir(tmp_path)

    words = ["launch", "ray", "preprocess", "spartan", "raw", "-o", "spread", *WINDOWS, "-q"]
    code = vlatool([*words, "--ray-address", address])

    assert code == 0
    assert contents(tmp_path / "spread") == contents(tmp_path / "local")


def test_run_killed_on_a_cluster_is_resumed_there(address: str, tmp_path: Path) -> None:
    checks = SinkChecks(ToySink, ToySink.Config(), tmp_path)
    checks.check_quiet_run()
    checks.check_killed_run("killed on a cluster", lambda: RayExecutor(address=address), 1)


@pytest.mark.slow
def test_node_that_joins_from_nothing_with_the_lines_of_the_cluster_file_runs_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # for pip, this means none
    text = ray_file.with_program(ray_file.template(), tmp_path)
    ray_file.build_wheel(tmp_path, text)
    home, versions = tmp_path / "home", tmp_path / "versions.txt"
    home.mkdir()
    versions.write_text(f"ray=={ray.__version__}\n")
    cluster = yaml.safe_load(text)
    for there, here in cluster["file_mounts"].items():
        shutil.copy(here, home / there.removeprefix("~/"))
    node_env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "HOME": str(home),
        "PATH": f"{home}/vlatool-env/bin:{os.environ['PATH']}",
        "PIP_CONSTRAINT": str(versions),
        "PIP_COMPILE": "0",  # the node imports little of what is installed
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache/pip")),
    }
    subprocess.run([sys.executable, "-m", "venv", home / "vlatool-env"], check=True)
    installs = [line for line in cluster["setup_commands"] if "pip install" in line]
    assert len(installs) == 2
    for line in installs:
        subprocess.run(["bash", "-c", f"{line} --quiet"], env=node_env, cwd=home, check=True)

    head = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    join = ["ray", "start", "--block", f"--address={head.address}", "--num-cpus=1"]
    node = subprocess.Popen(join, env=node_env, cwd=home)
    try:
        source = spartan_task(tmp_path / "raw", episodes=2, frames=9)
        run(source, tmp_path / "local")
        run(source, tmp_path / "joined", engine="ray", ray_address=head.address, workers=None)
        assert contents(tmp_path / "joined") == contents(tmp_path / "local")
    finally:
        node.terminate()
        node.wait(timeout=60)
        head.shutdown()
