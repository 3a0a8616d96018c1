"""`vlatool tokenizer train`, `eval`, `export` and `fit-fast`."""

import typer

from vlatool.cli.config_command import ConfigSpec, config_command, schema_at
from vlatool.cli.group import SuggestingGroup
from vlatool.cli.options import NprocOpt, TextArg, TextsArg, command_app
from vlatool.cli.ranks import on_ranks, one_voice
from vlatool.cli.session import command
from vlatool.cli.train import SPEC as TRAIN
from vlatool.cli.train import run_training

app = command_app(SuggestingGroup)
EVAL = ConfigSpec(
    schema_at("vlatool.workflows.tokenizer_eval:TokenizerEvalConfig"),
    short={"-o": "output"},
    positionals=("checkpoint", "data"),
)
EXPORT = ConfigSpec(
    schema_at("vlatool.workflows.tokenizer_export:TokenizerExportConfig"),
    short={"-o": "output"},
    positionals=("checkpoint",),
)
FIT_FAST = ConfigSpec(
    schema_at("vlatool.workflows.fit_fast:FitFastConfig"),
    short={"-o": "output"},
    positionals=("sources",),
)


@app.callback()
def tokenizer() -> None:
    """Train, evaluate or export a visual tokenizer, or fit an action tokenizer."""


@app.command(
    cls=config_command(
        TRAIN,
        "",
        "vlatool tokenizer train --preset vqgan-tiny --data shards --output runs/vqgan",
        "vlatool tokenizer train --preset titok-tiny-stage1 --data shards "
        "--model.teacher runs/vqgan -o runs/stage1",
        "vlatool tokenizer train config=titok_l32_stage1.yaml experiment.output_dir=runs/l32",
    ),
)
def train(ctx: typer.Context, nproc: NprocOpt = None) -> None:
    """Train a visual tokenizer; the same as `vlatool train`."""
    run_training(ctx, nproc)


@app.command(
    "eval",
    cls=config_command(
        EVAL,
        "CHECKPOINT DATA",
        "vlatool tokenizer eval runs/stage2 shards-held",
        "vlatool tokenizer eval runs/stage2 shards --split val --perceptual-weights weights --json",
    ),
)
def evaluate(
    ctx: typer.Context, checkpoint: TextArg = None, data: TextArg = None, nproc: NprocOpt = None
) -> None:
    """Measure the reconstruction of images from their codes, next to simple baselines."""
    with command(ctx) as run, one_voice(run):
        from vlatool.workflows import tokenizer_eval as workflow

        settings = run.config(workflow.TokenizerEvalConfig, checkpoint=checkpoint, data=data)
        if on_ranks(run, nproc):
            return
        run.finish(workflow.tokenizer_eval(settings, reporter=run.reporter))


@app.command(
    cls=config_command(
        EXPORT,
        "CHECKPOINT",
        "vlatool tokenizer export runs/stage2 --output tokenizer",
        "vlatool tokenizer export runs/stage2/checkpoints/step_00000300 -o tokenizer --json",
    ),
)
def export(ctx: typer.Context, checkpoint: TextArg = None) -> None:
    """Write a trained visual tokenizer as the published pair of files."""
    with command(ctx) as run:
        from vlatool.workflows import tokenizer_export as workflow

        settings = run.config(workflow.TokenizerExportConfig, checkpoint=checkpoint)
        run.finish(workflow.tokenizer_export(settings, reporter=run.reporter))


@app.command(
    "fit-fast",
    cls=config_command(
        FIT_FAST,
        "DATA...",
        "vlatool tokenizer fit-fast windows --output fast --profile libero",
        "vlatool tokenizer fit-fast data-a data-b --output fast --vocab-size 2048 --limit 50000",
    ),
)
def fit_fast(ctx: typer.Context, sources: TextsArg = None) -> None:
    """Fit a FAST action tokenizer on the action chunks of training data."""
    with command(ctx) as run:
        from vlatool.workflows import fit_fast as workflow

        settings = run.config(workflow.FitFastConfig, sources=sources)
        run.finish(workflow.fit_fast(settings, reporter=run.reporter))
