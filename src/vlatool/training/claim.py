"""Whose a run folder is: the same run goes on in it, another one is refused."""

import json
import shutil
from collections.abc import Mapping
from typing import Any

from vlatool.artifacts.run_dir import RunDir
from vlatool.artifacts.shard_folder import ShardFolder
from vlatool.artifacts.stats import read_stats, write_stats
from vlatool.errors import UsageError
from vlatool.loading.facts import DatasetFacts
from vlatool.storage.atomic import remove_partials
from vlatool.storage.uri import local_path
from vlatool.training.config import TrainConfig

_SHOWN = 6


def claim_run(run: RunDir, config: TrainConfig, facts: DatasetFacts) -> None:
    """Makes a run folder ready.

    What a run normalises with is written once, when it starts: a run that goes on, or is complete,
    keeps it.

    Raises:
        UsageError: The folder holds a run with other options or data, or something else.
    """
    remove_partials(run.root)
    before = run.read_config()
    if before is None:
        _refuse_strangers(run)
    else:
        differences = _run_differences(run, before, config, facts)
        if not differences:
            return
        if not config.overwrite:
            raise UsageError(
                f"{run.root}: was trained with other options: {'; '.join(differences[:_SHOWN])}",
                hint="choose another --output, or replace it with --overwrite",
                code="usage.output_differs",
                details={"differences": differences},
            )
        run.forget_progress()
    write_stats([run.stats], _used_statistics(config, facts))
    data = ShardFolder(local_path(config.data.dataset_manifest[0]))
    shutil.copyfile(data.options_file, run.options)
    run.write_config(config.model_dump(mode="json", exclude={"overwrite", "dry_run"}))


def _refuse_strangers(run: RunDir) -> None:
    unfinished = {".vlatool", run.stats.name, run.options.name}
    if any(child.name not in unfinished for child in run.root.iterdir()):
        raise UsageError(
            f"{run.root}: exists and is not a run of vlatool",
            hint="choose another --output",
            code="usage.output_exists",
        )


def _run_differences(
    run: RunDir, before: Mapping[str, Any], config: TrainConfig, facts: DatasetFacts
) -> list[str]:
    """What decides the weights and is not as it was."""
    now = config.model_dump(mode="json", exclude=set(config.no_effect_on_output))
    now["data"].pop("prefetch_factor")
    found = _differences({key: value for key, value in before.items() if key in now}, now)
    used = json.loads(json.dumps(_used_statistics(config, facts)))
    if run.stats.is_file() and read_stats(run.stats) != used:
        found.append("the statistics of the data have changed")
    return found


def _used_statistics(config: TrainConfig, facts: DatasetFacts) -> dict[str, Any]:
    names = dict.fromkeys([*config.data.action_fields, *config.data.proprioception_fields])
    return {name: facts.statistics[name] for name in names}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in new:
        before, now = old.get(key), new[key]
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            found += _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            found.append(f"{prefix}{key} {before!r} (now {now!r})")
    return found
