"""The program: groups of commands, and `main`, which maps exceptions to exit codes."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
import typer.core

from vlatool.cli.commands import COMMANDS, GROUPS
from vlatool.cli.completion import Completion
from vlatool.cli.help import SHARED_HELP, help_text, write_rows
from vlatool.cli.options import (
    CONTEXT,
    OUTPUT_WORDS,
    OutputOptions,
    command_app,
    take_output_options,
)
from vlatool.errors import SINGLE_FILE, StorageError, UsageError


class TableGroup(typer.core.TyperGroup):
    """The commands whose names begin with `prefix`; each is built when it is needed."""

    prefix: ClassVar[str] = ""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands and groups, in the order of the table."""
        return list(self._names())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        words = self._names().get(cmd_name.replace("_", "-"), "")
        if words in GROUPS:
            return _group(words)
        if words not in COMMANDS:
            return None
        from vlatool.cli.forms import typer_command

        return typer_command(words, COMMANDS[words])

    def _names(self) -> dict[str, str]:
        start = f"{self.prefix} ".lstrip()
        names = (words[len(start) :].split()[0] for words in COMMANDS if words.startswith(start))
        return {name: f"{start}{name}" for name in names}

    def get_params(self, ctx: Any) -> list[Any]:
        """Options; none during completion, because reading them makes Typer import pydantic."""
        return [] if ctx.resilient_parsing else super().get_params(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        words = " ".join(args[:2])
        if args[0] in COMMANDS and words in COMMANDS and not self.prefix:  # `presets show`
            from vlatool.cli.forms import typer_command

            return words, typer_command(words, COMMANDS[words]), args[2:]
        if ctx.resilient_parsing or self.get_command(ctx, args[0]) is not None:
            return super().resolve_command(ctx, args)
        from vlatool.plugins import did_you_mean
        from vlatool.withdrawn import withdrawn_hint

        known = self.list_commands(ctx)
        withdrawn = withdrawn_hint(f"{self.prefix} {args[0]}".strip())
        raise UsageError(
            f"unknown command {' '.join([ctx.command_path, args[0]])!r}",
            hint=withdrawn or did_you_mean(args[0], known),
            code="usage.unknown_option",
            details={"command": args[0], "known": known},
        )

    def get_help(self, ctx: Any) -> str:
        return help_text(super().get_help(ctx), ctx)

    def summaries(self, ctx: Any) -> Iterator[tuple[str, str]]:
        for name, words in self._names().items():
            yield name, GROUPS.get(words) or COMMANDS[words].summary

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path, "COMMAND [ARGUMENTS] [OPTIONS]")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_rows(formatter, "Commands", list(self.summaries(ctx)))
        formatter.write(f"\n`{ctx.command_path} COMMAND --help` shows what a command needs.\n")

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        rows = [(name, text) for name, text in self.summaries(ctx) if name.startswith(incomplete)]
        options = [option for param in self.params for option in param.opts]
        names = [*options, "--help", *OUTPUT_WORDS] if incomplete.startswith("-") else []
        matches = [Completion(name) for name in names if name.startswith(incomplete)]
        return [*(Completion(name, text) for name, text in rows), *matches]


def _group(name: str) -> Any:
    def callback() -> None: ...

    callback.__doc__ = GROUPS[name]
    app = command_app(type("Group", (TableGroup,), {"prefix": name}))
    app.callback()(callback)
    group = typer.main.get_command(app)
    group.name = name
    return group


# `--version` is the command `version`, which is listed already.
_OWN_HELP = ("--install-completion", "Install or show the completion of words in your shell.")
_COMPLETE = "_VLATOOL_COMPLETE"
_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


class RootGroup(TableGroup):
    """The root of all commands; output options may stand before or after a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options = ctx.ensure_object(OutputOptions)
        # The shell completes the value of this option.
        if ctx.resilient_parsing and args and args[-1] in OUTPUT_WORDS:
            return super().parse_args(ctx, args)
        rest = take_output_options(args, options)
        if not rest and not options.json and not ctx.resilient_parsing:
            rest = ["--help"]
        return super().parse_args(ctx, rest)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_rows(formatter, "Commands", list(self.summaries(ctx)))
        write_rows(formatter, "Options of every command", [*SHARED_HELP, _OWN_HELP])


app = typer.Typer(
    cls=RootGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Turn recordings of your robot into a trained, evaluated policy."""
    if version:
        from vlatool.cli.output import write_result
        from vlatool.workflows.catalog import version as version_result

        write_result(version_result(), ctx.ensure_object(OutputOptions))
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        raise UsageError(
            "missing command",
            hint="`vlatool --help` lists the commands",
            code="usage.missing_key",
        )


def main() -> None:
    from vlatool.cli.failures import InterruptedByUserError
    from vlatool.cli.output import Stderr, flush_stdout, open_streams

    open_streams()
    atexit.register(_ignore_ctrl_c)
    try:
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # a second one, before the first one is reported
        code = InterruptedByUserError.exit_code
    # The interpreter may wait for threads and child processes before it ends: Ctrl-C then ends it,
    # with the exit code of the finished command.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))
    flush_stdout()
    Stderr().flush()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # Ends without the cleanup of torch; everything is written and synced by now. Torch 2.13 may
        # abort while it destroys a gloo process group (measured: 14 of 30 runs, none without it).
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _ignore_ctrl_c() -> None:
    """Keeps the exit code if Ctrl-C comes when the interpreter has removed its handlers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    from vlatool.cli.failures import Terminated, raise_on_signals

    options = OutputOptions()
    try:
        if _COMPLETE in os.environ:
            typer.main.get_command(app).main(prog_name="vlatool")
            return 0
        raise_on_signals()
        _check_names(argv)
        if argv and argv[-1] in _SHELLS:  # `--show-completion bash`: Typer detects no shell then
            os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
        group = typer.main.get_command(app)
        with group.make_context("vlatool", list(argv), obj=options) as ctx:
            group.invoke(ctx)
    except typer.Exit as error:
        return error.exit_code
    except SystemExit as error:
        if error.code not in (130, 143):
            raise
        return _report_error(error, options)
    except BrokenPipeError as error:
        # Ends silently if the reader of stdout has closed it; any other broken pipe is an error.
        from vlatool.cli.output import is_stdout_closed, silence

        if not is_stdout_closed():
            return _report_error(error, options)
        silence(sys.stdout)
        return 0
    except (Exception, KeyboardInterrupt, Terminated) as error:  # noqa: BLE001 - sets the exit code
        return 1 if _COMPLETE in os.environ else _report_error(error, options)
    return 0


def _run_in_environment() -> None:
    """Lets the single file run this command in a Python environment: the one you name, or the
    active one.

    Returns if no environment has this version of vlatool.
    """
    from vlatool import __version__

    environment = {name: text for name, text in os.environ.items() if name != SINGLE_FILE}
    python = environment.get("VLATOOL_PYTHON", "")
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if not python and variable in environment:
            python = f"{environment[variable]}/bin/python"
    python = shutil.which(python) or ""
    if not python:
        return
    check = "import sys, vlatool; sys.exit(vlatool.__version__ != sys.argv[1])"
    with suppress(OSError):
        command = [python, "-P", "-c", check, __version__]
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - the Python that the user named
        if done.returncode == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # an ignored one would stay ignored there
            os.execve(python, [python, "-P", "-m", "vlatool", *sys.argv[1:]], environment)  # noqa: S606


def _check_names(argv: Sequence[str]) -> None:
    """Refuses names that are not UTF-8, because records hold the names of folders."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            is_utf8 = encoding.lower().replace("-", "") == "utf8"
            hint = f"your locale reads names as {encoding}; run: export LC_ALL=C.UTF-8"
            raise UsageError(
                f"{word!r} is not text in UTF-8",
                hint="rename that file or folder" if is_utf8 else hint,
                code="usage.bad_value",
            ) from None


def _report_error(error: BaseException, options: OutputOptions) -> int:
    """Writes an error, even if a second Ctrl-C comes, and returns its exit code."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    from vlatool.cli.failures import TerminatedError, as_vlatool_error
    from vlatool.cli.output import ERROR_FILE, write_error, write_error_file

    try:
        shown = as_vlatool_error(error)
        if shown is not error:
            shown.__cause__ = error
        if SINGLE_FILE in os.environ and shown.code == "environment.missing_dependency":
            _run_in_environment()
        if file := os.environ.get(ERROR_FILE):
            if isinstance(shown, TerminatedError) and os.environ.get("RANK") != "0":
                return shown.exit_code  # ended by the agent, because another rank has failed
            told = copy(shown)  # the agent shows the message alone, as its last lines
            told.message = f"{shown.message}\n  hint: {shown.hint}" if shown.hint else shown.message
            with suppress(OSError, StorageError):
                write_error_file(told, Path(file))
        write_error(shown, options)
        return shown.exit_code
    finally:
        signal.signal(signal.SIGINT, handler)
