"""Request that starts a SageMaker job, as plain data.

Nothing here reads the environment or opens a connection.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from vlatool.credentials import is_credential
from vlatool.errors import UsageError
from vlatool.launching.sagemaker_config import SageMakerConfig
from vlatool.launching.training_job import LAUNCH_FOLDER
from vlatool.plugins import did_you_mean
from vlatool.training.ranks import HOSTS, SECRETS

# Published short names. Source: reference/sagemaker 1.
_INSTANCE_TYPES = {
    "p4de": "ml.p4de.24xlarge",
    "p5": "ml.p5.48xlarge",
    "p5en": "ml.p5en.48xlarge",
    "p6": "ml.p6-b200.48xlarge",
}
# GPUs of an instance by family and size; other sizes of these families have one.
# Source: reference/sagemaker 2.
_UP_TO_8 = {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8}
_GPUS: Mapping[str, Mapping[str, int]] = {
    "g4dn": {"12xlarge": 4},
    "g5": _UP_TO_8,
    "g6": _UP_TO_8,
    "g6e": _UP_TO_8,
    "gr6": {},
    "p2": {"8xlarge": 8, "16xlarge": 16},
    "p3": {"8xlarge": 4, "16xlarge": 8},
    "p3dn": {"24xlarge": 8},
    "p4d": {"24xlarge": 8},
    "p4de": {"24xlarge": 8},
    "p5": {"48xlarge": 8},
    "p5e": {"48xlarge": 8},
    "p5en": {"48xlarge": 8},
    "p6-b200": {"48xlarge": 8},
}
_NO_GPU = re.compile(r"ml\.[cmrt]\d")
_DAY_S = 86_400
# Source: reference/sagemaker 1.
_LONGEST_RUN_DAYS = 28.0
_LONGEST_NAME = 63
_RETRIES = 3
CHANNEL = "config"
# The volume of the instance; /opt/ml/checkpoints itself would be copied to S3 a second time.
# Source: reference/sagemaker 3.
SAVE_PATH = "/opt/ml/runs"
_CHANNEL_FOLDER = f"/opt/ml/input/data/{CHANNEL}"
_ENVIRONMENT = {
    "FI_EFA_FORK_SAFE": "1",  # loader workers are forked while the network adapter is in use
    "NCCL_DEBUG": "WARN",
    HOSTS: "/opt/ml/input/config/resourceconfig.json",
    "PYTHONUNBUFFERED": "1",
}


def instance_type(name: str) -> str:
    """Full name of an instance type."""
    full = _INSTANCE_TYPES.get(name, name if name.startswith("ml.") else f"ml.{name}")
    known = known_instance_types()
    if full not in known:
        hint = did_you_mean(full, sorted(known))
        raise UsageError(
            f"--sagemaker.instance_type {name}: SageMaker has no such instance type",
            hint=f"{hint}; short names: {', '.join(_INSTANCE_TYPES)}; a new type may need a newer "
            "boto3 (pip install -U boto3)",
            code="usage.instance_type",
            details={"instance_type": name},
        )
    if ".trn" in full or "-gb" in full:
        raise UsageError(
            f"--sagemaker.instance_type {name}: its processors are not those of the image, which "
            "is for NVIDIA GPUs and x86-64",
            hint=f"choose another one; short names: {', '.join(_INSTANCE_TYPES)}",
            code="usage.instance_type",
            details={"instance_type": name},
        )
    return full


def num_gpus(full_name: str) -> int | None:
    """GPUs of an instance type; 0 for one without, None if they are not known here."""
    _, family, size = full_name.split(".")
    if _NO_GPU.match(full_name):
        return 0
    return _GPUS[family].get(size, 1) if family in _GPUS else None


@cache
def known_instance_types() -> frozenset[str]:
    """Instance types for training, from the description of the service that botocore has."""
    from botocore.loaders import Loader

    model = Loader().load_service_model("sagemaker", "service-2")
    return frozenset(model["shapes"]["TrainingInstanceType"]["enum"])


def job_name(config: SageMakerConfig, content: str, now: datetime) -> str:
    """Name of a job: prefix and user, the time, and a digest of what the job computes.

    The first part is cut if the name is too long, never the rest, which makes it unique.
    """
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    end = f"{now:%Y-%m-%d-%H-%M-%S}-{digest}"
    start = "-".join(filter(None, [config.name_prefix, config.user, "vlatool"]))
    start = re.sub("[^A-Za-z0-9]+", "-", start).strip("-")
    return f"{start[: _LONGEST_NAME - len(end) - 1].strip('-')}-{end}".lstrip("-")


def num_processes(config: SageMakerConfig) -> int | None:
    """Number of processes of a job, one for each GPU; None if it is not known here."""
    gpus = num_gpus(instance_type(config.instance_type))
    return None if gpus is None else config.instance_count * max(gpus, 1)


def check_job(config: SageMakerConfig) -> None:
    """Checks the keys of a job."""
    if not config.user:
        raise UsageError(
            "sagemaker.user is not set: it names and tags the job",
            hint="give your name with --sagemaker.user FIRST.LAST",
            code="usage.missing_key",
            details={"key": "sagemaker.user"},
        )
    if config.max_wait is not None and config.max_wait < config.max_run:
        raise UsageError(
            f"sagemaker.max_wait is {config.max_wait:g} days, less than sagemaker.max_run "
            f"({config.max_run:g})",
            hint="max_wait has the time of the job and of waiting for instances",
            code="config.contradiction",
            details={"key": "sagemaker.max_wait"},
        )
    for name, value in config.environment.items():
        if is_credential(name, value):
            raise UsageError(
                f"sagemaker.environment.{name} looks like a secret: whoever may describe the job "
                "can read its environment",
                hint="store it with `aws secretsmanager create-secret --name NAME --secret-string "
                f"file://FILE`, and give --sagemaker.secrets.{name} NAME",
                code="usage.secret",
                details={"key": f"sagemaker.environment.{name}"},
            )


def training_job_request(config: SageMakerConfig, name: str, sync: str) -> dict[str, Any]:
    """Request of CreateTrainingJob; image and role are null if they are not given.

    There is no CheckpointConfig: the run is copied to `sync` while it trains, and a job that
    SageMaker restarts continues from there.
    """
    folder = f"{sync}/{LAUNCH_FOLDER}"
    run_s = round(config.max_run * _DAY_S)
    stop = {"MaxRuntimeInSeconds": run_s}
    if config.spot:
        wait = config.max_wait or min(2 * config.max_run, _LONGEST_RUN_DAYS)
        stop["MaxWaitTimeInSeconds"] = round(wait * _DAY_S)
    source = {
        "S3DataType": "S3Prefix",
        "S3Uri": f"{folder}/{name}.yaml",
        "S3DataDistributionType": "FullyReplicated",
    }
    environment = {**_ENVIRONMENT, **config.environment}
    if config.secrets:
        environment[SECRETS] = json.dumps(config.secrets, sort_keys=True)
    tags = {"project": "vlatool", "owner": str(config.user), **config.tags}
    return {
        "TrainingJobName": name,
        "RoleArn": config.arn,
        "AlgorithmSpecification": {
            "TrainingImage": config.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["vlatool", "train"],
            "ContainerArguments": ["--config", f"{_CHANNEL_FOLDER}/{name}.yaml"],
        },
        "InputDataConfig": [{"ChannelName": CHANNEL, "DataSource": {"S3DataSource": source}}],
        "OutputDataConfig": {"S3OutputPath": folder},
        "ResourceConfig": {
            "InstanceType": instance_type(config.instance_type),
            "InstanceCount": config.instance_count,
            "VolumeSizeInGB": config.volume_size,
        },
        "StoppingCondition": stop,
        "EnableManagedSpotTraining": config.spot,
        "RetryStrategy": {"MaximumRetryAttempts": _RETRIES},
        "Environment": environment,
        "Tags": [{"Key": key, "Value": value} for key, value in sorted(tags.items())],
    }


def config_location(request: Mapping[str, Any]) -> str:
    """Location of the configuration of the run, which the job gets as a channel."""
    return str(request["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"])
