"""A run below `remote_sync`: locks it, and copies it to a machine that does not have it.

The run `NAME` is copied to the folder `NAME` below `remote_sync`, where it reads as the same run. A
machine whose local folder lacks it, or is behind, continues from there.
"""

import shutil
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from vlatool.checkpoints.checkpoint import CheckpointManifest
from vlatool.checkpoints.layout import CHECKPOINTS, LATEST, RunDir
from vlatool.errors import DataError, UsageError
from vlatool.events import Reporter
from vlatool.jobs import record as job_record
from vlatool.jobs.files import NAME as FILE_LIST
from vlatool.jobs.job import digest_of
from vlatool.storage.atomic import atomic_folder, open_atomic, remove_tree
from vlatool.storage.background import in_parallel
from vlatool.storage.lock import Lock
from vlatool.storage.remote import ObjectInfo
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.transfer import TransferPool, download
from vlatool.storage.tree import FileInfo, files_below
from vlatool.storage.uri import is_inside, is_remote, location
from vlatool.training.config import TrainConfig
from vlatool.training.resume import RunStart, local_run, reset_run

_COMMAND = "train"
_READ_AT_ONCE = 8
_STREAMS = 8

# What a run with a configuration would do in a folder; raises an error if it may not use it.
StartIn = Callable[[TrainConfig, RunDir], RunStart]


@dataclass(frozen=True)
class RemoteRun:
    """Copy of a named run below `remote_sync`."""

    root: Path  # its folder; its files have the names of those in the local one
    run_id: str = ""  # random id of the run there; empty if there is none
    replaces: bool = False  # the local run has other options, and is replaced
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
    with job_record.output_lock(run.root, f"vlatool {_COMMAND}") as lock:
        if _run_id(run.root) != run.run_id:  # another machine has started it meanwhile
            run = find_remote_run(config, start_in)
        local = local_run(config)
        remote = RunDir(run.root)
        remote.check_no_files()
        step = _step_ahead(remote, local, replaces=run.replaces)
        if step is not None:
            _copy_to_local(remote, step, local, reporter, replaces=run.replaces)
        yield replace(run, lock=lock)


def find_remote_run(config: TrainConfig, start_in: StartIn) -> RemoteRun:
    """The copy of a run below `remote_sync`. Writes nothing.

    Raises:
        UsageError: The local or the remote folder has a run with other options, or other files.
    """
    assert config.remote_sync is not None
    assert config.name is not None
    local = local_run(config)
    root = location(config.remote_sync) / config.name
    _check_apart(root, local.root)
    replaces = local.root.exists() and start_in(config, local) == "replace"
    if root.exists():
        _check_same_run(root, config, start_in)
    step = _step_ahead(RunDir(root), local, replaces=replaces)
    return RemoteRun(root, _run_id(root), replaces, step)


def _run_id(root: Path) -> str:
    record = job_record.read_record(root)
    return "" if record is None else record.run_id


def _check_apart(root: Path, local: Path) -> None:
    """Raises UsageError if the copy of a run would be the local run itself."""
    if not is_remote(root) and root.resolve() == local.resolve():
        raise UsageError.at(
            root,
            "is the run folder itself, so the run cannot be copied there",
            hint="choose another --remote-sync or --output",
            code="usage.conflict",
        )


def _check_same_run(root: Path, config: TrainConfig, start_in: StartIn) -> None:
    """Raises UsageError if a remote folder holds something else than this run."""
    kept = config.model_copy(update={"overwrite": False})  # no option replaces a remote run
    try:
        start_in(kept, RunDir(root))
    except UsageError as error:
        raise UsageError(
            error.message,
            hint="choose another --output: a run below remote_sync is never replaced",
            code=error.code,
            details=error.details,
        ) from None


def _step_ahead(remote: RunDir, local: RunDir, *, replaces: bool) -> int | None:
    """Step of the newest remote checkpoint; None if the local run is as far, or further."""
    latest = remote.latest()
    if latest is None:
        return None
    newest_here = -1
    if not replaces:
        newest_here = max((step for step, _ in local.checkpoints()), default=-1)
    return latest[0] if latest[0] > newest_here else None


def _best_before(step: int, remote: RunDir, local: RunDir, *, replaces: bool) -> list[int]:
    """Step of the best remote checkpoint if it is earlier, and not in the local run."""
    complete = dict(remote.checkpoints())
    if not replaces:
        for local_step, _ in local.checkpoints():
            complete.pop(local_step, None)
    return [best for best in remote.best_steps() if best < step and best in complete]


def _copy_to_local(
    remote: RunDir, step: int, local: RunDir, reporter: Reporter, *, replaces: bool
) -> None:
    """Copies a run to the local folder, with one checkpoint and the best earlier one.

    The record comes first and the checkpoint last: a copy that is interrupted starts again.
    """
    reporter.note(f"{remote.root}: this run continues in {local.root} after step {step}")
    record = str(job_record.record_file(remote.root).relative_to(remote.root))
    named = {record}
    files_by_step: dict[int, list[FileInfo]] = {}
    for number in (*_best_before(step, remote, local, replaces=replaces), step):
        folder = remote.checkpoint(number)
        named.update(f"{CHECKPOINTS}/{name}" for name in CheckpointManifest.read(folder).beside)
        files_by_step[number] = [
            file for file in files_below(folder) if not file.name.startswith(".")
        ]
    files = [file for file in files_below(remote.root) if _is_copied(file.name, named)]
    total = sum(file.bytes for file in chain(files, *files_by_step.values()))
    with (
        job_record.output_lock(local.root, f"vlatool {_COMMAND}"),
        reporter.progress("download", total, "bytes") as bar,
    ):
        if replaces:
            reset_run(local, job_record.OutputRecord(_COMMAND, {}))
        copier = _Copier(TransferPool(_STREAMS, on_note=reporter.note, bar=bar), local.root)
        copier.copy(remote.root, [file for file in files if file.name == record], local.root)
        copier.copy(remote.root, [file for file in files if file.name != record], local.root)
        for number, files_of_step in files_by_step.items():
            folder = remote.checkpoint(number)
            with atomic_folder(local.checkpoint(number)) as partial:
                copier.copy(folder, files_of_step, partial)
                _check_copy(folder, partial)
        remove_tree(copier.partials)
        local.write_latest(step)


def copy_to_machine(remote: RunDir, step: int, local: RunDir, reporter: Reporter) -> None:
    """Copies a run to a machine that does not share the disk of rank 0, where it is already."""
    if not local.checkpoint(step).exists() and remote.checkpoint(step).exists():
        _copy_to_local(remote, step, local, reporter, replaces=False)


def _check_copy(remote: Path, copy: Path) -> None:
    """Raises DataError if a copied checkpoint is damaged; the error names the remote one."""
    try:
        CheckpointManifest.read(copy).check(copy)
    except DataError as error:
        raise DataError.at(
            remote,
            f"is damaged: {Path(error.details['path']).name}{error.message.partition(':')[2]}",
            hint="remove this remote checkpoint: the run then continues from the previous one",
            code=error.code,
        ) from None


def _is_copied(name: str, named: Collection[str]) -> bool:
    """True for files that are copied: named ones, and all except checkpoints, latest.json, locks
    and unfinished files.
    """
    is_small = not name.startswith((".", f"{CHECKPOINTS}/")) and name != LATEST
    return name in named or name == FILE_LIST or (is_small and "/." not in name)


class _Copier:
    """Copies of files to the local disk, several at a time."""

    def __init__(self, pool: TransferPool, root: Path) -> None:
        self.partials = job_record.partial_folder(root)
        remove_tree(self.partials)
        self._pool = pool

    def copy(self, source: Path, files: Sequence[FileInfo], target: Path) -> None:
        """Copies files of a folder to another one, with the same names."""
        for file in files:
            if not is_inside(file.name):
                raise DataError.at(
                    f"{source}/{file.name}",
                    "has a name that points outside the run",
                    hint="remove this remote file: it does not belong to a run",
                    code="data.bad_name",
                )

        def copied(file: FileInfo) -> None:
            path = source / file.name
            local = target / file.name
            if isinstance(path, RemotePath):
                local.parent.mkdir(parents=True, exist_ok=True)
                info = ObjectInfo(file.bytes)
                partial = self.partials / digest_of(file.name)
                with self._pool.file(file.name):
                    download(path.address, info, local, partial, self._pool)
            else:
                with path.open("rb") as content, open_atomic(local) as copy:
                    shutil.copyfileobj(content, copy)

        list(in_parallel(copied, files, _READ_AT_ONCE))
