"""`vlatool sample`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vlatool.cli.config_command import ConfigSpec, config_command
from vlatool.cli.options import CONTEXT, ConfigOpt, KeysOpt, PresetOpt, SetOpt, command_app
from vlatool.cli.session import command

if TYPE_CHECKING:
    from vlatool.config.base import ConfigModel

app = command_app()
LAYOUTS = ("spartan", "lerobot", "libero")


def _schema(args: Sequence[str]) -> "type[ConfigModel]":
    del args
    from vlatool.workflows.sample import SampleConfig

    return SampleConfig


SPEC = ConfigSpec(_schema, short={"-o": "output"}, positionals=("layout", "output"))
LayoutArg = Annotated[str | None, typer.Argument(autocompletion=lambda: list(LAYOUTS))]
OutputArg = Annotated[str | None, typer.Argument()]


@app.command(
    cls=config_command(
        SPEC,
        "LAYOUT OUTPUT",
        "vlatool sample spartan raw --episodes 20 --seed 1",
        "vlatool sample lerobot raw-lerobot --episodes 5 --cameras 2 --size small",
    ),
    context_settings=CONTEXT,
)
def sample(
    ctx: typer.Context,
    layout: LayoutArg = None,
    output: OutputArg = None,
    preset: PresetOpt = None,
    config: ConfigOpt = None,
    set_: SetOpt = None,
    keys: KeysOpt = False,
) -> None:
    """Write episodes of the built-in world in a published raw layout."""
    with command(ctx) as run:
        from vlatool.workflows import sample as workflow

        settings = run.config(workflow.SampleConfig, layout=layout, output=output)
        run.finish(workflow.sample(settings, reporter=run.reporter))
