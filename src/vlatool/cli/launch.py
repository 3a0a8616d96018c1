"""Forms of the commands that start training on other machines."""

import os
from collections.abc import Mapping
from typing import Any

from vlatool.cli.command import Command
from vlatool.cli.forms import Form, load
from vlatool.cli.session import Invocation
from vlatool.cli.training_options import DATA, INIT_FROM, NO_MODEL_HINT, RUN, training_spec


def launch_train_form(row: Command) -> Form:
    return Form(training_spec(row, {"data": DATA, "output": RUN}), _launch)


def launch_finetune_form(row: Command) -> Form:
    return Form(
        training_spec(row, {"data": DATA, "from": INIT_FROM, "output": RUN}), _launch_finetune
    )


def _launch(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    del values
    resolved = run.resolved(load(row.schema))
    sagemaker = getattr(resolved.config, "sagemaker", None)
    if sagemaker is not None and sagemaker.profile is not None:  # for the storage too
        os.environ["AWS_PROFILE"] = sagemaker.profile
    workflow = load(row.workflow)
    run.finish(workflow(resolved.config, typed=resolved.typed, reporter=run.reporter))


def _launch_finetune(run: Invocation, row: Command, values: Mapping[str, Any]) -> None:
    run.check_model_given(NO_MODEL_HINT)
    _launch(run, row, values)
