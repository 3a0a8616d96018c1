"""Checks of a training run and of a checkpoint: all files that evaluation and resume read."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.checkpoints import checkpoint
from vlatool.checkpoints.layout import RunDir, has_step, is_run, scan_metrics
from vlatool.config.resolve import load_config
from vlatool.datasets.lbm.layout import read_preprocessing_config
from vlatool.datasets.stats.layout import number_array
from vlatool.errors import DataError, VlatoolError
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.jobs.record import read_valid_record
from vlatool.plugins import RUN_CONFIGS
from vlatool.recordings.check import CheckOptions, check_file, read_error
from vlatool.storage.uri import can_list

_OTHER_CHECKPOINT = "use another checkpoint, or train the run again"

RUN = FindingCodes(
    "run",
    broken_config=error("config.yaml is missing, broken or invalid.", "copy the run again"),
    broken_record=error(
        ".vlatool/run.json was changed after it was written.", "copy the run again"
    ),
    broken_statistics=error("stats.json of the run is missing or broken.", "copy the run again"),
    broken_kept=error(
        "An asset of the run (normalization, tokenizer, ...) is missing, broken or changed.",
        "copy the run again, or run its train command again",
    ),
    broken_options=error(
        "preprocessing_config.yaml of the run is missing or broken.",
        "copy the file from the training data next to config.yaml",
    ),
    not_listed=info("A web server does not list folders: only the latest checkpoint is found."),
    no_metrics=warning("metrics.jsonl is missing.", "copy the run again"),
    broken_metrics=error("A line of metrics.jsonl is not the row of a step.", "copy the run again"),
    cut_metrics=info("The last line of metrics.jsonl is truncated; a resumed run removes it."),
    no_checkpoint=warning("There is no complete checkpoint yet."),
    broken_latest=error(
        "latest.json is missing or broken, or names no complete checkpoint.",
        "start the run again; it resumes from the newest complete checkpoint",
    ),
    stale_latest=warning("latest.json does not name the newest checkpoint.", "start the run again"),
    broken_best=warning(
        "best.json is broken, or names no complete checkpoint.", "start the run again"
    ),
    unfinished_checkpoint=warning(
        "A checkpoint has no manifest.json and is not used.", "remove it"
    ),
    broken_manifest=error(
        "manifest.json of a checkpoint is missing, broken or of another checkpoint.",
        _OTHER_CHECKPOINT,
    ),
    missing_file=error("A file of a checkpoint is missing.", _OTHER_CHECKPOINT),
    size_mismatch=error(
        "The size of a checkpoint file differs from its manifest.", _OTHER_CHECKPOINT
    ),
    digest_mismatch=error(
        "A file of a checkpoint was changed after it was written.", _OTHER_CHECKPOINT
    ),
    unreadable_file=error("A file cannot be read.", "check the disk and the permissions"),
    broken_weights=error(
        "The header of a weights file does not match the file.", _OTHER_CHECKPOINT
    ),
    unlisted_file=warning(
        "A file in the folder of a checkpoint is not in its manifest.", "move it away"
    ),
)


# Kind of data whose assets are the statistics and the options of its shards.
_KIND_OF_SHARDS = "robotics"
_ABSENT = {"run.missing_file", "run.unreadable_file"}


FINDINGS = (RUN,)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of a run or a checkpoint."""
    if is_run(location):
        yield from _check_run(location, options)
    else:
        yield from _check_checkpoint(location, options, set())


def _check_run(location: Path, check: CheckOptions) -> Iterator[Finding]:
    run = RunDir(location)
    reported: set[Any] = set()
    for finding in _check_readable(run):
        reported.add(finding.place.get("path"))
        yield finding
    for finding in _check_asset_digests(run, check):
        if finding.place["path"] not in reported:
            yield finding
    yield from _check_metrics(run)
    yield from read_error(RUN, "broken_record", partial(read_valid_record, run.root), run.root)
    yield from _check_latest(run)
    yield from _check_best(run)
    if not can_list(location):
        problem = "cannot be listed; only the latest checkpoint is checked"
        yield RUN.at("not_listed", location, problem)
    folders = run.checkpoint_folders()
    newest = run.newest_folder()
    checked: set[Path] = set()
    with check.reporter.progress("checkpoints", len(folders), "checkpoints") as bar:
        for folder in folders:
            is_newest = newest is not None and folder == newest[1]
            if is_newest or (folder / checkpoint.MANIFEST).is_file():
                yield from _check_checkpoint(folder, check, checked)
            else:
                problem = f"has no {checkpoint.MANIFEST}, so it is not used"
                yield RUN.at("unfinished_checkpoint", folder, problem)
            bar.advance()


def _check_readable(run: RunDir) -> Iterator[Finding]:
    """Reads the configuration and the assets of its data kind."""
    try:
        run.config_tree()
        config = load_config(RUN_CONFIGS.get("train"), files=[str(run.config)]).config
    except VlatoolError as error:
        message = error.message if str(run.config) in error.message else f"{run.config}: {error}"
        yield RUN("broken_config", message, path=str(run.config))
    else:
        yield from _check_assets(run, config)


def _check_checkpoint(location: Path, check: CheckOptions, checked: set[Path]) -> Iterator[Finding]:
    """Checks a checkpoint; `checked`: files that were checked with another one."""
    try:
        manifest = checkpoint.CheckpointManifest.read(location)
    except DataError as error:
        yield RUN("broken_manifest", error.message, path=str(location / checkpoint.MANIFEST))
        return
    entries = {**manifest.files, **manifest.beside}
    for path in manifest.paths(location, list(manifest.files)):
        if path in checked:
            continue
        checked.add(path)
        is_absent = False
        for finding in check_file(RUN, path, entries[path.name], check):
            is_absent |= finding.code in _ABSENT
            yield finding
        if is_absent:
            continue
        check.counts.add(files=1, bytes=entries[path.name].bytes)
        if path.name.endswith(checkpoint.WEIGHTS_SUFFIX):
            read_header = partial(checkpoint.read_weights_header, path)
            yield from read_error(RUN, "broken_weights", read_header, path)
    if can_list(location):
        for path in sorted(location.iterdir()):
            if path.name != checkpoint.MANIFEST and path.name not in entries:
                yield RUN.at("unlisted_file", path, f"is not in {checkpoint.MANIFEST}")
    named_step = checkpoint.checkpoint_step(location.name)
    if named_step not in (None, manifest.step):
        problem = f"has step {manifest.step}, the folder name {named_step}"
        yield RUN.at("broken_manifest", location / checkpoint.MANIFEST, problem)


def _check_assets(run: RunDir, config: Any) -> Iterator[Finding]:
    """Reads the assets of the data kind, which inference needs besides the weights."""
    if config.data_kind.name != _KIND_OF_SHARDS:
        load = partial(config.data_kind.load_assets, config.data, run.root)
        yield from read_error(RUN, "broken_kept", load, run.root)
        return
    yield from read_error(RUN, "broken_statistics", partial(_check_statistics, run), run.stats)
    yield from read_error(
        RUN, "broken_options", partial(read_preprocessing_config, run.options.parent), run.options
    )


def _check_asset_digests(run: RunDir, check: CheckOptions) -> Iterator[Finding]:
    """Compares the listed files next to the checkpoints with their digests."""
    try:
        entries = run.recorded_files()
    except DataError as error:
        yield RUN("broken_record", error.message, path=str(error.details.get("path", run.root)))
        return
    for entry in entries:
        path = run.root / entry.path
        for finding in check_file(RUN, path, entry, check):
            yield RUN("broken_kept", finding.message, path=str(path))


def _check_statistics(run: RunDir) -> None:
    """Raises DataError if the statistics are damaged or a mean or std is not finite."""
    for name, entry in run.statistics().items():
        for key in ("mean", "std"):
            values = number_array(entry.get(key))
            if values is None or not np.isfinite(values).all():
                raise DataError(f"{run.stats}: {key!r} of {name!r} is not finite")


def _check_metrics(run: RunDir) -> Iterator[Finding]:
    """Checks every line; a killed run may leave a truncated last line, removed on resume."""
    path = str(run.metrics)
    if run.metrics.exists() and not run.metrics.is_file():
        yield RUN.at("broken_metrics", path, "is not a file")
        return
    if not run.metrics.is_file():
        yield RUN.at("no_metrics", path, "is missing")
        return
    rows = list(scan_metrics(run.metrics))
    for number, row in enumerate(rows, 1):
        if row is None and number == len(rows):
            yield RUN("cut_metrics", f"{path}: the last line is truncated", path=path, line=number)
        elif not has_step(row):
            problem = "expected a JSON object with an integer `step`"
            yield RUN.at("broken_metrics", path, problem, line=number)


def _is_checkpoint_of(run: RunDir, name: str) -> bool:
    try:
        return (run.root / name / checkpoint.MANIFEST).is_file()
    except OSError:  # no file can have this name
        return False


def _check_best(run: RunDir) -> Iterator[Finding]:
    try:
        best = run.read_best()
    except DataError as error:
        yield RUN("broken_best", error.message, path=str(run.best_file))
        return
    if best is not None and not (run.checkpoint(best.step) / checkpoint.MANIFEST).is_file():
        yield RUN.at("broken_best", run.best_file, f"names step {best.step}, which is not there")


def _check_latest(run: RunDir) -> Iterator[Finding]:
    path = str(run.latest_file)
    try:
        content = run.read_latest()
    except DataError as error:
        yield RUN("broken_latest", error.message, path=path)
        return
    checkpoints = run.checkpoints()
    if not checkpoints:
        yield RUN.at("no_checkpoint", run.root, "has no complete checkpoint")
        if not content:
            return
    named = content.get("checkpoint")
    if not isinstance(named, str) or not _is_checkpoint_of(run, named):
        yield RUN.at("broken_latest", path, "names no complete checkpoint")
    elif checkpoints:
        newest = checkpoints[-1][1]
        if run.root / named != newest:
            yield RUN.at("stale_latest", path, f"names {named}, the newest is {newest.name}")
