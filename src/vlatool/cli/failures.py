"""Whatever ends an invocation, as an error a user can read."""

import shlex
import signal
import sys
from typing import Any

from vlatool.errors import UsageError, VlatoolError, missing_extra

EXTRAS = {
    "torch": "train",
    "accelerate": "train",
    "transformers": "train",
    "webdataset": "train",
    "safetensors": "train",
    "gymnasium": "train",
    "matplotlib": "train",
    "ray": "ray",
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


class BugError(VlatoolError):
    """An exception that nobody expected."""

    exit_code = 1
    kind = "bug"


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
    if isinstance(error, KeyboardInterrupt):
        return InterruptedByUserError("interrupted; what was done is kept", hint=_again())
    if isinstance(error, Terminated):
        return TerminatedError("terminated; what was done is kept", hint=_again())
    if isinstance(error, ModuleNotFoundError) and (package := _package(error)) in EXTRAS:
        return missing_extra(package, EXTRAS[package])
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _usage_error(error)
    return BugError(
        f"this is a bug in vlatool: {type(error).__name__}: {error}",
        hint="run again with --debug for the traceback, and report it",
        details={"exception": type(error).__name__},
    )


def _package(error: ModuleNotFoundError) -> str:
    return (error.name or "").partition(".")[0]


def _again() -> str:
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
