"""Copy of a run folder at another location, file by file with the same names."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path

from vlatool.artifacts.run.best import BEST, BestCheckpoint
from vlatool.artifacts.run.checkpoint import MANIFEST, CheckpointManifest
from vlatool.artifacts.run.format import (
    CHECKPOINTS,
    DROPS,
    LATEST,
    METRICS,
    WANDB,
    Retention,
    RunDir,
    read_manifests,
    surplus_checkpoints,
    unnamed_weights,
)
from vlatool.errors import DataError
from vlatool.jobs.files import NAME as FILE_LIST
from vlatool.jobs.files import output_files, remove_partial_files
from vlatool.jobs.record import record_file
from vlatool.storage.atomic import (
    as_storage_error,
    copy_file,
    remove_file,
    remove_tree,
    write_bytes,
)
from vlatool.storage.background import in_parallel
from vlatool.storage.tree import FileInfo, files_below

# Files that grow during the run: only their complete lines are sent.
_GROWING = (METRICS, DROPS)
# Each large file has up to five parts of 8 MiB in memory.
_FILES_AT_ONCE = 3
# A checkpoint by the clock is sent if the last one was sent this long ago, and this many times the
# duration of its sending.
_TIMED_APART_S, _SENDINGS_APART = 900.0, 10


class RunMirror:
    """The copy of a run at one location; every method may wait for the storage.

    A checkpoint there is complete when it has its manifest, as on disk. It is written after all
    files that the manifest and the run need to resume from it, and `latest.json` after that.
    `best.json` names a checkpoint that is there.
    """

    def __init__(
        self, run: RunDir, root: Path, check: Callable[[], None], retention: Retention
    ) -> None:
        self.root = root  # location of the copy
        self.sent_bytes = 0  # number of bytes that were sent
        self._run, self._there = run, RunDir(root)
        self._check, self._retention = check, retention
        self._stamps: dict[str, tuple[int, int]] = {}
        self._manifests: dict[int, CheckpointManifest] | None = None
        self._sent: set[int] = set()
        self._sent_at, self._sending_s = -inf, 0.0
        self._is_last = False
        self._named: int | None = None
        self._named_best: BestCheckpoint | None = None

    def send_record(self) -> None:
        """Sends the record of the run: who owns the location, and whether it is complete."""
        self._send(record_file(self._run.root).relative_to(self._run.root).as_posix())

    def send(self, *, is_last: bool = False) -> None:
        """Sends all that is missing or has changed, oldest checkpoint first; prunes the copy."""
        self._is_last |= is_last
        self._complete()
        self._send_changed()
        while missing := self.missing():
            self._send_checkpoint(missing[0])
            self._write_latest(missing[0])
            self._prune()
        newest = self._run.latest()
        if newest is not None and newest[0] in self._complete():
            self._write_latest(newest[0])
        self._write_best()

    def confirm(self) -> None:
        """Sends the newest checkpoint again if a file of it is not there."""
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

        One by the clock, which the next one replaces, is left out soon after another one.
        """
        missing = [(s, folder) for s, folder in self._run.checkpoints() if s not in self._sent]
        pause_s = max(_TIMED_APART_S, _SENDINGS_APART * self._sending_s)
        if self._is_last or time.monotonic() - self._sent_at >= pause_s:
            return [step for step, _ in missing]
        manifests = read_manifests(folder for _, folder in missing)
        planned = {
            step for step, manifest in manifests.items() if manifest and not manifest.stopped
        }
        return [step for step, _ in missing if step in planned]

    def _complete(self) -> dict[int, CheckpointManifest]:
        """Manifests of the complete checkpoints there; those that differ from local ones go."""
        if self._manifests is None:
            self._remove_partials()
            local = read_manifests(folder for _, folder in self._run.checkpoints())
            there = read_manifests(self._there.checkpoint_folders())
            self._manifests = {
                step: manifest
                for step, manifest in there.items()
                if manifest is not None and local.get(step, manifest) == manifest
            }
            with suppress(DataError):  # written again
                self._named_best = self._there.read_best()
            surplus = surplus_checkpoints({**local, **self._manifests}, self._retention)
            newest = self.newest() or 0
            # Those that were pruned there already are not sent again.
            pruned = {step for step in surplus if step < newest} - {*self._run.best_steps()}
            self._sent = {*self._manifests, *pruned}
        return self._manifests

    def _remove_partials(self) -> None:
        self._check()
        remove_partial_files(self.root)

    def _send_checkpoint(self, step: int) -> None:
        """Sends a checkpoint: frozen weights, its files, files of the run, then the manifest."""
        there, folder, started = self._complete(), self._run.checkpoint(step), time.monotonic()
        manifest = CheckpointManifest.read(folder)
        present = {name for other in there.values() for name in other.beside}
        name = f"{CHECKPOINTS}/{folder.name}"
        files = [
            *(f"{CHECKPOINTS}/{beside}" for beside in manifest.beside if beside not in present),
            *(f"{name}/{file}" for file in manifest.files),
        ]
        self._remove(f"{name}/{MANIFEST}")
        self._send_all(files)
        self._send_changed()
        self._send(f"{name}/{MANIFEST}")
        there[step] = manifest
        self._sent.add(step)
        self._sent_at = time.monotonic()
        self._sending_s = self._sent_at - started

    def _send_changed(self) -> None:
        """Sends files of the run that are new or have changed, other than checkpoints."""
        stamps = {file.name: (file.bytes, file.modified_ns) for file in _files(self._run.root)}
        changed = [name for name, stamp in stamps.items() if self._stamps.get(name) != stamp]
        self._send_all(changed)
        self._stamps |= {name: stamps[name] for name in changed}

    def _write_latest(self, step: int) -> None:
        """Names a checkpoint as the newest one, unless the file does so already."""
        if step != self._named:
            self._check()
            self._there.write_latest(step)
            self._named = step

    def _write_best(self) -> None:
        """Names the best checkpoint there, and removes the one that was the best before."""
        best = self._run.read_best()
        if best not in (None, self._named_best) and best.step in self._complete():
            self._check()
            self._there.write_best(best)
            self._named_best = best
            self._prune()

    def _prune(self) -> None:
        """Removes surplus checkpoints there, and frozen weights that no other one names."""
        there = self._complete()
        manifests: Mapping[int, CheckpointManifest | None] = there
        named = () if self._named_best is None else (self._named_best.step,)
        best = {*named, *self._run.best_steps()}
        surplus = {*surplus_checkpoints(manifests, self._retention)} - best
        unnamed = unnamed_weights(manifests, surplus)
        for step in surplus:
            folder = self._there.checkpoint(step)
            # First, so that a folder of which a part is left does not look complete.
            self._remove(f"{CHECKPOINTS}/{folder.name}/{MANIFEST}")
            remove_tree(folder)
            del there[step]
        for name in unnamed:
            self._remove(f"{CHECKPOINTS}/{name}")

    def _remove(self, name: str) -> None:
        self._check()
        remove_file(self.root / name)

    def _send_all(self, names: Collection[str]) -> None:
        for _ in in_parallel(self._send, names, _FILES_AT_ONCE):
            pass

    def _send(self, name: str) -> None:
        """Sends a file; a growing one up to its last complete line."""
        self._check()
        source, target = self._run.root / name, self.root / name
        with as_storage_error(source, "sent"):
            if name in _GROWING:
                lines = source.read_bytes()
                lines = lines[: lines.rfind(b"\n") + 1]
                write_bytes(target, lines)
                self.sent_bytes += len(lines)
            else:
                self.sent_bytes += copy_file(source, target, self._check)


def _files(run: Path) -> Iterator[FileInfo]:
    """Files of a run that are sent besides checkpoints, files that name them, and the record."""
    if (run / FILE_LIST).is_file():
        yield from (replace(file, name=FILE_LIST) for file in files_below(run / FILE_LIST))
    for file in output_files(run):
        first = file.name.partition("/")[0]
        is_hidden = any(part.startswith(".") for part in file.name.split("/"))
        # W&B removes files of its folder while it sends them itself.
        if first not in (CHECKPOINTS, LATEST, BEST, WANDB) and not is_hidden:
            yield file
