"""Forms of the commands with a training configuration."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlatool.cli.commands import Command
from vlatool.cli.config_command import ConfigSpec, schema_at
from vlatool.cli.forms import Form, load, run_on_ranks
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
    return Form(training_spec(row, "data", "output"), _train)


def tokenizer_form(row: Command) -> Form:
    """Form of `tokenizer train`; a tokenizer has no rollouts."""
    spec = training_spec(row, "data", "output")
    return Form(replace(spec, unused_keys=("eval", "eval_every_n_checkpoints")), _train)


def finetune_form(row: Command) -> Form:
    return Form(training_spec(row, "data", "from", "output"), partial(_train, needs_model=True))


def resolve_form(row: Command) -> Form:
    """Form of `resolve-config`, which takes a command line of `train` or `finetune`."""
    spec = training_spec(row, "data", "from")
    spec = replace(spec, unused_keys=("overwrite", "dry_run", "device_memory", "rate", "measure"))
    return Form(spec, _resolve, _declare_resolve)


def training_spec(row: Command, *names: str) -> ConfigSpec:
    """Form of the configuration; the help lists these names of keys."""
    return ConfigSpec(
        schema_at(row.schema),
        is_flat=False,
        rows={name: _ROWS[name] for name in names},
        note=lambda: (
            "Defaults are shown without a preset. All keys of --keys are options: --section.key "
            "VALUE, or --set section.key=VALUE."
        ),
        values={"model.type": model_types, "data.type": _data_kinds},
        presets=row.presets,
    )


def _train(
    run: Invocation, row: Command, values: Mapping[str, Any], *, needs_model: bool = False
) -> None:
    """Trains a model, or prints the configuration if a published key requests it."""
    resolved = _resolved(run, row, needs_model)
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
    workflow = load(row.workflow)
    run.finish(workflow(config, typed=typed, origins=resolved.origins, reporter=run.reporter))


def _resolved(run: Invocation, row: Command, needs_model: bool) -> "Resolved[TrainConfig]":
    """The configuration of this command line."""
    resolved = run.resolved(load(row.schema))
    if needs_model and not getattr(resolved.config.model, "type", None):
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
    config_class = load(row.schema)
    if values["schema"]:
        run.finish(JsonResult(run.schema(config_class).model_json_schema()))
        return
    options = {name: values[name] for name in ("explain", "output", "derive")}
    resolved = run.resolved(config_class)
    run.finish(load(row.workflow)(resolved, **options, reporter=run.reporter))


def model_types() -> Sequence[str]:
    from vlatool.plugins import MODELS

    return MODELS.names()


def _data_kinds() -> Sequence[str]:
    from vlatool.plugins import DATA_KINDS

    return DATA_KINDS.names()


def launch_train_form(row: Command) -> Form:
    return Form(training_spec(row, "data", "output"), _launch)


def launch_finetune_form(row: Command) -> Form:
    return Form(training_spec(row, "data", "from", "output"), partial(_launch, needs_model=True))


def _launch(
    run: Invocation, row: Command, values: Mapping[str, Any], *, needs_model: bool = False
) -> None:
    resolved = _resolved(run, row, needs_model)
    sagemaker = getattr(resolved.config, "sagemaker", None)
    if sagemaker is not None and sagemaker.profile is not None:  # for the storage too
        os.environ["AWS_PROFILE"] = sagemaker.profile
    workflow = load(row.workflow)
    run.finish(workflow(resolved.config, typed=resolved.typed, reporter=run.reporter))
