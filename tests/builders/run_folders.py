"""Run folders without a training: the small files that `runs` reads."""

import json
from pathlib import Path
from typing import Any

from vlatool.checkpoints.checkpoint import CheckpointManifest
from vlatool.checkpoints.layout import RunDir
from vlatool.jobs.record import OutputRecord

CONFIG: dict[str, Any] = {
    "total_train_steps": 100,
    "data": {"dataset_manifest": ["data/manifest.jsonl"]},
    "model": {"type": "diffusion_policy"},
    "hparams": {"lr": 1e-4, "global_batch_size": 8},
}


def run_folder(
    root: Path,
    losses: list[float | None],  # loss at steps 10, 20,
    *,
    complete: bool = True,  # the run has ended
    stopped: bool = False,  # its checkpoint is that of a requested stop
    hparams: dict[str, Any] | None = None,  # keys over `CONFIG`
) -> Path:
    """Writes a run with a loss every ten steps, a validation at the last, and a checkpoint
    there.
    """
    run = RunDir(root)
    root.mkdir(parents=True)
    options = {"model": {"type": "diffusion_policy"}}
    OutputRecord("train", options, complete=complete, run_id="1").save(root)
    run.write_config({**CONFIG, "hparams": {**CONFIG["hparams"], **(hparams or {})}})
    rows: list[dict[str, Any]] = [
        {"step": 10 * number, "loss": loss} for number, loss in enumerate(losses, 1)
    ]
    step = 10 * len(losses)
    rows.append({"step": step, "val/loss": 0.25})
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.checkpoint(step).mkdir(parents=True)
    CheckpointManifest(step, 8 * step, {}, stopped).write(run.checkpoint(step))
    run.write_latest(step)
    return root
