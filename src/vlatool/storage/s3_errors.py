"""Conversion of errors of S3 and its client library to errors of vlatool."""

import errno
import importlib
import os
from collections.abc import Mapping
from typing import Any, cast

from vlatool.errors import EnvironmentProblem, StorageError
from vlatool.storage.remote import ConditionFailed
from vlatool.storage.retry import RetryAdvice, network_retry_advice

_BUSY_STATUS = {408, 429, 500, 502, 503, 504}
_BUSY_CODES = {
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
}
_MISSING_CODES = {"404", "NoSuchKey", "NoSuchUpload", "NotFound"}
_REJECTED_CODES = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to a profile of your AWS"
    " configuration (`aws configure`, `aws sso login`)"
)


def error_code(error: BaseException) -> str:
    """Code in the response of S3, such as `NoSuchKey`; empty if there was no response."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def s3_retry_advice(error: Exception) -> RetryAdvice | None:
    """Advice on retrying after an error; None if a retry is useless."""
    aws = _exceptions()
    status, code = _status(error), error_code(error)
    if status in _BUSY_STATUS or code in _BUSY_CODES:
        reason = f"the server returns status {status} {code}".rstrip()
        return RetryAdvice(reason, _requested_wait(error))
    if isinstance(error, aws.SSLError) and "certificate" in str(error).lower():
        return None
    temporary = (
        aws.HTTPClientError,
        aws.ConnectionError,
        aws.IncompleteReadError,
        aws.ResponseStreamingError,
        aws.FlexibleChecksumError,
        importlib.import_module("botocore.parsers").ResponseParserError,
    )
    if isinstance(error, temporary):
        return RetryAdvice(f"no complete response ({type(error).__name__})")
    return network_retry_advice(error)


def map_s3_error(error: Exception, location: str) -> Exception:
    """Converts an error that retries cannot solve to one of vlatool; returns others unchanged."""
    aws = _exceptions()
    missing = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError)
    if isinstance(error, (*missing, aws.ProfileNotFound, aws.TokenRetrievalError, aws.SSOError)):
        reason = type(error).__name__.removesuffix("Error")
        return no_credentials(location, f"no usable AWS credentials ({reason})")
    if isinstance(error, aws.ClientError):
        return _from_response(error, location)
    if isinstance(error, (aws.BotoCoreError, ValueError)):
        # Botocore raises ValueError for a malformed endpoint. Its messages may contain headers.
        return StorageError(
            f"{location}: the request fails ({type(error).__name__})",
            hint="check the bucket name, the AWS variables and the endpoint",
            code="storage.request",
            details={"path": location, "reason": type(error).__name__},
        )
    return error


def _from_response(error: Exception, location: str) -> Exception:
    status, code = _status(error), error_code(error)
    if code in _MISSING_CODES:
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), location)
    if status == 412 or code == "PreconditionFailed":
        return ConditionFailed(location)
    if code in _REJECTED_CODES:
        return no_credentials(location, f"the AWS credentials are not accepted ({code})")
    return _response_error(location, status, code)


def _response_error(location: str, status: int, code: str) -> StorageError:
    if code == "NoSuchBucket":
        return _storage_error(location, "the bucket does not exist", "no_bucket", "check its name")
    if status == 403:
        hint = "ask for permission to read, write and list here, or choose other credentials"
        return _storage_error(location, f"access is denied ({code})", "forbidden", hint)
    if status == 501 or code == "NotImplemented":
        reason, hint = "the server does not support this operation", "choose another storage"
        return _storage_error(location, reason, "unsupported", hint)
    reason, hint = f"the server returns {status} {code}", "check the location and the endpoint"
    return _storage_error(location, reason, "refused", hint)


def _storage_error(location: str, reason: str, code: str, hint: str) -> StorageError:
    details = {"path": location, "reason": reason}
    return StorageError(f"{location}: {reason}", hint=hint, code=f"storage.{code}", details=details)


def no_credentials(location: str, reason: str) -> EnvironmentProblem:
    """Error for requests that need credentials."""
    return EnvironmentProblem(
        f"{location}: {reason}",
        hint=_CREDENTIALS_HINT,
        code="environment.no_credentials",
        details={"path": location},
    )


def _response(error: BaseException) -> Mapping[str, Any]:
    response: Any = getattr(error, "response", None)
    return cast(Mapping[str, Any], response) if isinstance(response, Mapping) else {}


def _exceptions() -> Any:
    """Exceptions of botocore; the module has no type annotations."""
    return importlib.import_module("botocore.exceptions")


def _status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _requested_wait(error: BaseException) -> float:
    """Seconds in the Retry-After header; 0 without the header, or if it is a date."""
    headers: Mapping[str, str] = (
        _response(error).get("ResponseMetadata", {}).get("HTTPHeaders", {}) or {}
    )
    try:
        return max(0.0, float(headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
