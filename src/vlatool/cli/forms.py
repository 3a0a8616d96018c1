"""Builds commands of Typer from the rows of the table, and starts them on several ranks."""

import inspect
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from vlatool.cli.commands import Command
from vlatool.cli.config_command import ConfigSpec, VlatoolCommand, load, schema_at
from vlatool.cli.failures import Terminated, as_vlatool_error
from vlatool.cli.options import JsonLinesOpt, NprocOpt, TextArg, TextsArg, command_app
from vlatool.cli.output import error_document, to_json, write_error, write_stderr, write_stdout
from vlatool.cli.session import Invocation, command
from vlatool.errors import VlatoolError
from vlatool.events import STOP_SIGNALS

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def run_on_ranks(run: Invocation, processes: int | None) -> bool:
    """Runs this command line on ranks, one per GPU in a job; False: this process does the work."""
    from vlatool.training.ranks import Machine

    node = Machine.of_environment(os.environ)
    if processes is None and node is None:
        return False
    from vlatool.training import start

    count = (start.gpus_here() or 1) if processes is None else processes
    if count == 1 and (node is None or node.count == 1):
        start.check_processes(count, gpus=0)
        return False
    nodes = {} if node is None else {"node": node}
    write_stdout(start.start(sys.argv[1:], count, **nodes, reporter=run.reporter))
    return True


@contextmanager
def _rank(run: Invocation) -> Iterator[None]:
    """Runs the body as a rank, if this process is one.

    In a rank of `--nproc`, writes errors to a file; the starting process prints one of them.
    """
    from vlatool.training.ranks import SECRETS, Launch, end_when_stuck

    launch = Launch.of_this_process()
    try:
        if launch is not None:
            launch.join()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            end_when_stuck(partial(_report_end, run))
        if SECRETS in os.environ:
            from vlatool.launching.sagemaker import load_secrets

            os.environ.update(load_secrets(os.environ.pop(SECRETS)))
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt, Terminated, SystemExit) as error:
        if launch is None:
            raise
        for number in (signal.SIGINT, *STOP_SIGNALS):  # the starting process may send it again
            signal.signal(number, signal.SIG_IGN)
        shown = as_vlatool_error(error)
        write_error_file(shown, Path(os.environ[_ERROR_FILE]))
        logging.getLogger("vlatool").debug("the rank ended with", exc_info=True)
        if run.options.debug:
            write_stderr("".join(traceback.format_exception(error)).rstrip())
        # Without cleanup: closing a loader while other ranks end would print many errors.
        os._exit(shown.exit_code)


def _report_end(run: Invocation) -> None:
    """Reports the end of a rank by a signal, unless a launcher reports the ends of its ranks."""
    if _ERROR_FILE not in os.environ:
        write_error(as_vlatool_error(Terminated()), run.options)


def write_error_file(error: VlatoolError, file: Path) -> None:
    """Writes the error of a rank; torchrun reads `message` and `timestamp`, in seconds."""
    from vlatool.storage.atomic import write_json

    document = {**error_document(error), "timestamp": int(time.time())}
    write_json(file, json.loads(to_json(document)))


Body = Callable[[Invocation, Command, Mapping[str, Any]], None]


def run_workflow(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    """Calls the workflow of a command with its configuration and prints the result."""
    workflow = load(row.workflow)
    if not row.schema:
        run.finish(workflow())
        return
    config = run.config(**{key: values[key] for key in row.arguments})
    if not run_on_ranks(run, values.get("nproc")):
        run.finish(workflow(config, reporter=run.reporter))


def no_options() -> None:
    """Declares no options."""


@dataclass(frozen=True)
class Form:
    """How a command looks on the command line: arguments, options, aliases."""

    spec: ConfigSpec | None  # options of the configuration; None for a command without one
    body: Body = run_workflow  # function of (invocation, command, values) that runs the command
    # Function with further options for Typer as parameters.
    declare: Callable[..., None] = no_options


def typer_command(words: str, row: Command) -> Any:
    """Command of Typer for a row of the table."""
    form: Form = load(row.form)(row) if row.form else Form(_spec(row))

    def body(ctx: typer.Context, **values: Any) -> None:
        is_list = values.pop("jsonl", False)
        if row.has_ranks:
            from vlatool.training.ranks import slurm_variables

            os.environ.update(slurm_variables(os.environ))
        with command(ctx, jsonl=is_list) as run, _rank(run) if row.has_ranks else nullcontext():
            form.body(run, row, values)

    parameters = _parameters(row, form)
    body.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess] - read by Typer
    body.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    body.__doc__ = f"{row.summary}\n\n{row.details}".strip()
    app = command_app()
    app.command(words.rpartition(" ")[2], cls=_command_class(row, form))(body)
    return typer.main.get_command(app)


def _spec(row: Command) -> ConfigSpec | None:
    if not row.schema:
        return None
    return ConfigSpec(
        schema_at(row.schema),
        positionals=tuple(row.arguments),
        suggestions=row.suggestions,
        presets=row.presets,
    )


def _command_class(row: Command, form: Form) -> type[VlatoolCommand]:
    members = {
        "spec": form.spec,
        "arguments": " ".join(row.arguments.values()),
        "examples": row.examples,
        "listed": row.options.split(),
    }
    return type("Command", (VlatoolCommand,), members)


def _parameters(row: Command, form: Form) -> list[inspect.Parameter]:
    """Parameters of the function of a command: the context, arguments, and options of Typer."""
    kinds: dict[str, tuple[Any, Any]] = {"ctx": (typer.Context, inspect.Parameter.empty)}
    for key, name in row.arguments.items():
        kinds[key] = (TextsArg if "..." in name else TextArg, None)
    for name, parameter in inspect.signature(form.declare).parameters.items():
        kinds[name] = (parameter.annotation, parameter.default)
    if row.has_ranks:
        kinds["nproc"] = (NprocOpt, None)
    if row.has_rows:
        kinds["jsonl"] = (JsonLinesOpt, False)
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in kinds.items()
    ]
