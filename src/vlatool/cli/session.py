"""Invocation of a command: configuration, reporter, logging and result."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import typer

from vlatool import results
from vlatool.cli import output
from vlatool.cli.config_command import TYPED_CONFIG
from vlatool.cli.options import OutputOptions
from vlatool.credentials import hide, hide_environment, is_credential, without_credentials
from vlatool.errors import ConfigError, UsageError
from vlatool.events import Reporter, counted

if TYPE_CHECKING:
    from vlatool.cli.keys import CommandLine
    from vlatool.config.base import ConfigModel
    from vlatool.config.resolve import Resolved

# Secrets in a URI: user and password before the host, and the query.
_USER = re.compile(r"(?<=://)[^/\s]+@")
_QUERY = re.compile(r"(https?://[^\s?#]*[?#])\S+")
_RETRIES = "vlatool.storage.retry"  # log of retries


class Invocation:
    """One invocation of a command, as its body sees it."""

    def __init__(self, ctx: typer.Context, options: OutputOptions, reporter: Reporter) -> None:
        self.options = options
        self.reporter = reporter  # receives progress, notes and warnings of the workflow
        self._ctx = ctx

    def config(self, **positionals: Any) -> Any:
        """Configuration of this command line; `positionals` are values of keys by name."""
        return self.resolved(**positionals).config

    @property
    def stem(self) -> str:
        """The last preset of this command line, else its last file, without path and suffix."""
        typed: CommandLine = self._ctx.meta[TYPED_CONFIG]
        names = typed.presets or typed.files
        return Path(names[-1].removesuffix(".yaml")).name if names else ""

    def resolved(self, **positionals: Any) -> "Resolved[Any]":
        """Configuration of this command line, with the origin of each value."""
        from vlatool.config.resolve import load_config

        typed: CommandLine = self._ctx.meta[TYPED_CONFIG]
        try:
            resolved = load_config(
                typed.schema,
                presets=typed.presets,
                files=typed.files,
                overrides=typed.overrides(positionals),
                read_options=typed.read_options,
            )
        except ConfigError as error:
            command_path = self._ctx.command_path
            form = getattr(self._ctx.command, "usage", "")
            keys = f"{command_path} --keys"
            error.hint = error.hint.replace("vlatool resolve-config --keys", keys)
            if form and error.code == "config.missing_key":
                error.hint = f"{command_path} {form}; {error.hint}"
            raise
        if resolved.unknown_keys:
            message = f"{counted(len(resolved.unknown_keys), 'key')} without a meaning here: "
            self.reporter.warn("keys_left_out", message + ", ".join(resolved.unknown_keys))
        for key, reason in resolved.ignored.items():
            self.reporter.warn("option_without_effect", f"{key} does nothing: {reason}")
        return resolved

    def schema(self) -> "type[ConfigModel]":
        """Class of the configuration, for the types that this command line names."""
        typed: CommandLine = self._ctx.meta[TYPED_CONFIG]
        return typed.chosen_schema({})

    def finish(self, result: output.Result) -> None:
        output.write_result(result, self.options)
        if result.exit_code:
            raise typer.Exit(result.exit_code)


@contextmanager
def command(ctx: typer.Context, *, jsonl: bool = False) -> Iterator[Invocation]:
    """Sets up logging and the reporter for one command."""
    # Without a current folder some libraries would abort the process.
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError(
            "the current folder has been removed",
            hint="change to an existing folder, then run the same command again",
            code="usage.missing_file",
        ) from error
    options = ctx.ensure_object(OutputOptions)
    options.jsonl = jsonl
    if jsonl and options.json:
        raise UsageError(
            "--json and --jsonl exclude each other",
            hint="--jsonl prints one document per row, --json one for the whole list",
            code="usage.conflict",
        )
    reporter = _reporter(options)
    with _logging(options, reporter):
        yield Invocation(ctx, options, reporter)


def _reporter(options: OutputOptions) -> Reporter:
    from vlatool.cli import reporters

    mode = options.progress
    if not output.is_main_process():
        mode = "none"
    elif mode == "auto":
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        mode = "rich" if is_terminal and os.environ.get("TERM") != "dumb" else "plain"
    if options.quiet and mode != "json":
        mode = "none"
    if mode == "rich":
        from vlatool.cli.rich_reporter import RichReporter

        return RichReporter()
    classes = {"plain": reporters.LineReporter, "json": reporters.JsonReporter}
    return classes.get(mode, reporters.SilentReporter)()


@contextmanager
def _logging(options: OutputOptions, reporter: Reporter) -> Iterator[None]:
    """Sends log records to stderr and to the log file, and those of retries to the reporter; Python
    warnings become log records.
    """
    hide_environment()
    handlers = [_stderr_handler(options), _RetryHandler(reporter)]
    if options.log_file:
        handlers.append(_log_file(options.log_file))
    root = logging.getLogger()
    for handler in handlers:
        root.addHandler(handler)
    logging.getLogger("vlatool").setLevel(min(handler.level for handler in handlers))
    logging.captureWarnings(not options.debug)
    try:
        yield
    except BaseException:
        logging.getLogger("vlatool").debug("the command ended with", exc_info=True)
        raise
    finally:
        logging.captureWarnings(False)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


class _RetryHandler(logging.Handler):
    """Handler that passes warnings of retries to a reporter."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(logging.Filter(_RETRIES))
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.warn("storage_retry", record.getMessage())


class _Formatter(logging.Formatter):
    """Formatter that leaves credentials out and escapes control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return results.printable(without_credentials(super().format(record)))


def _stderr_handler(options: OutputOptions) -> logging.Handler:
    handler = logging.StreamHandler(cast(TextIO, output.Stderr()))
    handler.setLevel({0: logging.WARNING, 1: logging.INFO}.get(options.verbose, logging.DEBUG))
    handler.setFormatter(_Formatter("%(levelname)s %(name)s: %(message)s"))
    from vlatool.cli.reporters import REPORT_LOG

    reported = {_RETRIES, REPORT_LOG, *(() if options.verbose else ("py.warnings",))}
    handler.addFilter(lambda record: record.name not in reported)
    return handler


class _LogFile(logging.FileHandler):
    """Log file. If writing fails, stderr says so once, and the command continues."""

    problem: BaseException | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Called by `logging` if a record cannot be written."""
        if self.problem is None:
            self.problem = sys.exc_info()[1]
            output.write_stderr(f"warning: cannot write to the log file any more: {self.problem}")

    def close(self) -> None:
        """Closes the file; the disk may be full."""
        with suppress(OSError):
            super().close()


def _log_file(path: str) -> logging.Handler:
    try:
        handler = _LogFile(path, encoding="utf-8")
        handler.setLevel(logging.DEBUG)
        handler.addFilter(lambda record: record.name != _RETRIES)  # a reporter logs them
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        cast(TextIO, handler.stream).write(f"{handler.format(_command_record())}\n")
        handler.flush()
    except OSError as error:
        raise UsageError(
            f"cannot write the log file {path}: {error.strerror}",
            hint="choose a file in an existing folder where you may write",
            code="usage.bad_value",
            details={"path": path},
        ) from error
    return handler


def _without_secrets(word: str) -> str:
    return _QUERY.sub(r"\1...", _USER.sub("...@", word))


def _command_record() -> logging.LogRecord:
    # Hide the values of options for variables, such as --sagemaker.environment.HF_TOKEN.
    for word, after in pairwise([*sys.argv[1:], ""]):
        name, equals, value = word.rpartition(".")[2].partition("=")
        value = value if equals else after
        if word.startswith("--") and "." in word and is_credential(name, value):
            hide(value)
    line = shlex.join(["vlatool", *map(_without_secrets, sys.argv[1:])])
    return logging.LogRecord("vlatool", logging.INFO, __file__, 0, line, None, None)
