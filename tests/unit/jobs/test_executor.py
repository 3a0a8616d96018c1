import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builders.jobs import KillsWorker
from vlatool.errors import BugError, DataError
from vlatool.jobs.command import make_executor
from vlatool.jobs.executor import (
    Executor,
    ProcessExecutor,
    SerialExecutor,
    signals_blocked,
    worker_died,
)

EXECUTORS = [SerialExecutor(), ProcessExecutor(2)]


@dataclass(frozen=True)
class Folder:
    path: Path


@dataclass(frozen=True)
class Named:
    item: Folder
    name: str


@pytest.mark.parametrize(("item", "shown"), [(Named(Folder(Path()), "a"), "a"), (3, "3")])
def test_failed_item_is_named_and_never_represented(item: object, shown: str) -> None:
    def missing(_: object) -> None:
        raise FileNotFoundError(2, "no such file", "x")

    (outcome,) = SerialExecutor().map(missing, [item])
    (other,) = SerialExecutor().map(missing, [Folder(Path())])

    assert outcome.error is not None
    assert outcome.error.message == f"{shown}: cannot be read: x: no such file"
    assert other.error is not None
    assert other.error.message.startswith("an item: cannot be read")
    assert worker_died(Folder(Path())).message.startswith("an item: ")


def slow_first(item: int) -> int:
    """The first item takes longest, so that items finish in another order."""
    time.sleep(0.1 if item == 0 else 0)
    return item * item


def odd_fails(item: int) -> int:
    if item == 1:
        raise DataError("odd", hint="be even", code="data.odd", details={"item": item})
    if item == 3:
        raise ZeroDivisionError("three")
    return item


@pytest.mark.parametrize("executor", EXECUTORS)
def test_outcomes_come_in_the_order_of_the_items(executor: Executor) -> None:
    assert list(executor.map(slow_first, [])) == []
    outcomes = list(executor.map(slow_first, range(6)))

    assert [outcome.item for outcome in outcomes] == list(range(6))
    assert [outcome.value for outcome in outcomes] == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_error_of_one_item_stays_with_the_item_and_an_unexpected_one_is_a_bug(
    executor: Executor,
) -> None:
    outcomes = list(executor.map(odd_fails, range(5)))

    assert [outcome.value for outcome in outcomes] == [0, None, 2, None, 4]
    error = outcomes[1].error
    assert isinstance(error, DataError)
    assert (error.code, error.hint, error.details) == ("data.odd", "be even", {"item": 1})
    unexpected = outcomes[3].error
    assert isinstance(unexpected, BugError)
    assert unexpected.code == "bug.unexpected"
    assert "odd_fails" in unexpected.details["traceback"][-1]
    assert "ZeroDivisionError" in unexpected.message


def test_items_are_read_only_as_workers_need_them() -> None:
    taken: list[int] = []

    def items():
        for item in range(50):
            taken.append(item)
            yield item

    outcomes = ProcessExecutor(1).map(slow_first, items())
    next(outcomes)
    outcomes.close()  # pyright: ignore[reportAttributeAccessIssue]

    assert len(taken) <= 3


@pytest.mark.parametrize(("times", "third"), [(1, 2), (99, None)])
def test_worker_killed_once_costs_nothing_and_every_time_only_its_item(
    tmp_path: Path, times: int, third: int | None
) -> None:
    outcomes = list(ProcessExecutor(2).map(KillsWorker(tmp_path, times=times), range(8)))

    assert [outcome.value for outcome in outcomes] == [0, 1, third, 3, 4, 5, 6, 7]
    error = outcomes[2].error
    assert (error is None) == (third is not None)
    if error is not None:
        assert (type(error), error.code) == (DataError, "data.incomplete")


@pytest.mark.parametrize(("workers", "kind"), [(1, SerialExecutor), (3, ProcessExecutor)])
def test_one_worker_needs_no_pool(workers: int, kind: type) -> None:
    assert isinstance(make_executor(workers), kind)


STOPS_EARLY = """
from vlatool.jobs.executor import ProcessExecutor

if __name__ == "__main__":
    with ProcessExecutor(2) as executor:
        next(executor.map(bytes, [100_000_000] * 4))
    print("left")
"""


def test_driver_ends_when_workers_are_stopped_while_they_send(tmp_path: Path) -> None:
    script = tmp_path / "stops_early.py"
    script.write_text(STOPS_EARLY)

    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, "left\n")


INTERRUPTED_AT_ITS_END = """
import multiprocessing, signal, sys, time
from vlatool.jobs.executor import ProcessExecutor

def interrupt(event, arguments):
    if event == "os.kill" and not sent:
        sent.append(event)
        signal.raise_signal(signal.SIGINT)

sent = []
if __name__ == "__main__":
    sys.addaudithook(interrupt)
    try:
        with ProcessExecutor(2) as executor:
            next(executor.map(time.sleep, [0, 30, 30]))
    except KeyboardInterrupt:
        end = time.monotonic() + 10  # the thread of the pool may reap a worker a moment later
        while multiprocessing.active_children() and time.monotonic() < end:
            time.sleep(0.01)
        print(sent, multiprocessing.active_children())
"""


def test_ctrl_c_while_workers_are_stopped_leaves_none(tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED_AT_ITS_END)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "['os.kill'] []\n", done.stderr


def test_signal_to_another_thread_is_handled_after_the_block() -> None:
    reached: list[bool] = []

    def receive() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    def block() -> None:
        with signals_blocked(signal.SIGINT):
            thread = threading.Thread(target=receive)
            thread.start()
            thread.join()
            reached.append(True)

    with pytest.raises(KeyboardInterrupt):
        block()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
