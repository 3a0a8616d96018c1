"""Time of a step of ACT here and in the loop of lerobot, in turn, with the batch in memory.

python -P benchmarks/lerobot_step.py DATA [STEPS]; DATA: frames, such as of `vlatool sample`.
"""

import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vlatool.config.resolve import Override, load_config
from vlatool.loading.base import MicroBatch
from vlatool.models.lerobot import package
from vlatool.models.lerobot.batch import as_floats, feature_statistics
from vlatool.training.config import TrainConfig
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState
from vlatool.training.step import TrainStep, build_optimizer

BATCH = 8
SIDE = 224


def main(data: str, steps: int) -> None:
    keys: dict[str, Any] = {
        "model.type": "lerobot",
        "model.config": {"pretrained_backbone_weights": None},
        "data.dataset_manifest": data,
        "data.camera_names": ["scene_right_0", "wrist_right_minus"],
    }
    overrides = [Override(key, value, "benchmark") for key, value in keys.items()]
    config, _ = load_config(TrainConfig, overrides=overrides).config.derive_from_data()
    section: Any = config.model
    shapes = {**section.shapes, **{key: [3, SIDE, SIDE] for key in section.cameras.values()}}
    section = section.model_copy(update={"shapes": shapes})
    info = config.load_info()
    batch = config.model_type.example(section, config.data, BATCH)
    settings = package.policy_config(section)
    numbers = feature_statistics(section, settings, config.data, info.statistics)

    torch.manual_seed(0)
    theirs = package.new_policy(section).train()
    preprocess, _ = package.new_processors(section, numbers.seen, numbers.commanded, "cpu")
    preset = settings.get_optimizer_preset()
    optimizer = preset.build(theirs.get_optim_params())

    def step_of_lerobot() -> None:
        loss, _ = theirs.forward(preprocess(as_floats(batch, "cpu")))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    runtime = Runtime(config)
    torch.manual_seed(0)
    parts = config.model_type.build(section)
    placed = PlacedParts(parts, runtime.placement(config), config.model_type)
    objective = config.model_type.objective(section, config.data, info, parts)
    state = TrainState(parts, unsaved=None)
    for name, spec in objective.optimizers().items():
        state.optimizers[name] = build_optimizer(spec, state.modules, config.hparams)
    plan = TrainPlan(steps, BATCH, BATCH, 1, (steps,), 0)
    train = TrainStep(config.hparams, plan, runtime, placed)
    fetched = MicroBatch(batch=batch, positions=tuple(range(BATCH)), samples=("",) * BATCH)

    def step_here() -> None:
        (update, *_), _ = train(state, objective, [fetched])
        update.on_host.read(60.0)

    times: dict[str, list[float]] = {"lerobot": [], "vlatool": []}
    for index in range(steps + 1):
        for name, step in (("lerobot", step_of_lerobot), ("vlatool", step_here)):
            started = time.perf_counter()
            step()
            if index:
                times[name].append(time.perf_counter() - started)
    for name, values in times.items():
        print(f"{name}: {1000 * median(values):.0f} ms, least {1000 * min(values):.0f} ms")


if __name__ == "__main__":
    if sys.argv[1:] in ([], ["--help"]):
        print(__doc__)
        sys.exit()
    main(str(Path(sys.argv[1])), int(sys.argv[2]) if len(sys.argv) > 2 else 10)
