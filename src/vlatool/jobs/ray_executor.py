"""Executor that runs items as tasks of a Ray cluster."""

import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Self

from vlatool import __version__
from vlatool.credentials import is_credential
from vlatool.errors import EnvironmentProblem, missing_package
from vlatool.jobs.executor import Item, Outcome, Value, attempt, default_workers, worker_died
from vlatool.storage.retry import expect_answers

_FORWARDED = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "STORAGE_EMULATOR_HOST")
_FORWARDED_PREFIXES = ("AWS_ENDPOINT_URL", "VLATOOL_")

# For an address without Ray, `ray.init` tries for two minutes and then exits the process.
_PROBE_PREFIX = "cannot join: "
_PROBE = f"""
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except Exception as error:
    sys.exit(f"{_PROBE_PREFIX}{{error}}")
"""


@contextmanager
def ray_cluster(
    workers: int | None, address: str | None, connect_s: float
) -> Generator[None, None, None]:
    """Connects to Ray inside the block; an existing connection of this process is used and kept."""
    is_private = address is None or address == "local"
    if is_private:
        _require_token()
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    with redirect_stdout(sys.stderr):  # threads of Ray print what happens on the cluster
        try:
            if is_private:
                cpus = workers or default_workers()
                _init(ray, address="local", num_cpus=cpus, num_gpus=0, include_dashboard=False)
            else:
                _join(ray, str(address), connect_s)
            yield
        finally:
            ray.shutdown()


def import_ray() -> Any:
    """Module `ray`; it is only partly annotated, hence Any."""
    try:
        import ray
    except ImportError as error:
        raise missing_package("ray") from error
    return ray


def _require_token() -> None:
    """Lets only this process and its children use the clusters that it starts, whose processes
    listen on all interfaces. Ray reads these variables when it is imported.
    """
    if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ:
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = _own_token()


@cache
def _own_token() -> str:
    return secrets.token_hex(32)


def _join(ray: Any, address: str, connect_s: float) -> None:
    """Joins a running cluster; raises within `connect_s` if it does not respond."""
    if _own_token.cache_info().currsize:
        # Observed: Ray keeps using the token, and tasks fail at random with OwnerDiedError.
        raise EnvironmentProblem(
            f"{address}: this process already started its own Ray cluster (--engine ray) and "
            "cannot join this one",
            hint="join the cluster in a new process",
            code="environment.process_failed",
            details={"address": address},
        )
    reason = _probe(address, connect_s)
    if reason:
        raise _unreachable(address, reason)
    variables = forwarded_variables(os.environ)
    _init(ray, address=address, runtime_env={"env_vars": variables} if variables else None)


def _init(ray: Any, **options: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _sigterm_kept():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            raise ray_failed(str(error)) from error


@contextmanager
def _sigterm_kept() -> Generator[None, None, None]:
    """Restores the handler of SIGTERM, which `ray.init` replaces by one that exits with 15."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        signal.signal(signal.SIGTERM, handler)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, handler)


def forwarded_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that workers of a joined cluster get from this process.

    Credentials are left out: Ray writes these values to its log files and shows them on its
    dashboard.
    """
    return {
        name: value
        for name, value in environ.items()
        if (name in _FORWARDED or name.startswith(_FORWARDED_PREFIXES))
        and not is_credential(name, value)
    }


def _probe(address: str, connect_s: float) -> str:
    """Reason why a cluster cannot be joined; empty if it can."""
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, our text
            [sys.executable, "-c", _PROBE, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=connect_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no response within {connect_s:g} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith(_PROBE_PREFIX)]
    return lines[-1].removeprefix(_PROBE_PREFIX) if lines else f"exit status {done.returncode}"


def _unreachable(address: str, reason: str) -> EnvironmentProblem:
    if "ray[client]" in reason:
        return EnvironmentProblem(
            f"{address}: ray:// addresses need the client of Ray, which is not installed",
            hint="pip install 'ray[client]'",
            code="environment.missing_dependency",
        )
    return EnvironmentProblem(
        f"{address}: cannot join this Ray cluster: {first_line(reason)}",
        hint="check that it runs (`ray status` on its head node); use HOST:6379 on a machine of "
        "the cluster, ray://HOST:10001 from any other machine",
        code="environment.process_failed",
        details={"address": address},
    )


def ray_failed(reason: str) -> EnvironmentProblem:
    """Error for a failure of Ray itself."""
    return EnvironmentProblem(
        f"Ray failed: {first_line(reason)}",
        hint="run the same command again, or use --engine local; the log files of Ray are in "
        "/tmp/ray/session_latest/logs",
        code="environment.process_failed",
    )


def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


_UNFINISHED_PER_CPU = 2
_HELD_PER_CPU = 8  # with finished tasks, whose results wait for a slower one before them
_RETRIES = 3
_POLL_S = 5.0  # time until a cluster that grew gets more tasks


class RayExecutor:
    """Executor with tasks on a Ray cluster and a limited number of items in flight.

    `connect_s`: maximum number of seconds to join a cluster.

    If a worker or node dies, Ray runs its tasks again elsewhere. An item whose workers die in each
    attempt gets an error.
    """

    def __init__(
        self, workers: int | None = None, address: str | None = None, *, connect_s: float = 60.0
    ) -> None:
        # number of processors of a private cluster; None for all. On a joined cluster, the maximum
        # number of concurrent tasks; None for its number of processors
        self.workers = workers
        # running cluster: `auto`, `HOST:6379` or `ray://HOST:10001`; None starts a private one on
        # this machine. An existing connection of this process to Ray is used instead
        self.address = address
        self._connect_s = connect_s
        self._stack = ExitStack()
        self._open: list[Generator[Outcome[Any, Any], None, None]] = []

    def __enter__(self) -> Self:
        """Joins the cluster, or starts one."""
        self._stack.enter_context(ray_cluster(self.workers, self.address, self._connect_s))
        return self

    def __exit__(self, *exc: object) -> None:
        """Cancels running tasks and disconnects; a private cluster ends."""
        with self._stack:
            for outcomes in self._open:
                outcomes.close()
            self._open.clear()

    def map(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Iterator[Outcome[Item, Value]]:
        """Yields one outcome per item, in order; the error of an item does not stop the others."""
        outcomes = self._outcomes(function, items)
        self._open.append(outcomes)
        return outcomes

    def _outcomes(
        self, function: Callable[[Item], Value], items: Iterable[Item]
    ) -> Generator[Outcome[Item, Value], None, None]:
        ray = import_ray()
        submit = _submitter(ray, function)
        remaining = iter(items)
        in_order: deque[tuple[Item, Any]] = deque()
        running: set[Any] = set()
        try:
            while True:
                cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))  # nodes come and go
                free = _free_slots(cpus, self.workers, len(running), len(in_order))
                for item in islice(remaining, free):
                    in_order.append((item, submit(item)))
                    running.add(in_order[-1][1])
                if not in_order:
                    return
                if in_order[0][1] in running:
                    # At most 5 s, until a task has ended; its result is not fetched.
                    _, left = ray.wait(
                        list(running), num_returns=1, timeout=_POLL_S, fetch_local=False
                    )
                    running = set(left)
                else:
                    yield _outcome(ray, submit, *in_order.popleft())
        finally:
            if ray.is_initialized():  # `ray.cancel` would start a cluster otherwise
                for task in running:
                    ray.cancel(task)


def _free_slots(cpus: int, workers: int | None, running: int, held: int) -> int:
    """Number of tasks to submit, with `running` unfinished and `held` not yet yielded."""
    unfinished = cpus * _UNFINISHED_PER_CPU
    if workers is not None and workers < cpus:
        unfinished = workers
    return max(0, min(unfinished - running, cpus * _HELD_PER_CPU - held))


def _submitter(ray: Any, function: Callable[[Item], object]) -> Callable[[Item], Any]:
    """Function that starts a task for an item; `function` is sent to each node only once."""
    remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_attempt_on_worker)
    stored = ray.put(function)
    driver = _Driver(__version__, Path.cwd())
    return lambda item: remote.remote(driver, stored, item)


@dataclass(frozen=True)
class _Driver:
    """Version and folder of the driver, which workers must share."""

    version: str
    folder: Path


def _attempt_on_worker(
    driver: _Driver, function: Callable[[Item], Value], item: Item
) -> Outcome[Item, Value]:
    """Calls `attempt` on a worker, with the version and the working directory of the driver."""
    if driver.version != __version__:
        problem = EnvironmentProblem(
            f"a worker of the cluster has vlatool {__version__}, the driver has {driver.version}",
            hint="install the same version on every node:"
            f" pip install 'vlatool[ray]=={driver.version}'",
            code="environment.process_failed",
        )
        return Outcome(item, error=problem)
    expect_answers()  # the driver has reached the storage
    if driver.folder.is_dir():
        os.chdir(driver.folder)
    return attempt(function, item)


def _outcome(ray: Any, submit: Callable[[Item], Any], item: Item, task: Any) -> Outcome[Item, Any]:
    """Outcome of a task that has ended; a result that was lost with its node is computed again."""
    errors = ray.exceptions
    reason = ""
    for _ in range(_RETRIES):
        try:
            return ray.get(task)
        except errors.ObjectLostError as error:
            reason = str(error)
            task = submit(item)
        except errors.RayTaskError as error:
            return _broken_task(item, error.cause)
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError) as error:
            reason = str(error)
            break
        except errors.RayError as error:
            return Outcome(item, error=ray_failed(str(error)))
    died = worker_died(item)
    died.details["reason"] = reason
    return Outcome(item, error=died)


def _broken_task(item: Item, cause: Exception) -> Outcome[Item, Any]:
    """Outcome of a task that could not be unpickled, run or pickled (`attempt` did not return)."""
    text = str(cause)
    if "No module named" in text or "failed to import" in text:
        problem = EnvironmentProblem(
            f"a worker of the cluster lacks a package: {first_line(text)}",
            hint="install vlatool and its plugins on every node, in the same versions",
            code="environment.process_failed",
        )
        return Outcome(item, error=problem)

    def fail(_: Item) -> Any:
        raise cause

    return attempt(fail, item)
