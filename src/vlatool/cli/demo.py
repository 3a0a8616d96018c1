"""`vlatool demo`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.options import command_app
from vlatool.cli.session import command

app = command_app()
SPEC = ConfigSpec(schema_at("vlatool.workflows.demo:DemoConfig"), short={"-o": "output"})


@app.command(
    cls=config_command(
        SPEC, "", "vlatool demo", "vlatool demo --output demo-2 --seed 2 --json > demo-2.json"
    ),
)
def demo(ctx: typer.Context) -> None:
    """Run the whole pipeline on built-in data, in minutes, on a CPU.

    Writes raw episodes, turns them into training data, trains a policy, evaluates it, and writes a
    report. Prints the command of each step.
    """
    with command(ctx) as run:
        from vlatool.workflows import demo as workflow

        run.finish(workflow.demo(run.config(workflow.DemoConfig), reporter=run.reporter))
