"""Whatever ends an invocation, as an error a user can read."""

import errno
import os
import shlex
import signal
import sys
from typing import Any

from vlatool.errors import (
    BugError,
    StorageError,
    UsageError,
    VlatoolError,
    extra_of,
    missing_package,
)

_STORAGE_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
_STORAGE_HINTS = {
    errno.ENAMETOOLONG: "name a shorter one; most file systems take 255 bytes between two slashes",
    errno.ELOOP: "its symbolic links lead in a circle; name the place itself",
    errno.EMFILE: "too many files are open: raise `ulimit -n`, or take fewer --workers",
}


class Terminated(BaseException):
    """SIGTERM, as an exception, so that `finally` blocks run."""


class InterruptedByUserError(VlatoolError):
    """Ctrl-C."""

    exit_code = 130
    kind = "interrupted"


class TerminatedError(VlatoolError):
    """SIGTERM, told to the user."""

    exit_code = 143
    kind = "terminated"


def raise_on_sigterm() -> None:
    """Turns SIGTERM into `Terminated` (in the main thread, where signals arrive)."""

    def terminate(signum: int, frame: Any) -> None:
        del signum, frame
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


def as_vlatool_error(error: BaseException) -> VlatoolError:
    """The error to show for any exception."""
    if isinstance(error, VlatoolError):
        return error
    ended = error.code if isinstance(error, SystemExit) else None
    if isinstance(error, KeyboardInterrupt) or ended == 130:
        return InterruptedByUserError("interrupted; what was done is kept", hint=_rerun_hint())
    if isinstance(error, Terminated) or ended == 143:
        return TerminatedError("terminated; what was done is kept", hint=_rerun_hint())
    return _known_error(error) or BugError(
        f"this is a bug in vlatool: {type(error).__name__}: {error}",
        hint="run again with --debug for the traceback, and report it",
        details={"exception": type(error).__name__},
    )


def _known_error(error: BaseException) -> VlatoolError | None:
    if isinstance(error, ModuleNotFoundError) and extra_of(package := _package(error)) is not None:
        return missing_package(package)
    if isinstance(error, OSError) and error.errno in _STORAGE_ERRNOS:
        return _storage_error(error)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _usage_error(error)
    return None


def _storage_error(error: OSError) -> StorageError:
    where = f"{error.filename}: " if error.filename else ""
    return StorageError(
        f"{where}{os.strerror(error.errno or 0)}",
        hint=_STORAGE_HINTS.get(
            error.errno or 0, "make room, or name a place that can be read and written"
        ),
        code="storage.os",
        details={"path": str(error.filename or ""), "errno": error.errno},
    )


def _package(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def _rerun_hint() -> str:
    return f"to go on, run the same command again: {shlex.join(['vlatool', *sys.argv[1:]])}"


def _usage_error(error: Any) -> UsageError:
    """Typer's own usage error in our words."""
    ctx = getattr(error, "ctx", None)
    option = getattr(error, "option_name", "")
    path = ctx.command_path if ctx is not None else "vlatool"
    hint = f"`{path} --help` shows how"
    message = error.format_message().rstrip(".")
    if option and "No such option" in message:
        return UsageError(
            f"unknown option {option}",
            hint=_nearest_option(option, ctx) or hint,
            code="usage.unknown_option",
            details={"option": option},
        )
    code = "usage." + type(error).__name__.lower().removesuffix("error")
    return UsageError(message[:1].lower() + message[1:], hint=hint, code=code)


def _nearest_option(option: str, ctx: Any) -> str:
    from vlatool.cli.options import OUTPUT_OPTIONS
    from vlatool.plugins import did_you_mean

    declared = [name for param in ctx.command.get_params(ctx) for name in param.opts]
    hint = did_you_mean(option, [*declared, *OUTPUT_OPTIONS])
    return "" if hint.startswith("known:") else hint
