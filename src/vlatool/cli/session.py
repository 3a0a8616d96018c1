"""One invocation of a command: its configuration, its reporter, its result."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO, TypeVar, cast

import typer

from vlatool.cli import output
from vlatool.cli.config_command import TYPED_CONFIG
from vlatool.cli.options import OutputOptions
from vlatool.errors import ConfigError, UsageError
from vlatool.events import Reporter

if TYPE_CHECKING:
    from vlatool.cli.keys import TypedConfig
    from vlatool.config.base import ConfigModel
    from vlatool.config.resolve import Resolved

# What no location may hold, though somebody types it.
_USER, _QUERY = re.compile(r"(?<=://)[^/\s]+@"), re.compile(r"(https?://[^\s?#]*[?#])\S+")

Schema = TypeVar("Schema", bound="ConfigModel")


class Invocation:
    """What a command body needs.

    Attributes:
        options: How this invocation speaks.
        reporter: Where the workflow tells its story.
    """

    def __init__(self, ctx: typer.Context, options: OutputOptions, reporter: Reporter) -> None:
        self.options = options
        self.reporter = reporter
        self._ctx = ctx

    def config(self, schema: type[Schema], **positionals: Any) -> Schema:
        """The configuration of this command line; positionals are values of the keys named."""
        return self.resolved(schema, **positionals).config

    def resolved(self, schema: type[Schema], **positionals: Any) -> "Resolved[Schema]":
        """As `config`, with the origin of each value."""
        from vlatool.config.resolve import load_config

        typed: TypedConfig = self._ctx.meta[TYPED_CONFIG]
        try:
            resolved = load_config(
                schema,
                presets=typed.presets,
                files=typed.files,
                overrides=typed.overrides(positionals),
                reading=typed.read_options,
            )
        except ConfigError as error:
            own = f"{self._ctx.command_path} --keys"
            error.hint = error.hint.replace("vlatool resolve-config --keys", own)
            raise
        if resolved.unknown_keys:
            told = f"{len(resolved.unknown_keys)} keys of no meaning here are left out: "
            self.reporter.warn("keys_left_out", told + ", ".join(resolved.unknown_keys))
        return resolved

    def check_model_given(self, hint: str) -> None:
        """UsageError where neither a preset, a file nor a key says what is trained."""
        typed: TypedConfig = self._ctx.meta[TYPED_CONFIG]
        is_named = any(one.key == "model.type" for one in typed.overrides({}))
        if not (typed.presets or typed.files or is_named):
            raise UsageError("no model is configured", hint=hint, code="usage.no_model")

    def schema(self, schema: type[Schema]) -> type[Schema]:
        """The class whose keys this command line is held against."""
        typed: TypedConfig = self._ctx.meta[TYPED_CONFIG]
        return cast(type[Schema], typed.chosen_schema(schema))

    def finish(self, result: output.Result) -> None:
        """Prints the result."""
        output.write_result(result, self.options)


@contextmanager
def command(ctx: typer.Context, *, jsonl: bool = False) -> Iterator[Invocation]:
    """Sets up logging and the reporter for one command."""
    _check_folder()
    options = ctx.ensure_object(OutputOptions)
    options.jsonl = jsonl
    if jsonl and options.json:
        raise UsageError(
            "--json and --jsonl exclude each other",
            hint="--jsonl prints one document per row, --json one for the whole list",
            code="usage.conflict",
        )
    reporter = _reporter(options)
    with _logging(options) as log_file:
        if log_file is not None:
            from vlatool.cli.reporters import LoggedReporter

            reporter = LoggedReporter(reporter, log_file)
        yield Invocation(ctx, options, reporter)


def _check_folder() -> None:
    """Libraries abort the process where there is no current folder."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError(
            "the current folder has been removed",
            hint="change to a folder that is there, then run the same command again",
            code="usage.no_folder",
        ) from error


def _reporter(options: OutputOptions) -> Reporter:
    """The reporter that fits the options and the terminal."""
    from vlatool.cli import reporters

    mode = options.progress
    if not output.is_main_process():
        mode = "none"
    elif mode == "auto":
        mode = "rich" if _is_terminal() else "plain"
    if options.quiet and mode != "json":
        mode = "none"
    if mode == "rich":
        from vlatool.cli.rich_reporter import RichReporter

        return RichReporter()
    makers = {"plain": reporters.LineReporter, "json": reporters.JsonReporter}
    return makers.get(mode, reporters.SilentReporter)()


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def _logging(options: OutputOptions) -> Iterator[logging.Handler | None]:
    """Log records to stderr and the log file as asked; Python's warnings are log records."""
    log_file = _log_file(options.log_file) if options.log_file else None
    handlers = [_stderr_handler(options), *([log_file] if log_file else [])]
    root = logging.getLogger()
    for handler in handlers:
        root.addHandler(handler)
    logging.getLogger("vlatool").setLevel(min(handler.level for handler in handlers))
    logging.captureWarnings(not options.debug)
    try:
        yield log_file
    except BaseException:
        logging.getLogger("vlatool").debug("the command ended with", exc_info=True)
        raise
    finally:
        logging.captureWarnings(False)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _stderr_handler(options: OutputOptions) -> logging.Handler:
    handler = logging.StreamHandler(cast(TextIO, output.Stderr()))
    handler.setLevel({0: logging.WARNING, 1: logging.INFO}.get(options.verbose, logging.DEBUG))
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    if not options.verbose:
        handler.addFilter(lambda record: record.name != "py.warnings")
    return handler


class _LogFile(logging.FileHandler):
    """A log file; that it can no longer be written is said once, and the work goes on."""

    problem: BaseException | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Called where a record could not be written."""
        del record
        if self.problem is None:
            self.problem = sys.exc_info()[1]
            output.write_stderr(f"warning: the log file has an end: {self.problem}")

    def close(self) -> None:
        """What it still holds may be too much for the disk."""
        with suppress(OSError):
            super().close()


def _log_file(path: str) -> logging.Handler:
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise _log_file_error(path, error) from error
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    try:
        cast(TextIO, handler.stream).write(f"{handler.format(_command_record())}\n")
        handler.flush()
    except OSError as error:
        handler.close()
        raise _log_file_error(path, error) from error
    return handler


def _log_file_error(path: str, error: OSError) -> UsageError:
    return UsageError(
        f"cannot write the log file {path}: {error.strerror}",
        hint="name a file in a folder that exists, on a disk with room",
        code="usage.log_file",
        details={"path": path},
    )


def _without_secrets(word: str) -> str:
    return _QUERY.sub(r"\1...", _USER.sub("...@", word))


def _command_record() -> logging.LogRecord:
    line = shlex.join(["vlatool", *map(_without_secrets, sys.argv[1:])])
    return logging.LogRecord("vlatool", logging.INFO, __file__, 0, line, None, None)
