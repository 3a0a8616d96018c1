"""Runs that a machine without their local folder continues from `remote_sync`."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.s3_runs import digests, upload
from tests.builders.s3_server import S3Server
from tests.builders.toy_runs import DATA, HALF, SITE, STEPS, half_of, toy_config
from tests.builders.toys import install_toys, write_numbers
from vlatool.checkpoints.layout import Retention, RunDir, read_metrics
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.jobs.record import output_lock
from vlatool.storage.atomic import remove_tree
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import SPEED_VARIABLE
from vlatool.storage.tree import files_below
from vlatool.training.sync import RunMirror, fetch
from vlatool.workflows.train import TrainResult, train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with toys, an undisturbed run `whole`, and `half` of it, without a lock file."""
    root = tmp_path_factory.mktemp("toys")
    install_toys(root / SITE)
    write_numbers(root / DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / SITE))
        train(toy_config(root, "toy_lm", "whole"))
    half_of(root, "whole", "half")
    (root / "half/.vlatool/lock").unlink()
    return root


@pytest.fixture
def prefix(root: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    """Value of `remote_sync` in an empty bucket."""
    monkeypatch.syspath_prepend(str(root / SITE))
    return RemotePath(f"s3://{s3_bucket}/runs")


def _train(
    root: Path, prefix: RemotePath, run: Path, reporter: Recorder | None = None, **changes: Any
) -> TrainResult:
    """Trains a run in a new local folder."""
    keys = {"remote_sync": str(prefix), "save_path": str(run.parent), **changes}
    return train(toy_config(root, "toy_lm", run.name, **keys), reporter=reporter or Recorder())


def _content(run: Path) -> dict[str, Any]:
    """Files of the last checkpoint, and metrics without times."""
    rows = read_metrics(run / "metrics.jsonl")
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    files = RunDir(run).checkpoint(STEPS).iterdir()
    return {"losses": losses, **{file.name: file.read_bytes() for file in files}}


def test_fresh_machine_continues_the_remote_run_and_ends_with_the_same_bits(
    root: Path, prefix: RemotePath, tmp_path: Path
) -> None:
    upload(root / "half", prefix / "new")
    before = {file.name for file in files_below(prefix)}
    planned = _train(root, prefix, tmp_path / "new", dry_run=True)
    assert (planned.start, planned.status) == ("continue", "planned")
    assert f"continues the run in {prefix}/new;" in planned.text()
    assert not (tmp_path / "new").exists()
    assert {file.name for file in files_below(prefix)} == before

    reporter = Recorder()
    result = _train(root, prefix, tmp_path / "new", reporter)
    assert (result.status, result.steps) == ("trained", STEPS)
    assert _content(tmp_path / "new") == _content(root / "whole")
    assert any(f"{prefix}/new" in note and f"step {HALF}" in note for note in reporter.notes)


def test_machine_that_does_not_share_the_disk_of_rank_0_gets_the_checkpoint(
    root: Path, prefix: RemotePath, tmp_path: Path
) -> None:
    remote = RunDir(upload(root / "half", prefix / "first"))
    fetch(remote, HALF, RunDir(tmp_path / "run"), Recorder())
    copy = RunDir(tmp_path / "run").checkpoint(HALF)
    assert digests(copy) == digests(RunDir(root / "half").checkpoint(HALF))


def test_run_of_another_learning_rate_is_an_error_and_another_output_starts_one_beside_it(
    root: Path, prefix: RemotePath, tmp_path: Path
) -> None:
    upload(root / "half", prefix / "run")
    with pytest.raises(UsageError, match="lr") as caught:
        _train(root, prefix, tmp_path / "run", hparams__lr=0.5)
    assert (caught.value.code, caught.value.exit_code) == ("usage.output_differs", 2)
    assert "--output" in (caught.value.hint or "")
    assert not (tmp_path / "run").exists()

    before = digests(prefix / "run")
    result = _train(root, prefix, tmp_path / "other")
    assert digests(prefix / "run") == before
    assert result.remote == f"{prefix}/other"
    assert [step for step, _ in RunDir(prefix / "other").checkpoints()] == [HALF, STEPS]


def test_run_without_a_name_is_the_same_one_on_another_machine(
    root: Path, prefix: RemotePath, tmp_path: Path
) -> None:
    result = _train(root, prefix, tmp_path / "here/run", Recorder(), name=None)
    assert (prefix / Path(result.output).name / "latest.json").is_file()
    again = _train(root, prefix, tmp_path / "there/run", Recorder(), name=None)
    assert again.status == "already complete"


@pytest.mark.parametrize(("sent", "newest"), [(True, HALF), (False, None)])
def test_checkpoint_that_is_being_sent_is_not_the_newest_one(
    sent: bool, newest: int | None, root: Path, prefix: RemotePath
) -> None:
    upload(root / "half", prefix / "run")
    remote = RunDir(prefix / "run")
    if not sent:
        remove_tree(remote.checkpoint(HALF))
        remote.latest_file.unlink()
    (remote.checkpoint(STEPS) / "trainer.pt").write_bytes(b"first part")
    latest = remote.latest()
    assert (latest and latest[0]) == newest


def test_damaged_remote_checkpoint_is_an_error_that_names_it_and_is_not_copied(
    root: Path, prefix: RemotePath, tmp_path: Path
) -> None:
    upload(root / "half", prefix / "run")
    checkpoint = RunDir(prefix / "run").checkpoint(HALF)
    (checkpoint / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DataError, match=f"{checkpoint}: .* model.safetensors") as caught:
        _train(root, prefix, tmp_path / "run")
    assert (caught.value.code, caught.value.exit_code) == ("data.broken", 3)
    assert RunDir(tmp_path / "run").newest_folder() is None


@pytest.mark.parametrize(
    "below", ["images/../../../evil", f"checkpoints/step_{HALF:08}/../../../../evil"]
)
def test_key_that_leads_out_of_the_run_is_not_copied(
    below: str, root: Path, prefix: RemotePath, s3: S3Server, s3_bucket: str, tmp_path: Path
) -> None:
    upload(root / "half", prefix / "run")
    s3.client().put_object(Bucket=s3_bucket, Key=f"runs/run/{below}", Body=b"evil")
    assert _train(root, prefix, tmp_path / "new/run").status == "trained"
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("name", [f"checkpoints/step_{STEPS:08}", "images", "eval", "checkpoints"])
def test_file_in_the_place_of_a_folder_is_found_before_the_training_or_an_overwrite(
    name: str, root: Path, prefix: RemotePath, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(root / "half", tmp_path / "run"))
    (run / f"checkpoints/step_{STEPS:08}").touch()
    with pytest.raises(StorageError, match="is a file") as caught:
        _train(root, prefix, run, overwrite=True)
    assert caught.value.code == "storage.write"

    upload(root / "half", prefix / "run")
    (prefix / "run" / name).write_bytes(b"x")
    with pytest.raises(StorageError, match=f"{name}: is a file"):
        _train(root, prefix, tmp_path / "new/run")


def test_stolen_lock_is_noticed_before_the_next_file(prefix: RemotePath, tmp_path: Path) -> None:
    lock = prefix / "run/.vlatool/lock"
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    run.metrics.write_bytes(b"1\n")
    other = b'{"owner": "other", "command": "vlatool train", "started": "now"}'
    with ExitStack() as stack:
        held = stack.enter_context(output_lock(prefix / "run", "vlatool train"))
        mirror = RunMirror(run, prefix / "run", held.check, Retention())
        mirror.send(is_last=True)
        lock.write_bytes(other)
        run.metrics.write_bytes(b"1\n2\n")
        time.sleep(1.1)  # what the storage said counts for a second
        with fails("storage.lock_lost"):
            mirror.send(is_last=True)
        with pytest.raises(StorageError, match="took over"):
            stack.close()
    assert (prefix / "run/metrics.jsonl").read_bytes() == b"1\n"


def _first_line(rows: bytes) -> bytes:
    return rows.replace(b"{", b"[", 1)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (None, "no rows after step 0"),
        (lambda rows: b"", "no rows after step 0"),
        (lambda rows: rows[: rows.index(b"\n") + 1], "no rows after step 1"),
        (_first_line, "1 of 8 lines are damaged"),
        (lambda rows: rows + b'{"step": 9', ""),
        (lambda rows: rows, ""),
    ],
)
def test_lost_metrics_of_the_remote_run_are_named(
    damage: Callable[[bytes], bytes] | None,
    named: str,
    root: Path,
    prefix: RemotePath,
    tmp_path: Path,
) -> None:
    upload(root / "half", prefix / "run")
    metrics = RunDir(prefix / "run").metrics
    if damage is None:
        metrics.unlink()
    else:
        metrics.write_bytes(damage((root / "half/metrics.jsonl").read_bytes()))
    reporter = Recorder()

    _train(root, prefix, tmp_path / "run", reporter)

    lost = [message for code, message in reporter.warnings if code == "lost_metrics"]
    assert len(lost) == bool(named)
    assert named in "".join(lost)


def test_remote_run_with_the_empty_lock_file_of_a_local_run_can_be_written(
    prefix: RemotePath,
) -> None:
    lock = prefix / "run/.vlatool/lock"
    lock.write_bytes(b"")
    with output_lock(prefix / "run", "vlatool train"):
        assert b"vlatool train" in lock.read_bytes()


def test_run_that_lives_elsewhere_is_an_error_after_one_wait(
    root: Path,
    prefix: RemotePath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, "10")
    with output_lock(prefix / "run", "vlatool train"), pytest.raises(UsageError) as caught:
        _train(root, prefix, tmp_path / "run")
    assert (caught.value.code, caught.value.exit_code) == ("usage.output_in_use", 2)
    assert f"{prefix}/run" in caught.value.message
    assert caplog.text.count("waiting") == 1


def test_run_that_ends_elsewhere_while_this_machine_waits_is_continued(
    root: Path, prefix: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, "100")
    held = ExitStack()
    held.enter_context(output_lock(prefix / "run", "vlatool train"))

    class Elsewhere(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "waiting" in record.getMessage():
                upload(root / "half", prefix / "run")
                held.close()

    logger, handler = logging.getLogger("vlatool.storage.lock"), Elsewhere()
    logger.addHandler(handler)
    reporter = Recorder()
    try:
        result = _train(root, prefix, tmp_path / "run", reporter)
    finally:
        logger.removeHandler(handler)
    assert result.steps == STEPS
    assert any(f"after step {HALF}" in note for note in reporter.notes)


def test_machine_that_lost_its_lock_stops_writing(
    root: Path, prefix: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SPEED_VARIABLE, "100")
    lock = prefix / "run/.vlatool/lock"
    other = b'{"owner": "other", "command": "vlatool train", "started": "now"}'

    class Elsewhere(Recorder):
        def metrics(self, step: int, values: Mapping[str, float]) -> None:
            if step == 1:
                lock.write_bytes(other)
                time.sleep(0.5)  # 50 s: two renewals

    with fails("storage.lock_lost", 5):
        _train(root, prefix, tmp_path / "run", Elsewhere())
    assert RunDir(prefix / "run").checkpoints() == []
    assert lock.read_bytes() == other
