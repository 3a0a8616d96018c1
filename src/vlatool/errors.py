"""Errors a user can meet: what is wrong and where, what to do about it, and the exit code."""

from collections.abc import Mapping
from typing import Any, ClassVar


class VlatoolError(Exception):
    """An expected failure, told in two lines.

    Attributes:
        message: What is wrong, with the exact path, key or value.
        hint: What to do about it; may be empty.
        code: Stable identifier such as `config.unknown_key`.
        details: JSON-serialisable facts for programs.
        result: What the workflow would have returned, if it came so far; printed before the error.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "error"
    result: object | None = None

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.kind
        self.details: dict[str, Any] = dict(details or {})

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross process borders with hint, code and details."""
        return (_rebuild, (type(self), self.message, self.hint, self.code, self.details))


def _rebuild(
    cls: type[VlatoolError], message: str, hint: str, code: str, details: dict[str, Any]
) -> VlatoolError:
    return cls(message, hint=hint, code=code, details=details)


class UsageError(VlatoolError):
    """The command was called in a way that cannot work."""

    exit_code = 2
    kind = "usage"


class ConfigError(VlatoolError):
    """A configuration violates its schema; `details["problems"]` lists every violation."""

    exit_code = 2
    kind = "config"


class DataError(VlatoolError):
    """Input data is missing, broken or inconsistent."""

    exit_code = 3
    kind = "data"


class PartialFailure(VlatoolError):
    """The work is finished, but some items failed; `details["failures"]` lists them."""

    exit_code = 4
    kind = "partial"


class StorageError(VlatoolError):
    """A location cannot be read or written."""

    exit_code = 5
    kind = "storage"


class EnvironmentProblem(VlatoolError):
    """Something is missing on this machine: a dependency, a device, a credential."""

    exit_code = 6
    kind = "environment"


class BugError(VlatoolError):
    """An exception that nobody expected, in vlatool or in a plugin."""

    exit_code = 1
    kind = "bug"
    unexpected: ClassVar[str] = "bug.unexpected"


def missing_extra(package: str, extra: str) -> EnvironmentProblem:
    """The error for an optional dependency that is not installed."""
    return EnvironmentProblem(
        f"this needs the package {package!r}, which is not installed",
        hint=f"pip install 'vlatool[{extra}]'",
        code="environment.missing_dependency",
        details={"package": package, "extra": extra},
    )
