"""Configuration and request of a SageMaker job; keys have the names of the published launcher."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Annotated, Any, ClassVar

from pydantic import StringConstraints

from vlatool.config.base import ConfigModel, Names, Supported, option
from vlatool.credentials import is_credential, without_credentials
from vlatool.errors import UsageError
from vlatool.launching.training_job import LAUNCH_FOLDER
from vlatool.plugins import did_you_mean
from vlatool.storage.tree import size_text
from vlatool.training.ranks import HOSTS, SECRETS

Name = Annotated[str, StringConstraints(min_length=1)]


class SageMakerConfig(ConfigModel):
    """A SageMaker training job."""

    NAMES: ClassVar[Names] = {
        "local": Supported(
            [False], "start the image with `docker run`, or train here with `vlatool train`"
        ),
        "build_only": Supported([False], "build the image with `docker build`"),
    }

    user: str | None = option(
        None, "Your name, which becomes part of the name and the tags of the job."
    )
    name_prefix: str | None = option(None, "First part of the name of the job.")
    local: bool = option(False, "Not supported: a job on this machine.")
    region: str | None = option(
        None, "AWS region; null: the region of your AWS settings, else us-west-2."
    )
    profile: str | None = option(None, "Profile of your AWS settings; null: AWS_PROFILE.")
    arn: str | None = option(None, "Execution role of the job; null: SAGEMAKER_ARN.", min_length=1)
    instance_count: int = option(1, "Number of instances.", ge=1)
    instance_type: str = option(
        "p4de", "Instance type: p4de, p5, p5en, p6, or a full name such as ml.g6e.12xlarge."
    )
    volume_size: int = option(
        30,
        "Disk of each instance in GB, for checkpoints and caches; instances with their own disks "
        "use these instead.",
        ge=1,
        le=16_384,
    )
    subnets: list[Name] = option([], "Subnets of the job in a VPC.")
    security_group_ids: list[Name] = option([], "Security groups of the job in a VPC.")
    kms_key: Name | None = option(
        None, "KMS key for volume and output; disks of an instance have their own."
    )
    keep_alive_period: int | None = option(
        None,
        "Seconds that the instances wait for the next job after this one; you pay for them.",
        ge=0,
    )
    max_run: float = option(10, "Days after which SageMaker stops the job.", gt=0, le=28)
    image: str | None = option(
        None,
        "Address of a container image in a registry; null: vlatool:VERSION in the registry of "
        "your account.",
        min_length=1,
    )
    spot: bool = option(
        False, "Use spot instances; an interrupted job restarts and continues its run."
    )
    max_wait: float | None = option(
        None,
        "Days for a spot job, including the time that it waits for instances; null: twice max_run.",
        gt=0,
        le=28,
    )
    environment: dict[str, str] = option(
        {}, "Environment variables of the job; secrets are refused here."
    )
    secrets: dict[str, Name] = option(
        {},
        "Environment variables that the job reads from AWS Secrets Manager when it starts: the "
        "name of a secret for each variable.",
    )
    tags: dict[str, str] = option({}, "More tags of the job.")
    check_config: bool = option(False, "The same as --dry-run.")
    build_only: bool = option(False, "Not supported: building the image.")


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
# Of the paths on the volume, the one that SageMaker never copies to S3 a second time.
# Source: reference/sagemaker 3.
_VOLUME = "/tmp/vlatool"  # noqa: S108 - of a container with one user
SAVE_PATH = f"{_VOLUME}/runs"
_CHANNEL_FOLDER = f"/opt/ml/input/data/{CHANNEL}"
_ENVIRONMENT = {
    "FI_EFA_FORK_SAFE": "1",  # loader workers are forked while the network adapter is in use
    "NCCL_DEBUG": "WARN",
    "HF_HOME": f"{_VOLUME}/huggingface",
    HOSTS: "/opt/ml/input/config/resourceconfig.json",
    "PYTHONUNBUFFERED": "1",
    "SM_USE_RESERVED_CAPACITY": "1",  # as the published launcher
    "XDG_CACHE_HOME": f"{_VOLUME}/cache",
}
# Families of instances with own disks, which replace the volume. Source: reference/sagemaker 2.
_OWN_DISKS = re.compile(r"(g4dn|g5|g6e?|gr6|p3dn|p4de?|p5\w*|p6-\w+|g7e?|[cmr]\d+\w*d\w*)$")


def instance_type(name: str) -> str:
    full = _INSTANCE_TYPES.get(name, name if name.startswith("ml.") else f"ml.{name}")
    known = known_instance_types()
    if full not in known:
        hint = did_you_mean(full, sorted(known))
        raise UsageError(
            f"--sagemaker.instance_type {name}: SageMaker has no such instance type",
            hint=f"{hint}; short names: {', '.join(_INSTANCE_TYPES)}; a new type may need a "
            "newer boto3: pip install -U boto3",
            code="usage.bad_value",
            details={"instance_type": name},
        )
    if ".trn" in full or "-gb" in full:
        raise UsageError(
            f"--sagemaker.instance_type {name}: the image is for NVIDIA GPUs and x86-64, which "
            "these instances do not have",
            hint=f"choose another type; short names: {', '.join(_INSTANCE_TYPES)}",
            code="usage.bad_value",
            details={"instance_type": name},
        )
    return full


def num_gpus(full_name: str) -> int | None:
    """GPUs of an instance type; 0 for one without, None if they are not known here."""
    _, family, size = full_name.split(".")
    if _NO_GPU.match(full_name):
        return 0
    return _GPUS[family].get(size, 1) if family in _GPUS else None


def has_own_disks(full_name: str) -> bool:
    return bool(_OWN_DISKS.match(full_name.split(".")[1]))


@cache
def known_instance_types() -> frozenset[str]:
    """Types in the description of the service that botocore has."""
    from botocore.loaders import Loader

    shapes = Loader().load_service_model("sagemaker", "service-2")["shapes"]
    return frozenset(shapes["TrainingInstanceType"]["enum"])


def job_name(config: SageMakerConfig, content: str, now: datetime) -> str:
    """Name of a job: prefix and user, cut if too long, time, and a digest of what it computes."""
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
    if not config.user:
        raise UsageError(
            "sagemaker.user is not set, but the job is named and tagged with it",
            hint="give your name with --sagemaker.user FIRST.LAST",
            code="usage.missing_key",
            details={"key": "sagemaker.user"},
        )
    if config.max_wait is not None and config.max_wait < config.max_run:
        raise UsageError(
            f"sagemaker.max_wait is {config.max_wait:g} days, less than sagemaker.max_run "
            f"({config.max_run:g})",
            hint="max_wait includes the time of the job and of waiting for instances",
            code="config.contradiction",
            details={"key": "sagemaker.max_wait"},
        )
    if bool(config.subnets) != bool(config.security_group_ids):
        raise UsageError(
            "sagemaker.subnets and sagemaker.security_group_ids only work together",
            hint="give both for a job in a VPC, or neither",
            code="config.contradiction",
            details={"key": "sagemaker.subnets"},
        )
    if config.keep_alive_period and config.spot:
        raise UsageError(
            "sagemaker.keep_alive_period cannot keep spot instances",
            hint="leave out sagemaker.keep_alive_period or sagemaker.spot",
            code="config.contradiction",
            details={"key": "sagemaker.keep_alive_period"},
        )
    for name, value in config.environment.items():
        if is_credential(name, value):
            raise UsageError(
                f"sagemaker.environment.{name} looks like a secret, but everybody who may "
                "describe the job can read its environment",
                hint="store it with `aws secretsmanager create-secret --name NAME --secret-string "
                f"file://FILE`, and give --sagemaker.secrets.{name} NAME",
                code="usage.secret",
                details={"key": f"sagemaker.environment.{name}"},
            )


def training_job_request(config: SageMakerConfig, name: str, sync: str) -> dict[str, Any]:
    """The request for CreateTrainingJob; image and role are null if you have not given them.

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
    resources: dict[str, Any] = {
        "InstanceType": instance_type(config.instance_type),
        "InstanceCount": config.instance_count,
        "VolumeSizeInGB": config.volume_size,
    }
    output = {"S3OutputPath": folder}
    if config.kms_key is not None:
        output["KmsKeyId"] = config.kms_key
        if not has_own_disks(resources["InstanceType"]):
            resources["VolumeKmsKeyId"] = config.kms_key
    if config.keep_alive_period is not None:
        resources["KeepAlivePeriodInSeconds"] = config.keep_alive_period
    vpc = {"Subnets": config.subnets, "SecurityGroupIds": config.security_group_ids}
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
        "OutputDataConfig": output,
        "ResourceConfig": resources,
        **({"VpcConfig": vpc} if config.subnets else {}),
        "StoppingCondition": stop,
        "EnableManagedSpotTraining": config.spot,
        "RetryStrategy": {"MaximumRetryAttempts": _RETRIES},
        "Environment": environment,
        "Tags": [{"Key": key, "Value": value} for key, value in sorted(tags.items())],
    }


def checkout() -> tuple[dict[str, str], str]:
    """Commit of the Git checkout in the working folder, as variables of the published launcher, and
    the changes since this commit; both are empty without a checkout.
    """
    git = shutil.which("git")

    def output(*words: str) -> str:
        if git is None:
            return ""
        ended = subprocess.run([git, *words], capture_output=True, check=False)  # noqa: S603 - git with fixed words
        return ended.stdout.decode(errors="replace").strip() if ended.returncode == 0 else ""

    commit = output("rev-parse", "HEAD")
    if not commit:
        return {}, ""
    status = output("status", "--short")
    difference = f"{status}\n\n{output('diff', '--no-ext-diff', 'HEAD')}\n" if status else ""
    variables = {
        "VLA_GIT_COMMIT_HASH": commit,
        "VLA_GIT_BRANCH": output("rev-parse", "--abbrev-ref", "HEAD"),
        "VLA_GIT_REMOTE_URL": without_credentials(output("remote", "get-url", "origin")),
        "VLA_GIT_HAS_LOCAL_CHANGES": str(bool(status)).lower(),
    }
    return {name: text for name, text in variables.items() if text}, without_credentials(difference)


def check_volume(config: SageMakerConfig, size: int) -> None:
    """Raises UsageError if the checkpoints, of `size` bytes, do not fit on the volume."""
    if has_own_disks(instance_type(config.instance_type)) or size <= config.volume_size * 10**9:
        return
    raise UsageError(
        f"the checkpoints of the run take {size_text(size)}, but the volume has "
        f"{size_text(config.volume_size * 10**9)}",
        hint=f"give --sagemaker.volume_size {-(-size // 10**9) + 10}, or keep fewer "
        "checkpoints with --max-checkpoint-limit",
        code="usage.bad_value",
        details={"key": "sagemaker.volume_size", "needed": size},
    )


def config_location(request: Mapping[str, Any]) -> str:
    """Location of the configuration of the run, which the job gets as a channel; empty if the job
    runs another program.
    """
    for channel in request.get("InputDataConfig", []):
        source = channel["DataSource"].get("S3DataSource", {})
        if str(source.get("S3Uri", "")).endswith(".yaml"):
            return source["S3Uri"]
    return ""
