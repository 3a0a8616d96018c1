"""Run ownership and resume.

The run that owns a folder may continue in it; any other run is refused.
"""

import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from vlatool.artifacts.run.best import BEST
from vlatool.artifacts.run.format import CONFIG, DROPS, LATEST, METRICS, RunDir, is_run
from vlatool.config.resolve import load_config
from vlatool.config.schema import execution_keys
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.jobs.differences import check_no_differences
from vlatool.jobs.files import FileEntry, remove_partial_files
from vlatool.jobs.record import (
    OutputRecord,
    check_format,
    check_owner,
    read_record,
    read_valid_record,
)
from vlatool.jobs.versions import versions_of
from vlatool.storage.tree import file_names, sha256_of
from vlatool.storage.uri import location, pinned_text
from vlatool.training.config import TrainConfig
from vlatool.training.identity import (
    BUDGET,
    identity_keys,
    run_differences,
)

_COMMAND = "train"
# Files that change during the run.
_CHANGING = {METRICS, DROPS, LATEST, BEST}

RunStart = Literal["new", "resume", "extend", "replace"]


def open_run(
    run: RunDir,  # the run folder
    config: TrainConfig,  # the derived configuration
    fingerprint: Mapping[str, Any],
    save_assets: Callable[[], None],  # writes the assets
    is_larger_budget: Callable[[Mapping[str, Any]], bool],
) -> OutputRecord:
    """Prepares a run folder and returns its record; checks the owner before it changes anything.

    Assets are written once, when the run starts; a resumed or complete run keeps them.
    """
    start, record = run_start(run, config, fingerprint, is_larger_budget)
    if start == "resume":
        remove_partial_files(run.root)
        return record
    if start == "extend":
        return _with_budget(run, config, record)
    if start == "replace":
        reset_run(run, record)
    # Written first, so that a folder with any files in it has a record of its owner.
    record.save(run.root)
    remove_partial_files(run.root)
    _write_assets(run, config, save_assets)
    return record


def run_start(
    run: RunDir,
    config: TrainConfig,
    fingerprint: Mapping[str, Any],
    is_larger_budget: Callable[[Mapping[str, Any]], bool],
) -> tuple[RunStart, OutputRecord]:
    """Start of a run in its folder, and its record. Writes nothing.

    Returns `new`; `resume` or `extend` (to a larger budget) with the record of the run that is
    there; or `replace`, which removes that run.

    Arguments and errors are those of `open_run`.
    """
    options = {**identity_keys(config), **fingerprint}
    record = OutputRecord(_COMMAND, options, run_id=secrets.token_hex(4))
    before = resumable_run(run, config)
    if before is None:
        return ("replace" if is_run(run.root) else "new"), record
    differences = run_differences(before.options, options, config)
    starts_anew = config.fresh and config.overwrite
    if not differences and not starts_anew and run.latest() is not None:
        return "resume", before
    budget = {} if config.overwrite else _earlier_budget(before.options, options)
    if budget and run.latest() is not None and is_larger_budget(budget):
        return "extend", before
    if differences and not config.overwrite and has_trained(run):
        hint = "choose another --output, or replace the run with --overwrite"
        check_no_differences(run.root, "with other options", differences, hint)
    return ("replace" if differences or starts_anew else "new"), record


def _write_assets(run: RunDir, config: TrainConfig, save_assets: Callable[[], None]) -> None:
    """Writes the assets and the config and lists them; other files in the folder are not listed."""
    before = _stamps(run)
    save_assets()
    _write_config(run, config)
    run.record_assets(dict(_stamps(run).items() - before.items()), replace=True)


def _stamps(run: RunDir) -> dict[str, tuple[int, int]]:
    """Inode and modification time by file name: both change when a file is replaced."""
    stats = {name: (run.root / name).stat() for name in file_names(run.root) - _CHANGING}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def has_trained(run: RunDir) -> bool:
    """True if the run has checkpoints or metrics; False if it failed before the first step."""
    return run.newest_folder() is not None or run.metrics.exists()


def _earlier_budget(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The budget keys of an existing run; empty if other options differ too."""
    before, now = _plain(before), _plain(now)
    changed = {key for key in {**before, **now} if before.get(key) != now.get(key)}
    return {key: before.get(key) for key in BUDGET} if changed <= set(BUDGET) else {}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they are read back from JSON."""
    return json.loads(json.dumps(options, default=str))


def _with_budget(run: RunDir, config: TrainConfig, before: OutputRecord) -> OutputRecord:
    """Saves and returns the record with the budget of the config.

    Other keys stay as they are, so the record still shows which ones its version did not have.
    """
    budget = {key: value for key, value in identity_keys(config).items() if key in BUDGET}
    record = replace(before, options={**before.options, **budget}, complete=False)
    record.save(run.root)
    remove_partial_files(run.root)
    _write_config(run, config)
    if _listed_assets(run):
        run.record_assets([CONFIG])
    return record


def with_base_config(config: TrainConfig, run: RunDir | None) -> TrainConfig:
    """The config with the base model keys that its run derived before.

    `run`: the run folder; None if the run has no name yet.

    A resumed run therefore reads no base model again.
    """
    config, _ = config.derive_static()
    if config.overwrite and run is not None:
        _check_weights_outside(run, config)
    record = _earlier_record(config, run)
    if record is None or started_run(config, run) is None:
        config.check_init()
        config = config.with_init_base_config()
    if record is None:
        return config
    try:
        before = type(config.model).model_validate(record.options["model"])
    except (KeyError, ValidationError):
        return config
    return config.model_copy(
        update={"model": config.model_type.restore_base_config(config.model, before)}
    )


def started_run(config: TrainConfig, run: RunDir | None) -> RunDir | None:
    """The run of a folder if it has a checkpoint to resume from; None if it starts anew."""
    is_new = run is None or config.overwrite or run.newest_folder() is None
    return None if is_new else run


def _earlier_record(config: TrainConfig, run: RunDir | None) -> OutputRecord | None:
    """The record of the run that this one would resume; None without one."""
    if run is None or config.overwrite or not has_trained(run):
        return None
    record = read_record(run.root)
    return record if record is not None and record.command == _COMMAND else None


def _check_weights_outside(run: RunDir, config: TrainConfig) -> None:
    """Raises UsageError if initial weights are in the run folder that is replaced."""
    root = run.root.resolve()
    model = config.model.model_dump(mode="json")
    for text in _strings({"init_from": config.init_from, "model": model}):
        if os.path.exists(text) and Path(text).resolve().is_relative_to(root):
            raise UsageError.at(
                text,
                f"is in {run.root}, which --overwrite replaces",
                hint="choose another --output",
                code="usage.overwrites_origin",
            )


def _strings(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _strings(value)


def pinned_data(config: TrainConfig) -> TrainConfig:
    """The config with data locations pinned to their current versions."""
    data = config.data
    pinned = {key: [pinned_text(text) for text in texts] for key, texts in _locations(config)}
    return config.model_copy(update={"data": data.model_copy(update=pinned)})


def data_versions(config: TrainConfig) -> dict[str, Any]:
    """Versions of the pinned data, for the record."""
    return versions_of(location(text) for _, texts in _locations(config) for text in texts)


def _locations(config: TrainConfig) -> Iterator[tuple[str, list[str]]]:
    """Keys of the data section that hold locations, with these locations."""
    keys = config.data_kind.folders_keys
    for key in (*keys, f"val_{keys[0]}"):
        texts = getattr(config.data, key, None)
        if isinstance(texts, list):
            yield key, texts


def resumable_run(run: RunDir, config: TrainConfig) -> OutputRecord | None:
    """The record of the run in a folder. Writes nothing; returns the record; None for an empty
    folder, or with `overwrite` for a run without a record.
    """
    before = read_record(run.root) if config.overwrite else read_valid_record(run.root)
    if before is None or before.command != _COMMAND:
        has_run = is_run(run.root)
        if has_run and not config.overwrite:
            raise UsageError.at(
                run.root,
                "has no readable record, so the run cannot be resumed",
                hint="evaluate it, choose another --output, or replace it with --overwrite",
                code="usage.no_record",
            )
        check_owner(run.root, _COMMAND, None if has_run else before, is_replaceable=has_run)
        return None
    if not config.overwrite:
        _check_no_unfinished_overwrite(run, before)
        check_format(run.root, before)
    run.check_no_files()
    return before


def repair_run(run: RunDir, config: TrainConfig, save_assets: Callable[[], None]) -> list[str]:
    """Rewrites missing or changed files of a resumed run, other than checkpoints.

    Returns names of the rewritten files.

    The files are equal to those of the first start, because options and data are equal.
    """
    repaired: list[str] = []
    if run.repair_latest():
        repaired.append(run.latest_file.name)
    run.update_best()
    listed = _listed_assets(run)
    if listed is None:
        _write_assets(run, config, save_assets)
        return [*repaired, "the list of assets"]
    changed = {entry.path for entry in listed if not _is_unchanged(run.root / entry.path, entry)}
    if CONFIG in changed or not _config_matches(run, config):
        _write_config(run, config)
        repaired.append(CONFIG)
    repaired += _repair_assets(run, config, save_assets, changed - {CONFIG})
    if repaired and listed:
        names = [entry.path for entry in listed if (run.root / entry.path).is_file()]
        run.record_assets(names, replace=True)
    return repaired


def _repair_assets(
    run: RunDir, config: TrainConfig, save_assets: Callable[[], None], changed: Collection[str]
) -> Iterator[str]:
    """Rewrites the assets if one is missing, changed or unreadable; yields a text that names it."""
    repaired = ", ".join(sorted(changed))
    if not repaired:
        try:
            config.data_kind.load_assets(config.data, run.root)
        except DataError as error:
            repaired = f"the assets of the data ({error.message})"
    if repaired:
        save_assets()
        yield repaired


def _listed_assets(run: RunDir) -> list[FileEntry] | None:
    """The assets that the run lists; None if the list is damaged."""
    try:
        return run.recorded_files()
    except DataError:
        return None


def _is_unchanged(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and sha256_of(path) == entry.sha256


def _config_matches(run: RunDir, config: TrainConfig) -> bool:
    """True if config.yaml is readable and has the identity keys of the config."""
    try:
        run.config_tree()  # raises for an empty file, which would be all defaults
        stored = load_config(TrainConfig, files=[str(run.config)]).config
    except VlatoolError:
        return False
    return identity_keys(stored) == identity_keys(config)


def complete_run(run: RunDir, record: OutputRecord, result: Mapping[str, Any]) -> None:
    """Marks the record of a run as complete."""
    if not record.complete:
        replace(record, complete=True, result=result).save(run.root)


def _write_config(run: RunDir, config: TrainConfig) -> None:
    run.write_config(config.model_dump(mode="json", exclude={*execution_keys(type(config))}))


def reset_run(run: RunDir, record: OutputRecord) -> None:
    """Removes the progress of a run; its record has no options while this is incomplete."""
    replace(record, options={}).save(run.root)
    run.clear_progress()


def _check_no_unfinished_overwrite(run: RunDir, before: OutputRecord) -> None:
    if not before.options:
        raise UsageError.at(
            run.root,
            "contains the remains of a run; an earlier --overwrite was interrupted",
            hint="run the command with --overwrite again, or choose another --output",
            code="usage.unfinished_overwrite",
        )
