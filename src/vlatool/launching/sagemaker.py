"""Talks to AWS for SageMaker jobs: account, image, and log."""

import base64
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from vlatool.config.presets import builtin_root
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
from vlatool.launching.sagemaker_job import SageMakerConfig
from vlatool.storage.atomic import atomic_folder
from vlatool.storage.cache import default_cache_folder
from vlatool.storage.retry import ProcessClock

DEFAULT_REGION = "us-west-2"
_CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of your AWS "
    "configuration (`aws configure`, `aws sso login`)"
)
_DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}
# The service asks to wait; it does so with status 400 or 429.
_THROTTLED = {
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
}
_REJECTED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}


class Account:
    """Services of an AWS account in one region; connects with the first request."""

    def __init__(self, profile: str | None = None, region: str | None = None) -> None:
        session: Any = importlib.import_module("boto3.session")
        exceptions: Any = importlib.import_module("botocore.exceptions")
        try:
            self._session = session.Session(profile_name=profile, region_name=region)
        except exceptions.ProfileNotFound:
            raise EnvironmentProblem(
                f"the AWS configuration has no profile {profile or os.environ.get('AWS_PROFILE')}",
                hint="set AWS_PROFILE to one that `aws configure list-profiles` lists",
                code="environment.credentials",
            ) from None
        self._clients: dict[str, Any] = {}
        self.region = str(self._session.region_name or DEFAULT_REGION)

    @property
    def has_credentials(self) -> bool:
        return self._session.get_credentials() is not None

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
        raise _unreachable(f"{label}: {error}") from error


def _unreachable(message: str) -> StorageError:
    return StorageError(
        message,
        hint="check network, region and AWS_ENDPOINT_URL, then run the same command again",
        code="storage.unreachable",
    )


def _client_error(error: Any, label: str) -> VlatoolError:
    answer = error.response.get("Error", {})
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(answer.get("Code", ""))
    message = str(answer.get("Message", "")).strip()
    details = {"operation": label, "reason": code}
    if code in _DENIED:
        return EnvironmentProblem(
            f"{label}: these AWS credentials lack the permission: {message}",
            hint=f"add {label} to the policy of your user or role",
            code="environment.credentials",
            details=details,
        )
    if status >= 500 or code in _THROTTLED:
        return _unreachable(f"{label}: the service does not answer: {code} {message}".rstrip())
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
        code="usage.bad_value",
        details=dict(details),
    )


def load_secrets(names: str) -> dict[str, str]:
    """Reads secrets into variables, from a JSON object that names a secret for each. If a secret is
    JSON itself, takes its entry of the variable.
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
            code="environment.credentials",
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
_ECR_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[\w-]+)\.amazonaws\.com(?:\.cn)?/(?P<name>[^:@]+)"
    r"(?::(?P<tag>[^:@]+))?(?:@(?P<digest>.+))?"
)
_MISSING = {"ImageNotFoundException", "RepositoryNotFoundException"}
_STDERR = 2


def ensure_image(account: Account, job: SageMakerConfig, reporter: Reporter) -> str:
    """Address of the image with this version of vlatool and the packages of a job. Builds and
    pushes the image if the registry does not have it.
    """
    files = dict(image_files(job))
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    tag = digest.hexdigest()[:16]
    number = account.call("sts", "get_caller_identity")["Account"]
    registry = _registry(number, account.region)
    image = f"{registry}/{REPOSITORY}:{tag}"
    if _is_there(account, {"imageTag": tag}, repositoryName=REPOSITORY):
        return image
    folder = _written(files, tag)
    registries = [_registry(_BASE_REGISTRY, account.region), registry]
    docker = shutil.which("docker")
    if docker is None:
        commands = _commands(registries, image, folder, account.region)
        raise EnvironmentProblem(
            f"the image {image} is not in the registry, and this machine has no Docker to build it",
            hint="\n  ".join(["on a machine with Docker:", *commands])
            + f"\nthen run this command again, or give --sagemaker.image {image}",
            code="environment.process_failed",
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


def image_files(job: SageMakerConfig) -> Iterator[tuple[str, bytes]]:
    """Files of the build: name and content, in a fixed order."""
    package = Path(__file__).resolve().parent.parent
    presets = builtin_root()
    sources = {path: f"vlatool/{path.relative_to(package)}" for path in package.rglob("*")}
    sources |= {path: f"vlatool/presets/{path.relative_to(presets)}" for path in presets.rglob("*")}
    for path, name in sorted(sources.items(), key=lambda item: item[1]):
        if path.is_file() and "__pycache__" not in path.parts:
            yield name, path.read_bytes()
    yield _DOCKERFILE, Path(__file__).with_name(_DOCKERFILE).read_bytes()
    yield "requirements.txt", _text([*_requirements(), *job.pip])
    packages = [Path(path).resolve() for path in job.package]
    for package in packages:
        for file in _package_files(package):
            yield f"packages/{file.relative_to(package.parent)}", file.read_bytes()
    yield "packages/requirements.txt", _text(f"./{package.name}" for package in packages)


def _package_files(package: Path) -> Iterator[Path]:
    """The file of a wheel, or the files of a folder, except hidden ones, caches and links."""
    if package.is_file():
        yield package
    for folder, folders, files in os.walk(package):
        hidden = [name for name in folders if name.startswith(".") or name == "__pycache__"]
        folders[:] = sorted(set(folders) - {*hidden})
        paths = (Path(folder, name) for name in sorted(files) if not name.startswith("."))
        yield from (path for path in paths if not path.is_symlink())


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _requirements() -> list[str]:
    """Packages of vlatool and of the extras that training needs."""
    try:
        lines = requires("vlatool") or []
    except PackageNotFoundError:
        raise EnvironmentProblem(
            "vlatool is not installed here, so the packages of its image are unknown",
            hint="install vlatool, or give an image with --sagemaker.image URI",
            code="environment.missing_dependency",
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


def check_image(account: Account, image: str) -> None:
    """Raises UsageError if a registry of AWS does not have an image; other registries are not
    asked.
    """
    match = _ECR_IMAGE.fullmatch(image)
    if match is None or match["region"] != account.region:
        return
    version = {"imageDigest": match["digest"]} if match["digest"] else {}
    version = version or {"imageTag": match["tag"] or "latest"}
    if not _is_there(account, version, repositoryName=match["name"], registryId=match["account"]):
        raise UsageError(
            f"--sagemaker.image {image}: the registry has no such image",
            hint="push the image, or leave --sagemaker.image out: vlatool then builds one of "
            "this version",
            code="usage.unknown_name",
            details={"image": image},
        )


def _is_there(account: Account, version: Mapping[str, str], **repository: str) -> bool:
    request = {**repository, "imageIds": [version]}
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
            hint="read its output above, then run the same command again",
            code="environment.process_failed",
            details={"exit_code": ended.returncode},
        )


_LOG_GROUP = "/aws/sagemaker/TrainingJobs"
_POLL_S = 10.0
# Time without an answer after which the log of a job is no longer followed.
_PATIENCE_S = 600.0
JOB_ENDS = {"Completed", "Failed", "Stopped"}
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
    """Passes the log of a job to a reporter until the job ends; returns its last status.

    If a service has answered once, it is asked again when it stops answering for a while.
    """
    log = _Log(account, name)
    clock = ProcessClock()
    shown_phase = ""
    is_log_readable = True
    has_described = False
    is_outage = False
    last_answer = clock.now()
    try:
        while True:
            try:
                job = described_job(account, name)
                has_described = True
                if is_log_readable:
                    is_log_readable = _pass_on(log, reporter)
                last_answer = clock.now()
                is_outage = False
            except StorageError as error:
                if not has_described or clock.now() - last_answer > _PATIENCE_S:
                    raise
                if not is_outage:
                    reporter.warn("job_log", f"{error.message}; trying again for ten minutes")
                is_outage = True
                clock.sleep(_POLL_S)
                continue
            status = str(job["TrainingJobStatus"])
            phase = str(job.get("SecondaryStatus", status))
            if phase != shown_phase:
                reporter.note(f"{name}: {phase}")
                shown_phase = phase
            if status in JOB_ENDS:
                break
            clock.sleep(_POLL_S)
    except KeyboardInterrupt:
        raise FollowingInterrupted(
            f"interrupted; the job {name} continues",
            hint=f"`vlatool launch logs {name} --follow --region {account.region}` shows its log "
            f"again; `vlatool launch stop {name} --region {account.region}` stops it",
            details={"job": name},
        ) from None
    if status != "Completed":
        raise job_error(name, job)
    return status


def _pass_on(log: "_Log", reporter: Reporter) -> bool:
    """Passes new lines of a log to a reporter; False if this account may not read the log."""
    try:
        for line in log.new_lines():
            reporter.note(line)
    except EnvironmentProblem as error:
        reporter.warn("job_log", f"the log cannot be shown: {error.message}")
        return False
    return True


def job_error(name: str, job: Mapping[str, Any]) -> VlatoolError:
    """Error of a job that did not complete, with the exit code of its command if it is known."""
    status = str(job["TrainingJobStatus"])
    reason = str(job.get("FailureReason", "")).strip()
    match = _EXIT_CODE.search(reason)
    error = _ERRORS.get(int(match[1]) if match else 6, EnvironmentProblem)
    return error(
        f"the job {name} is {status.lower()}: {reason or 'no reason is given'}",
        hint="its log has the error; then repeat the command: a new job continues the run "
        "from its last checkpoint",
        code="environment.process_failed",
        details={"job": name, "status": status, "reason": reason},
    )


class _Log:
    """The log of a job; each machine of the job has its own stream."""

    def __init__(self, account: Account, name: str) -> None:
        self._account = account
        self._name = name
        self._tokens: dict[str, str] = {}

    def new_lines(self) -> Iterator[str]:
        """Lines that are new since the last call, each with the name of its machine."""
        try:
            for stream in self._streams():
                for message in self._messages(stream):
                    yield f"{stream.rpartition('/')[2]}: {message.rstrip()}"
        except UsageError as error:
            if error.details.get("reason") != "ResourceNotFoundException":  # nothing logged yet
                raise

    def _streams(self) -> list[str]:
        request = {"logGroupName": _LOG_GROUP, "logStreamNamePrefix": f"{self._name}/"}
        names: list[str] = []
        while True:  # 50 at once
            page = self._account.call("logs", "describe_log_streams", **request)
            names += (stream["logStreamName"] for stream in page["logStreams"])
            if not page.get("nextToken"):
                return sorted(names)
            request["nextToken"] = page["nextToken"]

    def _messages(self, stream: str) -> Iterator[str]:
        request = {"logGroupName": _LOG_GROUP, "logStreamName": stream, "startFromHead": True}
        while True:
            token = self._tokens.get(stream)
            more = {} if token is None else {"nextToken": token}
            page = self._account.call("logs", "get_log_events", **request, **more)
            for event in page["events"]:
                yield str(event.get("message", ""))
            self._tokens[stream] = page.get("nextForwardToken", token)
            if self._tokens[stream] == token:  # a page before the last one may be empty
                return


def job_log(account: Account, name: str) -> list[str]:
    return list(_Log(account, name).new_lines())


def described_job(account: Account, name: str) -> Mapping[str, Any]:
    """Description of a job by the service, which has its status and its creation time."""
    try:
        job = account.call("sagemaker", "describe_training_job", TrainingJobName=name)
    except UsageError as error:
        if error.details.get("reason") not in ("ValidationException", "ResourceNotFound"):
            raise
        raise UsageError(
            f"{account.region} has no training job {name}",
            hint="`vlatool launch sagemaker` printed the name of the job; --region and "
            "--profile choose another region and account",
            code="usage.unknown_name",
            details={"job": name},
        ) from None
    if "TrainingJobStatus" not in job or "CreationTime" not in job:
        raise _unreachable(
            f"{name}: the answer does not describe a job; it may come from another service"
        )
    return job
