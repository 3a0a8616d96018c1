"""Writes and submits the Slurm script that trains a run on one or more nodes."""

import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Annotated

from pydantic import StringConstraints

from vlatool.config.base import ConfigModel, option
from vlatool.credentials import is_credential
from vlatool.errors import EnvironmentProblem
from vlatool.events import Reporter

SBATCH = "sbatch"
_ESCAPED = re.compile(r'["\\]')
# A value of an option of sbatch: without spaces, quotes and line ends, which would end the value.
Word = Annotated[str, StringConstraints(pattern=r"^[^\s\"'#\\]+$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\n\r]+$")]
# Forms of the option --time of sbatch: minutes, hours:minutes:seconds, days-hours and so on.
_TIME = r"^(\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2})$"


class SlurmConfig(ConfigModel):
    """Resources of a Slurm job, and where its files are written."""

    nodes: int = option(1, "Number of nodes.", ge=1)
    gpus_per_node: int = option(8, "GPUs per node, with one process for each; 0: no GPUs.", ge=0)
    tasks_per_node: int | None = option(
        None, "Processes per node; null: one per GPU, or one without GPUs.", ge=1
    )
    cpus_per_task: int | None = option(
        None,
        "Processors per process; null: with GPUs, one more than data.num_workers, or 8 if that is "
        "null; without GPUs, the cluster decides.",
        ge=1,
    )
    partition: Word | None = option(None, "Partition; null: the default partition.")
    account: Word | None = option(None, "Account that pays; null: your default account.")
    time: Annotated[str, StringConstraints(pattern=_TIME)] | None = option(
        None, "Time limit, such as 1-12:00:00 (days-hours:minutes:seconds); null: as the partition."
    )
    options: list[Line] = option([], "More options for sbatch, such as --qos=high.")
    setup: list[Line] = option(
        [],
        "Shell commands before the run, such as 'source env/bin/activate'; the job then runs the "
        "vlatool that they put on the path, instead of the one that wrote the script.",
    )
    requeue: bool = option(
        True,
        "Queue the job again when it reaches its time limit, after a checkpoint, or when Slurm "
        "takes its nodes away.",
    )
    checkpoint_before: int = option(
        300,
        "Seconds before the time limit at which the last checkpoint is started.",
        ge=1,
        le=65_535,
    )
    folder: str | None = option(
        None,
        "Folder for the script, the configuration and the logs, on a disk that all "
        "nodes share; null: the folder launch beside the run.",
    )

    @property
    def tasks(self) -> int:
        """Number of processes on each node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        return self.nodes * self.tasks


_CPUS = 8


def with_processors(slurm: SlurmConfig, num_workers: int | None) -> SlurmConfig:
    """The resources with processors for the loader workers of each GPU."""
    if slurm.cpus_per_task is not None or not slurm.gpus_per_node:
        return slurm
    cpus = _CPUS if num_workers is None else num_workers + 1
    return slurm.model_copy(update={"cpus_per_task": cpus})


@dataclass(frozen=True)
class SlurmJob:
    """Files and command of a job."""

    name: str  # name of the job and of the run
    folder: Path  # absolute folder of script, configuration and log
    work_dir: Path  # absolute folder in which the job runs
    program: tuple[str, ...]  # words that run vlatool

    @property
    def script(self) -> Path:
        return self.folder / f"{self.name}.sbatch"

    @property
    def config(self) -> Path:
        return self.folder / f"{self.name}.yaml"


def batch_script(slurm: SlurmConfig, job: SlurmJob) -> str:
    """Text of the batch script.

    Each process is a task of `srun`, whose variables the ranks read. Slurm sends USR1 to the script
    before the time limit; the script passes SIGTERM on to the ranks, which write a checkpoint and
    end with exit code 143. A canceled job ends without this, and is not queued again.
    """
    cpus = f" --cpus-per-task={slurm.cpus_per_task}" if slurm.cpus_per_task else ""
    train = shlex.join([*job.program, "train", "--config", str(job.config)])
    srun = f"srun --kill-on-bad-exit=1{cpus} {train}"
    return "\n".join(
        [
            "#!/bin/bash",
            f"# The run {job.name} on {slurm.nodes} x {slurm.tasks} processes.",
            "# Written by vlatool launch slurm train; submit it with sbatch.",
            *(f"#SBATCH {option}" for option in _options(slurm, job)),
            "",
            *(f"{line} || exit" for line in slurm.setup),
            *([*_BEFORE, f"{srun} &", *_AFTER] if slurm.requeue else [f"exec {srun}"]),
            "",
        ]
    )


_BEFORE = (
    "# Slurm sends USR1 before the time limit: the ranks write a checkpoint and end with 143.",
    "limit=",
    "trap 'limit=1; kill -TERM $ranks' USR1",
)
_AFTER = (
    "ranks=$!",
    "wait $ranks",
    "code=$?",
    "if [ $limit ]; then",
    "  wait $ranks",
    "  code=$?",
    '  if [ $code -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
    "fi",
    "exit $code",
)


def _options(slurm: SlurmConfig, job: SlurmJob) -> list[str]:
    values = {
        "job-name": job.name,
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.tasks,
        "gpus-per-node": slurm.gpus_per_node or None,
        "cpus-per-task": slurm.cpus_per_task,
        "partition": slurm.partition,
        "account": slurm.account,
        "time": slurm.time,
        "chdir": str(job.work_dir),
        "output": str(job.folder / job.name).replace("%", "%%") + "-%j.log",
        "open-mode": "append",
    }
    options = [f"--{name}={_quoted(str(value))}" for name, value in values.items() if value]
    # At the time limit only the script can queue the job again; without that, the ranks get the
    # signal themselves.
    target = "B:USR1" if slurm.requeue else "TERM"
    queueing = "--requeue" if slurm.requeue else "--no-requeue"
    signal = f"--signal={target}@{slurm.checkpoint_before}"
    return [*options, queueing, signal, *slurm.options]


def _quoted(value: str) -> str:
    """A value of an option in a script of sbatch, which reads it like a shell."""
    return (
        value
        if re.fullmatch(r"[\w.,:+%@=/-]+", value)
        else '"' + _ESCAPED.sub(r"\\\g<0>", value) + '"'
    )


def submit(script: Path, environ: Mapping[str, str], reporter: Reporter) -> str:
    """Submits a script; returns the number of the job.

    The job gets the environment of this process without variables that may hold secrets, because
    Slurm stores it.
    """
    check_sbatch(script)
    hidden = sorted(name for name, value in environ.items() if is_credential(name, value))
    if hidden:
        reporter.warn(
            "variables_left_out",
            f"the job does not get {', '.join(hidden)}, because Slurm stores the environment of "
            "jobs; keep credentials in files in your home, such as ~/.aws/credentials and ~/.netrc",
        )
    environment = {name: value for name, value in environ.items() if name not in hidden}
    try:
        done = subprocess.run(  # noqa: S603 - the program of the cluster, our script
            [SBATCH, "--parsable", str(script)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:  # not a program of this machine
        raise _sbatch_error(f"{SBATCH} cannot be started: {error.strerror}", script) from error
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number.isdigit():
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = lines[-1] if lines else f"exit code {done.returncode}, but no job number"
        raise _sbatch_error(f"{SBATCH} rejected {script}: {reason}", script, done.returncode)
    return number


def _sbatch_error(message: str, script: Path, exit_code: int | None = None) -> EnvironmentProblem:
    return EnvironmentProblem(
        message,
        hint="change the --slurm options, then run the same command again"
        if exit_code is not None
        else f"run sbatch yourself: sbatch {script}",
        code="environment.process_failed",
        details={"script": str(script), "exit_code": exit_code},
    )


def check_sbatch(script: Path) -> None:
    """Raises EnvironmentProblem if this machine has no sbatch."""
    if which(SBATCH) is None:
        raise EnvironmentProblem(
            f"{SBATCH} is not on the path, so this machine cannot submit Slurm jobs",
            hint="run this command on a login node of the cluster; without --submit, it only "
            f"writes {script}",
            code="environment.missing_dependency",
        )
