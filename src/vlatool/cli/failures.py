"""Converts uncaught exceptions to errors for users."""

import errno
import os
import shlex
import signal
import sys
import tempfile
from typing import Any

from vlatool.errors import (
    BugError,
    DataError,
    EnvironmentProblem,
    StorageError,
    UsageError,
    VlatoolError,
    extra_of,
    missing_package,
    name_error,
)
from vlatool.events import STOP_SIGNALS

_STORAGE_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE,
    errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG,
}  # fmt: skip
_STORAGE_HINTS = {
    errno.ENAMETOOLONG: "use a shorter name: most file systems allow 255 bytes",
    errno.ELOOP: "symbolic links lead in a circle here: correct them",
    errno.EFBIG: "the file is too large: raise the limit (`ulimit -f`), or use another file system",
    errno.EMFILE: "too many files are open: raise the limit (`ulimit -n`), or use fewer --workers",
}


# Commands without an output that they could resume.
_NOTHING_KEPT = frozenset({
    "serve", "predict", "inspect", "verify", "runs", "doctor", "resolve-config", "presets",
    "plugins", "version", "compare", "split", "compose", "stats merge", "eval open-loop",
    "eval compare", "tokenizer eval", "tokenizer export", "tokenizer fit-fast",
})  # fmt: skip


class Terminated(BaseException):
    """Exception raised on a stop signal, so that `finally` blocks run."""


class InterruptedByUserError(VlatoolError):
    """Error for Ctrl-C."""

    exit_code = 130
    kind = "interrupted"


class TerminatedError(VlatoolError):
    """Error for a stop signal."""

    exit_code = 143
    kind = "terminated"


def raise_on_signals() -> None:
    """Raises `Terminated` on the stop signals, and `KeyboardInterrupt` on SIGINT.

    Ignored signals stay ignored, except SIGTERM: `nohup` ignores SIGHUP.
    """

    def terminate(signum: int, frame: Any) -> None:
        raise Terminated

    for number in STOP_SIGNALS:
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, terminate)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def as_vlatool_error(error: BaseException) -> VlatoolError:
    if isinstance(error, VlatoolError):
        return error
    code = error.code if isinstance(error, SystemExit) else None
    if isinstance(error, KeyboardInterrupt) or code == 130:
        return _stopped(InterruptedByUserError, "interrupted")
    if isinstance(error, Terminated) or code == 143:
        return _stopped(TerminatedError, "terminated")
    from vlatool.plugins import plugin_place

    place = plugin_place(error)
    if place and _known_error(error) is None:
        return BugError(
            f"{type(error).__name__}: {error} (in the plugin, at {place})",
            hint="this is a bug in the plugin; vlatool.testing.check_reader finds such bugs",
            details={"exception": type(error).__name__},
        )
    return _known_error(error) or BugError(
        f"this is a bug in vlatool: {type(error).__name__}: {error}",
        hint="repeat the command with --debug, and report the traceback",
        details={"exception": type(error).__name__},
    )


def _known_error(error: BaseException) -> VlatoolError | None:
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if extra_of(package) is not None:
            return missing_package(package)
    if isinstance(error, OSError):
        return _os_error(error)
    if isinstance(error, UnicodeEncodeError):
        return name_error(error)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _usage_error(error)
    return None


def _os_error(error: OSError) -> VlatoolError | None:
    if isinstance(error, FileNotFoundError) and "://" in str(error.filename):
        return DataError.at(
            error.filename,
            "the storage lists this file, but cannot find it",
            hint="it was probably removed meanwhile: run the same command again",
            code="data.no_source",
        )
    if "AF_UNIX path too long" in str(error):  # Python's own check, without a number
        return EnvironmentProblem(
            f"the path of the temporary folder is too long for a socket: {tempfile.gettempdir()}",
            hint="set TMPDIR to a folder with a shorter path, such as /tmp",
            code="environment.hardware",
        )
    if "No usable temporary directory" in str(error):  # Python's own search
        return EnvironmentProblem(
            "no temporary folder can be written",
            hint="set TMPDIR to a folder that can, such as TMPDIR=/dev/shm, or make /tmp writable",
            code="environment.hardware",
        )
    if error.errno not in _STORAGE_ERRNOS:
        return None
    path = f"{error.filename}: " if error.filename else ""
    return StorageError(
        f"{path}{os.strerror(error.errno or 0)}",
        hint=_STORAGE_HINTS.get(
            error.errno or 0, "free some space, or use a location where you may read and write"
        ),
        code="storage.unreadable",
        details={"path": str(error.filename or ""), "errno": error.errno},
    )


def _stopped(kind: type[VlatoolError], word: str) -> VlatoolError:
    """Error of a command that was stopped; says what is kept of its work."""
    line = shlex.join(["vlatool", *sys.argv[1:]])
    if _NOTHING_KEPT.intersection({*sys.argv[1:2], " ".join(sys.argv[1:3])}):
        return kind(
            f"{word}; this command keeps nothing of an unfinished run",
            hint=f"to start again, run the same command: {line}",
        )
    return kind(
        f"{word}; finished work is kept",
        hint=f"to resume, run the same command again: {line}",
    )


def _usage_error(error: Any) -> UsageError:
    """Error of Click, which parses the words of groups."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else "vlatool"
    hint = f"`{path} --help` shows the usage"
    option = getattr(error, "option_name", "")
    group: Any = getattr(ctx, "command", None)
    if names := group.list_commands(ctx) if hasattr(group, "list_commands") else []:
        # A group: `vlatool eval {open-loop|rollout|compare} --env`
        hint = f"`{path} --help` lists the commands"
        if path != "vlatool":
            hint = f"{path} {{{'|'.join(names)}}} {option}".rstrip() + f"; {hint}"
    if option and "No such option" in error.format_message():
        from vlatool.plugins import did_you_mean

        known = [name for param in group.get_params(ctx) for name in param.opts]
        if path == "vlatool" or not names:
            hint = did_you_mean(option, known)
        return UsageError(
            f"unknown option {option}",
            hint=hint,
            code="usage.unknown_option",
            details={"option": option},
        )
    message = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint=hint, code="usage.bad_value")
