"""Prepares a training configuration for other machines: its locations, its name, its file."""

import hashlib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatool.config.base import ConfigModel
from vlatool.config.problems import Problem, config_error
from vlatool.config.rules import check_rules, sections, violations
from vlatool.config.schema import execution_keys
from vlatool.config.yaml_text import values_to_yaml
from vlatool.errors import UsageError
from vlatool.events import Reporter
from vlatool.storage.uri import is_remote, location
from vlatool.training.config import TrainConfig
from vlatool.training.plan import budget_samples, make_plan, micro_batch, schedule_violations
from vlatool.training.resume import (
    RunStart,
    default_name,
    local_run,
    resolved,
    start_in,
    with_local_folder,
)
from vlatool.training.trackers import check_trackers

# Folder beside the runs, below remote_sync, with the configurations of launched jobs.
LAUNCH_FOLDER = "launch"
_LOCAL_PATH = re.compile(r"(/|\.{1,2}/|~|file://)")
# Paths of the machine that trains, the run and the cache, and what goes into its image.
_PATHS_THERE = {"name", "save_path", "resolve_configs_path", "data.dataset_cache.cache_dir"}
_PATHS_THERE |= {"sagemaker.package"}


def check_locations(config: TrainConfig) -> None:
    """Raises an error that lists local locations, which another machine cannot read."""
    config.check_model()
    data_key = f"data.{config.data_kind.folders_keys[0]}"
    if not getattr(config.data, config.data_kind.folders_keys[0]):
        raise UsageError(
            f"you have not given training data: {data_key} is empty",
            hint="add --data s3://BUCKET/DIR, their location in a bucket",
            code="usage.missing_key",
        )
    if config.remote_sync is None:
        raise UsageError(
            "remote_sync is not set, so the run would be lost with the machine that trains it",
            hint="add --remote-sync s3://BUCKET/RUNS",
            code="usage.missing_key",
            details={"key": "remote_sync"},
        )
    required = {"init_from", "remote_sync"}
    required |= {f"data.{key}" for key in config.data_kind.folders_keys}
    problems: list[Problem] = []
    for key, text in _texts(config):
        if key not in _PATHS_THERE and _is_local(key, text, is_location=key in required):
            message = f'"{key}" is {text}, a path of this machine'
            problems.append(Problem(key, "", message, code="config.invalid_value"))
    if problems:
        raise config_error(
            problems,
            hint="copy it to a bucket, and give its location there, such as s3://BUCKET/DIR",
        )


def check_run(
    config: TrainConfig, typed: Collection[str], processes: int | None, reporter: Reporter
) -> None:
    """Checks a run without its data; `processes` is None if unknown."""
    check_rules(violations(config), typed, reporter)
    for key in ("device_memory", "rate", "measure"):
        if getattr(config, key):
            raise UsageError(
                f"--{key.replace('_', '-')} has no effect on a job",
                hint="use it with `vlatool train --dry-run`",
                code="usage.bad_value",
                details={"key": key},
            )
    budget_samples(config, 1)
    if processes is None:
        reporter.note(
            "the number of processes is not known yet, so the job itself checks the batch sizes"
        )
    else:
        micro_batch(config.hparams, processes)


def check_run_with_data(
    config: TrainConfig, typed: Collection[str], processes: int | None, reporter: Reporter
) -> int:
    """Checks a run with its data and initial weights, as `train` does before its first step.
    Returns the largest number of bytes that checkpoints take on disk.
    """
    from vlatool.training.forecast import checkpoint_bytes

    config, info, _ = resolved(config, None, reporter)
    plan = make_plan(config, info.datasets, processes or 1)
    check_rules(schedule_violations(config.hparams, plan.total_steps), typed, reporter)
    return checkpoint_bytes(config, plan)


def _texts(config: ConfigModel) -> Iterator[tuple[str, str]]:
    """All texts in a configuration, also inside lists, with their dotted keys."""
    for prefix, section in sections(config):
        for name in type(section).model_fields.keys() - execution_keys(type(section)):
            value: Any = getattr(section, name)
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, str):
                    yield f"{prefix}{name}", item


def _is_local(key: str, text: str, *, is_location: bool) -> bool:
    """True for a path on this machine, but not for a name on the hub, such as `owner/name`."""
    if is_location:
        return not is_remote(location(text))
    may_be_path = "/" in text or (key.startswith("model.") and not key.endswith("type"))
    return bool(_LOCAL_PATH.match(text)) or (may_be_path and Path(text).exists())


def run_name(config: TrainConfig, save_path: str) -> str:
    """Name of the run of a job: its own, else a name that depends only on the configuration."""
    if config.name is not None:
        return config.name
    digest = hashlib.sha256(job_yaml(config, save_path, "").encode()).hexdigest()[:8]
    return f"{config.model_type.name}-{digest}"


def job_yaml(config: TrainConfig, save_path: str, name: str) -> str:
    """Complete configuration of a run as YAML, which `vlatool train --config` takes."""
    keys = [key for key in TrainConfig.model_fields if key not in execution_keys(TrainConfig)]
    values = {key: getattr(config, key) for key in keys}
    values |= {"name": config.name or name, "save_path": save_path}
    values |= {"resolve_configs": False, "resolve_configs_path": None}
    if config.overwrite:
        values["overwrite"] = True
    return values_to_yaml(values)


# Keys of a dry run, which a job has not.
_HERE = ("dry_run", "device_memory", "rate", "measure")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class CheckedRun:
    # Its configuration. The run has a name, so that a job that is started again resumes.
    config: TrainConfig
    start: RunStart | None  # what it would do in its folder now; None for a dry run

    @property
    def name(self) -> str:
        assert self.config.name is not None
        return self.config.name


def checked_run(
    config: TrainConfig, typed: Collection[str], world_size: int, reporter: Reporter
) -> CheckedRun:
    """Checks a configuration as `train` does, except memory and disk of this machine. Writes
    nothing. A dry run does not even open the data or the folder of the run.
    """
    is_dry = config.dry_run
    config.check_given()
    check_trackers(config.trackers)
    check_rules(violations(config), typed, reporter)
    values = config.model_dump(mode="json", include={*TrainConfig.model_fields})
    values["name"] = config.name or default_name(config)
    values |= {key: TrainConfig.model_fields[key].default for key in _HERE}
    config = TrainConfig.specialize(values).model_validate(values)
    # Raises UsageError for a name that cannot be that of a job and of its files.
    if config.name is None or not _NAME.fullmatch(config.name):
        raise UsageError(
            f"{config.name!r} cannot be the name of a job",
            hint="use letters, digits, dots, dashes and underscores in the name of the run",
            code="usage.bad_value",
            details={"name": config.name},
        )
    if is_dry:
        micro_batch(config.hparams, world_size)
        return CheckedRun(config, None)
    local = with_local_folder(config)
    return CheckedRun(config, start_in(local, local_run(local), world_size=world_size))
