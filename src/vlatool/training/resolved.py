"""Configuration of a run with what its data and an earlier run decide; its start in a folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlatool.artifacts.run.format import RunDir
from vlatool.events import NULL, Reporter
from vlatool.loading.base import DatasetInfo
from vlatool.training import resume
from vlatool.training.config import TrainConfig
from vlatool.training.identity import RANDOMNESS
from vlatool.training.plan import TrainPlan, budget_extension, make_plan


def resolved(
    config: TrainConfig, before: RunDir | None, reporter: Reporter
) -> tuple[TrainConfig, DatasetInfo, Mapping[str, str]]:
    """The derived configuration, the info on its data, and the rule of each derived key; `before`:
    the run folder, of any scheme; None if the run has no name yet.
    """
    config = resume.pinned_data(resume.with_base_config(config, before))
    info = config.load_info(reporter, resume.started_run(config, before))
    config, rules = config.derive(info)
    return config, info, rules


def run_identity(
    config: TrainConfig, info: DatasetInfo, plan: TrainPlan, output: Path, reporter: Reporter
) -> tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], bool]]:
    """Fingerprint of a run, and the function that says if its budget extends an earlier one."""
    from vlatool.training.setup import network_randomness  # torch

    def extends_budget(before: Mapping[str, Any]) -> bool:
        change = budget_extension(config, info.datasets, config.distributed.world_size or 1, before)
        if change:
            reporter.note(f"{output}: {change}")
        return bool(change)

    rule = network_randomness(config, plan)
    if rule:  # drawn inside the base model
        reporter.note(
            "with another hparams.per_gpu_batch_size or number of processes this run has other "
            f"weights: {rule[RANDOMNESS]}"
        )
    return {**info.fingerprint, **resume.data_versions(config), **rule}, extends_budget


def start_in(config: TrainConfig, run: RunDir, *, world_size: int) -> resume.RunStart:
    """Says what a run would do in a folder of any scheme. Writes nothing; `world_size`: number of
    ranks.
    """
    count = {"world_size": world_size}
    processes = config.distributed.model_copy(update=count)
    hparams = config.hparams.model_copy(update=count)
    config = config.model_copy(update={"distributed": processes, "hparams": hparams})
    config, info, _ = resolved(config, run, NULL)
    plan = make_plan(config, info.datasets, world_size)
    return resume.run_start(run, config, *run_identity(config, info, plan, run.root, NULL))[0]
