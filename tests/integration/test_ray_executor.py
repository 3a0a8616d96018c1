"""The Ray engine: on a cluster of two nodes, and on private ones.

A process that had a private cluster cannot join another one, so private ones are in processes of
their own.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.builders.jobs import KillsWorker
from vlatool.errors import BugError, DataError, EnvironmentProblem, UsageError
from vlatool.jobs.ray_executor import RayExecutor, forwarded_variables

ray = pytest.importorskip("ray")

REPOSITORY = Path(__file__).parents[2]
TIMEOUT_S = 90.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Cluster of two nodes with one processor each, which this process has not joined."""
    from ray.cluster_utils import Cluster

    checks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": checks}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@dataclass
class Door:
    """Context of one connection for many tests, because joining takes seconds."""

    address: str
    executor: RayExecutor | None = None

    def enter(self) -> RayExecutor:
        if self.executor is None:
            self.executor = RayExecutor(address=self.address).__enter__()
        return self.executor

    def leave(self) -> None:
        if self.executor is not None:
            self.executor.__exit__(None, None, None)
            self.executor = None


@pytest.fixture(scope="module")
def door(cluster: Any) -> Iterator[Door]:
    door = Door(cluster.address)
    yield door
    door.leave()


@pytest.fixture
def joined(door: Door) -> RayExecutor:
    return door.enter()


@pytest.fixture
def apart(cluster: Any, door: Door) -> Any:
    """Cluster to which this process is not connected."""
    door.leave()
    return cluster


def slow_first(item: int) -> int:
    """The first item takes longest, so that items finish in another order."""
    time.sleep(0.5 if item == 0 else 0)
    return item * item


def odd_fails(item: int) -> int:
    if item == 1:
        raise UsageError("odd", hint="be even", code="usage.odd", details={"item": item})
    if item == 3:
        raise ZeroDivisionError("three")
    return item


def environment_of(item: int) -> dict[str, str]:
    return dict(os.environ)


def wait_until(met: Callable[[], bool]) -> None:
    """Waits up to 90 s, because the machine may be busy with other tests."""
    deadline = time.monotonic() + TIMEOUT_S
    while not met() and time.monotonic() < deadline:
        time.sleep(0.05)


@dataclass(frozen=True)
class Gate:
    """Returns item 0 immediately, the others when `file` exists."""

    file: Path

    def __call__(self, item: int) -> int:
        while item > 0 and not self.file.exists():
            time.sleep(0.05)
        return item


@dataclass(frozen=True)
class Meeting:
    """Returns the node of each item, after items ran on `nodes` nodes."""

    folder: Path
    nodes: int

    def __call__(self, item: int) -> str:
        node = ray.get_runtime_context().get_node_id()
        (self.folder / node).touch()
        wait_until(lambda: len(list(self.folder.iterdir())) >= self.nodes)
        return node


@dataclass(frozen=True)
class Station:
    """Returns the node of each item; items other than 0 wait until the file `open` exists."""

    folder: Path

    def __call__(self, item: int) -> str:
        node = ray.get_runtime_context().get_node_id()
        if item > 0:
            (self.folder / node).touch()
            wait_until((self.folder / "open").exists)
        return node


class NotForWorkers:
    """Item that a worker cannot unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (__import__, ("a_package_of_the_driver",))


def test_outcomes_come_in_the_order_of_the_items(joined: RayExecutor) -> None:
    assert list(joined.map(slow_first, [])) == []
    outcomes = list(joined.map(slow_first, range(12)))

    assert [outcome.item for outcome in outcomes] == list(range(12))
    assert [outcome.value for outcome in outcomes] == [item * item for item in range(12)]


def test_error_of_one_item_stays_with_the_item(joined: RayExecutor) -> None:
    outcomes = list(joined.map(odd_fails, range(5)))

    assert [outcome.value for outcome in outcomes] == [0, None, 2, None, 4]
    expected, unexpected = outcomes[1].error, outcomes[3].error
    assert isinstance(expected, UsageError)
    assert (expected.code, expected.hint) == ("usage.odd", "be even")
    assert expected.details == {"item": 1}
    assert isinstance(unexpected, BugError)
    assert unexpected.code == "bug.unexpected"


def test_items_are_read_only_as_the_cluster_needs_them(joined: RayExecutor, tmp_path: Path) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(40):
            taken.append(item)
            yield item

    outcomes = joined.map(Gate(tmp_path / "open"), items())
    next(outcomes)
    before = len(taken)
    (tmp_path / "open").touch()
    rest = [outcome.value for outcome in outcomes]

    assert before <= 2 * 2 + 1
    assert rest == list(range(1, 40))


def test_worker_killed_once_costs_nothing_because_its_item_is_retried(
    joined: RayExecutor, tmp_path: Path
) -> None:
    outcomes = list(joined.map(KillsWorker(tmp_path, times=1), range(6)))

    assert [outcome.value for outcome in outcomes] == list(range(6))
    assert len(list(tmp_path.glob("2-*"))) == 2


def test_worker_killed_every_time_costs_only_its_item(joined: RayExecutor, tmp_path: Path) -> None:
    outcomes = list(joined.map(KillsWorker(tmp_path, times=99), range(6)))

    assert [outcome.value for outcome in outcomes] == [0, 1, None, 3, 4, 5]
    error = outcomes[2].error
    assert isinstance(error, DataError)
    assert error.code == "data.incomplete"


def test_package_that_workers_lack_is_named(joined: RayExecutor) -> None:
    good, bad = joined.map(str, [1, NotForWorkers()])

    assert good.value == "1"
    assert isinstance(bad.error, EnvironmentProblem)
    assert bad.error.code == "environment.process_failed"
    assert "a_package_of_the_driver" in bad.error.message


def test_work_spreads_over_the_nodes(joined: RayExecutor, tmp_path: Path) -> None:
    nodes = {outcome.value for outcome in joined.map(Meeting(tmp_path, 2), range(2))}

    assert len(nodes) == 2


@pytest.mark.slow
def test_node_that_dies_costs_only_its_tasks(
    apart: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    doomed = apart.add_node(num_cpus=1)
    meeting, station = tmp_path / "meeting", tmp_path / "station"
    meeting.mkdir()
    station.mkdir()
    with RayExecutor(address=apart.address) as executor:
        met = {outcome.value for outcome in executor.map(Meeting(meeting, 3), range(3))}
        outcomes = executor.map(Station(station), range(10))
        next(outcomes)
        wait_until((station / doomed.node_id).exists)
        apart.remove_node(doomed, allow_graceful=False)
        (station / "open").touch()
        rest = list(outcomes)

    assert doomed.node_id in met
    assert (station / doomed.node_id).exists()
    assert [outcome.error for outcome in rest] == [None] * 9
    assert doomed.node_id not in {outcome.value for outcome in rest}
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("kind", ["nobody", "not Ray", "malformed"])
def test_address_without_a_cluster_fails_in_bounded_time(apart: Any, kind: str) -> None:
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}" if kind != "malformed" else "nonsense"
        if kind == "nobody":
            server.close()
        with pytest.raises(EnvironmentProblem) as caught:
            RayExecutor(address=address, connect_s=2).__enter__()

    assert time.monotonic() - started < 15
    assert caught.value.code == "environment.process_failed"
    assert address in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert not ray.is_initialized()


def inspect_private_clusters(address: str) -> None:
    """Runs two private clusters, then tries to join another; prints the observations."""
    os.environ["RAY_ADDRESS"] = address
    with RayExecutor(workers=1) as executor:
        (worker,) = executor.map(environment_of, [0])
        assert worker.value is not None
        own = ray.get_runtime_context().gcs_address
        token = os.environ["RAY_AUTH_TOKEN"]
        logs = [path for path in _session_folder().rglob("*") if path.is_file()]
        searched = [*logs, *Path("/proc").glob("[0-9]*/cmdline")]
        info: dict[str, Any] = {
            "environment": {name: worker.value.get(name) for name in PRIVATE_VARIABLES},
            "address": own,
            "log_files": len(logs),
            "join_attempts": join_attempts(own, token),
            "with_token": [str(path) for path in searched if token in _text(path)],
        }
    with RayExecutor(workers=1) as executor:
        info["second"] = [outcome.value for outcome in executor.map(slow_first, range(3))]
    try:
        RayExecutor(address=address).__enter__()
    except EnvironmentProblem as error:
        info["joining"] = error.code
    sys.stdout.write(json.dumps(info))


PRIVATE_SCRIPT = """
import os, sys
os.environ.pop("RAY_AUTH_MODE", None)
import vlatool.jobs.ray_executor as executor
executor._require_token()  # before the module of the tests imports ray
from tests.integration.test_ray_executor import inspect_private_clusters
inspect_private_clusters(*sys.argv[1:])
"""
PRIVATE_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED")

JOIN_SCRIPT = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined")
"""


def join_attempts(address: str, token: str) -> dict[str, tuple[str, bool]]:
    """Output of processes that try to join, and True if their token was invalid."""
    keys = {
        "no_token": {"RAY_AUTH_MODE": "disabled"},
        "wrong_token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        "right_token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    tries = {
        name: subprocess.Popen(
            [sys.executable, "-c", JOIN_SCRIPT, address],
            env={**clean, **key, "RAY_NUM_REDIS_GET_RETRIES": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, key in keys.items()
    }
    outputs = {name: process.communicate(timeout=TIMEOUT_S) for name, process in tries.items()}
    return {name: (out.strip(), "InvalidAuthToken" in err) for name, (out, err) in outputs.items()}


def _session_folder() -> Path:
    return Path(ray._private.worker._global_node.get_session_dir_path())


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.fixture(scope="module")
def private(cluster: Any) -> dict[str, Any]:
    """Observations of a process that ran private clusters next to another cluster."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE_SCRIPT, cluster.address],
        cwd=REPOSITORY,
        env=clean,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow  # three private clusters
def test_private_cluster_is_own_sends_no_statistics_and_may_be_followed_by_another(
    private: dict[str, Any], cluster: Any
) -> None:
    assert private["address"] != cluster.address
    assert private["environment"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert private["second"] == [0, 1, 4]
    assert private["joining"] == "environment.process_failed"


@pytest.mark.slow  # the same clusters
def test_token_of_a_private_cluster_is_written_nowhere_and_others_cannot_join_it(
    private: dict[str, Any],
) -> None:
    assert private["environment"]["RAY_AUTH_MODE"] == "token"
    assert len(private["environment"]["RAY_AUTH_TOKEN"]) == 64
    assert private["log_files"] > 4
    assert private["with_token"] == []

    assert private["join_attempts"] == {
        "no_token": ["", True],
        "wrong_token": ["", True],
        "right_token": ["joined", False],
    }


def test_handler_of_sigterm_and_an_existing_connection_are_kept_and_others_disconnected(
    apart: Any,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with RayExecutor(address=apart.address):
        inside = signal.getsignal(signal.SIGTERM)
    assert inside is before
    assert not ray.is_initialized()

    ray.init(address=apart.address, log_to_driver=False)
    try:
        with RayExecutor() as executor:
            outcomes = list(executor.map(slow_first, range(3)))
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    assert [outcome.value for outcome in outcomes] == [0, 1, 4]


INTERRUPTED_SCRIPT = """
import os, sys, time
from tests.integration.test_ray_executor import write_pid_and_sleep
from vlatool.jobs.ray_executor import RayExecutor

try:
    with RayExecutor(workers=1) as executor:
        for _ in executor.map(write_pid_and_sleep, [sys.argv[1]]):
            pass
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(130)
"""


def write_pid_and_sleep(item: str) -> None:
    """Writes its process id to the file `item` and sleeps for minutes."""
    Path(item).write_text(str(os.getpid()))
    time.sleep(300)


def _lives(pid: str) -> bool:
    """True if a process runs; False for a zombie."""
    return bool(_text(Path("/proc", pid, "cmdline")))


@pytest.mark.slow  # a private cluster
def test_ctrl_c_ends_the_private_cluster_quietly(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    driver = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_SCRIPT, str(note)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: bool(_text(note)))
    os.killpg(driver.pid, signal.SIGINT)
    output, errors = driver.communicate(timeout=TIMEOUT_S)
    wait_until(lambda: not _lives(note.read_text()))

    assert (driver.returncode, output, errors) == (130, "interrupted\n", "")
    assert not _lives(note.read_text())


def test_credentials_are_not_forwarded() -> None:
    forwarded = {
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": "https://storage.example",
        "VLATOOL_CACHE": "/scratch",
    }
    secret = {
        "AWS_ACCESS_KEY_ID": "1",
        "AWS_SECRET_ACCESS_KEY": "2",
        "AWS_SESSION_TOKEN": "3",
        "VLATOOL_TOKEN": "4",
    }

    assert forwarded_variables({**forwarded, **secret, "HOME": "/home/me"}) == forwarded
