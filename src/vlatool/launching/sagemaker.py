"""Talks to AWS for SageMaker jobs: account, secrets, image and state."""

import importlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from vlatool import __version__
from vlatool.errors import EnvironmentProblem, StorageError, UsageError, VlatoolError

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
_ECR_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[\w-]+)\.amazonaws\.com(?:\.cn)?/(?P<name>[^:@]+)"
    r"(?::(?P<tag>[^:@]+))?(?:@(?P<digest>.+))?"
)
_MISSING = {"ImageNotFoundException", "RepositoryNotFoundException"}


def default_image(account: Account) -> str:
    """Address of the image of this version of vlatool in the registry of the account."""
    number = account.call("sts", "get_caller_identity")["Account"]
    suffix = ".cn" if account.region.startswith("cn-") else ""
    registry = f"{number}.dkr.ecr.{account.region}.amazonaws.com{suffix}"
    return f"{registry}/{REPOSITORY}:{__version__}"


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
            f"the registry has no image {image}",
            hint="build and push it with `docker build`, as docs/reference/sagemaker.md shows, or "
            "give another one with --sagemaker.image URI",
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


JOB_ENDS = {"Completed", "Failed", "Stopped"}


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
