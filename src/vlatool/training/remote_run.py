"""Run below `remote_sync`: the choice of its folder, its lock, and its copy on a fresh machine.

A local run is copied to a folder below `remote_sync`, where it reads as the same run. A machine
whose local folder has no run continues the newest one there with equal options and data.
"""

import shutil
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from vlatool.artifacts.run.checkpoint import CheckpointManifest
from vlatool.artifacts.run.format import CHECKPOINTS, LATEST, RunDir
from vlatool.errors import ConfigError, DataError, UsageError
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
from vlatool.storage.uri import is_inside, is_remote, local_path, location
from vlatool.training.config import TrainConfig
from vlatool.training.resume import RunStart, has_trained, identity_keys, reset_run

_COMMAND = "train"
_READ_AT_ONCE = 8
_STREAMS = 8
# The choice is made again if another machine changed the run before this one held its lock.
_ATTEMPTS = 3
# Sections whose values are as typed: runs that differ in them are not looked at further.
_TYPED_SECTIONS = ("hparams", "ema")

# What a run with a configuration would do in a folder; raises an error if it may not use it.
StartIn = Callable[[TrainConfig, RunDir], RunStart]


@dataclass(frozen=True)
class RemoteRun:
    """Folder below `remote_sync` that a run belongs to."""

    name: str  # name of the local run folder
    root: Path  # the folder; its files have the names of those in the local one
    run_id: str = ""  # random id of the run there; empty if there is none
    replaces: bool = False  # the local run has other options, and is replaced
    # step from which the run there continues here; None if it has no checkpoint, or if the local
    # run has it or a later one
    step: int | None = None
    lock: Lock | None = None  # of the folder, if this process holds it


@contextmanager
def held_remote_run(
    config: TrainConfig, new_name: str, start_in: StartIn, reporter: Reporter
) -> Generator[RemoteRun]:
    """Holds the remote folder of a run until the block ends; copies what the local one lacks."""
    for _ in range(_ATTEMPTS):
        choice = choose_remote_run(config, new_name, start_in)
        with job_record.output_lock(choice.root, f"vlatool {_COMMAND}") as lock:
            record = job_record.read_record(choice.root)
            if choice.run_id == ("" if record is None else record.run_id):
                local = RunDir(_local_folder(config, choice.name))
                remote = RunDir(choice.root)
                replaces = choice.replaces
                remote.check_no_files()
                step = _step_ahead(remote, local, replaces=replaces)
                if step is not None and not config.fresh:
                    _copy_to_local(remote, step, local, reporter, replaces=replaces)
                yield replace(choice, lock=lock)
                return
    raise UsageError.at(
        config.remote_sync,
        "other machines start runs of the same name there at this moment",
        hint="run the command again, or choose another --output",
        code="usage.output_in_use",
    )


def choose_remote_run(config: TrainConfig, new_name: str, start_in: StartIn) -> RemoteRun:
    """Chooses the folder below `remote_sync` that a run belongs to. Writes nothing.

    That of the local run if it is there. Else the run of the same name, or the newest one, if its
    options and data are the same. Else a new folder.
    """
    assert config.remote_sync is not None
    prefix = location(config.remote_sync)
    local = None if config.name is None else RunDir(_local_folder(config, config.name))
    own, replaces = _own_run(config, local, start_in)
    name = config.name or new_name
    _check_apart(config, prefix / name, name)
    if config.fresh:
        names = (name if number == 1 else f"{name}-{number}" for number in count(1))
        folder = next(prefix / free for free in names if not (prefix / free).exists())
        return RemoteRun(name, folder, replaces=replaces)
    remote_runs = _trained_runs(prefix, config)
    same = [folder for folder, record in remote_runs if own and record.run_id == own]
    searched = config.model_copy(update={"overwrite": False})
    if not same:
        same = list(_with_equal_options(remote_runs, searched, start_in))[:1]
    if same:
        root = same[0]
        local = local or RunDir(_local_folder(config, root.name))
        if config.name is None:
            _, replaces = _own_run(config, local, start_in)
        step = _step_ahead(RunDir(root), local, replaces=replaces)
        record = dict(remote_runs)[root]
        return RemoteRun(local.root.name, root, record.run_id, replaces, step)
    _check_no_other_run(prefix / name, searched, start_in)
    record = job_record.read_record(prefix / name)
    return RemoteRun(name, prefix / name, "" if record is None else record.run_id, replaces)


def _local_folder(config: TrainConfig, name: str) -> Path:
    return local_path(config.save_path) / name


def _check_apart(config: TrainConfig, root: Path, name: str) -> None:
    """Raises UsageError if the copy of a run would be the local run itself."""
    if not is_remote(root) and root.resolve() == _local_folder(config, name).resolve():
        raise UsageError.at(
            root,
            "is the run folder itself, not a location for its copy",
            hint="choose another --remote-sync or --output",
            code="usage.conflict",
        )


def _own_run(config: TrainConfig, local: RunDir | None, start_in: StartIn) -> tuple[str, bool]:
    """Random id of the local run, empty if none has trained; and if it will be replaced."""
    if local is None or not local.root.exists():
        return "", False
    start = start_in(config, local)
    if config.fresh and has_trained(local) and not config.overwrite:
        raise UsageError.at(
            local.root,
            "contains a run, which --fresh does not replace",
            hint="leave out --fresh to continue it, choose another --output, or replace the local "
            "run with --overwrite",
            code="usage.output_exists",
        )
    record = job_record.read_record(local.root)
    if start == "replace" or record is None or not has_trained(local):
        return "", start == "replace"
    return record.run_id, False


def _trained_runs(prefix: Path, config: TrainConfig) -> list[tuple[Path, job_record.OutputRecord]]:
    """Runs below a prefix that may be the same as this one: that of its name, then the newest."""
    folders: list[Path] = []
    with suppress(FileNotFoundError, NotADirectoryError):
        folders = [path for path in prefix.iterdir() if path.is_dir()]
    records = zip(folders, in_parallel(_dated_record, folders, _READ_AT_ONCE), strict=True)
    runs = [
        (folder, record, changed)
        for folder, (record, changed) in records
        if record is not None and record.command == _COMMAND and _is_similar(record.options, config)
    ]
    runs.sort(key=lambda run: (run[0].name == config.name, run[2], run[0].name), reverse=True)
    return [(folder, record) for folder, record, _ in runs]


def _dated_record(folder: Path) -> tuple[job_record.OutputRecord | None, float]:
    """Record of a run, and the time of its last checkpoint."""
    record = job_record.read_record(folder)
    if record is not None:
        for path in (folder / LATEST, job_record.record_file(folder)):
            with suppress(FileNotFoundError):
                return record, path.stat().st_mtime
    return record, 0.0


def _is_similar(options: Mapping[str, Any], config: TrainConfig) -> bool:
    """False if a run differs in model type, learning rate and the like, which data do not decide.

    Spares a look at the data for each run of a sweep.
    """
    now = identity_keys(config)
    model = options.get("model")
    if not isinstance(model, dict) or model.get("type") != now["model"]["type"]:
        return False
    sections = [(options.get(name), now[name]) for name in _TYPED_SECTIONS]
    return all(
        isinstance(old, dict) and all(new[key] == old[key] for key in {*old} & {*new})
        for old, new in sections
    )


def _with_equal_options(
    runs: list[tuple[Path, job_record.OutputRecord]], config: TrainConfig, start_in: StartIn
) -> Iterator[Path]:
    """Folders of the runs that this one continues; of a smaller budget only that of its name."""
    for folder, _ in runs:
        starts = ("resume", "extend") if folder.name == config.name else ("resume",)
        with suppress(UsageError, DataError, ConfigError):
            if start_in(config, RunDir(folder)) in starts:
                yield folder


def _check_no_other_run(root: Path, config: TrainConfig, start_in: StartIn) -> None:
    """Raises UsageError if the remote folder of a new run holds something else."""
    if not root.exists():
        return
    try:
        start_in(config, RunDir(root))
    except UsageError as error:
        hint = "choose another --output, or start a new run beside it with --fresh"
        raise UsageError(error.message, hint=hint, code=error.code, details=error.details) from None


def _step_ahead(remote: RunDir, local: RunDir, *, replaces: bool) -> int | None:
    """Step of the newest remote checkpoint; None if the local run has it or a later one."""
    latest = remote.latest()
    steps = [] if replaces else [step for step, _ in local.checkpoints()]
    return None if latest is None or latest[0] <= max(steps, default=-1) else latest[0]


def _best_before(step: int, remote: RunDir, local: RunDir, *, replaces: bool) -> list[int]:
    """Step of the best remote checkpoint if it is earlier, and not in the local run."""
    present = [] if replaces else [local_step for local_step, _ in local.checkpoints()]
    complete = dict(remote.checkpoints())
    return [
        best
        for best in remote.best_steps()
        if best < step and best in complete and best not in present
    ]


def _copy_to_local(
    remote: RunDir, step: int, local: RunDir, reporter: Reporter, *, replaces: bool
) -> None:
    """Copies a run to the local folder, with one of its checkpoints and the best one before it.

    The record comes first and the checkpoint last: a copy that is interrupted starts again.
    """
    reporter.note(
        f"{remote.root}: this run continues in {local.root} after step {step}; --fresh starts a new"
        " one"
    )
    copied = [*_best_before(step, remote, local, replaces=replaces), step]
    beside = {
        f"{CHECKPOINTS}/{name}"
        for number in copied
        for name in CheckpointManifest.read(remote.checkpoint(number)).beside
    }
    record = str(job_record.record_file(remote.root).relative_to(remote.root))
    files = [file for file in files_below(remote.root) if _is_copied(file.name, {record, *beside})]
    inner = {
        number: [
            file for file in files_below(remote.checkpoint(number)) if not file.name.startswith(".")
        ]
        for number in copied
    }
    total = sum(file.bytes for group in (files, *inner.values()) for file in group)
    with (
        job_record.output_lock(local.root, f"vlatool {_COMMAND}"),
        reporter.progress("download", total, "bytes") as bar,
    ):
        if replaces:
            reset_run(local, job_record.OutputRecord(_COMMAND, {}))
        copier = _Copier(TransferPool(_STREAMS, on_note=reporter.note, bar=bar), local.root)
        copier.copy(remote.root, [file for file in files if file.name == record], local.root)
        copier.copy(remote.root, [file for file in files if file.name != record], local.root)
        for number in copied:
            folder = remote.checkpoint(number)
            with atomic_folder(local.checkpoint(number)) as partial:
                copier.copy(folder, inner[number], partial)
                _check_copy(folder, partial)
        remove_tree(copier.partials)
        local.write_latest(step)


def copy_to_machine(remote: RunDir, step: int, local: RunDir, reporter: Reporter) -> None:
    """Copies a run to a machine that does not share the disk of rank 0, which has it already."""
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
            hint="remove this checkpoint there: the run then continues from the one before it",
            code=error.code,
        ) from None


def _is_copied(name: str, named: Collection[str]) -> bool:
    """True for named files, and all but checkpoints, latest.json, locks and unfinished files."""
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
                    "has a name that leads out of the run",
                    hint="remove it there: it is no file of a run",
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
