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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vlatool.errors import BugError, DataError, EnvironmentProblem, UsageError
from vlatool.parallel.ray_cluster import forwarded_variables
from vlatool.parallel.ray_executor import RayExecutor

ray = pytest.importorskip("ray")

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one processor each, which this process has not joined."""
    from ray.cluster_utils import Cluster

    checks = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": checks}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@dataclass
class Door:
    """Joins a cluster once for many tests, since each time takes seconds."""

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
    """The cluster, which this process has not joined or has left."""
    door.leave()
    return cluster


def slow_first(item: int) -> int:
    """Items in the front take longest, so finishing order is not item order."""
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
    """Patient, because the machine may be busy with other tests."""
    deadline = time.monotonic() + PATIENCE_S
    while not met() and time.monotonic() < deadline:
        time.sleep(0.05)


def descendants(mark: str) -> list[Path]:
    """The processes that have something in their environment, which a title does not change."""
    found: list[Path] = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder)
    return found


@dataclass(frozen=True)
class Killer:
    """Kills its process on item 2, `times` times; notes every attempt in `folder`."""

    folder: Path
    times: int

    def __call__(self, item: int) -> int:
        attempts = len(list(self.folder.glob(f"{item}-*")))
        (self.folder / f"{item}-{attempts}").touch()
        if item == 2 and attempts < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return item


@dataclass(frozen=True)
class Gate:
    """Lets item 0 pass, and the others once `file` exists."""

    file: Path

    def __call__(self, item: int) -> int:
        while item > 0 and not self.file.exists():
            time.sleep(0.05)
        return item


@dataclass(frozen=True)
class Meeting:
    """The node of each item, after items on so many nodes have met in `folder`."""

    folder: Path
    nodes: int

    def __call__(self, item: int) -> str:
        node = ray.get_runtime_context().get_node_id()
        (self.folder / node).touch()
        wait_until(lambda: len(list(self.folder.iterdir())) >= self.nodes)
        return node


@dataclass(frozen=True)
class Station:
    """The node of each item; item 0 passes, the others wait at their node until `open` exists."""

    folder: Path

    def __call__(self, item: int) -> str:
        node = ray.get_runtime_context().get_node_id()
        if item > 0:
            (self.folder / node).touch()
            wait_until((self.folder / "open").exists)
        return node


class NotForWorkers:
    """An item that a worker cannot unpack."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (__import__, ("a_package_of_the_driver",))


def test_outcomes_come_in_the_order_of_the_items(joined: RayExecutor) -> None:
    outcomes = list(joined.map(slow_first, range(12)))

    assert [one.item for one in outcomes] == list(range(12))
    assert [one.value for one in outcomes] == [item * item for item in range(12)]


def test_error_of_one_item_stays_with_the_item(joined: RayExecutor) -> None:
    outcomes = list(joined.map(odd_fails, range(5)))

    assert [one.value for one in outcomes] == [0, None, 2, None, 4]
    told, unexpected = outcomes[1].error, outcomes[3].error
    assert isinstance(told, UsageError)
    assert (told.code, told.hint, told.details) == ("usage.odd", "be even", {"item": 1})
    assert isinstance(unexpected, BugError)
    assert unexpected.code == "bug.unexpected"


def test_items_are_taken_only_as_the_cluster_needs_them(
    joined: RayExecutor, tmp_path: Path
) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(40):
            taken.append(item)
            yield item

    outcomes = joined.map(Gate(tmp_path / "open"), items())
    next(outcomes)
    before = len(taken)
    (tmp_path / "open").touch()
    rest = [one.value for one in outcomes]

    assert before <= 2 * 2 + 1
    assert rest == list(range(1, 40))


def test_no_items_give_no_outcomes(joined: RayExecutor) -> None:
    assert list(joined.map(slow_first, [])) == []


def test_worker_killed_once_costs_nothing_because_its_item_is_retried(
    joined: RayExecutor, tmp_path: Path
) -> None:
    outcomes = list(joined.map(Killer(tmp_path, times=1), range(6)))

    assert [one.value for one in outcomes] == list(range(6))
    assert len(list(tmp_path.glob("2-*"))) == 2


def test_worker_killed_every_time_costs_only_its_item(joined: RayExecutor, tmp_path: Path) -> None:
    outcomes = list(joined.map(Killer(tmp_path, times=99), range(6)))

    assert [one.value for one in outcomes] == [0, 1, None, 3, 4, 5]
    error = outcomes[2].error
    assert isinstance(error, DataError)
    assert error.code == "data.worker_died"


def test_package_that_workers_lack_is_named(joined: RayExecutor) -> None:
    good, bad = joined.map(str, [1, NotForWorkers()])

    assert good.value == "1"
    assert isinstance(bad.error, EnvironmentProblem)
    assert bad.error.code == "environment.ray_worker_packages"
    assert "a_package_of_the_driver" in bad.error.message


def test_work_spreads_over_the_nodes(joined: RayExecutor, tmp_path: Path) -> None:
    nodes = {one.value for one in joined.map(Meeting(tmp_path, 2), range(2))}

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
        met = {one.value for one in executor.map(Meeting(meeting, 3), range(3))}
        outcomes = executor.map(Station(station), range(10))
        next(outcomes)
        wait_until((station / doomed.node_id).exists)
        apart.remove_node(doomed, allow_graceful=False)
        (station / "open").touch()
        rest = list(outcomes)

    assert doomed.node_id in met
    assert (station / doomed.node_id).exists()
    assert [one.error for one in rest] == [None] * 9
    assert doomed.node_id not in {one.value for one in rest}
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("answers", [False, True], ids=["nobody", "not_ray"])
def test_address_without_a_cluster_is_told_in_bounded_time(apart: Any, *, answers: bool) -> None:
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if not answers:
            server.close()
        with pytest.raises(EnvironmentProblem) as caught:
            RayExecutor(address=address, connect_s=2).__enter__()

    assert time.monotonic() - started < 15
    assert caught.value.code == "environment.ray_unreachable"
    assert address in caught.value.message
    assert "\n" not in caught.value.message + caught.value.hint
    assert not ray.is_initialized()


def test_malformed_address_is_told(apart: Any) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        RayExecutor(address="nonsense").__enter__()

    assert caught.value.code == "environment.ray_unreachable"


def tell_of_private_clusters(home: str, address: str) -> None:
    """Runs two private clusters, then tries to join another; writes what could be seen."""
    os.environ.update(HOME=home, RAY_ADDRESS=address)
    with RayExecutor(workers=1) as executor:
        (worker,) = executor.map(environment_of, [0])
        token = os.environ["RAY_AUTH_TOKEN"]
        assert worker.value is not None
        mark = f"VLATOOL_RAY_RUN={worker.value['VLATOOL_RAY_RUN']}"
        wait_until(lambda: len(agents(mark)) == 2)
        processes = descendants(mark)
        logs = [path for path in _session_folder().rglob("*") if path.is_file()]
        info: dict[str, Any] = {
            "environment": {name: worker.value.get(name) for name in PRIVATE_VARIABLES},
            "address": ray.get_runtime_context().gcs_address,
            "processes": len(processes),
            "agents": agents(mark),
            "log_files": len(logs),
            "strangers": strangers(ray.get_runtime_context().gcs_address, token),
        }
        told = [*logs, *Path("/proc").glob("[0-9]*/cmdline")]
        info["told"] = [str(path) for path in told if token in _text(path)]
    info["left"] = [str(folder) for folder in descendants(mark)]
    info["variables_left"] = sorted(os.environ.keys() & set(PRIVATE_VARIABLES))
    with RayExecutor(workers=1) as executor:
        info["second"] = [one.value for one in executor.map(slow_first, range(3))]
    try:
        RayExecutor(address=address).__enter__()
    except EnvironmentProblem as error:
        info["joining"] = error.code
    info["home"] = [path.name for path in Path(home).iterdir()]
    sys.stdout.write(json.dumps(info))


PRIVATE_STORY = """
import sys
from tests.integration.test_ray_executor import tell_of_private_clusters
tell_of_private_clusters(*sys.argv[1:])
"""
PRIVATE_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED")

STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined")
"""


def strangers(address: str, token: str) -> dict[str, tuple[str, bool]]:
    """What processes print that try to join, and whether the token was held against them."""
    keys = {
        "no_token": {"RAY_AUTH_MODE": "disabled"},
        "wrong_token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)},
        "right_token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    tries = {
        name: subprocess.Popen(
            [sys.executable, "-c", STRANGER, address],
            env={**clean, **key, "RAY_NUM_REDIS_GET_RETRIES": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, key in keys.items()
    }
    ends = {name: process.communicate(timeout=PATIENCE_S) for name, process in tries.items()}
    return {name: (out.strip(), "InvalidAuthToken" in err) for name, (out, err) in ends.items()}


def agents(mark: str) -> list[str]:
    """The titles of Ray's agents that can be found by a mark."""
    titles = [_text(folder / "cmdline").strip("\0") for folder in descendants(mark)]
    return sorted(title for title in titles if title.endswith("Agent"))


def _session_folder() -> Path:
    return Path(ray._private.worker._global_node.get_session_dir_path())


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


@pytest.fixture(scope="module")
def private(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process saw that ran private clusters beside another cluster."""
    home = tmp_path_factory.mktemp("home")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE_STORY, str(home), cluster.address],
        cwd=REPOSITORY,
        env=clean,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_cluster_that_happens_to_run_is_not_joined(private: dict[str, Any], cluster: Any) -> None:
    assert private["address"] != cluster.address


def test_private_cluster_has_a_token_that_nobody_is_told(private: dict[str, Any]) -> None:
    assert private["environment"]["RAY_AUTH_MODE"] == "token"
    assert len(private["environment"]["RAY_AUTH_TOKEN"]) == 64
    assert (private["processes"] > 4, private["log_files"] > 4) == (True, True)
    assert private["told"] == []
    assert private["home"] == []


def test_strangers_cannot_join_a_private_cluster(private: dict[str, Any]) -> None:
    assert private["strangers"] == {
        "no_token": ["", True],
        "wrong_token": ["", True],
        "right_token": ["joined", False],
    }


def test_private_cluster_sends_no_statistics_and_leaves_nothing(private: dict[str, Any]) -> None:
    assert private["environment"]["RAY_USAGE_STATS_ENABLED"] == "0"
    assert private["left"] == []
    assert private["variables_left"] == []


def test_agents_of_a_private_cluster_can_be_found_by_who_ends_it(private: dict[str, Any]) -> None:
    assert private["agents"] == ["ray::DashboardAgent", "ray::RuntimeEnvAgent"]


def test_process_may_have_private_clusters_again_but_join_no_other(private: dict[str, Any]) -> None:
    assert private["second"] == [0, 1, 4]
    assert private["joining"] == "environment.ray_one_cluster"


def test_handler_of_sigterm_is_kept_and_ray_is_left(apart: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)

    with RayExecutor(address=apart.address):
        inside = signal.getsignal(signal.SIGTERM)

    assert inside is before
    assert not ray.is_initialized()


def test_ray_that_someone_else_joined_is_used_and_left_alone(apart: Any) -> None:
    ray.init(address=apart.address, log_to_driver=False)
    try:
        with RayExecutor() as executor:
            outcomes = list(executor.map(slow_first, range(3)))
        assert ray.is_initialized()
    finally:
        ray.shutdown()

    assert [one.value for one in outcomes] == [0, 1, 4]


STORY = """
import os, sys, time
from tests.integration.test_ray_executor import sleep_and_tell
from vlatool.parallel.ray_executor import RayExecutor

try:
    with RayExecutor(workers=1) as executor:
        for _ in executor.map(sleep_and_tell, [sys.argv[1]]):
            pass
except KeyboardInterrupt:
    print("interrupted")
    sys.exit(130)
"""


def sleep_and_tell(item: str) -> None:
    """Writes its process id to the file `item` and goes on for minutes."""
    Path(item).write_text(str(os.getpid()))
    time.sleep(300)


def _lives(pid: str) -> bool:
    """Not for processes that are over and that nobody has asked about."""
    return bool(_text(Path("/proc", pid, "cmdline")))


def test_ctrl_c_ends_the_private_cluster_quietly(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    driver = subprocess.Popen(
        [sys.executable, "-c", STORY, str(note)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: bool(_text(note)))
    os.killpg(driver.pid, signal.SIGINT)
    output, errors = driver.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not _lives(note.read_text()))

    assert (driver.returncode, output, errors) == (130, "interrupted\n", "")
    assert not _lives(note.read_text())


def test_credentials_are_not_forwarded() -> None:
    told = {
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

    assert forwarded_variables({**told, **secret, "HOME": "/home/me"}) == told
