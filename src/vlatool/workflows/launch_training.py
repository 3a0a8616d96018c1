"""Training on Amazon SageMaker, or on a cluster with Slurm, with the configuration of `train`."""

import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlatool.config.base import ConfigModel, check_required, execution_field, option, required_field
from vlatool.config.rules import explicit_keys
from vlatool.errors import SINGLE_FILE, EnvironmentProblem, StorageError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.launching import training_job
from vlatool.launching.sagemaker import (
    JOB_ENDS,
    Account,
    check_image,
    default_image,
    described_job,
)
from vlatool.launching.sagemaker_job import (
    SAVE_PATH,
    SageMakerConfig,
    check_job,
    check_volume,
    checkout,
    config_location,
    job_name,
    num_processes,
    training_job_request,
)
from vlatool.launching.slurm import (
    SlurmConfig,
    SlurmJob,
    batch_script,
    check_sbatch,
    submit,
    with_processors,
)
from vlatool.results import Result, outcome
from vlatool.storage.atomic import write_text
from vlatool.storage.uri import is_remote, local_path, location
from vlatool.storage.uri import location as location_of
from vlatool.training.config import TrainConfig
from vlatool.training.resume import with_local_folder
from vlatool.workflows.train import check_initial_weights

_WANDB_NAMES = ("WANDB_PROJECT", "WANDB_ENTITY")


class LaunchSageMakerConfig(TrainConfig):
    """A training run as a SageMaker job."""

    sagemaker: SageMakerConfig = execution_field(
        default=SageMakerConfig(), description="SageMaker job."
    )
    again: bool = execution_field(
        default=False, description="Start a job again although the same job has completed."
    )


@dataclass(frozen=True)
class SageMakerResult(Result):
    """A job that was started, or would be."""

    job: str  # its name
    status: str  # `planned`, or the last known status of the job
    request: Mapping[str, Any]  # starts the job; null where only the account has the value
    config_location: str  # of the configuration of the run
    config: str  # this configuration as YAML
    notes: tuple[str, ...] = ()  # explanation of each null

    def lines(self) -> list[str]:
        if not self.is_planned:
            return [f"{self.job}: {self.status}; its configuration is {self.config_location}"]
        request = json.dumps(self.request, indent=2)
        return [f"# {self.config_location}", self.config, request, *self.notes]


def launch_sagemaker_train(
    config: LaunchSageMakerConfig,
    *,
    typed: Collection[str] | None = None,  # keys that were given for this job; None: all given ones
    reporter: Reporter = NULL,
) -> SageMakerResult:
    """Starts a SageMaker job that trains; if the same job runs already, no second one is started.

    Raises:
        ConfigError: A value is invalid, or a location is local.
        UsageError: A required value is missing, or AWS rejects the request.
        DataError: The data or the initial weights are missing or broken.
        EnvironmentProblem: Credentials or a permission are missing.
    """
    typed = explicit_keys(config) if typed is None else typed
    config, job = with_local_folder(config), config.sagemaker
    training_job.check_locations(config)
    check_job(job)
    _check_tracker_secrets(config, job)
    processes = num_processes(job)
    training_job.check_run(config, typed, processes, reporter)
    account = Account(job.profile, job.region)
    plan = _plan(config, job, account.region)
    if config.dry_run or job.check_config:
        return _with_image_note(plan, account)
    if plan.request["RoleArn"] is None:
        raise UsageError(
            "there is no execution role for the job: sagemaker.arn and SAGEMAKER_ARN are not set",
            hint="give --sagemaker.arn ARN; `aws iam list-roles` lists the roles of your account",
            code="usage.missing_key",
            details={"key": "sagemaker.arn"},
        )
    check_volume(job, training_job.check_run_with_data(config, typed, processes, reporter))
    return _started(plan, config, account, reporter)


def launch_sagemaker_finetune(
    config: LaunchSageMakerConfig,
    *,
    typed: Collection[str] | None = None,
    reporter: Reporter = NULL,
) -> SageMakerResult:
    """Like `launch_sagemaker_train`, but starts a new run from the weights of `init_from`.

    Raises:
        UsageError: No checkpoint is given.
    """
    check_initial_weights(config)
    return launch_sagemaker_train(config, typed=typed, reporter=reporter)


def _plan(config: LaunchSageMakerConfig, job: SageMakerConfig, region: str) -> SageMakerResult:
    """The job, as far as it is known without asking AWS."""
    role = job.arn or os.environ.get("SAGEMAKER_ARN") or None
    job = job.model_copy(update={"arn": role, "environment": _environment(config, job)})
    content = training_job.job_yaml(config, SAVE_PATH, "") + job.model_dump_json() + region
    name = job_name(job, content, datetime.now(UTC))
    request = training_job_request(job, name, str(config.remote_sync).rstrip("/"))
    variables, difference = checkout()
    variables |= {"VLA_GIT_DIFF_FILE": f"{name}.diff"} if difference else {}
    request["Environment"] = variables | request["Environment"]
    run = training_job.job_yaml(config, SAVE_PATH, training_job.run_name(config, SAVE_PATH))
    return SageMakerResult(
        name, "planned", request, config_location(request), run, tuple(_notes(job))
    )


def _environment(config: LaunchSageMakerConfig, job: SageMakerConfig) -> Mapping[str, str]:
    """Environment variables of the job, with the caller's project and team of W&B."""
    names = _WANDB_NAMES if "wandb" in config.trackers else ()
    return {name: os.environ[name] for name in names if os.environ.get(name)} | job.environment


def _notes(job: SageMakerConfig) -> Iterator[str]:
    if job.arn is None:
        yield "RoleArn is null: give an execution role with --sagemaker.arn ARN, or SAGEMAKER_ARN"
    if job.image is None:
        yield (
            "TrainingImage is null: without --sagemaker.image URI it is the image of this version "
            "in the registry of your account, whose address has the number of the account"
        )


def _with_image_note(plan: SageMakerResult, account: Account) -> SageMakerResult:
    """The plan, with a note if vlatool cannot tell whether the image exists."""
    image = plan.request["AlgorithmSpecification"]["TrainingImage"]
    reason = "there are no AWS credentials here"
    if image is None:
        return plan
    if account.has_credentials:
        try:
            check_image(account, image)
            return plan
        except (EnvironmentProblem, StorageError) as error:
            reason = error.message
    return replace(plan, notes=(*plan.notes, f"TrainingImage was not checked: {reason}"))


def _check_tracker_secrets(config: LaunchSageMakerConfig, job: SageMakerConfig) -> None:
    is_offline = job.environment.get("WANDB_MODE") in ("offline", "disabled")
    if "wandb" in config.trackers and "WANDB_API_KEY" not in job.secrets and not is_offline:
        raise UsageError(
            "the tracker wandb is on, but the job has no WANDB_API_KEY",
            hint="store it with `aws secretsmanager create-secret --name NAME --secret-string "
            "file://FILE`, and give --sagemaker.secrets.WANDB_API_KEY NAME; or turn "
            "uploads off: --sagemaker.environment.WANDB_MODE offline",
            code="usage.missing_key",
            details={"key": "sagemaker.secrets.WANDB_API_KEY"},
        )


def _started(
    plan: SageMakerResult, config: LaunchSageMakerConfig, account: Account, reporter: Reporter
) -> SageMakerResult:
    """The running job: the same one if it runs already, else a new one.

    Raises:
        UsageError: The same job has completed, or is about to stop.
    """
    last = _last_job(plan, account)
    name = last.get("TrainingJobName", "")
    status = last.get("TrainingJobStatus", "")
    if status == "InProgress":
        reporter.note(f"the same job runs already: {name}")
        location = plan.config_location.replace(plan.job, name)
        request = json.loads(json.dumps(plan.request).replace(plan.job, name))
        return replace(
            plan, job=name, status="InProgress", request=request, config_location=location
        )  # fmt: skip
    if status == "Stopping" or (status == "Completed" and not config.again):
        is_complete = status == "Completed"
        raise UsageError(
            f"the same job {'has completed' if is_complete else 'is about to stop'}: {name}",
            hint="--again starts another job, which continues the run"
            if is_complete
            else "run the same command again when it has stopped",
            code="usage.output_in_use",
            details={"job": name},
        )
    image = config.sagemaker.image or default_image(account)
    check_image(account, image)
    algorithm = {**plan.request["AlgorithmSpecification"], "TrainingImage": image}
    request = {**plan.request, "AlgorithmSpecification": algorithm}
    started = replace(plan, request=request, status="InProgress", notes=())
    write_text(location_of(started.config_location), started.config)
    difference = checkout()[1]
    if difference:
        write_text(location_of(started.config_location.removesuffix(".yaml") + ".diff"), difference)
    account.call("sagemaker", "create_training_job", **started.request)
    return started


def _last_job(plan: SageMakerResult, account: Account) -> Mapping[str, Any]:
    """The newest job with the same configuration; empty if there is none."""
    digest = plan.job.rpartition("-")[2]
    request = {"NameContains": digest, "SortBy": "CreationTime", "SortOrder": "Descending"}
    jobs = account.call("sagemaker", "list_training_jobs", **request, MaxResults=100)
    return next(iter(jobs["TrainingJobSummaries"]), {})


class LaunchStatusConfig(ConfigModel):
    job: str = required_field("", "Name of a SageMaker job.")
    region: str | None = option(
        None, "AWS region; null: the region of your AWS settings, else us-west-2."
    )
    profile: str | None = option(None, "Profile of your AWS settings; null: AWS_PROFILE.")


class LaunchStopConfig(LaunchStatusConfig):
    dry_run: bool = option(False, "Stop nothing.")


@dataclass(frozen=True)
class LaunchedJobResult(Result):
    """State of a SageMaker job."""

    job: str
    status: str  # `InProgress`, `Completed`, `Failed`, `Stopping` or `Stopped`
    phase: str  # such as `Downloading` or `Training`
    reason: str  # of a failure; empty otherwise
    created: str  # ISO 8601
    ended: str | None
    billable_s: int | None
    instances: str  # such as `2 x ml.p5.48xlarge`
    # Of the configuration of the run; empty for a job of another program.
    config_location: str

    def lines(self) -> list[str]:
        times = f"created {self.created}" + (f", ended {self.ended}" if self.ended else "")
        cost = "" if self.billable_s is None else f", {self.billable_s:,} s are billed"
        return [
            f"{self.job}: {self.status} ({self.phase})",
            f"{self.instances}, {times}{cost}",
            *([f"configuration: {self.config_location}"] if self.config_location else []),
            *([self.reason] if self.reason else []),
        ]


def launch_status(config: LaunchStatusConfig, *, reporter: Reporter = NULL) -> LaunchedJobResult:
    """State of a job.

    Raises:
        UsageError: There is no such job.
        EnvironmentProblem: Credentials or a permission are missing.
    """
    check_required(config, "vlatool launch {status|stop} JOB")
    job = described_job(Account(config.profile, config.region), config.job)
    resources = job.get("ResourceConfig", {})
    groups = resources.get("InstanceGroups") or [resources]
    instances = [
        f"{group['InstanceCount']} x {group['InstanceType']}"
        for group in groups
        if "InstanceCount" in group
    ]
    ended = job.get("TrainingEndTime")
    return LaunchedJobResult(
        job=config.job,
        status=job["TrainingJobStatus"],
        phase=job.get("SecondaryStatus", ""),
        reason=job.get("FailureReason", ""),
        created=job["CreationTime"].isoformat(timespec="seconds"),
        ended=ended and ended.isoformat(timespec="seconds"),
        billable_s=job.get("BillableTimeInSeconds"),
        instances=" + ".join(instances) or "instances unknown",
        config_location=config_location(job),
    )


def launch_stop(config: LaunchStopConfig, *, reporter: Reporter = NULL) -> LaunchedJobResult:
    """Stops a job, which gets 120 s to write a checkpoint; a job that has ended is left as it is.

    Raises:
        UsageError: There is no such job.
        EnvironmentProblem: Credentials or a permission are missing.
    """
    before = launch_status(config)
    if config.dry_run or before.status in JOB_ENDS:
        would = " and would be stopped" if before.status not in JOB_ENDS else ""
        reporter.note(f"{config.job}: is {before.status}{would}; nothing was done")
        return before
    account = Account(config.profile, config.region)
    try:
        account.call("sagemaker", "stop_training_job", TrainingJobName=config.job)
    except UsageError:
        after = launch_status(config)
        if after.status not in JOB_ENDS:
            raise
        reporter.note(f"{config.job}: is {after.status} by now; nothing was done")
        return after
    return launch_status(config)


class SlurmTrainConfig(TrainConfig):
    """A training run as a job of Slurm."""

    slurm: SlurmConfig = option(SlurmConfig(), "Job of Slurm.")
    submit: bool = execution_field(default=False, description="Submit the script with sbatch.")


@dataclass(frozen=True)
class SlurmResult(Result):
    """Result of `launch slurm train`."""

    status: str  # `planned`, `written` or `submitted`
    name: str
    # What the job would do in the run folder: `new`, `resume`, `extend` or `replace`; None for a
    # dry run, which opens nothing.
    start: str | None
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
    config: SlurmTrainConfig,
    *,
    typed: Collection[str] | None = None,  # keys that were given for this run; None: all given ones
    reporter: Reporter = NULL,
) -> SlurmResult:
    """Writes the batch script of a training run, and submits it if `submit` is set.

    Raises:
        ConfigError: A value is invalid or contradicts another one.
        UsageError: Batch sizes do not fit the number of processes, or the folder of the run or of
            the script cannot be used.
        DataError: Data or weights are missing or do not fit.
        EnvironmentProblem: This machine has no sbatch, or sbatch rejects the script.
    """
    typed = explicit_keys(config) if typed is None else typed
    run = training_job.checked_run(config, typed, config.slurm.world_size, reporter)
    job = SlurmJob(run.name, _folder(config), Path.cwd(), _program(config.slurm))
    text = batch_script(with_processors(config.slurm, config.data.num_workers), job)
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
    write_text(job.config, training_job.job_yaml(run.config, run.config.save_path, run.name))
    write_text(job.script, text)
    if not config.submit:
        return result
    return replace(result, status="submitted", job=submit(job.script, os.environ, reporter))


def _folder(config: SlurmTrainConfig) -> Path:
    """Folder for the script and the logs of the job; by default beside the run."""
    if config.slurm.folder is not None:
        return local_path(config.slurm.folder).absolute()
    save_path = location(config.save_path)
    if is_remote(save_path):
        raise UsageError(
            f"the run is in {config.save_path}, but the script and the logs need a local folder",
            hint="add --slurm.folder DIR, on a disk that all nodes share",
            code="usage.bad_value",
        )
    return save_path.absolute() / training_job.LAUNCH_FOLDER


def _program(slurm: SlurmConfig) -> tuple[str, ...]:
    if slurm.setup:
        return ("vlatool",)
    if SINGLE_FILE in os.environ:
        return (os.environ[SINGLE_FILE],)
    return (sys.executable, "-P", "-m", "vlatool")
