"""Loss curve of a policy on fixed batches, with the code of this and another checkout.

    python benchmarks/loss_curve.py [--before ../vlatool-before] [--steps 200]

Both checkouts train the small policy on the same made-up batches in the same order and print each
loss and the gradient norm; the order of real data is not compared. `--before` names a checkout,
whose own copy of this file runs there.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BATCH = 16


def main(before: Path | None, steps: int) -> None:
    """Prints both curves side by side, and the largest difference."""
    ours = curve(Path(__file__).resolve().parents[1], steps)
    theirs = ours if before is None else curve(before.resolve(), steps)
    for row, (new, old) in enumerate(zip(ours, theirs, strict=True)):
        if (row + 1) % max(1, len(ours) // 10) == 0:
            print(f"step {new['step']:4d}  loss {new['loss']:.6f}  before {old['loss']:.6f}")
    worst = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(ours, theirs, strict=True))
    print(f"largest relative difference of {len(ours)} losses: {worst:.2e}")


def curve(checkout: Path, steps: int) -> list[dict[str, Any]]:
    """Losses of a training with the code of a checkout."""
    env = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    words = [sys.executable, str(checkout / "benchmarks/loss_curve.py"), "--rows", str(steps)]
    done = subprocess.run(words, check=True, env=env, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(steps: int) -> list[dict[str, Any]]:
    """Losses of a training with the imported code."""
    import tempfile

    from vlatool.checkpoints.layout import read_metrics
    from vlatool.config.resolve import Override, load_config
    from vlatool.training.config import TrainConfig

    widths = {"model.action_dim": 4, "model.proprioception_dim": 4}
    counts = {"num_cameras": 2, "num_times": 1}
    widths |= {f"model.vision_language_backbone.{key}": count for key, count in counts.items()}
    widths |= {"data.lowdim_past_timesteps": 1, "data.lowdim_future_timesteps": 14}
    typed = {**widths, "hparams.grad_clip_norm": 1.0, "hparams.per_gpu_batch_size": BATCH}
    overrides = [Override(key, value, "benchmark") for key, value in typed.items()]
    config = load_config(TrainConfig, presets=["diffusion-policy-tiny"], overrides=overrides).config
    with tempfile.TemporaryDirectory() as folder:
        fit(config, Path(folder), steps)
        keys = ("step", "loss", "grad_norm", "lr")
        return [
            {key: row[key] for key in keys} for row in read_metrics(Path(folder, "metrics.jsonl"))
        ]


def batches(steps: int) -> Iterator[dict[str, Any]]:
    """Batches, the same in every checkout."""
    import torch

    rng = torch.Generator().manual_seed(3)
    time = torch.arange(16)
    for _ in range(steps):
        phase = torch.rand(BATCH, 1, 4, generator=rng) * 6
        yield {
            "keys": [str(row) for row in range(BATCH)],
            "images": torch.randint(256, (BATCH, 2, 3, 64, 64), generator=rng).to(torch.uint8),
            "text": torch.randint(1, 200, (BATCH, 32), generator=rng),
            "actions": torch.sin(phase + 0.2 * time[None, :, None]),
            "proprioception": torch.randn(BATCH, 2, 4, generator=rng),
            "past_mask": (time < 1).expand(BATCH, -1).clone(),
            "future_mask": (time >= 1).expand(BATCH, -1).clone(),
        }


def fit(config: Any, folder: Path, steps: int) -> None:
    """Trains with the trainer of parts and optimizer specs."""
    from vlatool.checkpoints.layout import RunDir
    from vlatool.events import NULL, NullProgress
    from vlatool.loading.base import MicroBatch
    from vlatool.training.metrics import MetricsLogger
    from vlatool.training.plan import TrainPlan
    from vlatool.training.runtime import Runtime
    from vlatool.training.setup import Run, set_up
    from vlatool.training.trainer import Trainer

    config = config.model_copy(update={"log_every_n_steps": 1})
    plan = TrainPlan(steps, BATCH, BATCH, 1, (steps,), 0)
    # Made-up batches have no fields.
    info: Any = SimpleNamespace(widths=lambda fields: [], statistics={}, statistics_past=0)
    no_streams: Any = None
    run = Run(config, info, plan, Runtime(config), RunDir(folder), no_streams)
    set_up(run, None)
    names = tuple(map(str, range(BATCH)))
    none_dropped = (0,) * len(config.data_kind.drop_reasons)
    micro_batches = (
        MicroBatch(
            batch, names, tuple(range(number * BATCH, (number + 1) * BATCH)), dropped=none_dropped
        )
        for number, batch in enumerate(batches(steps))
    )

    def do_nothing(*_: Any) -> None:
        """Replaces validation, images and checkpoints."""

    Trainer(
        run=run,
        logger=MetricsLogger(run, NULL, NullProgress()),
        validate=do_nothing,
        log_images=do_nothing,
        save=do_nothing,
        stop_signal=lambda: None,
    ).fit(micro_batches)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, help="print only the rows of this checkout, as JSON")
    arguments = parser.parse_args()
    if arguments.rows:
        print(json.dumps(rows(arguments.rows)))
    else:
        main(arguments.before, arguments.steps)
