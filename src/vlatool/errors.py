"""Errors a user can meet: what is wrong and where, what to do about it, and the exit code."""

import re
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


def requirements() -> dict[str, list[str]]:
    """Distributions that vlatool builds on, by the extra that brings them; the core's under "".

    They come from the metadata of the installed distribution. Extras may repeat each other's
    packages (`all` has everything): each package is listed once, under the smallest that has it.
    Empty where vlatool is only on the path and not installed.
    """
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("vlatool") or []
    except PackageNotFoundError:
        return {}
    brought: dict[str, list[str]] = {}
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", line)
        if name is not None:
            brought.setdefault(extra[1] if extra else "", []).append(name[0])
    found: dict[str, list[str]] = {}
    listed = {"vlatool"}
    for extra in sorted(brought, key=lambda one: (one != "", len(brought[one]))):
        own = [name for name in brought[extra] if name not in listed]
        listed.update(own)
        if own:
            found[extra] = own
    return found


def extra_of(module: str) -> str | None:
    """The extra that brings a top-level module, "" for the core; None if nothing does."""
    wanted = module.replace("_", "-").lower()
    for extra, names in requirements().items():
        if wanted in (name.replace("_", "-").lower() for name in names):
            return extra
    return None


def missing_package(package: str) -> EnvironmentProblem:
    """The error for a requirement that is not installed; its hint is the install line."""
    extra = extra_of(package) or ""
    return EnvironmentProblem(
        f"this needs the package {package!r}, which is not installed",
        hint=install_line(extra),
        code="environment.missing_dependency",
        details={"package": package, "extra": extra},
    )


def install_line(extra: str) -> str:
    """What installs the packages of an extra, or of the core."""
    return f"pip install 'vlatool[{extra}]'" if extra else "pip install vlatool"
