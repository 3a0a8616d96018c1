"""Checks of this installation and machine."""

import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vlatool import __version__
from vlatool.config.base import ConfigModel, option
from vlatool.errors import EnvironmentProblem, VlatoolError, install_line, requirements
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs import machine
from vlatool.jobs.executor import SHARED_MEMORY
from vlatool.results import Result
from vlatool.storage.background import in_background
from vlatool.storage.hub import Repository
from vlatool.storage.s3 import Bucket
from vlatool.storage.uri import can_list, location
from vlatool.storage.web import check_server, route_settings

FREE_DISK_LOW_BYTES = 5 * 2**30
# Containers begin with 64 MiB, which a few batches of images fill.
SHARED_MEMORY_LOW_BYTES = 2**30
_NETWORK_TIMEOUT_S = 10.0  # of each check, all at once
_WITHOUT_NETWORK = "without a network, give local folders instead of hf:// and s3:// locations"
Status = Literal["ok", "note", "warning", "error"]


class DoctorConfig(ConfigModel):
    """Options of `vlatool doctor`."""

    locations: list[str] = option(
        [], "Locations to reach, such as s3://lab/raw or hf://owner/name."
    )


@dataclass(frozen=True)
class DoctorCheck:
    name: str
    status: Status  # `note`: optional; `warning`: may cause problems; `error`: the core is broken
    message: str  # state that was found
    hint: str = ""  # remedy


@dataclass(frozen=True)
class DoctorResult(Result):
    """All checks in their order."""

    version: str
    healthy: bool  # the core works
    checks: Sequence[DoctorCheck]

    def lines(self) -> Iterator[str]:
        width = max(len(check.name) for check in self.checks)
        for check in self.checks:
            yield f"{check.status:<8} {check.name:<{width}}  {check.message}"
            if check.hint:
                yield f"{'':<8} {'':<{width}}  {check.hint}"


def doctor(config: DoctorConfig | None = None, *, reporter: Reporter = NULL) -> DoctorResult:
    """Checks the extras, the GPUs, plugins, the disk and the network.

    Raises:
        EnvironmentProblem: The core does not work; `error.result` holds the checks.
    """
    makers: tuple[Callable[[], Iterator[DoctorCheck]], ...] = (
        _packages, _devices, _plugins, _machine,
    )  # fmt: skip
    checks = [check for maker in makers for check in maker()]
    checks += _network(() if config is None else config.locations)
    broken = [check for check in checks if check.status == "error"]
    result = DoctorResult(__version__, not broken, checks)
    if not broken:
        return result
    names = [check.name for check in broken]
    problem = EnvironmentProblem(
        f"the core does not work, failed checks: {', '.join(names)}",
        hint=broken[0].hint,
        code="environment.missing_dependency",
        details={"broken": names},
    )
    problem.result = result
    raise problem


def _packages() -> Iterator[DoctorCheck]:
    extras = requirements()
    if not extras:
        hint = "pip install vlatool; vlatool then knows its requirements"
        yield DoctorCheck(
            "core packages", "warning", "vlatool is on the path but not installed", hint
        )
    for extra, packages in extras.items():
        missing = [name for name in packages if not _is_installed(name)]
        name = f"extra {extra}" if extra else "core packages"
        if missing:
            status = "note" if extra else "error"
            yield DoctorCheck(name, status, f"missing: {', '.join(missing)}", install_line(extra))
        else:
            yield DoctorCheck(name, "ok", "installed")


def _devices() -> Iterator[DoctorCheck]:
    if not _is_installed("torch"):
        return
    try:
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (ImportError, OSError, RuntimeError) as error:
        yield DoctorCheck(
            "devices", "warning", f"torch cannot be imported: {error}", "reinstall torch"
        )
        return
    if names:
        yield DoctorCheck("devices", "ok", ", ".join(names))
    else:
        yield DoctorCheck("devices", "note", "no GPU: training runs on the CPU")


def _plugins() -> Iterator[DoctorCheck]:
    from vlatool.workflows.catalog import plugins

    for row in plugins().plugins:
        if row["error"]:
            hint = f"reinstall or remove the distribution {row['origin']!r}"
            yield DoctorCheck(f"plugin {row['name']}", "warning", row["error"], hint)


def _machine() -> Iterator[DoctorCheck]:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"x")
        yield DoctorCheck("temporary folder", "ok", f"{tempfile.gettempdir()} is writable")
    except OSError as error:
        hint = "set TMPDIR to a folder that can be written"
        yield DoctorCheck("temporary folder", "error", f"not writable: {error}", hint)
    if sys.platform == "linux":
        yield DoctorCheck("system", "ok", "Linux, on which vlatool is tested")
    else:
        tested = "vlatool is tested on Linux; its parts are portable"
        yield DoctorCheck("system", "note", f"{sys.platform}: {tested}")
    count = counted(machine.processors(), "processor")
    yield DoctorCheck("machine", "ok", f"{count}, {_gib(machine.memory())} of memory are free")
    free = shutil.disk_usage(Path.cwd()).free
    is_low = free < FREE_DISK_LOW_BYTES
    hint = "free some space: data sets and checkpoints are large" if is_low else ""
    yield DoctorCheck(
        "free disk", "warning" if is_low else "ok", f"{_gib(free)} in this folder", hint
    )
    if SHARED_MEMORY.is_dir():
        size = shutil.disk_usage(SHARED_MEMORY).total
        is_writable = os.access(SHARED_MEMORY, os.W_OK)
        is_low = size < SHARED_MEMORY_LOW_BYTES or not is_writable
        hint = "training passes batches through it: `docker run --shm-size 8g`, or a lower "
        yield DoctorCheck(
            "shared memory",
            "warning" if is_low else "ok",
            _gib(size) if is_writable else f"{SHARED_MEMORY} cannot be written",
            f"{hint}data.num_workers" if is_low else "",
        )


def _network(locations: Sequence[str]) -> Iterator[DoctorCheck]:
    """Checks of the hub, S3 and some locations, at once and within 10 s."""
    checks: dict[str, Callable[[], DoctorCheck]] = {"proxies": _proxies, "hub": _hub, "s3": _s3}
    checks |= {f"location {text}": partial(_location, text) for text in locations}
    running = {name: in_background(check) for name, check in checks.items()}
    wait(running.values(), _NETWORK_TIMEOUT_S)
    for name, future in running.items():
        if not future.done():
            message = f"did not answer within {_NETWORK_TIMEOUT_S:g} s"
            yield DoctorCheck(name, "warning", message, _WITHOUT_NETWORK)
            continue
        try:
            yield future.result()
        except VlatoolError as error:
            yield DoctorCheck(name, "warning", error.message, error.hint)


def _proxies() -> DoctorCheck:
    settings = ", ".join(f"{name}={text}" for name, text in route_settings().items())
    return DoctorCheck("proxies", "ok", settings or "none, and the certificates of the system")


def _hub() -> DoctorCheck:
    if not _is_installed("huggingface_hub"):
        return DoctorCheck("hub", "note", "hf:// locations cannot be read", install_line("hub"))
    repository = Repository("hf://models/any/name")
    if repository.is_off:
        hint = "unset HF_HUB_OFFLINE to read hf:// locations"
        return DoctorCheck("hub", "note", "access is switched off (HF_HUB_OFFLINE)", hint)
    user = "with a token" if repository.token else "without a token: public repositories only"
    return _server("hub", repository.endpoint, user)


def _s3() -> DoctorCheck:
    bucket = Bucket("s3://any")
    kind = "without credentials: public buckets only" if bucket.is_anonymous else "with credentials"
    return _server("s3", bucket.endpoint, kind)


def _server(name: str, url: str, access: str) -> DoctorCheck:
    problem = check_server(url)
    if problem:
        return DoctorCheck(name, "warning", f"{url}: {problem}", _WITHOUT_NETWORK)
    return DoctorCheck(name, "ok", f"{url} answers, {access}")


def _location(text: str) -> DoctorCheck:
    name = f"location {text}"
    path = location(text)
    if path.exists():
        return DoctorCheck(name, "ok", "exists and can be read")
    if can_list(path):
        return DoctorCheck(name, "warning", "does not exist")
    return DoctorCheck(name, "ok", "its server answers; there is no file of this name")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
