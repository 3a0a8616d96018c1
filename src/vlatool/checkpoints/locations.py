"""Locations of trained weights: a run, `RUN/best`, or a checkpoint, of any scheme."""

import os
from contextlib import suppress
from pathlib import Path

from vlatool.checkpoints.checkpoint import MANIFEST, CheckpointManifest, is_checkpoint
from vlatool.checkpoints.layout import (
    BEST,
    BEST_NAME,
    CONFIG,
    DROPS,
    METRICS,
    OPTIONS_NAME,
    RunDir,
    is_run,
)
from vlatool.datasets.stats.layout import STATS_NAME
from vlatool.errors import DataError
from vlatool.jobs.ownership import check_downloaded, require_input
from vlatool.jobs.record import read_record
from vlatool.storage.cache import FileCache
from vlatool.storage.tree import file_names
from vlatool.storage.uri import can_list, is_missing, is_remote, missing_error, pinned


def named_best(path: Path) -> Path:
    """The best checkpoint of a run for the location `RUN/best`; other paths as they are."""
    if path.name != BEST_NAME or is_run(path) or not is_run(path.parent):
        return path
    run = RunDir(path.parent)
    best = run.read_best()
    if best is None and can_list(run.root):  # a run older than best.json
        best = run.find_best()
    if best is None:
        raise _no_best(run)
    return run.checkpoint(best.step)


def _no_best(run: RunDir) -> DataError:
    hint = f"give {run.root} for the newest checkpoint, or the location of another one"
    reason = f"{BEST} is missing, and checkpoints cannot be listed here"
    if can_list(run.root):
        reason = f"{METRICS} has neither success nor a validation loss of a checkpoint"
        hint += (
            "; --eval.env or --total-val-samples of the same `vlatool train` measures those that "
            "follow"
        )
    return DataError.at(
        run.root, f"has no best checkpoint: {reason}", hint=hint, code="data.missing"
    )


def require_weights(text: str) -> Path:
    """Path of existing weights, or of a file or folder of any other kind."""
    path = pinned(text)
    best = named_best(path)
    return require_input(text if best == path else str(best))


def local_run(run: RunDir, checkpoint: Path, cache: FileCache) -> tuple[RunDir, Path]:
    """Run and checkpoint on the local disk, where libraries can open them.

    Copies only what inference needs: the files of the run folder except metrics, and the files of
    the checkpoint except the trainer state.
    """
    if not is_remote(run.root):
        return run, checkpoint
    small = [CONFIG, STATS_NAME, OPTIONS_NAME]
    if can_list(run.root):
        small = sorted(file_names(run.root) - {METRICS, DROPS})
    else:
        small = sorted({entry.path for entry in run.recorded_files()}) or small
    weights = [checkpoint / MANIFEST, *CheckpointManifest.read(checkpoint).paths(checkpoint)]
    names = [str(path.relative_to(run.root)) for path in weights]
    try:
        copy = cache.local_copy(run.root, [*small, *names])
    except FileNotFoundError as error:
        raise DataError.at(
            error.filename,
            "is missing",
            hint="copy the run again",
            code="data.missing",
            finding="no_checkpoint",
        ) from None
    return RunDir(copy), copy / checkpoint.relative_to(run.root)


def with_run_above(path: Path) -> Path:
    """Path of weights, which is absolute for a local checkpoint that does not contain its run."""
    path = named_best(path)
    check_downloaded(path)
    has_run = is_remote(path) or (len(path.parts) > 1 and ".." not in path.parts)
    return path if has_run or not is_checkpoint(path) else Path(os.path.abspath(path))


def is_started(location: Path) -> bool:
    """True for the folder of a training run, even if it has no checkpoint."""
    record = read_record(location)
    return record is not None and record.command == "train"


def find_checkpoint(location: Path) -> tuple[RunDir, Path]:
    """Run and checkpoint folder of a run folder (its newest checkpoint) or a checkpoint folder."""
    if is_checkpoint(location) or _has_manifest(location):
        return RunDir(location.parent.parent), location
    latest = RunDir(location).latest()
    if latest is None:
        if is_missing(location):
            raise missing_error(location)
        started = is_started(location)
        raise DataError.at(
            location,
            "the run has no checkpoint yet" if started else "no complete checkpoint here",
            hint="run its command of `vlatool train` again: it writes one"
            if started
            else "give a run folder of `vlatool train`, or one of its checkpoints/step_*",
            code="data.missing",
            finding="no_checkpoint",
        )
    return RunDir(location), latest[1]


def _has_manifest(location: Path) -> bool:
    with suppress(DataError):  # other artifacts have a manifest.json, too
        CheckpointManifest.read(location)
        return True
    return False


def without_run(run: RunDir, checkpoint: Path) -> DataError:
    """Error for a checkpoint that was copied alone; names the files of its run that it needs."""
    frozen: list[str] = []
    with suppress(DataError):
        frozen = sorted(CheckpointManifest.read(checkpoint).beside)
    hint = f"copy its whole run, or {CONFIG} and the other small files of it to {run.root}"
    if frozen:
        hint += f", and the frozen weights {', '.join(frozen)} to {checkpoint.parent}"
    return DataError.at(
        checkpoint,
        f"is a checkpoint without its run: {run.config} is missing",
        hint=hint,
        code="data.broken",
        finding="broken_config",
    )
