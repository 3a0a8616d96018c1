"""The Ray that a run works on: a cluster joined by its address, or a private one."""

import io
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from typing import Any

from vlatool.errors import EnvironmentProblem, missing_package
from vlatool.parallel.executor import default_workers

_log = logging.getLogger(__name__)

_FORWARDED = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")
_FORWARDED_PREFIXES = ("AWS_ENDPOINT_URL", "VLATOOL_")
_SECRET_WORDS = ("KEY", "SECRET", "TOKEN", "PASSWORD", "CREDENTIAL")

# `ray.init` spends two minutes on an address where no Ray is, and then ends the process that asked.
_PROBE_MARK = "cannot join: "
_PROBE = f"""
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except Exception as error:
    sys.exit(f"{_PROBE_MARK}{{error}}")
"""

# Ray's agents live on for a minute after a driver that was killed, its busy workers for seconds.
# Waits for the end of its input; then kills whoever has the variable, until nobody has it twice in
# a row: children may come late.
_RUN_VARIABLE = "VLATOOL_RAY_RUN"
_PRIVATE_SETTINGS = {
    # Ray's agents write their titles over their environment, mark and all, unless this is set.
    "SPT_NOENV": "1",
    # Ray waits for ever for a worker that dies before the driver is registered; one that is
    # started for a task is replaced after `RAY_worker_register_timeout_seconds`, a minute.
    "RAY_prestart_worker_first_driver": "0",
}
_GUARD = """
import os, signal, sys, time
sys.stdin.read()
quiet = 0
for _ in range(20):
    quiet += 1
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if sys.argv[1].encode() in file.read().split(bytes(1)):
                    quiet = 0
                    os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
    if quiet == 2:
        break
    time.sleep(0.2)
"""


@contextmanager
def ray_cluster(
    workers: int | None, address: str | None, connect_s: float
) -> Generator[None, None, None]:
    """Ray is ready inside; a Ray that this process has already joined is used and stays.

    Raises:
        EnvironmentProblem: Ray is not installed, or the cluster does not answer.
    """
    ray = import_ray()
    with redirect_stdout(_OneThread(threading.get_ident())):
        if ray.is_initialized():
            yield
        elif address is None or address == "local":
            with _private_cluster(ray, workers or default_workers()):
                yield
        else:
            with _joined_cluster(ray, address, connect_s):
                yield


def import_ray() -> Any:
    """The package; its functions are only partly annotated, hence Any."""
    try:
        import ray
    except ImportError as error:
        raise missing_package("ray") from error
    return ray


@contextmanager
def _private_cluster(ray: Any, workers: int) -> Generator[None, None, None]:
    """A cluster of this process on this machine, whatever else runs here; nobody else can use it.

    Its processes listen on all interfaces. The token is all that keeps others out, and is nowhere
    but in the environment of this process and its children.
    """
    mark = {_RUN_VARIABLE: secrets.token_hex(8)}
    token: dict[str, str] = {}
    if not os.environ.get("RAY_AUTH_MODE"):
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _own_token()}
    with _guard(mark), _environment(token):
        ray._raylet.Config.initialize("")  # the mode was read when Ray was imported
        try:
            with _environment(mark | _PRIVATE_SETTINGS):
                _init(ray, address="local", num_cpus=workers, num_gpus=0, include_dashboard=False)
            yield
        finally:
            _leave(ray)


@cache
def _own_token() -> str:
    """One for all private clusters of this process, because Ray keeps the first that it sees."""
    return secrets.token_hex(32)


@contextmanager
def _guard(mark: Mapping[str, str]) -> Generator[None, None, None]:
    """Nothing with the mark in its environment outlives the block, even if this process is killed.

    Ray itself sees to that for the processes that it starts from here, but not for their children.
    """
    words = [f"{name}={value}" for name, value in mark.items()]
    with subprocess.Popen(  # noqa: S603 - this interpreter, our text
        [sys.executable, "-I", "-S", "-c", _GUARD, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ):
        yield


@contextmanager
def _joined_cluster(ray: Any, address: str, connect_s: float) -> Generator[None, None, None]:
    """A cluster that runs without us; told in bounded time if there is none."""
    if _own_token.cache_info().currsize:
        # EvalResult: Ray goes on with the token, and tasks fail at random with OwnerDiedError.
        raise EnvironmentProblem(
            f"{address}: this process has run a private Ray cluster and cannot join another one",
            hint="join it in a new process",
            code="environment.ray_one_cluster",
            details={"address": address},
        )
    reason = _probe(address, connect_s)
    if reason:
        raise _unreachable(address, reason)
    variables = forwarded_variables(os.environ)
    try:
        _init(ray, address=address, runtime_env={"env_vars": variables} if variables else None)
        yield
    finally:
        _leave(ray)


def _init(ray: Any, **options: Any) -> None:
    statistics = os.environ.get("RAY_USAGE_STATS_ENABLED", "0")
    with _sigterm_kept(), _environment({"RAY_USAGE_STATS_ENABLED": statistics}):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            raise ray_failed(str(error)) from error


def _leave(ray: Any) -> None:
    with redirect_stdout(_OneThread(None)):  # it prints what was held back
        ray.shutdown()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Generator[None, None, None]:
    """Environment of this process, and of those that it starts meanwhile."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables.keys() - before.keys():
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def _sigterm_kept() -> Generator[None, None, None]:
    """`ray.init` replaces the handler of SIGTERM by one that exits with 15."""
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


class _OneThread(io.TextIOBase):
    """Standard output for one thread, or none; what Ray prints in others goes to the log."""

    def __init__(self, thread: int | None) -> None:
        self._thread = thread
        self._stdout = sys.stdout

    def write(self, text: str, /) -> int:
        if threading.get_ident() == self._thread:
            return self._stdout.write(text)
        if text.strip():
            _log.info("%s", text.rstrip())
        return len(text)

    def flush(self) -> None:
        self._stdout.flush()


def forwarded_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What workers of a joined cluster get from this process's environment.

    Never a credential: Ray writes these values to its log files, and its dashboard shows them.
    """
    return {
        name: value
        for name, value in environ.items()
        if (name in _FORWARDED or name.startswith(_FORWARDED_PREFIXES))
        and not any(word in name for word in _SECRET_WORDS)
    }


def _probe(address: str, connect_s: float) -> str:
    """Why a cluster cannot be joined; empty if it can."""
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
        return f"no answer in {connect_s:g} s"
    if done.returncode == 0:
        return ""
    told = [line for line in done.stderr.splitlines() if line.startswith(_PROBE_MARK)]
    return told[-1].removeprefix(_PROBE_MARK) if told else f"exit status {done.returncode}"


def _unreachable(address: str, reason: str) -> EnvironmentProblem:
    if "ray[client]" in reason:
        return EnvironmentProblem(
            f"{address}: Ray's client is not installed, which ray:// addresses need",
            hint="pip install 'ray[client]'",
            code="environment.missing_dependency",
        )
    return EnvironmentProblem(
        f"{address}: cannot join this Ray cluster: {first_line(reason)}",
        hint="is it up (`ray status` on its head node)? HOST:6379 works on the cluster's own "
        "machines, ray://HOST:10001 from any other",
        code="environment.ray_unreachable",
        details={"address": address},
    )


def ray_failed(reason: str) -> EnvironmentProblem:
    """Ray itself does not work."""
    return EnvironmentProblem(
        f"Ray failed: {first_line(reason)}",
        hint="run the same command again; Ray's log files are in /tmp/ray/session_latest/logs, and "
        "--engine local needs no Ray",
        code="environment.ray_failed",
    )


def first_line(text: str) -> str:
    """The first line of a message that may have many."""
    return text.strip().partition("\n")[0]
