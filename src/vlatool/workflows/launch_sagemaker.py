"""Training on Amazon SageMaker: the same configuration as of `train`, in a job."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from vlatool.config.base import execution_field
from vlatool.config.rules import check_rules, explicit_keys, violations
from vlatool.errors import UsageError
from vlatool.events import NULL, Reporter
from vlatool.launching.aws_account import Account
from vlatool.launching.sagemaker_config import SageMakerConfig
from vlatool.launching.sagemaker_request import (
    SAVE_PATH,
    check_no_secrets,
    config_location,
    job_name,
    training_job_request,
)
from vlatool.launching.training_job import check_locations, job_yaml
from vlatool.storage.atomic import write_text
from vlatool.storage.uri import location as location_of
from vlatool.training.config import TrainConfig
from vlatool.training.locations import with_local_folder
from vlatool.workflows.finetune import check_initial_weights


class LaunchSageMakerConfig(TrainConfig):
    """A training run as a SageMaker job."""

    sagemaker: SageMakerConfig = execution_field(
        default=SageMakerConfig(), description="SageMaker job."
    )


@dataclass(frozen=True)
class SageMakerResult:
    """A job, or the plan of one.

    Attributes:
        job: Name of the job.
        status: `planned`, or the last known status of the job.
        request: Request that starts the job; null where only the account has the value.
        config_location: Location of the configuration of the run.
        config: This configuration as YAML.
        notes: Explanation of each null.
    """

    job: str
    status: str
    request: Mapping[str, Any]
    config_location: str
    config: str
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The result as JSON."""
        return {**vars(self), "request": dict(self.request), "notes": list(self.notes)}

    def text(self) -> str:
        """The result as text."""
        if self.status != "planned":
            return f"{self.job}: {self.status}; its configuration is {self.config_location}"
        request = json.dumps(self.request, indent=2)
        return "\n".join([f"# {self.config_location}", self.config, request, *self.notes])


def launch_sagemaker_train(
    config: LaunchSageMakerConfig,
    *,
    typed: Collection[str] | None = None,
    reporter: Reporter = NULL,
) -> SageMakerResult:
    """Starts a SageMaker job that trains.

    Args:
        config: Configuration of the run and of the job.
        typed: Keys that were given for this job, by default all given ones.
        reporter: Receives messages.

    Raises:
        ConfigError: A value is invalid, or a location is local.
        UsageError: A required value is missing.
    """
    typed = explicit_keys(config) if typed is None else typed
    job = config.sagemaker
    config = with_local_folder(config)
    check_locations(config)
    check_rules(violations(config), typed, reporter)
    check_no_secrets(job)
    account = Account(job.profile, job.region)
    job = job.model_copy(update={"arn": job.arn or os.environ.get("SAGEMAKER_ARN")})
    name = job_name(job, job_yaml(config, SAVE_PATH, ""), datetime.now(UTC))
    request = training_job_request(job, name, str(config.remote_sync).rstrip("/"))
    location = config_location(request)
    result = SageMakerResult(
        name, "planned", request, location, job_yaml(config, SAVE_PATH, name), tuple(_notes(job))
    )
    if config.dry_run or job.check_config:
        return result
    for note in result.notes:
        raise UsageError(note, hint="`--dry-run` shows the request", code="launch.incomplete")
    write_text(location_of(location), result.config)
    account.call("sagemaker", "create_training_job", **request)
    return replace(result, status="InProgress")


def _notes(job: SageMakerConfig) -> Iterator[str]:
    """Explanation of each null of a request."""
    if job.arn is None:
        yield "RoleArn: give the execution role with --sagemaker.arn ARN, or in SAGEMAKER_ARN"
    if job.image is None:
        yield "TrainingImage: give the address of the image with --sagemaker.image URI"


def launch_sagemaker_finetune(
    config: LaunchSageMakerConfig,
    *,
    typed: Collection[str] | None = None,
    reporter: Reporter = NULL,
) -> SageMakerResult:
    """Starts a SageMaker job that trains a new run from the weights of a checkpoint.

    Args:
        config: As for `launch_sagemaker_train`, with `init_from`.
        typed: As for `launch_sagemaker_train`.
        reporter: Receives messages.

    Raises:
        UsageError: No checkpoint is given, or as for `launch_sagemaker_train`.
    """
    check_initial_weights(config)
    return launch_sagemaker_train(config, typed=typed, reporter=reporter)
