"""AWS account that jobs run in: its services, and the conversion of their errors."""

import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from vlatool.errors import EnvironmentProblem, StorageError, UsageError, VlatoolError

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
        """Reads the AWS settings of this machine."""
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
        """Response of a request."""
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
