"""Executor that runs items as tasks of a Ray cluster."""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from vlatool import __version__
from vlatool.errors import EnvironmentProblem
from vlatool.jobs.executor import Item, Outcome, Value, attempt, worker_died
from vlatool.jobs.ray_cluster import first_line, import_ray, ray_cluster, ray_failed
from vlatool.storage.first_contact import expect_answers

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
        window = _Window(ray, self.workers)
        remaining = iter(items)
        in_order: deque[tuple[Item, Any]] = deque()
        running: set[Any] = set()
        try:
            while True:
                for item in islice(remaining, window.free_slots(len(running), len(in_order))):
                    in_order.append((item, submit(item)))
                    running.add(in_order[-1][1])
                if not in_order:
                    return
                if in_order[0][1] in running:
                    running = _still_running(ray, running)
                else:
                    yield _outcome(ray, submit, *in_order.popleft())
        finally:
            _cancel(ray, running)


class _Window:
    """Limit of submitted tasks, which follows the size of the cluster."""

    def __init__(self, ray: Any, workers: int | None) -> None:
        self._ray = ray
        self._workers = workers
        self._cpus = 1
        self._asked = -_POLL_S

    def free_slots(self, running: int, held: int) -> int:
        """Number of tasks to submit, with `running` unfinished and `held` not yet yielded."""
        if time.monotonic() - self._asked >= _POLL_S:
            self._cpus = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
            self._asked = time.monotonic()
        unfinished = self._cpus * _UNFINISHED_PER_CPU
        if self._workers is not None and self._workers < self._cpus:
            unfinished = self._workers
        return max(0, min(unfinished - running, self._cpus * _HELD_PER_CPU - held))


def _still_running(ray: Any, running: set[Any]) -> set[Any]:
    """Waits until a task has ended, at most 5 s; returns the others. Fetches no results."""
    _, left = ray.wait(list(running), num_returns=1, timeout=_POLL_S, fetch_local=False)
    return set(left)


def _cancel(ray: Any, running: set[Any]) -> None:
    if ray.is_initialized():  # `ray.cancel` would start a cluster otherwise
        for task in running:
            ray.cancel(task)


def _submitter(ray: Any, function: Callable[[Item], object]) -> Callable[[Item], Any]:
    """Function that starts a task for an item; `function` is sent to each node only once."""
    remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_attempt_on_worker)
    stored, driver = ray.put(function), _Driver(__version__, Path.cwd())
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
            code="environment.ray_worker_version",
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
            reason, task = str(error), submit(item)
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
            code="environment.ray_worker_packages",
        )
        return Outcome(item, error=problem)

    def fail(_: Item) -> Any:
        raise cause

    return attempt(fail, item)
