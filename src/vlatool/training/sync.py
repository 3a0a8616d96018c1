"""The copy of a run below `remote_sync`: sent while it trains, fetched by a machine without it.

The run `NAME` has its copy in the folder `NAME` below `remote_sync`, where it reads as the same
run.
The trainer only wakes a thread: a step never waits for the storage.
"""

import logging
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Self

from vlatool.checkpoints import layout as run_layout
from vlatool.checkpoints.checkpoint import MANIFEST, CheckpointManifest
from vlatool.checkpoints.layout import CHECKPOINTS, RunDir
from vlatool.errors import DataError, EnvironmentProblem, StorageError, UsageError, VlatoolError
from vlatool.events import Reporter, counted
from vlatool.jobs.files import NAME as FILE_LIST
from vlatool.jobs.files import output_files, remove_partial_files
from vlatool.jobs.record import output_lock, read_record, record_file
from vlatool.storage import atomic
from vlatool.storage.background import in_background, in_parallel
from vlatool.storage.lock import Lock
from vlatool.storage.remote import forget_connections
from vlatool.storage.tree import FileInfo, files_below
from vlatool.storage.uri import is_inside, is_remote, location
from vlatool.training.config import TrainConfig
from vlatool.training.resume import RunStart, earlier_run, has_trained, local_run

# Files that grow during the run: only their complete lines are sent.
_GROWING = (run_layout.METRICS, run_layout.DROPS)
# Each large file has up to five parts of 8 MiB in memory.
_SENT_AT_ONCE = 3
_FETCHED_AT_ONCE = 8
# A checkpoint by the clock is sent if the last one was sent this long ago.
_TIMED_APART_S = 900.0
_QUIET_S = 1.0
_LOCK = "vlatool train"  # holder of the locks of both folders
_LOST = "storage.lock_lost"

_LOGGER = logging.getLogger(__name__)


class RunMirror:
    """The copy of a run at one location; every method may wait for the storage.

    A checkpoint there is complete when it has its manifest, as on disk. It is written after all
    files that the manifest and the run need to resume from it, and `latest.json` after that.
    `best.json` names a checkpoint that is there.
    """

    def __init__(
        self,
        run: RunDir,
        root: Path,
        check: Callable[[], None],
        retention: run_layout.Retention,
    ) -> None:
        self.root = root  # location of the copy
        self._run = run
        self._there = RunDir(root)
        self._check = check
        self._retention = retention
        self._stamps: dict[str, tuple[int, int]] = {}
        # Manifests of the complete checkpoints there; None until they are listed.
        self._complete: dict[int, CheckpointManifest | None] | None = None
        self._named = -1  # step that latest.json names there, once it is known
        self._best: run_layout.BestCheckpoint | None = None
        self._sent_at = -inf

    def send_record(self) -> None:
        """Sends the record of the run: who owns the location, and whether it is complete."""
        self._send(record_file(self._run.root).relative_to(self._run.root).as_posix())

    def send(self, *, is_last: bool = False) -> None:
        """Sends the checkpoints that are not there, oldest first, each with the present files of
        the run; prunes the copy. `is_last`: also what the run has written since its last one.
        """
        there = self._listed()
        while missing := self.missing(is_last=is_last):
            step = missing[0]
            self._send_checkpoint(step)
            self._write_latest(step)
            self._prune()
        if is_last:
            self._send_changed()
        if there:
            self._write_latest(max(there))
        # Names the best checkpoint there, and removes the one that was the best before.
        best = self._run.read_best()
        if best not in (None, self._best) and best.step in there:
            self._check()
            self._there.write_best(best)
            self._best = best
            self._prune()

    def newest(self) -> int | None:
        """Step of the newest checkpoint that is known to be complete there."""
        return max(self._complete or (), default=None)

    def missing(self, *, is_last: bool = False) -> list[int]:
        """Steps of local checkpoints that are still to be sent, ascending.

        A checkpoint of `save_every_minutes`, which the next one replaces, is left out if another
        one was sent shortly before, and each one that would be pruned there.
        """
        local = run_layout.read_manifests(folder for _, folder in self._run.checkpoints())
        there = dict(self._complete or {})
        newest = max(there, default=0)
        is_early = not is_last and time.monotonic() - self._sent_at < _TIMED_APART_S
        surplus = {*run_layout.surplus_checkpoints({**local, **there}, self._retention)}
        surplus -= {*self._run.best_steps()}
        missing: list[int] = []
        for step, manifest in local.items():
            is_pruned = step < newest and step in surplus
            is_left_out = is_early and (manifest is None or manifest.stopped)
            if step not in there and not is_pruned and not is_left_out:
                missing.append(step)
        return missing

    def _listed(self) -> dict[int, CheckpointManifest | None]:
        """Manifests of the complete checkpoints there that do not differ from local ones."""
        if self._complete is None:
            self._check()
            remove_partial_files(self.root)
            local = run_layout.read_manifests(folder for _, folder in self._run.checkpoints())
            manifests = run_layout.read_manifests(self._there.checkpoint_folders())
            with suppress(DataError):  # written again
                self._best = self._there.read_best()
            self._complete = {}
            for step, manifest in manifests.items():
                if manifest is not None and local.get(step, manifest) == manifest:
                    self._complete[step] = manifest
        return self._complete

    def _send_checkpoint(self, step: int) -> None:
        """Sends a checkpoint: frozen weights, its files, files of the run, then the manifest."""
        there = self._listed()
        folder = self._run.checkpoint(step)
        manifest = CheckpointManifest.read(folder)
        name = f"{CHECKPOINTS}/{folder.name}"
        shared: set[str] = set()
        for other in there.values():
            shared.update(other.beside if other else ())
        files: list[str] = []
        for beside in manifest.beside:
            if beside not in shared:
                files.append(f"{CHECKPOINTS}/{beside}")
        files += [f"{name}/{file}" for file in manifest.files]
        self._remove(f"{name}/{MANIFEST}")
        self._send_all(files)
        self._send_changed()
        self._send(f"{name}/{MANIFEST}")
        there[step] = manifest
        self._sent_at = time.monotonic()

    def _send_changed(self) -> None:
        """Sends files of the run that are new or have changed, other than checkpoints."""
        changed: dict[str, tuple[int, int]] = {}
        for file in _files(self._run.root):
            stamp = file.bytes, file.modified_ns
            if self._stamps.get(file.name) != stamp:
                changed[file.name] = stamp
        self._send_all(changed)
        self._stamps |= changed

    def _write_latest(self, step: int) -> None:
        """Names a checkpoint as the newest one, unless the file does so already."""
        if step != self._named:
            self._check()
            self._there.write_latest(step)
            self._named = step

    def _prune(self) -> None:
        """Removes surplus checkpoints there, and frozen weights that no other one names."""
        there = self._listed()
        best = {*self._run.best_steps()}
        if self._best is not None:
            best.add(self._best.step)
        surplus = {*run_layout.surplus_checkpoints(there, self._retention)} - best
        unnamed = run_layout.unnamed_weights(there, surplus)
        for step in surplus:
            folder = self._there.checkpoint(step)
            # First, so that a folder of which a part is left does not look complete.
            self._remove(f"{CHECKPOINTS}/{folder.name}/{MANIFEST}")
            atomic.remove_tree(folder)
            del there[step]
        for name in unnamed:
            self._remove(f"{CHECKPOINTS}/{name}")

    def _remove(self, name: str) -> None:
        self._check()
        atomic.remove_file(self.root / name)

    def _send_all(self, names: Collection[str]) -> None:
        for _ in in_parallel(self._send, names, _SENT_AT_ONCE):
            pass

    def _send(self, name: str) -> None:
        """Sends a file; if it still grows, up to its last complete line."""
        self._check()
        source = self._run.root / name
        target = self.root / name
        with atomic.as_storage_error(source, "sent"):
            if name in _GROWING:
                lines = source.read_bytes()
                atomic.write_bytes(target, lines[: lines.rfind(b"\n") + 1])
            else:
                atomic.copy_file(source, target, self._check)


# W&B removes files of its folder while it sends them itself.
_NOT_SENT = (CHECKPOINTS, run_layout.LATEST, run_layout.BEST, run_layout.WANDB)


def _files(run: Path) -> Iterator[FileInfo]:
    """Files of a run to send, except checkpoints, files that name checkpoints, and the record."""
    if (run / FILE_LIST).is_file():
        yield from (replace(file, name=FILE_LIST) for file in files_below(run / FILE_LIST))
    for file in output_files(run):
        is_hidden = "/." in f"/{file.name}"
        if file.name.partition("/")[0] not in _NOT_SENT and not is_hidden:
            yield file


class RunSync:
    """Context in which a thread of rank 0 copies a run to another location, after each checkpoint.

    On entry the record is written there, so a location that cannot be written is an error before
    the first step. If the block ends with an error or an interruption, what is missing is still
    sent; if that fails, you only get a warning.
    """

    def __init__(self, mirror: RunMirror, reporter: Reporter) -> None:
        self._mirror = mirror
        self._reporter = reporter  # receives warnings
        self._sending: Future[VlatoolError | None] = Future()
        self._is_finished = False

    def __enter__(self) -> Self:
        self._mirror.send_record()
        self._sending = in_background(self._attempt)  # sends what the copy lacks
        return self

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        is_lost = isinstance(exc, VlatoolError) and exc.code == _LOST
        if exc is not None and not is_lost and not self._is_finished:
            try:
                self.finish()
            except VlatoolError as error:
                self._reporter.warn("sync", f"{error.message}; {error.hint}")

    @property
    def location(self) -> str:
        return str(self._mirror.root)

    def needed(self) -> frozenset[int]:
        """Steps of local checkpoints that are still to be sent."""
        return frozenset(self._mirror.missing())

    def saved(self) -> None:
        """Starts to send a new checkpoint, and reports if earlier attempts failed."""
        if not self._sending.done():
            return  # it sends this one too, or the next one does
        error = self._sending.result()
        if error is not None and error.code == _LOST:
            raise error
        if error is not None:
            self._reporter.warn(
                "sync",
                f"{error.message}; the run continues, and sends what is missing when the storage "
                "works again",
            )
        self._sending = in_background(self._attempt)

    def finish(self) -> None:
        """Waits until everything is sent, the record last."""
        self._is_finished = True
        before = self._sending

        def send_rest() -> VlatoolError | None:
            before.result()
            return self._attempt(is_last=True)

        self._sending = in_background(send_rest)
        try:
            wait([self._sending], _QUIET_S)
            left = len(self.needed())
            if left and not self._sending.done():
                count = counted(left, "checkpoint")
                self._reporter.note(f"{count} left to send to {self.location}")
            wait([self._sending])
        except KeyboardInterrupt:
            self._reporter.warn(
                "sync",
                f"{self.location}: {self._state()}; run the same command again to send the rest",
            )
            raise
        error = self._sending.result()
        if error is not None and error.code == _LOST:
            raise error
        if error is not None:
            raise StorageError(
                f"the run could not be sent completely to {self.location}: {self._state()}; the "
                f"local run is complete. {error.message}",
                hint=f"{error.hint}; then repeat the command to send the rest",
                code="storage.write",
                details={**error.details, "location": self.location, "reason": error.code},
            )

    def _state(self) -> str:
        """Text that names the newest checkpoint there."""
        newest = self._mirror.newest()
        if newest is None:
            return "no checkpoint is there"
        return f"step {newest} is the last one there"

    def _attempt(self, *, is_last: bool = False) -> VlatoolError | None:
        """Sends what is missing; returns the error that ended it."""
        try:
            self._mirror.send(is_last=is_last)
            if is_last:
                self._mirror.send_record()
        except VlatoolError as error:
            _LOGGER.warning("%s", error.message)
            if isinstance(error, EnvironmentProblem):
                forget_connections()  # credentials may be renewed
            return error
        return None


# What a run with a configuration would do in a folder; raises an error if it may not use it.
StartIn = Callable[[TrainConfig, RunDir], RunStart]


@dataclass(frozen=True)
class RemoteRun:
    """Copy of a named run below `remote_sync`."""

    root: Path  # its folder; its files have the names of those in the local one
    # step from which the run there continues here; None if it has no checkpoint, or if the local
    # run has it or a later one
    step: int | None = None
    lock: Lock | None = None  # of the folder, if this process holds it


@contextmanager
def held_remote_run(
    config: TrainConfig, start_in: StartIn, reporter: Reporter
) -> Generator[RemoteRun]:
    """Locks the remote folder of a run until the block ends, and copies what the local folder
    lacks.
    """
    run = find_remote_run(config, start_in)  # raises before the lock creates a file there
    with output_lock(run.root, _LOCK) as lock:
        run = find_remote_run(config, start_in)  # another machine may have trained it meanwhile
        if run.step is not None:
            fetch(RunDir(run.root), run.step, local_run(config), reporter)
        yield replace(run, lock=lock)


def find_remote_run(config: TrainConfig, start_in: StartIn) -> RemoteRun:
    """The copy of a run below `remote_sync`. Writes nothing.

    Raises:
        UsageError: The remote folder has a run with other options, or other files; or the local
            folder has another run.
    """
    assert config.remote_sync is not None
    assert config.name is not None
    local = local_run(config)
    remote = RunDir(location(config.remote_sync) / config.name)
    if not is_remote(remote.root) and remote.root.resolve() == local.root.resolve():
        raise UsageError.at(
            remote.root,
            "is the run folder itself, so the run cannot be copied there",
            hint="choose another --remote-sync or --output",
            code="usage.conflict",
        )
    if not remote.root.exists():
        return RemoteRun(remote.root)
    hint = "choose another --output: a run below remote_sync is never replaced"
    kept = config.model_copy(update={"overwrite": False})
    try:
        start_in(kept, remote)
    except UsageError as error:
        error.hint = hint
        raise
    latest = remote.latest()
    if latest is None:
        return RemoteRun(remote.root)
    if config.overwrite and any(_is_complete(run) for run in (local, remote)):
        raise UsageError.at(
            remote.root, "is the copy of a complete run", hint=hint, code="usage.output_exists"
        )
    earlier_run(local, kept)  # raises for a folder with other files
    if has_trained(local) and _run_id(local) != _run_id(remote):
        raise UsageError(
            f"{local.root}: is another run than its copy {remote.root}",
            hint=hint,
            code="usage.output_differs",
        )
    here = max((step for step, _ in local.checkpoints()), default=-1)
    return RemoteRun(remote.root, latest[0] if latest[0] > here else None)


def _is_complete(run: RunDir) -> bool:
    record = read_record(run.root)
    return record is not None and record.complete


def _run_id(run: RunDir) -> str:
    record = read_record(run.root)
    return "" if record is None else record.run_id


def fetch(remote: RunDir, step: int, local: RunDir, reporter: Reporter) -> None:
    """Copies a run to a machine that lacks its newest checkpoint: this one, the best earlier one,
    and all small files.

    The record comes first and the checkpoint last: a copy that is interrupted starts again.
    """
    reporter.note(f"{remote.root}: this run continues in {local.root} after step {step}")
    manifests: dict[int, CheckpointManifest] = {}
    there = [number for number, _ in remote.checkpoints()]  # complete ones
    for number in (*remote.best_steps(), step):
        is_wanted = number == step or (number < step and number in there)
        if is_wanted and not local.checkpoint(number).exists():
            manifests[number] = CheckpointManifest.read(remote.checkpoint(number))
    shared = {FILE_LIST}
    for manifest in manifests.values():
        shared.update(f"{CHECKPOINTS}/{name}" for name in manifest.beside)
    files: list[str] = []
    for file in files_below(remote.root):
        name = file.name
        is_state = name.startswith((".", f"{CHECKPOINTS}/")) or name == run_layout.LATEST
        # Nothing is written outside the folder of the run.
        is_small = not is_state and "/." not in name and is_inside(name)
        if is_small or name in shared:
            files.append(name)
    with (
        output_lock(local.root, _LOCK),
        reporter.progress("download", None, "bytes") as bar,
    ):

        def copy_all(source: Path, names: Iterable[str], target: Path) -> None:
            def copy(name: str) -> int:
                return atomic.copy_file(source / name, target / name)

            for size in in_parallel(copy, names, _FETCHED_AT_ONCE):
                bar.advance(size)

        record = record_file(remote.root).relative_to(remote.root).as_posix()
        copy_all(remote.root, [record], local.root)
        copy_all(remote.root, files, local.root)
        for number, manifest in manifests.items():
            folder = remote.checkpoint(number)
            with atomic.atomic_folder(local.checkpoint(number)) as partial:
                copy_all(folder, [*manifest.files, MANIFEST], partial)
                _check_copy(folder, manifest, partial)
        local.write_latest(step)


def _check_copy(remote: Path, manifest: CheckpointManifest, copy: Path) -> None:
    """Raises DataError if a copied checkpoint is damaged; the error names the remote one."""
    try:
        manifest.check(copy)
    except DataError as error:
        raise DataError.at(
            remote,
            f"is damaged: {Path(error.details['path']).name}{error.message.partition(':')[2]}",
            hint="remove this remote checkpoint: the run then continues from the previous one",
            code=error.code,
        ) from None
