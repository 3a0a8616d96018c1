"""Commands of Typer from the rows of the table."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import typer

from vlatool.cli.command import Command
from vlatool.cli.config_command import ConfigSpec, VlatoolCommand, config_command, schema_at
from vlatool.cli.options import JsonLinesOpt, NprocOpt, TextArg, TextsArg, command_app
from vlatool.cli.ranks import join_slurm, rank_errors, read_secrets, run_on_ranks
from vlatool.cli.session import Invocation, command

Body = Callable[[Invocation, Command, Mapping[str, Any]], None]


def run_workflow(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    """Calls the workflow of a command with its configuration and prints the result."""
    workflow = load(row.workflow)
    if not row.schema:
        run.finish(workflow())
        return
    config = run.config(load(row.schema), **{key: values[key] for key in row.arguments})
    if not run_on_ranks(run, values.get("nproc")):
        run.finish(workflow(config, reporter=run.reporter))


def no_options() -> None:
    """Declares no options."""


@dataclass(frozen=True)
class Form:
    """Form of a command on the command line."""

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
            join_slurm()
        with (
            command(ctx, jsonl=is_list) as run,
            rank_errors(run) if row.has_ranks else nullcontext(),
        ):
            if row.has_ranks:
                read_secrets()
            form.body(run, row, values)

    parameters = _parameters(row, form)
    body.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess] - read by Typer
    body.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    body.__doc__ = f"{row.summary}\n\n{row.details}".strip()
    app = command_app()
    app.command(words.rpartition(" ")[2], cls=_command_class(row, form))(body)
    return typer.main.get_command(app)


def load(target: str) -> Any:
    """Object at `module:name`."""
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def _spec(row: Command) -> ConfigSpec | None:
    if not row.schema:
        return None
    return ConfigSpec(
        schema_at(row.schema),
        positionals=tuple(row.arguments),
        suggestions={key: partial(_names, target) for key, target in row.suggestions.items()},
        presets=row.presets,
    )


def _names(target: str) -> Sequence[str]:
    return load(target)()


def _command_class(row: Command, form: Form) -> type[VlatoolCommand]:
    if form.spec is None:
        return type("Documented", (VlatoolCommand,), {"examples": row.examples})
    arguments = " ".join(row.arguments.values())
    return config_command(form.spec, arguments, row.examples, row.options)


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
