"""Runs of the toy models: configurations, and a script for several ranks.

    torchrun ... tests/builders/toy_runs.py FOLDER

makes the multi-rank runs that `tests/integration/test_toys.py` compares.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders.toys import WIDTH, GanType, LmType, install_toys, write_numbers
from vlatool.checkpoints.layout import RunDir
from vlatool.config.resolve import Override, load_config
from vlatool.errors import DataError
from vlatool.events import NULL, NullProgress
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.training.config import TrainConfig
from vlatool.training.data import DataStreams
from vlatool.training.metrics import MetricsLogger
from vlatool.training.plan import make_plan
from vlatool.training.runtime import Runtime
from vlatool.training.setup import Run, set_up
from vlatool.training.trainer import Trainer
from vlatool.workflows.train import TrainResult, train

STEPS, HALF = 8, 4
SITE, DATA, BAD_DATA, HUGE_DATA, TEACHER = "site", "data", "bad", "huge", "teacher.safetensors"
# Indices among 48 rows; a micro-batch of one row becomes empty if its row is dropped.
BAD_ROW, HUGE_ROW = 11, 30


def toys(root: Path) -> Path:
    """Writes the distribution, data and a teacher below a folder; returns the folder."""
    import torch
    from safetensors.torch import save_file

    install_toys(root / SITE)
    write_numbers(root / DATA)
    write_numbers(root / BAD_DATA, nan_row=BAD_ROW)
    write_numbers(root / HUGE_DATA, (48,))
    rows = np.load(root / HUGE_DATA / "block-0.npy")
    rows[HUGE_ROW] = 1e30
    np.save(root / HUGE_DATA / "block-0.npy", rows)
    torch.manual_seed(5)
    save_file(torch.nn.Linear(WIDTH, WIDTH).state_dict(), root / TEACHER)
    return root


def toy_config(root: Path, model: str, run: str, **changes: Any) -> TrainConfig:
    """The config of a toy run below `root`; `changes` have `__` in place of dots."""
    keys: dict[str, Any] = {
        "model.type": model,
        "data.folders": [str(root / DATA)],
        "data.allow_multiple_epochs": True,
        "data.lanes": 4,
        "data.num_workers": 0,
        "save_path": str(root),
        "name": run,
        "total_train_steps": STEPS,
        "num_checkpoints": STEPS // HALF,
        "log_every_n_steps": 1,
        "hparams.global_batch_size": 8,
        "hparams.per_gpu_batch_size": 4,
        "hparams.precision": "float32",
        "hparams.lr": 1e-2,
        "ema.enabled": True,
        **({"model.teacher": str(root / TEACHER)} if model == "toy_gan" else {}),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    overrides = [Override(key, value, "test") for key, value in keys.items()]
    return load_config(TrainConfig, overrides=overrides).config


def half_of(root: Path, whole: str, run: str) -> None:
    """Copies a run in the state after its first checkpoint."""
    shutil.copytree(root / whole, root / run)
    copy = RunDir(root / run)
    shutil.rmtree(copy.checkpoint(STEPS))
    copy.write_latest(HALF)


def resumed(root: Path, model: str, run: str, **changes: Any) -> TrainResult:
    return train(toy_config(root, model, run, **changes))


def _ranks(root: Path, is_first: bool) -> None:
    """Trains all runs of two ranks, one after the other."""
    import torch.distributed as dist

    with recorded_devices() as devices:
        for model in ("toy_gan", "toy_lm"):
            train(toy_config(root, model, f"{model}-ddp"))
            train(toy_config(root, model, f"{model}-fsdp", distributed__fsdp=True))
    (root / f"devices-{dist.get_rank()}").write_text(" ".join(sorted(devices)))
    if is_first:
        half_of(root, "toy_gan-ddp", "toy_gan-ddp-resumed")
        half_of(root, "toy_gan-one", "toy_gan-one-to-fsdp")
    dist.barrier()
    resumed(root, "toy_gan", "toy_gan-ddp-resumed", data__num_workers=1)
    resumed(root, "toy_gan", "toy_gan-one-to-fsdp", distributed__fsdp=True)
    dropped = train(
        toy_config(root, "toy_gan", "toy_gan-empty", **empty_micro_batches(root))
    ).dropped
    (root / f"dropped-{dist.get_rank()}").write_text(str(dropped))
    (root / f"halted-{dist.get_rank()}").write_text(halted(root))


@contextmanager
def recorded_devices() -> Iterator[set[str]]:
    """Context in which the devices are recorded on which toy models are built."""
    devices: set[str] = set()
    builds: dict[Any, Any] = {toy: toy.build for toy in (GanType, LmType)}

    def recorder(toy: Any) -> Any:
        def build(self: Any, config: Any) -> Any:
            parts = builds[toy](self, config)
            devices.add(next(parts["model"].module.parameters()).device.type)
            return parts

        return build

    for toy in builds:
        toy.build = recorder(toy)
    yield devices
    for toy, build in builds.items():
        toy.build = build


def empty_micro_batches(root: Path) -> dict[str, Any]:
    """Config keys of a run in which one rank has a micro-batch whose only row is broken."""
    return {
        "data__folders": [str(root / BAD_DATA)],
        "hparams__global_batch_size": 2,
        "hparams__per_gpu_batch_size": 1,
        "total_train_steps": 24,
        "num_checkpoints": 1,
        "data__max_dropped_share": 0.5,
    }


def halted(root: Path) -> str:
    """Code and samples of the error of a non-finite loss, and the weights that changed after it."""
    config = toy_config(
        root,
        "toy_gan",
        "toy_gan-halted",
        data__folders=[str(root / HUGE_DATA)],
        hparams__global_batch_size=2,
        hparams__per_gpu_batch_size=1,
        total_train_steps=24,
        save_every_n_steps=1,
    )
    trainer = toy_trainer(config, root / "halted")
    run = trainer.run
    saved: dict[int, dict[str, Any]] = {}

    def weights() -> dict[str, Any]:
        modules = run.state.modules.items()
        return {f"{p} {n}": t.clone() for p, m in modules for n, t in m.state_dict().items()}

    def save() -> None:
        saved[run.state.step] = weights()

    trainer.save = save
    try:
        with run.streams.training(0) as batches:
            trainer.fit(batches)
    except DataError as error:
        last = max(saved)
        changed = [name for name, value in weights().items() if not value.equal(saved[last][name])]
        return f"{error.code} {','.join(error.details['samples'])} {changed}"
    return "nothing"


def toy_trainer(config: TrainConfig, folder: Path) -> Trainer:
    """The trainer of a run that writes its metrics and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    info = config.data_kind.load_info(config.data, NULL)
    runtime = Runtime(config)
    order = SampleOrder(info.datasets, OrderOptions.of(config.data, config.hparams.seed))
    plan = make_plan(config, info.datasets, runtime.world_size)
    streams = DataStreams(config, info, order, plan, runtime, folder)
    run = Run(config, info, plan, runtime, RunDir(folder), streams)
    set_up(run, None)
    return Trainer(
        run=run,
        logger=MetricsLogger(run, NULL, NullProgress()),
        validate=_do_nothing,
        log_images=_do_nothing,
        save=_do_nothing,
        stop_signal=lambda: None,
    )


def _do_nothing(*_: Any) -> None:
    """Callback for events that a test ignores."""


def main(arguments: Sequence[str]) -> None:
    """Runs on every rank."""
    root = Path(arguments[0])
    sys.path.insert(0, str(root / SITE))
    try:
        _ranks(root, os.environ["RANK"] == "0")
    except BaseException:  # noqa: BLE001 - printed, then the rank ends
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # torch may abort while a gloo group is torn down; see cli/app.py


if __name__ == "__main__":
    main(sys.argv[1:])
