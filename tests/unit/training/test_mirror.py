"""Copy of a run folder: parts that several checkpoints share, and the best checkpoint."""

from pathlib import Path

import pytest

from tests.builders.memory_remote import MemoryRemote
from vlatool.checkpoints.checkpoint import MODEL, CheckpointManifest
from vlatool.checkpoints.layout import Retention, RunDir
from vlatool.events import NULL
from vlatool.jobs.files import FileEntry
from vlatool.jobs.record import OutputRecord
from vlatool.storage.tree import sha256_of
from vlatool.storage.uri import location
from vlatool.training.sync import RunMirror, fetch


@pytest.fixture
def there(memory: str) -> Path:
    """Location of the copy."""
    return location(f"{memory}/a")


def save(run: RunDir, step: int, frozen: str, *, stopped: bool = False) -> None:
    """Writes a checkpoint whose frozen weights are in a file of the given name."""
    beside = run.checkpoints_folder / f"frozen_{frozen}.safetensors"
    folder = run.checkpoint(step)
    folder.mkdir(parents=True)
    beside.write_text(frozen)
    (folder / MODEL).write_text(str(step))
    entry = FileEntry(beside.name, len(frozen), sha256_of(beside))
    CheckpointManifest.of(folder, step, step, beside={entry.path: entry}, stopped=stopped).write(
        folder
    )
    run.write_latest(step)


def test_shared_part_is_sent_once_and_pruned_with_the_last_checkpoint_that_names_it(
    tmp_path: Path, there: Path
) -> None:
    run, retention = RunDir(tmp_path / "a"), Retention(latest=2)
    mirror = RunMirror(run, there, lambda: None, retention)
    objects = MemoryRemote.stores.setdefault(f"memory://{tmp_path.name}", {})
    parts: list[list[str]] = []
    written: list[float] = []
    for step, frozen in [(1, "x"), (2, "x"), (3, "y"), (4, "y")]:
        save(run, step, frozen)
        mirror.send()
        run.prune(retention, mirror.missing())
        parts.append(sorted(name[-13] for name in objects if "frozen" in name))
        shared = objects.get("a/checkpoints/frozen_x.safetensors")
        written += [shared[1].modified] if shared else []

    assert parts == [["x"], ["x"], ["x", "y"], ["y"]]
    assert len(set(written)) == 1
    assert [path.name for path in run.checkpoints_folder.glob("frozen_*")] == [
        "frozen_y.safetensors"
    ]


def test_checkpoint_by_the_clock_is_not_sent_soon_after_another_one(
    tmp_path: Path, there: Path
) -> None:
    run = RunDir(tmp_path / "a")
    mirror = RunMirror(run, there, lambda: None, Retention())
    save(run, 1, "x", stopped=True)
    mirror.send()
    assert mirror.newest() == 1
    save(run, 2, "x", stopped=True)
    mirror.send()
    assert (mirror.newest(), mirror.missing()) == (1, [])
    save(run, 3, "x")
    mirror.send()
    assert mirror.newest() == 3
    save(run, 4, "x", stopped=True)
    mirror.send(is_last=True)
    assert mirror.newest() == 4


def measure(run: RunDir, step: int, success: float) -> None:
    """Writes the success rate of a checkpoint."""
    with run.metrics.open("a") as file:
        file.write(f'{{"step": {step}, "eval/success_rate": {success}}}\n')
    run.update_best()


def test_best_checkpoint_stays_in_the_copy_and_is_named_there(tmp_path: Path, there: Path) -> None:
    run, retention = RunDir(tmp_path / "a"), Retention(latest=1)
    mirror, copy = RunMirror(run, there, lambda: None, retention), RunDir(there)
    states: list[tuple[list[int], list[int]]] = []
    for step, success in [(1, 0.1), (2, 0.9), (3, 0.2), (4, 1.0)]:
        save(run, step, "x")
        run.prune(retention, mirror.missing())
        mirror.send()
        measure(run, step, success)  # rollouts follow the checkpoint
        mirror.send()
        states.append(([number for number, _ in copy.checkpoints()], copy.best_steps()))
    assert states == [([1], [1]), ([2], [2]), ([2, 3], [2]), ([4], [4])]
    assert (there / "best.json").read_bytes() == run.best_file.read_bytes()


def test_machine_that_continues_a_run_gets_its_best_checkpoint_too(tmp_path: Path) -> None:
    remote, local = RunDir(tmp_path / "there"), RunDir(tmp_path / "here")
    for step, success in [(1, 0.1), (2, 0.9), (3, 0.2)]:
        save(remote, step, "x")
        measure(remote, step, success)
    OutputRecord("train", {}).save(remote.root)
    fetch(remote, 3, local, NULL)
    assert [step for step, _ in local.checkpoints()] == [2, 3]
    assert (local.best_steps(), local.read_latest()["step"]) == ([2], 3)


def test_metrics_are_sent_with_a_checkpoint_and_at_the_end(tmp_path: Path, there: Path) -> None:
    run = RunDir(tmp_path / "a")
    mirror = RunMirror(run, there, lambda: None, Retention(latest=1))
    save(run, 1, "x")
    run.metrics.write_text('{"step": 1}\n')
    mirror.send()
    sent = run.metrics.read_bytes()
    run.metrics.write_text('{"step": 1}\n{"step": 2}\n{"st')
    mirror.send()
    assert (there / run.metrics.name).read_bytes() == sent
    mirror.send(is_last=True)
    assert (there / run.metrics.name).read_text() == '{"step": 1}\n{"step": 2}\n'
