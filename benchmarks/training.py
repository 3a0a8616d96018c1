"""The training loader alone in samples/s, and the training step alone in ms, on the demo's policy.

    python benchmarks/training.py DATA [--preset world-pick] [--workers 1] [--steps 100]

DATA is a folder of `vlatool preprocess`, such as demo/data.
"""

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from machine import describe

from vlatool.config.overrides import Override
from vlatool.config.resolve import load_config
from vlatool.loading.loader import LoaderPlan, build_loader
from vlatool.loading.robotics.facts import read_facts
from vlatool.loading.robotics.normalizer import Normalizer
from vlatool.plugins import MODELS
from vlatool.training.config import TrainConfig
from vlatool.training.optim import build_optimizer


def main(data: str, preset: str, workers: int, steps: int) -> None:
    """Times both, one after the other."""
    typed = {
        "data.dataset_manifest": [str(Path(data, "shards", "manifest.jsonl"))],
        "data.num_workers": workers,
    }
    overrides = [Override(key, value, "benchmark") for key, value in typed.items()]
    config = load_config(TrainConfig, presets=[preset], overrides=overrides).config
    facts = read_facts(config.data)
    config, _ = config.derive(facts)
    model_type = MODELS.get(config.model.type)()
    normalizer = Normalizer(config.data, facts.statistics, facts.statistics_past)
    batcher = model_type.batcher(config.model, config.data, normalizer)
    size = config.hparams.per_gpu_batch_size
    loader = iter(build_loader(config.data, facts, batcher, LoaderPlan(batch_size=size)))
    batches = list(islice(loader, 20))
    started = time.perf_counter()
    for _ in islice(loader, steps):
        pass
    print(describe())
    rate = steps * size / (time.perf_counter() - started)
    print(f"loader alone, {workers} processes: {rate:.0f} samples/s")
    del loader

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model_type.build(config.model).to(device)
    objective = model_type.objective(config.model, model)
    optimizer = build_optimizer(model, config.hparams)
    rng = torch.Generator().manual_seed(0)
    moved = [
        {key: value.to(device) if torch.is_tensor(value) else value for key, value in one.items()}
        for one in batches
    ]
    for index in range(steps + 10):
        if index == 10:
            started = time.perf_counter()
        loss = objective.loss("main", moved[index % len(moved)], rng)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    float(loss.total.detach())
    milliseconds = 1000 * (time.perf_counter() - started) / steps
    parameters = sum(p.numel() for p in model.parameters())
    print(f"step alone on {device}, batch {size}, {parameters / 1e6:.2f} M: {milliseconds:.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--preset", default="world-pick")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    main(arguments.data, arguments.preset, arguments.workers, arguments.steps)
