"""Whose a run folder is: the same run goes on in it, another one is refused."""

import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlatool.artifacts.run_dir import CONFIG, LATEST, METRICS, RunDir, is_run
from vlatool.config.base import ConfigModel
from vlatool.config.resolve import load_config
from vlatool.config.schema import default_of
from vlatool.errors import DataError, UsageError, VlatoolError
from vlatool.jobs.files import FileEntry, contains_only, remove_partial_files
from vlatool.jobs.record import (
    OutputRecord,
    changed_versions,
    check_no_differences,
    check_versions,
    option_differences,
    read_record,
    read_valid_record,
    versions_of,
    without_versions,
)
from vlatool.storage.tree import file_names, sha256_of
from vlatool.storage.uri import location, pinned_text
from vlatool.training.config import TrainConfig

_COMMAND = "train"
# Beside the checkpoints, and written to while the run goes on.
_CHANGING = {METRICS, LATEST}
_ORDER = "order of samples"
# Raise it when the same options give other samples or other numbers.
_ORDER_VERSION = 1
# What nobody can compare.
_DIGEST = re.compile(r"(, )?\b[0-9a-f]{16,}\b")
_BUDGET = TrainConfig.exclusive[0]


def open_run(
    run: RunDir,
    config: TrainConfig,
    fingerprint: Mapping[str, Any],
    keep: Callable[[], None],
    grows: Callable[[Mapping[str, Any]], bool],
) -> OutputRecord:
    """Makes a run folder ready, returns its record; asks whose it is before it touches anything.

    What inference needs beside weights is written once, when the run starts: a run that goes on, or
    is complete, keeps it.

    Args:
        run: The folder.
        config: Derived.
        fingerprint: Of the data, with their versions.
        keep: Writes what inference needs.
        grows: Whether the budget is larger than the one it is given: then the run goes on.

    Raises:
        UsageError: The folder holds a run with other options or data, or something else.
        DataError: Its newest checkpoint is damaged.
    """
    options = {**identity_keys(config), **fingerprint, _ORDER: _ORDER_VERSION}
    record = OutputRecord(_COMMAND, options, run_id=secrets.token_hex(4))
    before = resumable_run(run, config)
    if before is None:
        if is_run(run.root):
            _forget(run, record)
    else:
        differences = _differences(before.options, options, config)
        if not differences and run.latest() is not None:
            remove_partial_files(run.root)
            return before
        known = _filled(before.options, config)
        budget = {} if config.overwrite else _earlier_budget(known, options)
        if budget and run.latest() is not None and grows(budget):
            return _with_budget(run, config, replace(before, options=options, complete=False))
        if differences and not config.overwrite and _has_trained(run):
            hint = "choose another --output, or replace it with --overwrite"
            check_no_differences(run.root, "with other options", differences, hint)
        if differences:
            _forget(run, record)
    # First of all, so that a folder with anything in it says whose it is.
    record.save(run.root)
    remove_partial_files(run.root)
    _keep(run, config, keep)
    return record


def _keep(run: RunDir, config: TrainConfig, keep: Callable[[], None]) -> None:
    """Writes what inference needs, and lists it: not what somebody else put beside it."""
    before = _stamps(run)
    keep()
    _write_config(run, config)
    run.record_assets(dict(_stamps(run).items() - before.items()), replace=True)


def _stamps(run: RunDir) -> dict[str, tuple[int, int]]:
    """What tells whether a file was written meanwhile, by name: writing replaces it."""
    found = {name: (run.root / name).stat() for name in file_names(run.root) - _CHANGING}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def _has_trained(run: RunDir) -> bool:
    """Whether there is anything to lose: not where weights to begin with did not fit."""
    return run.newest_folder() is not None or run.metrics.exists()


def _earlier_budget(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The budget of a run that was made with other options; empty where more than it differs."""
    before, now = _plain(before), _plain(now)
    changed = {key for key in {**before, **now} if before.get(key) != now.get(key)}
    return {key: before.get(key) for key in _BUDGET} if changed <= set(_BUDGET) else {}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are read back."""
    return json.loads(json.dumps(options, default=str))


def _with_budget(run: RunDir, config: TrainConfig, record: OutputRecord) -> OutputRecord:
    record.save(run.root)
    remove_partial_files(run.root)
    _write_config(run, config)
    if _listed(run):
        run.record_assets([CONFIG])
    return record


def with_base_config(config: TrainConfig, run: RunDir | None) -> TrainConfig:
    """The config with what its run found out of base models, so that it asks for none again.

    Args:
        config: As it was typed.
        run: Its folder; None where it has no name yet.

    Raises:
        DataError: The run begins, and weights that it begins with are missing.
        UsageError: They cannot be used so, or lie in the run that is replaced.
    """
    if config.overwrite and run is not None:
        _check_weights_outside(run, config)
    known = None if config.overwrite else run
    if known is None or known.newest_folder() is None:
        config.model_type.check_init_weights(config.model)
    record = read_record(known.root) if known is not None and _has_trained(known) else None
    if record is None or record.command != _COMMAND:
        return config
    try:
        before = type(config.model).model_validate(record.options.get("model"))
    except ValidationError:
        return config
    return config.model_copy(
        update={"model": config.model_type.restore_base_config(config.model, before)}
    )


def _check_weights_outside(run: RunDir, config: TrainConfig) -> None:
    """Weights that a run begins with are not those that it replaces."""
    place = run.root.resolve()
    for text in _texts(config.model.model_dump(mode="json")):
        if os.path.exists(text) and Path(text).resolve().is_relative_to(place):
            raise UsageError(
                f"{text}: lies in {run.root}, which --overwrite replaces",
                hint="choose another --output",
                code="usage.overwrites_origin",
                details={"path": text},
            )


def _texts(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for one in tree.values():
            yield from _texts(one)


def pinned_data(config: TrainConfig) -> TrainConfig:
    """The config with the data at the versions that they have now."""
    data = config.data
    found = {key: [pinned_text(text) for text in texts] for key, texts in _locations(config)}
    return config.model_copy(update={"data": data.model_copy(update=found)})


def data_versions(config: TrainConfig) -> dict[str, Any]:
    """The versions of pinned data, for the record."""
    return versions_of(location(text) for _, texts in _locations(config) for text in texts)


def _locations(config: TrainConfig) -> Iterator[tuple[str, list[str]]]:
    """The keys of the data section that hold locations, and those."""
    keys = config.data_kind.folders_keys
    for key in (*keys, f"val_{keys[0]}"):
        texts = getattr(config.data, key, None)
        if isinstance(texts, list):
            yield key, texts


def resumable_run(run: RunDir, config: TrainConfig) -> OutputRecord | None:
    """The record of the run in a folder; None for an empty folder or, to be replaced, a lost one.

    Nothing is written.

    Raises:
        UsageError: The folder holds something else, or a run that cannot go on.
        DataError: Its record is damaged.
    """
    before = read_record(run.root) if config.overwrite else read_valid_record(run.root)
    if before is None or before.command != _COMMAND:
        _check_owner(run, config)
        return None
    if not config.overwrite:
        _check_no_unfinished_overwrite(run, before)
        _check_same_order(run, before)
    return before


def repair_run(run: RunDir, config: TrainConfig, keep: Callable[[], None]) -> list[str]:
    """Writes again what a run that goes on has lost beside its checkpoints; names it.

    What is written is what the run began with: the options and data are the same.
    """
    mended: list[str] = []
    if run.repair_latest():
        mended.append(run.latest_file.name)
    listed = _listed(run)
    if listed is None:
        _keep(run, config, keep)
        return [*mended, "the list of what it keeps"]
    changed = {one.path for one in listed if not _is_as_listed(run.root / one.path, one)}
    if CONFIG in changed or not _tells(run, config):
        _write_config(run, config)
        mended.append(CONFIG)
    mended += _mend_kept(run, config, keep, changed - {CONFIG})
    if mended and listed:
        names = [one.path for one in listed if (run.root / one.path).is_file()]
        run.record_assets(names, replace=True)
    return mended


def _mend_kept(
    run: RunDir, config: TrainConfig, keep: Callable[[], None], changed: Collection[str]
) -> Iterator[str]:
    """Writes again what is kept for inference where something of it is lost; says what was."""
    told = ", ".join(sorted(changed))
    if not told:
        try:
            config.data_kind.load_assets(config.data, run.root)
        except DataError as error:
            told = f"what was kept of the data ({error.message})"
    if told:
        keep()
        yield told


def _listed(run: RunDir) -> list[FileEntry] | None:
    """What the run keeps; None where the list is broken."""
    try:
        return run.recorded_files()
    except DataError:
        return None


def _is_as_listed(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and sha256_of(path) == entry.sha256


def _tells(run: RunDir, config: TrainConfig) -> bool:
    """Whether config.yaml is there and says what decides the weights."""
    try:
        run.config_tree()  # an empty one would be all defaults
        told = load_config(TrainConfig, files=[str(run.config)]).config
    except VlatoolError:
        return False
    return identity_keys(told) == identity_keys(config)


def complete_run(run: RunDir, record: OutputRecord, result: Mapping[str, Any]) -> None:
    """Enters that nothing is left to do."""
    if not record.complete:
        replace(record, complete=True, result=result).save(run.root)


def identity_keys(config: ConfigModel) -> dict[str, Any]:
    """The keys of a configuration that decide the weights, sections in sections."""
    chosen = config.model_dump(mode="json", exclude=set(config.no_effect_on_output))
    for name in chosen:
        section = getattr(config, name)
        if isinstance(section, ConfigModel):
            chosen[name] = identity_keys(section)
    return chosen


def _filled(before: Mapping[str, Any], config: ConfigModel) -> dict[str, Any]:
    """Options of a run with the defaults of the keys that its version of vlatool did not have."""
    filled = dict(before)
    for name, field in type(config).model_fields.items():
        section, known = getattr(config, name), before.get(name)
        if isinstance(section, ConfigModel) and isinstance(known, dict):
            filled[name] = _filled(known, section)
        elif name not in before and name not in config.no_effect_on_output:
            default = default_of(field)
            filled[name] = identity_keys(default) if isinstance(default, ConfigModel) else default
    return filled


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], config: TrainConfig
) -> list[str]:
    """Keys of the configuration that differ; and what of the data does, without its digests."""
    before = _filled(before, config)
    if not config.overwrite:
        check_versions(before, now)
    moved = changed_versions(before, now)
    before, now = without_versions(before), without_versions(now)
    data = [key for key in {**before, **now} if key not in {*type(config).model_fields, _ORDER}]
    values = [(key, before.get(key), now.get(key)) for key in sorted(data)]
    found = [_told(*one) for one in values if one[1] != one[2]]
    own = [{key: one[key] for key in one if key not in data} for one in (before, now)]
    return [*option_differences(*own), *found, *moved]


def _told(key: str, before: object, now: object) -> str:
    was, has = (_DIGEST.sub("", str(value or "none")) for value in (before, now))
    return f"{key}: {was} (now {has})" if was != has else f"{key}: other contents"


def _write_config(run: RunDir, config: TrainConfig) -> None:
    run.write_config(config.model_dump(mode="json", exclude=set(config.unrecorded)))


def _forget(run: RunDir, record: OutputRecord) -> None:
    """Killed from here on it is nobody's: neither these options nor the old ones fit."""
    replace(record, options={}).save(run.root)
    run.clear_progress()


def _check_no_unfinished_overwrite(run: RunDir, before: OutputRecord) -> None:
    if not before.options:
        raise UsageError(
            f"{run.root}: what is left of a run that --overwrite was replacing when it was ended",
            hint="write --overwrite again, or choose another --output",
            code="usage.unfinished_overwrite",
            details={"path": str(run.root)},
        )


def _check_same_order(run: RunDir, before: OutputRecord) -> None:
    """A run of an earlier version saw its samples in another order and cannot go on in this one."""
    if before.options.get(_ORDER) != _ORDER_VERSION:
        told = "was trained by an earlier version of vlatool; its samples came in another order"
        raise _no_going_on(run, told)


def _no_going_on(run: RunDir, told: str) -> UsageError:
    return UsageError(
        f"{run.root}: {told}; this version cannot go on with it",
        hint="evaluate it as it is, choose another --output, or replace it with --overwrite",
        code="usage.earlier_version",
        details={"path": str(run.root)},
    )


def _check_owner(run: RunDir, config: TrainConfig) -> None:
    if is_run(run.root):
        if not config.overwrite:
            told = "has no readable record: it is damaged, or an earlier version of vlatool made it"
            raise _no_going_on(run, told)
    elif not contains_only(run.root, ()):
        raise UsageError(
            f"{run.root}: exists and is not a run of vlatool",
            hint="choose another --output",
            code="usage.output_exists",
        )
