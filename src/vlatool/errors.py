"""Expected errors: a message with a location, a hint, a stable code and the exit code.

Part of the client package, too: nothing newer than Python 3.8.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

# Environment variable with the path of the single file that runs (binary/stub.c).
SINGLE_FILE = "VLATOOL_BINARY"
_NAME_SHOWN = 40  # characters around a wrong one


class VlatoolError(Exception):
    """Base class of expected errors, printed in two lines.

    Attributes:
        message: Description of the error, with the exact path, key or value.
        hint: Action that solves the problem; may be empty.
        code: Stable identifier such as `config.unknown_key`.
        details: JSON-serializable details for programs.
        result: Result of the workflow, if there is one despite the error; printed before it.
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

    @classmethod
    def at(
        cls,
        path: object,
        reason: object,
        *,
        line: int = 0,
        hint: str = "",
        code: str = "",
        **details: Any,
    ) -> Self:
        """Error `PATH: REASON`, or `PATH:LINE: REASON`, with the path in its details.

        Args:
            path: File, folder or address with the error.
            reason: Description of the error, or the exception with one.
            line: Line of the file, from 1; 0 if unknown.
            hint: Action that solves the problem.
            code: Stable identifier such as `data.broken`.
            **details: Further details; JSON-serializable.
        """
        place = f"{path}:{line}" if line else str(path)
        known: dict[str, Any] = {"path": str(path)}
        if line:
            known["line"] = line
        return cls(f"{place}: {reason}", hint=hint, code=code, details={**known, **details})

    def __reduce__(self) -> tuple[Any, ...]:
        """Keeps hint, code and details when the error is pickled."""
        return (_rebuild, (type(self), self.message, self.hint, self.code, self.details))


def _rebuild(
    cls: type[VlatoolError], message: str, hint: str, code: str, details: dict[str, Any]
) -> VlatoolError:
    return cls(message, hint=hint, code=code, details=details)


class UsageError(VlatoolError):
    """Arguments of a command that cannot be used."""

    exit_code = 2
    kind = "usage"


class ConfigError(VlatoolError):
    """Configuration that violates its schema; `details["problems"]` lists every violation."""

    exit_code = 2
    kind = "config"


class DataError(VlatoolError):
    """Input data that is missing, broken or inconsistent."""

    exit_code = 3
    kind = "data"


class PartialFailure(VlatoolError):
    """Finished job in which some items failed; `details["failures"]` lists them."""

    exit_code = 4
    kind = "partial"


class StorageError(VlatoolError):
    """Location that cannot be read or written."""

    exit_code = 5
    kind = "storage"


class EnvironmentProblem(VlatoolError):
    """Missing or unusable part of this machine: a dependency, a device, a credential."""

    exit_code = 6
    kind = "environment"


class BugError(VlatoolError):
    """Unexpected exception, in vlatool or in a plugin."""

    exit_code = 1
    kind = "bug"
    unexpected: ClassVar[str] = "bug.unexpected"


def requirements() -> dict[str, list[str]]:
    """Distributions that vlatool depends on, by extra; the required ones have the key "".

    They are read from the metadata of the installed distribution, or from the checkout on the path.
    Extras may repeat packages of each other (`all` has all of them): each package is listed once,
    under the smallest extra. Empty without either.
    """
    by_extra: dict[str, list[str]] = {}
    for extra, line in _requirement_lines():
        if name := re.match(r"[\w.-]+", line):
            by_extra.setdefault(extra, []).append(name[0])
    result: dict[str, list[str]] = {}
    listed = {"vlatool"}
    for extra in sorted(by_extra, key=lambda name: (name != "", len(by_extra[name]))):
        new = [name for name in by_extra[extra] if name not in listed]
        listed.update(new)
        if new:
            result[extra] = new
    return result


def _requirement_lines() -> list[tuple[str, str]]:
    """Extra and requirement, such as `("train", "torch<2.14,>=2.6")`, of vlatool."""
    from importlib.metadata import PackageNotFoundError, requires

    result: list[tuple[str, str]] = []
    project = _uninstalled_project()
    if project is not None:
        import tomllib

        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        for extra, lines in table["optional-dependencies"].items():
            result += [(extra, line) for line in lines]
        return [*(("", line) for line in table["dependencies"]), *result]
    try:
        lines = requires("vlatool") or ()
    except PackageNotFoundError:
        return []
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", marker)
        result.append((extra[1] if extra else "", requirement.strip()))
    return result


def _uninstalled_project() -> Path | None:
    """`pyproject.toml` of a checkout that is on the path, but not installed; else None."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("vlatool")
    except PackageNotFoundError:
        file = Path(__file__).parents[2] / "pyproject.toml"
        return file if file.is_file() else None
    return None


def extra_of(module: str) -> str | None:
    """Extra that installs a top-level module; "" if it is required, None if no extra has it."""
    distribution = module.replace("_", "-").lower()
    for extra, names in requirements().items():
        if distribution in (name.replace("_", "-").lower() for name in names):
            return extra
    return None


def name_error(error: UnicodeEncodeError) -> DataError:
    """Error for the name of a file or folder that is not UTF-8 and cannot be written as text."""
    start = max(0, error.start - _NAME_SHOWN)
    end = error.end + _NAME_SHOWN
    return DataError(
        f"a name that is not UTF-8, in {error.object[start:end]!r}",
        hint="rename that file or folder: records and data hold names as text",
        code="data.bad_name",
    )


def image_error(camera: str, dtype: object, shape: Sequence[int]) -> DataError:
    """Error for what a robot sends as an image of a camera and is none."""
    hint = "give one RGB image per camera, without a batch axis, alpha or depth"
    if str(dtype) != "uint8":
        hint = "give integers 0 to 255; for values 0 to 1: (255 * image).astype(np.uint8)"
    return DataError(
        f"the image of {camera!r} is {dtype} {list(shape)}, not uint8 [H, W, 3]",
        hint=hint,
        code="data.bad_request",
        details={"camera": camera},
    )


def missing_package(package: str) -> EnvironmentProblem:
    """Error for a package that is not installed; its hint is the command that installs it."""
    extra = extra_of(package) or ""
    return EnvironmentProblem(
        f"the package {package!r} is required and not installed",
        hint=install_line(extra),
        code="environment.missing_dependency",
        details={"package": package, "extra": extra},
    )


def installed(module: str) -> Any:
    """The module of an optional package; raises EnvironmentProblem with the line to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise missing_package((error.name or module).partition(".")[0]) from None


def install_line(extra: str) -> str:
    """Shell command that installs the packages of an extra, or the required ones.

    The single file (docs/reference/binary.md) has no extras: it takes them from another Python.
    """
    if SINGLE_FILE in os.environ:
        from vlatool import __version__

        package = f"vlatool[{extra}]=={__version__}"
        return (
            f"python3 -m venv env && env/bin/pip install '{package}', then "
            "export VLATOOL_PYTHON=$PWD/env/bin/python"
        )
    project = _uninstalled_project()
    if project is not None:
        return f"pip install -e '{project.parent}[{extra}]'"
    return f"pip install 'vlatool[{extra}]'" if extra else "pip install vlatool"
