"""Samples/s of the training loader alone and ms of the training step alone, for the demo policy.

    python benchmarks/training.py DATA [--preset world-pick] [--workers 1] [--steps 100]

DATA is an output of `vlatool preprocess`, such as demo/data.
"""

import argparse
import time
from functools import partial
from itertools import islice
from pathlib import Path

from machine import describe

from vlatool.checkpoints.layout import RunDir
from vlatool.config.resolve import Override, load_config
from vlatool.loading.loader import LoaderPlan, build_loader
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.training.config import TrainConfig
from vlatool.training.data import DataStreams, prefetch_to_device
from vlatool.training.plan import make_plan
from vlatool.training.runtime import Runtime
from vlatool.training.setup import Run, set_up
from vlatool.training.step import TrainStep


def main(data: str, preset: str, workers: int, steps: int) -> None:
    """Times the loader, then the step."""
    typed = {"data.folders": [data], "total_train_steps": 10_000}
    overrides = [Override(key, value, "benchmark") for key, value in typed.items()]
    config = load_config(TrainConfig, presets=[preset], overrides=overrides).config
    kind, model_type = config.data_kind, config.model_type
    info = kind.load_info(config.data)
    config, _ = config.derive(info)
    runtime = Runtime(config)
    plan = make_plan(config, info.datasets, runtime.world_size)
    order = SampleOrder(info.datasets, OrderOptions.of(config.data, config.hparams.seed))
    assets = kind.make_assets(config.data, info)
    batcher = model_type.batcher(config.model, config.data, assets, None, training=True)
    dummy = partial(model_type.example, config.model, config.data, plan.micro_batch)
    loader_plan = LoaderPlan(plan.micro_batch, num_workers=workers, drop_reasons=kind.drop_reasons)
    reader = kind.reader(config.data, info)
    with build_loader(loader_plan, order, reader, batcher, dummy) as loader:
        stream = iter(loader)
        batches = list(islice(stream, 20))
        started = time.perf_counter()
        for _ in islice(stream, steps):
            pass
        rate = steps * plan.micro_batch / (time.perf_counter() - started)
    print(describe())
    print(f"loader alone, {workers} processes: {rate:.0f} samples/s")

    folder = RunDir(Path(data))  # nothing is written there
    streams = DataStreams(config, info, order, plan, runtime, folder.root)
    run = Run(config, info, plan, runtime, folder, streams)
    set_up(run, None)
    train_step = TrainStep(config.hparams, plan, runtime, run.placed)
    device_batches = list(prefetch_to_device(iter(batches), runtime.device))
    for index in range(steps + 10):
        if index == 10:
            started = time.perf_counter()
        batch = device_batches[index % len(device_batches)]
        updates, _ = train_step(run.state, run.objective, [batch])
    updates[-1].on_host.read(timeout_s=60)
    milliseconds = 1000 * (time.perf_counter() - started) / steps
    size = f"batch {plan.micro_batch}, {run.state.num_parameters / 1e6:.2f} M"
    print(f"step alone on {runtime.device}, {size}: {milliseconds:.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--preset", default="world-pick")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    main(arguments.data, arguments.preset, arguments.workers, arguments.steps)
