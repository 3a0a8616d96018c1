"""`vlatool demo`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from vlatool.cli.config_command import ConfigSpec, config_command
from vlatool.cli.options import CONTEXT, ConfigOpt, KeysOpt, PresetOpt, SetOpt, command_app
from vlatool.cli.session import command

if TYPE_CHECKING:
    from vlatool.config.base import ConfigModel

app = command_app()


def _schema(args: Sequence[str]) -> "type[ConfigModel]":
    del args
    from vlatool.workflows.demo import DemoConfig

    return DemoConfig


SPEC = ConfigSpec(_schema, short={"-o": "output"})


@app.command(
    cls=config_command(
        SPEC, "", "vlatool demo", "vlatool demo --output demo-2 --seed 2 --json > demo-2.json"
    ),
    context_settings=CONTEXT,
)
def demo(
    ctx: typer.Context,
    preset: PresetOpt = None,
    config: ConfigOpt = None,
    set_: SetOpt = None,
    keys: KeysOpt = False,
) -> None:
    """The whole pipeline on built-in data, in minutes, on a CPU.

    Writes episodes, turns them into training data, trains a policy, evaluates it, and writes a
    report; each step is printed as the command that does it.
    """
    with command(ctx) as run:
        from vlatool.workflows import demo as workflow

        run.finish(workflow.demo(run.config(workflow.DemoConfig), reporter=run.reporter))
