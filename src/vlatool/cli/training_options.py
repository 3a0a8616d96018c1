"""Forms of the commands with a training configuration."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlatool.cli.commands import Command
from vlatool.cli.config_command import Body, Form, load
from vlatool.cli.forms import run_on_ranks
from vlatool.cli.help import HelpRow
from vlatool.cli.output import JsonResult
from vlatool.cli.session import Invocation
from vlatool.errors import UsageError

if TYPE_CHECKING:
    from vlatool.config.resolve import Resolved
    from vlatool.training.config import TrainConfig

# Rows of the help for names of keys.
_ROWS: Mapping[str, HelpRow] = {
    "data": ("--data DIR", "Training data, or recordings for a policy; repeatable."),
    "from": ("--from CKPT", "Run, checkpoint or published file with the initial weights."),
    "output": ("-o, --output RUN", "Folder of the run, such as runs/first."),
}
_NOTE = (
    "Defaults are shown without a preset. All keys of --keys are options: --section.key VALUE, or "
    "--set section.key=VALUE."
)
FileOpt = Annotated[
    str | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the YAML to FILE, atomically."),
]
ExplainOpt = Annotated[bool, typer.Option("--explain", help="Show the origin of each value.")]
DeriveOpt = Annotated[
    bool,
    typer.Option("--derive", help="Read the data, and add the values derived from them."),
]
# Accepted and ignored, so that the arguments of `train` can be used unchanged.
ProcessesOpt = Annotated[int | None, typer.Option("--nproc", hidden=True)]
SchemaOpt = Annotated[bool, typer.Option("--schema", help="Print the JSON Schema instead.")]


def train_form(row: Command) -> Form:
    """Form of `train`, `finetune` and `tokenizer train`."""
    return _form(row, _train)


def launch_form(row: Command) -> Form:
    """Form of the commands that start a training elsewhere."""
    return _form(row, _launch)


def resolve_form(row: Command) -> Form:
    """Form of `resolve-config`, which takes a command line of `train` or `finetune`."""
    unused = ("overwrite", "dry_run", "device_memory", "rate", "measure")
    form = _form(row, _resolve)
    rows = {name: form.rows[name] for name in ("data", "from")}
    return replace(form, rows=rows, unused_keys=unused, declare=_declare_resolve)


def _form(row: Command, body: Body) -> Form:
    has_rollouts = "rollouts" in row.presets
    return Form(
        body,
        is_flat=False,
        rows={name: _ROWS[name] for name in _ROWS if name != "from" or _is_finetune(row)},
        note=_NOTE,
        values={
            "model.type": "vlatool.plugins:MODELS.names",
            "data.type": "vlatool.plugins:DATA_KINDS.names",
        },
        unused_keys=() if has_rollouts else ("eval", "eval_every_n_checkpoints"),
    )


def _is_finetune(row: Command) -> bool:
    return "from" in row.options.split()


def _train(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    """Trains a model, or prints the configuration if a published key requests it."""
    resolved = _resolved(run, row)
    if resolved.config.resolve_configs or resolved.config.resolve_configs_path:
        from vlatool.workflows.resolve_config import resolve_config

        run.finish(resolve_config(resolved, reporter=run.reporter))
        return
    nproc = values["nproc"]
    config = resolved.config
    typed = resolved.typed
    if config.dry_run and nproc is not None:
        config, typed = _for_processes(resolved, nproc)
    elif run_on_ranks(run, nproc):
        return
    options = {"typed": typed, "origins": resolved.origins, "stem": run.stem}
    run.finish(load(row.workflow)(config, **options, reporter=run.reporter))


def _resolved(run: Invocation, row: Command) -> "Resolved[TrainConfig]":
    """The configuration of this command line; a fine-tuning must name a model."""
    resolved = run.resolved()
    if _is_finetune(row) and not getattr(resolved.config.model, "type", None):
        hint = (
            "give a checkpoint and a configuration: --from RUN --config RUN/config.yaml, or "
            "--preset NAME"
        )
        raise UsageError("you have not chosen a model", hint=hint, code="usage.missing_key")
    return resolved


def _for_processes(
    resolved: "Resolved[TrainConfig]", count: int
) -> tuple["TrainConfig", frozenset[str]]:
    """The configuration for a dry run with a number of processes, which are not started."""
    from vlatool.training.start import check_processes

    check_processes(count, gpus=0)
    config = resolved.config
    section = config.distributed.model_copy(update={"world_size": count})
    typed = resolved.typed | {"distributed.world_size"}
    return config.model_copy(update={"distributed": section}), typed


def _declare_resolve(
    explain: ExplainOpt = False,
    derive: DeriveOpt = False,
    schema: SchemaOpt = False,
    output: FileOpt = None,
    nproc: ProcessesOpt = None,
) -> None:
    """Options of `resolve-config`."""


def _resolve(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    if values["schema"]:
        run.finish(JsonResult(run.schema().model_json_schema()))
        return
    options = {name: values[name] for name in ("explain", "output", "derive")}
    run.finish(load(row.workflow)(run.resolved(), **options, reporter=run.reporter))


def _launch(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    resolved = _resolved(run, row)
    sagemaker = getattr(resolved.config, "sagemaker", None)
    if sagemaker is not None and sagemaker.profile is not None:  # for the storage too
        os.environ["AWS_PROFILE"] = sagemaker.profile
    workflow = load(row.workflow)
    run.finish(workflow(resolved.config, typed=resolved.typed, reporter=run.reporter))
