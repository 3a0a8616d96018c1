"""Copies a run to a remote location in the background, while it trains.

The trainer only wakes a thread: a step never waits for the storage.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Self

from vlatool.checkpoints import layout as run_layout
from vlatool.checkpoints.checkpoint import MANIFEST, CheckpointManifest
from vlatool.errors import DataError, EnvironmentProblem, StorageError, VlatoolError
from vlatool.events import Reporter
from vlatool.jobs.files import NAME as FILE_LIST
from vlatool.jobs.files import output_files, remove_partial_files
from vlatool.jobs.record import record_file
from vlatool.storage import atomic
from vlatool.storage.background import in_background, in_parallel
from vlatool.storage.remote import forget_connections
from vlatool.storage.retry import ProcessClock
from vlatool.storage.tree import FileInfo, files_below, size_text

# Files that grow during the run: only their complete lines are sent.
_GROWING = (run_layout.METRICS, run_layout.DROPS)
# Between checkpoints, they are sent when they have grown by this part of their size, so that all
# bytes that are sent are in proportion to their size in the end.
_GROWN_BY = 0.25
# Each large file has up to five parts of 8 MiB in memory.
_FILES_AT_ONCE = 3
# A checkpoint by the clock is sent if the last one was sent this long ago, and this many times the
# duration of its sending.
_TIMED_APART_S = 900.0
_SENDINGS_APART = 10


class RunMirror:
    """The copy of a run at one location; every method may wait for the storage.

    A checkpoint there is complete when it has its manifest, as on disk. It is written after all
    files that the manifest and the run need to resume from it, and `latest.json` after that.
    `best.json` names a checkpoint that is there.
    """

    def __init__(
        self,
        run: run_layout.RunDir,
        root: Path,
        check: Callable[[], None],
        retention: run_layout.Retention,
    ) -> None:
        self.root = root  # location of the copy
        self.sent_bytes = 0  # number of bytes that were sent
        self._run = run
        self._there = run_layout.RunDir(root)
        self._check = check
        self._retention = retention
        self._stamps: dict[str, tuple[int, int]] = {}
        self._manifests: dict[int, CheckpointManifest] | None = None
        self._sent: set[int] = set()
        self._sent_at = -inf
        self._sending_s = 0.0
        self._is_last = False
        self._named: int | None = None
        self._named_best: run_layout.BestCheckpoint | None = None

    def send_record(self) -> None:
        """Sends the record of the run: who owns the location, and whether it is complete."""
        self._send(record_file(self._run.root).relative_to(self._run.root).as_posix())

    def send(self, *, is_last: bool = False) -> None:
        """Sends all that is missing or has changed, oldest checkpoint first; prunes the copy."""
        self._is_last |= is_last
        self._complete()
        self._send_changed(is_due=self._is_last)
        while missing := self.missing():
            self._send_checkpoint(missing[0])
            self._write_latest(missing[0])
            self._prune()
        newest = self._run.latest()
        if newest is not None and newest[0] in self._complete():
            self._write_latest(newest[0])
        # Names the best checkpoint there, and removes the one that was the best before.
        best = self._run.read_best()
        if best not in (None, self._named_best) and best.step in self._complete():
            self._check()
            self._there.write_best(best)
            self._named_best = best
            self._prune()

    def confirm(self) -> None:
        """Sends the newest checkpoint again if one of its files is missing there."""
        newest = self._run.latest()
        if newest is None:
            return
        step, folder = newest
        sizes = {file.name: file.bytes for file in files_below(self._there.checkpoint(step))}
        expected = {file.name: file.stat().st_size for file in folder.iterdir()}
        if not expected.items() <= sizes.items():
            self._sent.discard(step)
            self.send()

    def newest(self) -> int | None:
        """Step of the newest checkpoint that is known to be complete there."""
        return max(self._manifests or (), default=None)

    def missing(self) -> list[int]:
        """Steps of local checkpoints that are still to be sent, ascending.

        A checkpoint of `save_every_minutes`, which the next one replaces, is left out if another
        one was sent shortly before.
        """
        folders = {
            step: folder for step, folder in self._run.checkpoints() if step not in self._sent
        }
        pause_s = max(_TIMED_APART_S, _SENDINGS_APART * self._sending_s)
        if self._is_last or time.monotonic() - self._sent_at >= pause_s:
            return list(folders)
        planned: list[int] = []
        for step, manifest in run_layout.read_manifests(folders.values()).items():
            if manifest is not None and not manifest.stopped:
                planned.append(step)
        return planned

    def _complete(self) -> dict[int, CheckpointManifest]:
        """Manifests of the complete checkpoints there; removes checkpoints that differ from local
        ones.
        """
        if self._manifests is not None:
            return self._manifests
        self._check()
        remove_partial_files(self.root)
        local = run_layout.read_manifests(folder for _, folder in self._run.checkpoints())
        there: dict[int, CheckpointManifest] = {}
        for step, manifest in run_layout.read_manifests(self._there.checkpoint_folders()).items():
            if manifest is not None and local.get(step, manifest) == manifest:
                there[step] = manifest
        self._manifests = there
        with suppress(DataError):  # written again
            self._named_best = self._there.read_best()
        # Checkpoints that were pruned there already are not sent again.
        self._sent = set(there)
        newest = self.newest() or 0
        best = self._run.best_steps()
        for step in run_layout.surplus_checkpoints({**local, **there}, self._retention):
            if step < newest and step not in best:
                self._sent.add(step)
        return there

    def _send_checkpoint(self, step: int) -> None:
        """Sends a checkpoint: frozen weights, its files, files of the run, then the manifest."""
        there = self._complete()
        folder = self._run.checkpoint(step)
        started = time.monotonic()
        manifest = CheckpointManifest.read(folder)
        name = f"{run_layout.CHECKPOINTS}/{folder.name}"
        files: list[str] = []
        for beside in manifest.beside:
            if not any(beside in other.beside for other in there.values()):
                files.append(f"{run_layout.CHECKPOINTS}/{beside}")
        files += [f"{name}/{file}" for file in manifest.files]
        self._remove(f"{name}/{MANIFEST}")
        self._send_all(files)
        self._send_changed()
        self._send(f"{name}/{MANIFEST}")
        there[step] = manifest
        self._sent.add(step)
        self._sent_at = time.monotonic()
        self._sending_s = self._sent_at - started

    def _send_changed(self, *, is_due: bool = True) -> None:
        """Sends files of the run that are new or have changed, other than checkpoints.

        `is_due`: False if files that grow may wait until they have grown enough.
        """
        changed: dict[str, tuple[int, int]] = {}
        for file in _files(self._run.root):
            stamp = file.bytes, file.modified_ns
            sent, _ = self._stamps.get(file.name, (0, 0))
            is_small = file.name in _GROWING and file.bytes < sent * (1 + _GROWN_BY)
            if self._stamps.get(file.name) != stamp and (is_due or not is_small):
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
        there = self._complete()
        manifests: Mapping[int, CheckpointManifest | None] = there
        named = () if self._named_best is None else (self._named_best.step,)
        best = {*named, *self._run.best_steps()}
        surplus = {*run_layout.surplus_checkpoints(manifests, self._retention)} - best
        unnamed = run_layout.unnamed_weights(manifests, surplus)
        for step in surplus:
            folder = self._there.checkpoint(step)
            # First, so that a folder of which a part is left does not look complete.
            self._remove(f"{run_layout.CHECKPOINTS}/{folder.name}/{MANIFEST}")
            atomic.remove_tree(folder)
            del there[step]
        for name in unnamed:
            self._remove(f"{run_layout.CHECKPOINTS}/{name}")

    def _remove(self, name: str) -> None:
        self._check()
        atomic.remove_file(self.root / name)

    def _send_all(self, names: Collection[str]) -> None:
        for _ in in_parallel(self._send, names, _FILES_AT_ONCE):
            pass

    def _send(self, name: str) -> None:
        """Sends a file; if it still grows, up to its last complete line."""
        self._check()
        source = self._run.root / name
        target = self.root / name
        with atomic.as_storage_error(source, "sent"):
            if name in _GROWING:
                lines = source.read_bytes()
                lines = lines[: lines.rfind(b"\n") + 1]
                atomic.write_bytes(target, lines)
                self.sent_bytes += len(lines)
            else:
                self.sent_bytes += atomic.copy_file(source, target, self._check)


# W&B removes files of its folder while it sends them itself.
_NOT_SENT = (run_layout.CHECKPOINTS, run_layout.LATEST, run_layout.BEST, run_layout.WANDB)


def _files(run: Path) -> Iterator[FileInfo]:
    """Files of a run to send, except checkpoints, files that name checkpoints, and the record."""
    if (run / FILE_LIST).is_file():
        yield from (replace(file, name=FILE_LIST) for file in files_below(run / FILE_LIST))
    for file in output_files(run):
        is_hidden = "/." in f"/{file.name}"
        if file.name.partition("/")[0] not in _NOT_SENT and not is_hidden:
            yield file


# Growing files, such as the metrics, are sent this often between checkpoints; failures of the
# storage that outlast its retries are tried again after the same time.
_EVERY_S = 60.0
_QUIET_S = 1.0
_POLL_S = 0.5
_LOST = "storage.lock_lost"

_LOGGER = logging.getLogger(__name__)


class RunSync:
    """Context in which a thread of rank 0 copies a run to another location: when it is asked to,
    and from time to time.

    On entry the record is written there, so a location that cannot be written is an error before
    the first step. If the block ends with an error or an interruption, what is missing is still
    sent; if that fails, you only get a warning.
    """

    def __init__(
        self,
        run: run_layout.RunDir,  # the local run
        mirror: RunMirror,  # the copy
        reporter: Reporter,  # receives warnings, and the progress at the end
    ) -> None:
        self._run = run
        self._mirror = mirror
        self._reporter = reporter
        self._error: VlatoolError | None = None  # failure of the last attempt, if it failed
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._is_last = self._has_ended = False
        self._thread: Future[None] = Future()

    def __enter__(self) -> Self:
        self._mirror.send_record()
        self._ask()  # a first attempt sends what the copy lacks
        self._thread = in_background(self._keep_up)
        return self

    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        try:
            is_lost = isinstance(exc, VlatoolError) and exc.code == _LOST
            if exc is not None and not is_lost and not self._is_last:
                self._flush()
                if error := self._final_error():
                    self._reporter.warn("sync", f"{error.message}; {error.hint}")
        finally:
            with self._changed:
                self._has_ended = True  # after the current request
                self._changed.notify_all()

    @property
    def location(self) -> str:
        return str(self._mirror.root)

    def needed(self) -> frozenset[int]:
        """Steps of local checkpoints that are still to be sent."""
        return frozenset(self._mirror.missing())

    def saved(self) -> None:
        """Starts to send a new checkpoint, and reports if earlier attempts failed."""
        self._ask()
        error = self._error
        if error is not None and error.code == _LOST:
            raise error
        if error is not None:
            self._reporter.warn(
                "sync",
                f"{error.message}; the run continues, and sends what is missing when the storage "
                "works again",
            )

    def finish(self) -> None:
        """Waits until everything is sent, the record last."""
        self._flush()
        if error := self._final_error():
            raise error

    def _ask(self, *, is_last: bool = False) -> int:
        """Asks for an attempt that begins after this call; returns a ticket for `_wait`; `is_last`:
        also send the record, after everything else.
        """
        with self._changed:
            self._asked += 1
            self._is_last |= is_last
            self._changed.notify_all()
            return self._asked

    def _wait(self, ticket: int, seconds: float) -> bool:
        """Waits for the attempt of a ticket; False if it takes longer."""
        if self._thread.done():
            self._thread.result()  # raises what the thread did not expect
            return True
        with self._changed:
            return self._changed.wait_for(lambda: self._has_ended or self._done >= ticket, seconds)

    def _flush(self) -> None:
        ticket = self._ask(is_last=True)
        try:
            # Most runs have only the last checkpoint left, which is no reason for a bar.
            if self._wait(ticket, _QUIET_S):
                return
            left = len(self.needed())
            if not left:  # the last small files
                while not self._wait(ticket, _POLL_S):
                    pass
                return
            with self._reporter.progress("sending", left, "checkpoints") as bar:
                while not self._wait(ticket, _POLL_S):
                    before = left
                    left = len(self.needed())
                    bar.advance(before - left, sent=size_text(self._mirror.sent_bytes))
                bar.advance(left - len(self.needed()))
        except KeyboardInterrupt:
            self._reporter.warn(
                "sync",
                f"{self.location}: {self._state()}; run the same command again to send the rest",
            )
            raise

    def _state(self) -> str:
        """Text that names the newest checkpoint there."""
        newest = self._mirror.newest()
        if newest is None:
            return "no checkpoint is there"
        return f"step {newest} is the last one there"

    def _final_error(self) -> VlatoolError | None:
        """Error if a part of the run could not be sent; None if all of it is there."""
        error = self._error
        if error is None or error.code == _LOST:
            return error
        return StorageError(
            f"the run could not be sent completely to {self.location}: {self._state()}; the "
            f"complete run is in {self._run.root}. {error.message}",
            hint=f"{error.hint}; then repeat the command to send the rest",
            code="storage.write",
            details={**error.details, "location": self.location, "reason": error.code},
        )

    def _keep_up(self) -> None:
        speed = ProcessClock().speed
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._has_ended or self._asked > self._done, _EVERY_S / speed
                )
                if self._has_ended:
                    return
                ticket = self._asked
                is_last = self._is_last
            self._error = self._attempt(is_last=is_last)
            with self._changed:
                self._done = ticket
                self._has_ended |= self._error is not None and self._error.code == _LOST
                self._changed.notify_all()

    def _attempt(self, *, is_last: bool) -> VlatoolError | None:
        if isinstance(self._error, EnvironmentProblem):
            forget_connections()  # credentials may have been renewed
        try:
            self._mirror.send(is_last=is_last)
            if is_last:
                self._mirror.confirm()
                self._mirror.send_record()
        except VlatoolError as error:
            _LOGGER.warning("%s", error.message)
            return error
        return None
