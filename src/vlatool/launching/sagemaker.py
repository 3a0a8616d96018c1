"""Training on Amazon SageMaker: the account, the image, the request of a job, and its log."""

import base64
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from vlatool.config.presets import builtin_root
from vlatool.credentials import is_credential
from vlatool.errors import (
    BugError,
    DataError,
    EnvironmentProblem,
    PartialFailure,
    StorageError,
    UsageError,
    VlatoolError,
)
from vlatool.events import Reporter
from vlatool.launching.sagemaker_config import SageMakerConfig
from vlatool.launching.training_job import LAUNCH_FOLDER
from vlatool.plugins import did_you_mean
from vlatool.storage.atomic import atomic_folder
from vlatool.storage.cache import default_cache_folder
from vlatool.storage.retry import ProcessClock
from vlatool.training.ranks import HOSTS, SECRETS

DEFAULT_REGION = "us-west-2"
_CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of your AWS "
    "configuration (`aws configure`, `aws sso login`)"
)
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
_REJECTED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


class Account:
    """Services of an account in one region; a connection is opened with the first request."""

    def __init__(self, profile: str | None = None, region: str | None = None) -> None:
        session: Any = importlib.import_module("boto3.session")
        exceptions: Any = importlib.import_module("botocore.exceptions")
        try:
            self._session = session.Session(profile_name=profile, region_name=region)
        except exceptions.ProfileNotFound:
            raise EnvironmentProblem(
                f"the AWS configuration has no profile {profile or os.environ.get('AWS_PROFILE')}",
                hint="`aws configure list-profiles` lists the profiles; give one with "
                "--sagemaker.profile NAME",
                code="environment.aws_profile",
            ) from None
        self._clients: dict[str, Any] = {}
        self.region = str(self._session.region_name or DEFAULT_REGION)

    def call(self, service: str, operation: str, **request: Any) -> Mapping[str, Any]:
        label = f"{service}:{operation.title().replace('_', '')}"
        return _mapped(lambda: getattr(self._client(service), operation)(**request), label)

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            config: Any = importlib.import_module("botocore.config")
            settings = config.Config(
                connect_timeout=10, read_timeout=60, retries={"mode": "standard", "max_attempts": 4}
            )
            self._clients[service] = self._session.client(
                service, region_name=self.region, config=settings
            )
        return self._clients[service]


def _mapped(request: Callable[[], Mapping[str, Any]], label: str) -> Mapping[str, Any]:
    exceptions: Any = importlib.import_module("botocore.exceptions")
    try:
        return request()
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise _credentials_error(f"{label}: there are no AWS credentials", {}) from error
    except exceptions.ClientError as error:
        raise _client_error(error, label) from error
    except exceptions.ParamValidationError as error:
        raise _rejected(label, " ".join(str(error).split()), {"operation": label}) from error
    except exceptions.BotoCoreError as error:
        raise StorageError(
            f"{label}: {error}",
            hint="check the network, the region and AWS_ENDPOINT_URL, then run the same command "
            "again",
            code="storage.unreachable",
        ) from error


def _client_error(error: Any, label: str) -> VlatoolError:
    answer = error.response.get("Error", {})
    code, message = str(answer.get("Code", "")), str(answer.get("Message", "")).strip()
    details = {"operation": label, "reason": code}
    if code in _DENIED:
        return EnvironmentProblem(
            f"{label}: these AWS credentials lack the permission: {message}",
            hint=f"add {label} to the policy of your user or role",
            code="environment.forbidden",
            details=details,
        )
    if code in _REJECTED:
        text = f"{label}: the AWS credentials are rejected: {message}"
        return _credentials_error(text, details)
    return _rejected(label, f"{code}: {message}", details)


def _credentials_error(message: str, details: Mapping[str, Any]) -> EnvironmentProblem:
    return EnvironmentProblem(
        message, hint=_CREDENTIALS_HINT, code="environment.credentials", details=dict(details)
    )


def _rejected(label: str, reason: str, details: Mapping[str, Any]) -> UsageError:
    return UsageError(
        f"{label}: {reason}",
        hint="change what the message names, then run the command again",
        code="usage.rejected_request",
        details=dict(details),
    )


def load_secrets(names: str) -> dict[str, str]:
    """Variables of a JSON object of names of secrets; of a secret in JSON, the entry of the
    variable.
    """
    account = Account()
    return {
        variable: _secret(account, variable, name) for variable, name in json.loads(names).items()
    }


def _secret(account: Account, variable: str, name: str) -> str:
    response = account.call("secretsmanager", "get_secret_value", SecretId=name)
    text = response.get("SecretString")
    if not isinstance(text, str):
        raise EnvironmentProblem(
            f"the secret {name} for {variable} is not text",
            hint="store it with --secret-string",
            code="environment.secret",
            details={"secret": name, "variable": variable},
        )
    with suppress(ValueError):
        document = json.loads(text)
        if isinstance(document, Mapping) and isinstance(document.get(variable), str):
            return document[variable]
    return text


REPOSITORY = "vlatool"
_BASE_REGISTRY = "763104351884"  # account of the images that AWS publishes
_EXTRAS = ("train", "hub", "tensorboard", "wandb")
_DOCKERFILE = "Dockerfile"
_MISSING = {"ImageNotFoundException", "RepositoryNotFoundException"}
_STDERR = 2


def ensure_image(account: Account, reporter: Reporter) -> str:
    """Address of the image of this version of vlatool; builds and pushes it if it is not there."""
    files = dict(_files())
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    tag = digest.hexdigest()[:16]
    number = account.call("sts", "get_caller_identity")["Account"]
    registry = _registry(number, account.region)
    image = f"{registry}/{REPOSITORY}:{tag}"
    if _is_there(account, tag):
        return image
    folder = _written(files, tag)
    registries = [_registry(_BASE_REGISTRY, account.region), registry]
    docker = shutil.which("docker")
    if docker is None:
        commands = _commands(registries, image, folder, account.region)
        raise EnvironmentProblem(
            f"the image {image} is not in the registry, and Docker, which would build it, is not "
            "installed here",
            hint="\n  ".join(["on a machine with Docker:", *commands])
            + f"\nthen run this command again, or give --sagemaker.image {image}",
            code="environment.docker",
            details={"image": image, "folder": str(folder), "commands": commands},
        )
    try:
        account.call("ecr", "create_repository", repositoryName=REPOSITORY)
    except UsageError as error:
        if error.details.get("reason") != "RepositoryAlreadyExistsException":
            raise
    reporter.note(f"building {image}")
    _sign_in(docker, account, registries)
    build = ["build", "--platform", "linux/amd64", "--build-arg", f"REGION={account.region}"]
    _run([docker, *build, "--tag", image, str(folder)])
    _run([docker, "push", image])
    return image


def _registry(number: str, region: str) -> str:
    suffix = ".cn" if region.startswith("cn-") else ""
    return f"{number}.dkr.ecr.{region}.amazonaws.com{suffix}"


def _files() -> Iterator[tuple[str, bytes]]:
    """Files of the build: name and content, in the order of the names."""
    package = Path(__file__).resolve().parent.parent
    presets = builtin_root()
    sources = {path: f"vlatool/{path.relative_to(package)}" for path in package.rglob("*")}
    sources |= {path: f"vlatool/presets/{path.relative_to(presets)}" for path in presets.rglob("*")}
    for path, name in sorted(sources.items(), key=lambda item: item[1]):
        if path.is_file() and "__pycache__" not in path.parts:
            yield name, path.read_bytes()
    yield _DOCKERFILE, Path(__file__).with_name(_DOCKERFILE).read_bytes()
    yield "requirements.txt", "".join(f"{line}\n" for line in _requirements()).encode()


def _requirements() -> list[str]:
    """Packages of vlatool and of the extras that training needs."""
    try:
        lines = requires("vlatool") or []
    except PackageNotFoundError:
        raise EnvironmentProblem(
            "vlatool is not installed, so the packages of its image are not known",
            hint="install it, or give an image with --sagemaker.image URI",
            code="environment.not_installed",
        ) from None
    chosen: list[str] = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", marker)
        if extra is None or extra[1] in _EXTRAS:
            chosen.append(requirement.strip())
    return sorted(set(chosen))


def _written(files: dict[str, bytes], tag: str) -> Path:
    folder = default_cache_folder() / "images" / tag
    if not folder.is_dir():
        with atomic_folder(folder) as partial:
            for name, content in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                (partial / name).write_bytes(content)
    return folder


def _is_there(account: Account, tag: str) -> bool:
    request = {"repositoryName": REPOSITORY, "imageIds": [{"imageTag": tag}]}
    try:
        return bool(account.call("ecr", "describe_images", **request).get("imageDetails"))
    except UsageError as error:
        if error.details.get("reason") in _MISSING:
            return False
        raise


def _commands(registries: Sequence[str], image: str, folder: Path, region: str) -> list[str]:
    """Commands for a shell that build and push the image."""
    password = f"aws ecr get-login-password --region {region}"
    sign_in = "docker login --username AWS --password-stdin $registry"
    build = f"docker build --platform linux/amd64 --build-arg REGION={region} --tag {image}"
    return [
        f"for registry in {' '.join(registries)}; do {password} | {sign_in}; done",
        f"{build} {shlex.quote(str(folder))}",
        f"docker push {image}",
    ]


def _sign_in(docker: str, account: Account, registries: Sequence[str]) -> None:
    """Lets Docker use the registries; the password is its input, no argument."""
    tokens = account.call("ecr", "get_authorization_token")["authorizationData"]
    user, _, password = base64.b64decode(tokens[0]["authorizationToken"]).partition(b":")
    for registry in registries:
        _run(
            [docker, "login", "--username", user.decode(), "--password-stdin", registry],
            password,
        )


def _run(command: Sequence[str], content: bytes = b"") -> None:
    ended = subprocess.run(command, input=content, stdout=_STDERR, check=False)  # noqa: S603 - Docker with arguments that are no shell text
    if ended.returncode:
        raise EnvironmentProblem(
            f"`{shlex.join(['docker', *command[1:]])}` ended with exit code {ended.returncode}",
            hint="see its output above; then run the same command again",
            code="environment.docker",
            details={"exit_code": ended.returncode},
        )


_LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_POLL_S = 10.0
_ENDS = {"Completed", "Failed", "Stopped"}
_EXIT_CODE = re.compile(r"exit code:? (\d+)", re.IGNORECASE)
_ERRORS: Mapping[int, type[VlatoolError]] = {
    error.exit_code: error
    for error in (
        *(BugError, UsageError, DataError, PartialFailure, StorageError, EnvironmentProblem),
    )
}


class FollowingInterrupted(VlatoolError):
    """Error for Ctrl-C while the log of a job is shown; the job continues."""

    exit_code = 130
    kind = "interrupted"


def follow_job(account: Account, name: str, reporter: Reporter) -> str:
    """Passes the log of a job to a reporter until the job ends; returns its last status."""
    log, clock, before = _Log(account, name, reporter), ProcessClock(), ""
    try:
        while True:
            job = account.call("sagemaker", "describe_training_job", TrainingJobName=name)
            log.show_new()
            status = str(job["TrainingJobStatus"])
            now = str(job.get("SecondaryStatus", status))
            if now != before:
                reporter.note(f"{name}: {now}")
                before = now
            if status in _ENDS:
                break
            clock.sleep(_POLL_S)
    except KeyboardInterrupt:
        raise FollowingInterrupted(
            f"interrupted; the job {name} continues",
            hint="the same command shows its log again; to stop it: aws sagemaker "
            f"stop-training-job --region {account.region} --training-job-name {name}",
            details={"job": name},
        ) from None
    if status != "Completed":
        raise job_error(name, job)
    return status


def job_error(name: str, job: Mapping[str, Any]) -> VlatoolError:
    """Error of a job that did not complete, with the exit code of its command if it is known."""
    status, reason = str(job["TrainingJobStatus"]), str(job.get("FailureReason", "")).strip()
    match = _EXIT_CODE.search(reason)
    error = _ERRORS.get(int(match[1]) if match else 6, EnvironmentProblem)
    return error(
        f"the job {name} is {status.lower()}: {reason or 'without a reason'}",
        hint="its log has the error; the same command then starts a job that continues the run "
        "from its last checkpoint",
        code="environment.job_failed" if status == "Failed" else "environment.job_stopped",
        details={"job": name, "status": status, "reason": reason},
    )


class _Log:
    """Log of a job; each machine of the job has its stream."""

    def __init__(self, account: Account, name: str, reporter: Reporter) -> None:
        self._account, self._name, self._reporter = account, name, reporter
        self._tokens: dict[str, str] = {}
        self._is_readable = True

    def show_new(self) -> None:
        """Reports the lines that are new since the last call; warns once if it may not read."""
        if not self._is_readable:
            return
        try:
            for stream in self._streams():
                self._show(stream)
        except UsageError as error:
            if error.details.get("reason") != "ResourceNotFoundException":  # nothing logged yet
                raise
        except EnvironmentProblem as error:
            self._is_readable = False
            self._reporter.warn("job_log", f"the log is not shown: {error.message}")

    def _streams(self) -> list[str]:
        request = {"logGroupName": _LOG_GROUP, "logStreamNamePrefix": f"{self._name}/"}
        names: list[str] = []
        while True:  # 50 at once
            page = self._account.call("logs", "describe_log_streams", **request)
            names += (stream["logStreamName"] for stream in page["logStreams"])
            if not page.get("nextToken"):
                return sorted(names)
            request["nextToken"] = page["nextToken"]

    def _show(self, stream: str) -> None:
        request = {"logGroupName": _LOG_GROUP, "logStreamName": stream, "startFromHead": True}
        while True:
            token = self._tokens.get(stream)
            more = {} if token is None else {"nextToken": token}
            page = self._account.call("logs", "get_log_events", **request, **more)
            for event in page["events"]:
                self._reporter.note(f"{stream.rpartition('/')[2]}: {event['message'].rstrip()}")
            self._tokens[stream] = page["nextForwardToken"]
            if not page["events"]:
                return


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
    """Prefix and user, cut if too long, time, and a digest of what the job computes."""
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
