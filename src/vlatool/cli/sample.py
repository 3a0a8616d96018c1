"""`vlatool sample`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.options import TextArg, command_app
from vlatool.cli.session import command

app = command_app()
SPEC = ConfigSpec(
    schema_at("vlatool.workflows.sample:SampleConfig"),
    short={"-o": "output"},
    positionals=("layout", "output"),
)


@app.command(
    cls=config_command(
        SPEC,
        "LAYOUT OUTPUT",
        "vlatool sample spartan raw --episodes 20 --seed 1",
        "vlatool sample lerobot raw-lerobot --episodes 5 --cameras 2 --size small",
    ),
)
def sample(ctx: typer.Context, layout: TextArg = None, output: TextArg = None) -> None:
    """Write episodes of the built-in world in a published raw layout."""
    with command(ctx) as run:
        from vlatool.workflows import sample as workflow

        settings = run.config(workflow.SampleConfig, layout=layout, output=output)
        run.finish(workflow.sample(settings, reporter=run.reporter))
