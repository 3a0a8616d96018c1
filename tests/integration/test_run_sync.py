"""Runs that are copied to another location while they train."""

import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.builders.errors import fails
from tests.builders.memory_remote import MemoryRemote
from tests.builders.recording import Recorder
from tests.builders.s3_server import Proxy
from tests.builders.toy_runs import DATA, SITE, STEPS, toy_config
from tests.builders.toys import install_toys, write_numbers
from vlatool.checkpoints.layout import RunDir
from vlatool.errors import StorageError
from vlatool.storage.atomic import write_bytes
from vlatool.storage.retry import SPEED_VARIABLE, TIMEOUT_VARIABLE
from vlatool.storage.tree import files_below
from vlatool.storage.uri import location
from vlatool.workflows.train import TrainResult, train

STOPPED = 1


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with data and the toy model types."""
    install_toys(tmp_path / SITE)
    write_numbers(tmp_path / DATA)
    monkeypatch.syspath_prepend(str(tmp_path / SITE))
    return tmp_path


class AtStep(Recorder):
    """Reporter that calls functions when the metrics of a step are logged."""

    def __init__(self, calls: Mapping[int, Callable[[], object]]) -> None:
        super().__init__()
        self._calls = calls

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Calls the function of the step."""
        self._calls.get(step, lambda: None)()


def trained(
    root: Path, remote: str, calls: Mapping[int, Callable[[], object]] | None = None, **keys: Any
) -> tuple[TrainResult, Recorder]:
    """Trains the run `a`, whose copies are below `remote`."""
    reporter = AtStep(calls or {})
    config = toy_config(root, "toy_lm", "a", remote_sync=remote, **keys)
    return train(config, reporter=reporter), reporter


def copied(remote: str | None) -> dict[str, bytes]:
    """Content of every file of a copy, without its lock."""
    assert remote is not None
    folder = location(remote)
    names = [file.name for file in files_below(folder) if not file.name.endswith("lock")]
    return {name: (folder / name).read_bytes() for name in names}


def local(root: Path) -> dict[str, bytes]:
    """Content of every file of the local run, without its lock."""
    return copied(str(root / "a"))


@pytest.mark.parametrize("scheme", ["memory", "file"])  # S3 is that of the tests below
def test_copy_of_a_run_is_equal_to_its_folder(scheme: str, root: Path, memory: str) -> None:
    remote = {"memory": memory, "file": str(root / "there")}[scheme]

    result, _ = trained(root, remote)

    assert result.remote == f"{remote}/a"
    assert copied(f"{remote}/a") == local(root)


def test_every_checkpoint_is_sent_before_it_is_pruned_and_named_last(
    root: Path, s3_bucket: str, s3_proxy: Proxy
) -> None:
    s3_proxy.faults.delay_s = 0.02
    trained(root, f"s3://{s3_bucket}", save_every_n_steps=2, max_checkpoint_limit=1)

    written = [
        re.sub(r".*/a/(checkpoints/)?", "", request.path.partition("?")[0])
        for request in s3_proxy.faults.requests
        if request.method == "PUT" and "/a/" in request.path and request.status == 200
    ]
    order = [
        name
        for name in written
        if name.endswith(("manifest.json", "latest.json", "model.safetensors"))
    ]
    expected = [
        name
        for step in range(2, STEPS + 1, 2)
        for name in (
            f"step_{step:08d}/model.safetensors",
            f"step_{step:08d}/manifest.json",
            "latest.json",
        )
    ]
    assert order == expected
    assert [step for step, _ in RunDir(root / "a").checkpoints()] == [STEPS]
    assert [step for step, _ in RunDir(location(f"s3://{s3_bucket}/a")).checkpoints()] == [STEPS]


def test_storage_that_is_away_for_a_minute_costs_nothing(
    root: Path, s3_bucket: str, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, "60")
    result, _ = trained(root, f"s3://{s3_bucket}", {3: lambda: s3_proxy.faults.down_for(1.0)})

    assert result.remote == f"s3://{s3_bucket}/a"
    assert copied(f"s3://{s3_bucket}/a") == local(root)


FAULTS = {
    "away": ({"down_after": 1}, "storage.unreachable"),
    "full": ({"fail_every": 1, "status": 507, "only": ("PUT", "POST")}, "storage.unreachable"),
    "expired": ({"fail_every": 1, "status": 400}, "environment.credentials"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_storage_that_fails_for_ever_ends_a_complete_local_run_with_an_error(
    fault: str, root: Path, s3_bucket: str, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, "60")
    monkeypatch.setenv(TIMEOUT_VARIABLE, "6")
    settings, reason = FAULTS[fault]

    def fail() -> None:
        for name, value in settings.items():
            setattr(s3_proxy.faults, name, value)

    with fails("storage.write", 5) as caught:
        trained(root, f"s3://{s3_bucket}", {6: fail}, max_checkpoint_limit=1)

    assert caught.value.details["reason"] == reason
    assert isinstance(caught.value.result, TrainResult)
    assert RunDir(root / "a").latest() is not None

    s3_proxy.faults.clear()
    location(f"s3://{s3_bucket}/a/.vlatool/lock").unlink(missing_ok=True)  # as if it had expired
    again, _ = trained(root, f"s3://{s3_bucket}", max_checkpoint_limit=1)
    assert again.status == "already complete"
    assert copied(f"s3://{s3_bucket}/a") == local(root)


def test_credentials_that_are_renewed_during_the_run_are_used(
    root: Path, s3_bucket: str, s3_proxy: Proxy
) -> None:
    faults = s3_proxy.faults

    def expire() -> None:
        faults.fail_every, faults.status = 1, 400

    def renew() -> None:
        until = time.monotonic() + 60  # the copy is written by another thread
        while all(request.status != 400 for request in faults.requests):
            assert time.monotonic() < until
            time.sleep(0.01)
        faults.clear()

    reporter = AtStep({3: expire, 8: renew})
    train(toy_config(root, "toy_lm", "a", remote_sync=f"s3://{s3_bucket}"), reporter=reporter)

    assert "sync" in dict(reporter.warnings)
    assert copied(f"s3://{s3_bucket}/a") == local(root)


def test_location_that_cannot_be_written_fails_before_the_first_step(
    root: Path, s3_bucket: str, s3_proxy: Proxy
) -> None:
    s3_proxy.faults.fail_every, s3_proxy.faults.status = 1, 403
    s3_proxy.faults.only = ("PUT",)
    steps: list[int] = []
    with pytest.raises(StorageError, match="access is denied"):
        trained(root, f"s3://{s3_bucket}", {1: lambda: steps.append(1)})
    assert not steps


@pytest.mark.parametrize("key", ["remote_sync", "save_path"])
def test_location_that_is_only_read_or_has_other_files_is_an_error(
    key: str, root: Path, memory: str
) -> None:
    write_bytes(location(f"{memory}/a/photos/1.jpg"), b"x")
    with fails("usage.output_exists"):
        trained(root, memory)
    assert list(MemoryRemote.stores[memory]) == ["a/photos/1.jpg"]

    keys = {"remote_sync": memory, key: "https://example.org/runs"}
    if key == "save_path":
        del keys["remote_sync"]
    with fails("usage.unsupported"):
        train(toy_config(root, "toy_lm", "a", **keys))


def test_remote_output_is_a_local_folder_with_a_copy(
    root: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    result = train(toy_config(root, "toy_lm", "a", save_path=f"{memory}/runs"))

    assert (result.output, result.remote) == ("runs/a", f"{memory}/runs/a")
    assert copied(result.remote)["latest.json"] == (root / "runs/a/latest.json").read_bytes()


def test_stopped_run_sends_its_checkpoint(root: Path, memory: str) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(root, memory, {STOPPED: interrupt}, num_checkpoints=1)

    run = RunDir(location(f"{memory}/a"))
    assert run.read_latest()["step"] < STEPS
    assert copied(f"{memory}/a") == local(root)

    trained(root, memory, num_checkpoints=1)
    assert [step for step, _ in run.checkpoints()] == [STEPS]
