"""Training run of other machines, checked here as `train` checks it there."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from vlatool.artifacts.run.format import RunDir
from vlatool.config.rules import check_rules, violations
from vlatool.errors import UsageError
from vlatool.events import Reporter
from vlatool.storage.uri import local_path
from vlatool.training.config import TrainConfig
from vlatool.training.locations import new_name, with_local_folder
from vlatool.training.resume import RunStart
from vlatool.training.trackers import check_trackers

# Keys of a dry run, which a job has not.
_HERE = ("dry_run", "device_memory", "rate", "measure")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class CheckedRun:
    """A training run of a job."""

    # Its configuration. The run has a name, so that a job that is started again resumes.
    config: TrainConfig
    start: RunStart  # what it would do in its folder now

    @property
    def name(self) -> str:
        assert self.config.name is not None
        return self.config.name


def checked_run(
    config: TrainConfig, typed: Collection[str], world_size: int, reporter: Reporter
) -> CheckedRun:
    """Checks a configuration like `train` with a number of processes; writes nothing.

    Memory and disks of this machine do not count.
    """
    config.check_given()
    check_trackers(config.trackers)
    check_rules(violations(config), typed, reporter)
    if config.fresh:
        raise UsageError(
            "--fresh starts a new run each time that the job is started",
            hint="give the new run another name with --output",
            code="usage.fresh",
        )
    values = config.model_dump(mode="json", include={*TrainConfig.model_fields})
    values["name"] = config.name or new_name(config)
    values |= {key: TrainConfig.model_fields[key].default for key in _HERE}
    config = TrainConfig.specialize(values).model_validate(values)
    _check_name(config)
    local = with_local_folder(config)
    run = RunDir(local_path(local.save_path) / values["name"])
    from vlatool.training.resolved import start_in

    return CheckedRun(config, start_in(local, run, world_size=world_size))


def _check_name(config: TrainConfig) -> None:
    """Raises UsageError for a name that cannot be that of a job and of its files."""
    if config.name is None or not _NAME.fullmatch(config.name):
        raise UsageError(
            f"{config.name!r} cannot be the name of a job",
            hint="use letters, digits, dots, dashes and underscores in the name of the run",
            code="usage.job_name",
            details={"name": config.name},
        )
