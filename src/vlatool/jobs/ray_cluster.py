"""Connection to Ray: a private cluster, or a running one with a given address."""

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

from vlatool.credentials import is_credential
from vlatool.errors import EnvironmentProblem, missing_package
from vlatool.jobs.executor import default_workers

_log = logging.getLogger(__name__)

_FORWARDED = ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE")
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

# The agents of Ray run for a minute after the driver was killed, busy workers for seconds. The
# guard process waits for the end of its input, then kills all processes with the variable in their
# environment, until there were none twice in a row (children may start late).
_RUN_VARIABLE = "VLATOOL_RAY_RUN"
_PRIVATE_SETTINGS = {
    # Without this, the agents of Ray overwrite their environment, with the mark, by their titles.
    "SPT_NOENV": "1",
    # Ray waits forever for a worker that dies before the driver is registered; a worker that is
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
    """Connects to Ray inside the block; an existing connection of this process is used and kept."""
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
    """Module `ray`; it is only partly annotated, hence Any."""
    try:
        import ray
    except ImportError as error:
        raise missing_package("ray") from error
    return ray


@contextmanager
def _private_cluster(ray: Any, workers: int) -> Generator[None, None, None]:
    """Starts a cluster on this machine that only this process can use.

    Its processes listen on all interfaces. Access needs a token, which only exists in the
    environment of this process and its children.
    """
    mark = {_RUN_VARIABLE: secrets.token_hex(8)}
    token: dict[str, str] = {}
    if not os.environ.get("RAY_AUTH_MODE"):
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _own_token()}
    with _guard(mark), _environment(token):
        ray._raylet.Config.initialize("")  # Ray read RAY_AUTH_MODE when it was imported
        try:
            with _environment(mark | _PRIVATE_SETTINGS):
                _init(ray, address="local", num_cpus=workers, num_gpus=0, include_dashboard=False)
            yield
        finally:
            _disconnect(ray)


@cache
def _own_token() -> str:
    """Token of all private clusters of this process, because Ray keeps the first one."""
    return secrets.token_hex(32)


@contextmanager
def _guard(mark: Mapping[str, str]) -> Generator[None, None, None]:
    """Kills all processes with the mark in their environment after the block.

    This also happens if this process is killed. Ray only ends the processes that it starts from
    this process, not their children.
    """
    variables = [f"{name}={value}" for name, value in mark.items()]
    with subprocess.Popen(  # noqa: S603 - this interpreter, our text
        [sys.executable, "-I", "-S", "-c", _GUARD, *variables],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ):
        yield


@contextmanager
def _joined_cluster(ray: Any, address: str, connect_s: float) -> Generator[None, None, None]:
    """Joins a running cluster; raises within `connect_s` if it does not respond."""
    if _own_token.cache_info().currsize:
        # Observed: Ray keeps using the token, and tasks fail at random with OwnerDiedError.
        raise EnvironmentProblem(
            f"{address}: this process already started its own Ray cluster (--engine ray) and "
            "cannot join this one",
            hint="join the cluster in a new process",
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
        _disconnect(ray)


def _init(ray: Any, **options: Any) -> None:
    statistics = os.environ.get("RAY_USAGE_STATS_ENABLED", "0")
    with _sigterm_kept(), _environment({"RAY_USAGE_STATS_ENABLED": statistics}):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:
            raise ray_failed(str(error)) from error


def _disconnect(ray: Any) -> None:
    with redirect_stdout(_OneThread(None)):  # it prints buffered output
        ray.shutdown()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Generator[None, None, None]:
    """Sets environment variables of this process, and of those that it starts in the block."""
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


class _OneThread(io.TextIOBase):
    """Standard output of one thread, or none; output of the other threads is logged."""

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
        code="environment.ray_unreachable",
        details={"address": address},
    )


def ray_failed(reason: str) -> EnvironmentProblem:
    """Error for a failure of Ray itself."""
    return EnvironmentProblem(
        f"Ray failed: {first_line(reason)}",
        hint="run the same command again, or use --engine local; the log files of Ray are in "
        "/tmp/ray/session_latest/logs",
        code="environment.ray_failed",
    )


def first_line(text: str) -> str:
    """First line of a message."""
    return text.strip().partition("\n")[0]
