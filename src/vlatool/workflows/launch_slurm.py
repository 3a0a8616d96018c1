"""Training on a cluster with Slurm: batch script, configuration of the run, submission."""

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field

from vlatool.config.base import execution_field
from vlatool.config.rules import explicit_keys
from vlatool.errors import SINGLE_FILE, UsageError
from vlatool.events import NULL, Reporter
from vlatool.launching.slurm import SlurmConfig, SlurmJob, batch_script, check_sbatch, submit
from vlatool.launching.training_job import LAUNCH_FOLDER, checked_run, job_yaml
from vlatool.results import Result, outcome
from vlatool.storage.atomic import write_text
from vlatool.storage.uri import is_remote, local_path, location
from vlatool.training.config import TrainConfig


class SlurmTrainConfig(TrainConfig):
    """A training run as a job of Slurm."""

    slurm: SlurmConfig = Field(default=SlurmConfig(), description="Job of Slurm.")
    submit: bool = execution_field(default=False, description="Submit the script with sbatch.")


@dataclass(frozen=True)
class SlurmResult(Result):
    """Result of `launch slurm train`."""

    status: str  # `planned`, `written` or `submitted`
    name: str
    start: str  # what the job would do in the run folder: `new`, `resume`, `extend` or `replace`
    script: str  # the batch script
    script_text: str
    config: str  # the configuration of the run, which the job reads
    processes: int
    job: str | None = None  # number of the submitted job

    def lines(self) -> list[str]:
        content = "written" if self.job is None else f"submitted as job {self.job}"
        return [self.script_text, outcome(self.script, self.status, content, "would be written")]

    @property
    def next_command(self) -> str:
        return f"sbatch {self.script}" if self.job is None else f"squeue --job {self.job}"


def launch_slurm_train(
    config: SlurmTrainConfig, *, typed: Collection[str] | None = None, reporter: Reporter = NULL
) -> SlurmResult:
    """Writes the batch script of a training run, and submits it if `submit` is set.

    Args:
        config: The run and its job.
        typed: Keys that were given for this run, by default all given ones.
        reporter: Receives warnings.

    Raises:
        ConfigError: A value is invalid or contradicts another one.
        UsageError: Batch sizes do not fit the number of processes, or the folder of the run or of
            the script cannot be used.
        DataError: Data or weights are missing or do not fit.
        EnvironmentProblem: There is no sbatch here, or it rejects the script.
    """
    typed = explicit_keys(config) if typed is None else typed
    run = checked_run(config, typed, config.slurm.world_size, reporter)
    job = SlurmJob(run.name, _folder(config), Path.cwd(), _program(config.slurm))
    text = batch_script(config.slurm, job)
    result = SlurmResult(
        "planned" if config.dry_run else "written",
        name=run.name,
        start=run.start,
        script=str(job.script),
        script_text=text,
        config=str(job.config),
        processes=config.slurm.world_size,
    )
    if config.dry_run:
        return result
    if config.submit:
        check_sbatch(job.script)
    write_text(job.config, job_yaml(run.config, run.config.save_path, run.name))
    write_text(job.script, text)
    if not config.submit:
        return result
    return replace(result, status="submitted", job=submit(job.script, os.environ, reporter))


def _folder(config: SlurmTrainConfig) -> Path:
    """Folder of the files of the job; by default beside the run."""
    if config.slurm.folder is not None:
        return local_path(config.slurm.folder).absolute()
    save_path = location(config.save_path)
    if is_remote(save_path):
        raise UsageError(
            f"the run is below {config.save_path}: the script and the logs need a folder here",
            hint="give --slurm.folder, on a disk that all nodes share",
            code="usage.slurm_folder",
        )
    return save_path.absolute() / LAUNCH_FOLDER


def _program(slurm: SlurmConfig) -> tuple[str, ...]:
    if slurm.setup:
        return ("vlatool",)
    if SINGLE_FILE in os.environ:  # a module of it is importable only in its own processes
        return (sys.executable, os.environ[SINGLE_FILE])
    return (sys.executable, "-P", "-m", "vlatool")
