"""Whose a run folder is: the same run goes on in it, another one is refused."""

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vlatool.artifacts.run_dir import RunDir
from vlatool.artifacts.shard_folder import ShardFolder
from vlatool.artifacts.stats import read_stats, write_stats
from vlatool.errors import UsageError
from vlatool.jobs.files import holds_only, remove_leftovers
from vlatool.jobs.inputs import digest_of
from vlatool.jobs.record import (
    OutputRecord,
    option_differences,
    read_record,
    refuse_differences,
)
from vlatool.loading.robotics.facts import DatasetFacts
from vlatool.storage.uri import location
from vlatool.training.config import TrainConfig

_NOT_COMPARED = {"overwrite", "dry_run"}
_STATISTICS = "statistics of the data"


def claim_run(run: RunDir, config: TrainConfig, facts: DatasetFacts) -> OutputRecord:
    """Makes a run folder ready; nothing in it is touched before it is known whose it is.

    What a run normalises with is written once, when it starts: a run that goes on, or is complete,
    keeps it.

    Returns:
        The record of the run, which is not complete.

    Raises:
        UsageError: The folder holds a run with other options or data, or something else.
    """
    used = _used_statistics(config, facts)
    options = {**_options(config), _STATISTICS: digest_of(used)}
    record = OutputRecord("train", options, made=secrets.token_hex(4))
    before = read_record(run.root) or _of_an_earlier_version(run, record)
    if before is None or before.command != record.command:
        _refuse_strangers(run)
    else:
        differences = option_differences(before.options, record.options)
        if not differences and run.latest() is not None:
            remove_leftovers(run.root)
            return before
        if differences and not config.overwrite:
            hint = "choose another --output, or replace it with --overwrite"
            refuse_differences(run.root, "with other options", differences, hint)
        if differences:
            # Killed from here on it is nobody's: neither these options nor the old ones fit.
            replace(record, options={}).save(run.root)
            run.forget_progress()
    remove_leftovers(run.root)
    write_stats([run.stats], used)
    shutil.copyfile(_data_options(config), run.options)
    run.write_config(config.model_dump(mode="json", exclude=_NOT_COMPARED))
    record.save(run.root)
    return record


def complete_run(run: RunDir, record: OutputRecord, result: Mapping[str, Any]) -> None:
    """Enters that nothing is left to do."""
    if not record.complete:
        replace(record, complete=True, result=result).save(run.root)


def _data_options(config: TrainConfig) -> Any:
    return ShardFolder(location(config.data.dataset_manifest[0])).options_file


def _options(config: TrainConfig) -> dict[str, Any]:
    """What decides the weights."""
    options = config.model_dump(mode="json", exclude=set(config.no_effect_on_output))
    options["data"].pop("prefetch_factor")
    return options


def _of_an_earlier_version(run: RunDir, now: OutputRecord) -> OutputRecord | None:
    """The record of a run that has none, from its configuration and statistics."""
    tree = run.read_config()
    if tree is None:
        return None
    options = {key: value for key, value in tree.items() if key in now.options}
    if isinstance(options.get("data"), dict):
        options["data"].pop("prefetch_factor", None)
    used = read_stats(run.stats) if run.stats.is_file() else {}
    digest = digest_of(used) if used else now.options[_STATISTICS]
    return OutputRecord("train", {**options, _STATISTICS: digest})


def _refuse_strangers(run: RunDir) -> None:
    if not holds_only(run.root, (run.stats.name, run.options.name)):
        raise UsageError(
            f"{run.root}: exists and is not a run of vlatool",
            hint="choose another --output",
            code="usage.output_exists",
        )


def _used_statistics(config: TrainConfig, facts: DatasetFacts) -> dict[str, Any]:
    names = dict.fromkeys([*config.data.action_fields, *config.data.proprioception_fields])
    return {name: facts.statistics[name] for name in names}
