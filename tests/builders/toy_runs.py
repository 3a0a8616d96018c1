"""Runs of the toy models: their configurations, and a script for several ranks.

    torchrun ... tests/builders/toy_runs.py FOLDER

makes, on all ranks together, the runs that `tests/integration/test_toys.py` compares.
"""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.builders.toys import WIDTH, install_toys, write_numbers
from vlatool.artifacts.run_dir import RunDir
from vlatool.config.overrides import Override
from vlatool.config.resolve import load_config
from vlatool.errors import DataError
from vlatool.events import NULL, NullProgress
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.training.config import TrainConfig
from vlatool.training.data import DataStreams
from vlatool.training.metrics import MetricsFile
from vlatool.training.plan import make_plan
from vlatool.training.report import MetricsLogger
from vlatool.training.runtime import Runtime
from vlatool.training.setup import TrainSetup, set_up
from vlatool.training.state import TrainState
from vlatool.training.step import StepContexts
from vlatool.training.trainer import Trainer
from vlatool.workflows.train import TrainResult, train

STEPS, HALF = 8, 4
SITE, DATA, BAD_DATA, HUGE_DATA, TEACHER = "site", "data", "bad", "huge", "teacher.safetensors"
# Of 48 rows; what stands in a micro-batch of one row is empty without it.
BAD_ROW, HUGE_ROW = 11, 30


def toys(root: Path) -> Path:
    """A folder with the distribution on the import path, data and a teacher."""
    import torch
    from safetensors.torch import save_file

    install_toys(root / SITE)
    write_numbers(root / DATA)
    write_numbers(root / BAD_DATA, bad=BAD_ROW)
    write_numbers(root / HUGE_DATA, (48,))
    rows = np.load(root / HUGE_DATA / "block-0.npy")
    rows[HUGE_ROW] = 1e30
    np.save(root / HUGE_DATA / "block-0.npy", rows)
    torch.manual_seed(5)
    save_file(torch.nn.Linear(WIDTH, WIDTH).state_dict(), root / TEACHER)
    return root


def toy_config(root: Path, model: str, run: str, **changes: Any) -> TrainConfig:
    """A run of a toy below `root`; `__` in place of dots."""
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
    """A copy of a run as it was when its first checkpoint had been written."""
    shutil.copytree(root / whole, root / run)
    copy = RunDir(root / run)
    shutil.rmtree(copy.checkpoint(STEPS))
    copy.write_latest(HALF)


def resumed(root: Path, model: str, run: str, **changes: Any) -> TrainResult:
    """Goes on with a run."""
    return train(toy_config(root, model, run, **changes))


def _ranks(root: Path, is_first: bool) -> None:
    """What two ranks do, in turn; each rank waits for the other before it goes on."""
    import torch.distributed as dist

    for model in ("toy_gan", "toy_lm"):
        train(toy_config(root, model, f"{model}-ddp"))
        train(toy_config(root, model, f"{model}-fsdp", distributed__fsdp=True))
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


def empty_micro_batches(root: Path) -> dict[str, Any]:
    """Keys of a run in which a micro-batch of one row, on one rank, has a row that is broken."""
    return {
        "data__folders": [str(root / BAD_DATA)],
        "hparams__global_batch_size": 2,
        "hparams__per_gpu_batch_size": 1,
        "total_train_steps": 24,
        "num_checkpoints": 1,
        "data__max_dropped_share": 0.5,
    }


def halted(root: Path) -> str:
    """What comes of a run in which a loss is not finite: the error, and whether weights moved."""
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
    trainer, begun, feed = toy_trainer(config, root)
    kept: dict[int, dict[str, Any]] = {}

    def weights() -> dict[str, Any]:
        modules = begun.state.modules.items()
        return {f"{p} {n}": t.clone() for p, m in modules for n, t in m.state_dict().items()}

    def save(state: TrainState) -> None:
        kept[state.step] = weights()

    trainer.save = save
    try:
        with feed.training(0) as batches:
            trainer.fit(begun.state, batches, begun.objective)
    except DataError as error:
        last = max(kept)
        moved = [name for name, one in weights().items() if not one.equal(kept[last][name])]
        return f"{error.code} {','.join(error.details['samples'])} {moved}"
    return "nothing"


def toy_trainer(config: TrainConfig, root: Path) -> tuple[Trainer, TrainSetup, DataStreams]:
    """The trainer of a run, without a run folder."""
    info = config.data_kind.load_info(config.data, NULL)
    runtime = Runtime(config)
    order = SampleOrder(info.datasets, OrderOptions.of(config.data, config.hparams.seed))
    plan = make_plan(config, info.datasets, runtime.world_size)
    begun = set_up(config, info, runtime, None)
    contexts = StepContexts(runtime, begun.placed, config.hparams.seed, plan)
    metrics = MetricsFile(None, NULL)
    reports = MetricsLogger(
        metrics, NULL, NullProgress(), runtime, 1, plan.total_steps, config.data_kind.drop_reasons
    )
    trainer = Trainer(
        plan=plan,
        h=config.hparams,
        runtime=runtime,
        placed=begun.placed,
        contexts=contexts,
        logger=reports,
        validate=_do_nothing,
        log_images=_do_nothing,
        save=_do_nothing,
        stop_signal=lambda: None,
    )
    return trainer, begun, DataStreams(config, info, order, plan, runtime, root)


def _do_nothing(*_: Any) -> None:
    """In place of what a test does not look at."""


def main(arguments: Sequence[str]) -> None:
    """On every rank."""
    root = Path(arguments[0])
    sys.path.insert(0, str(root / SITE))
    try:
        _ranks(root, os.environ["RANK"] == "0")
    except BaseException:  # noqa: BLE001 - told, then the rank ends
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # torch may abort while a gloo group is torn down; see cli/app.py


if __name__ == "__main__":
    main(sys.argv[1:])
