"""Forecast of the memory of a run on a CPU against what the run takes.

    python benchmarks/memory_forecast.py diffusion-policy-tiny DATA [--steps 6] [KEY=VALUE ...]

The run takes the peak resident memory of its process less that just before the parts are built;
processes that load data are left out. Linux only.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from machine import describe

from vlatool.config.resolve import load_config, parse_override
from vlatool.models.base import ModelType
from vlatool.training.config import TrainConfig
from vlatool.workflows.train import train

MB = 10**6


def main(arguments: argparse.Namespace) -> None:
    """Prints both numbers and their ratio."""
    with TemporaryDirectory() as folder:
        config = configuration(arguments, folder)
        before: list[int] = []
        train(watched(config, before))
        measured = resident("VmHWM") - before[-1]
        planned = train(configuration(arguments, folder, name="plan", dry_run="true")).forecast
    assert planned is not None
    total = sum(planned.memory.values())
    print(describe())
    kinds = ", ".join(f"{name} {size / MB:.1f}" for name, size in planned.memory.items())
    print(f"{arguments.preset}: forecast {total / MB:.1f} MB ({kinds})")
    print(f"measured {measured / MB:.1f} MB; forecast / measured {total / measured:.2f}")


def configuration(arguments: argparse.Namespace, folder: str, **keys: str) -> TrainConfig:
    """A run of a few steps in a folder."""
    fixed = {
        "data.folders": arguments.data,
        "save_path": folder,
        "name": "run",
        "total_train_steps": arguments.steps,
        "num_checkpoints": 1,
        **keys,
    }
    texts = [f"{key}={value}" for key, value in fixed.items()] + arguments.keys
    overrides = [parse_override(text) for text in texts]
    return load_config(TrainConfig, presets=[arguments.preset], overrides=overrides).config


def watched(config: TrainConfig, before: list[int]) -> TrainConfig:
    """The configuration with a model type that notes the memory before its parts are built."""
    real: Any = type(config.model_type)

    class Watched(real):
        def build(self, config: Any) -> Any:
            before.append(resident("VmRSS"))
            # The largest resident memory so far starts again at this moment.
            Path("/proc/self/clear_refs").write_text("5")
            return super().build(config)

        def __reduce__(self) -> Any:
            return real, ()

    class WatchedConfig(type(config)):
        @property
        def model_type(self) -> ModelType:
            return Watched()

    return WatchedConfig.model_construct(config.model_fields_set, **dict(config))


def resident(field: str) -> int:
    """Bytes of a line of `/proc/self/status`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("preset")
    parser.add_argument("data")
    parser.add_argument("keys", nargs="*", help="further keys, as KEY=VALUE")
    parser.add_argument("--steps", type=int, default=6)
    main(parser.parse_intermixed_args())
