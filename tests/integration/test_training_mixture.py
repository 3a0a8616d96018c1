"""A run on a mixture of different data sets with augmentation: metrics and policy."""

import json
from pathlib import Path

import pytest

from tests.builders.training import CAMERAS, HAND_COMMAND, XYZ_COMMAND, tiny_config, world_shards
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.train import train


def test_metrics_contain_errors_of_fields_and_losses_of_data_sets_and_the_policy_is_evaluated(
    tmp_path: Path,
) -> None:
    run, both = tmp_path / "runs/mixed", world_shards(tmp_path / "both", episodes=2)
    single = world_shards(tmp_path / "one", episodes=1, cameras=CAMERAS[:1])
    keys = {
        "data__dataset_manifest": f"[{both}, {single}]",
        "data__dataset_weighting": "[3, 1]",
        "data__pad_missing_images": "true",
        "data__mask_padded_images": "true",
        "data__augmentation__image__crop__enabled": "true",
        "data__augmentation__image__crop__shape": "[24, 24]",
        "data__augmentation__image__color_jitter__enabled": "true",
        "data__val_dataset_manifest": f"[{both}]",
        "total_val_samples": 4,
        "total_train_steps": 2,
    }
    train(tiny_config(both, run, **keys))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = next(row for row in rows if "loss" in row)
    validated = next(row for row in rows if "val/loss" in row)

    names = [f"denoising_loss/{XYZ_COMMAND}_relative", f"denoising_loss/{HAND_COMMAND}"]
    for row, prefix in ((trained, ""), (validated, "val/")):
        xyz, hand = (row[prefix + name] for name in names)
        assert (3 * xyz + hand) / 4 == pytest.approx(row[f"{prefix}loss"], rel=1e-5)
    losses = {name for name in trained if name.startswith("loss/")}
    assert losses == {"loss/both/data", "loss/one/data"}

    for data in (both, single):  # with both cameras, and with one of them
        output = str(tmp_path / "evaluations" / data.parent.name)
        keys = {"checkpoint": str(run), "data": str(data), "output": output}
        assert open_loop(OpenLoopConfig(**keys, max_samples=2)).samples == 2


@pytest.mark.parametrize("key", ["mean", "max"])
def test_data_with_a_weight_of_0_do_not_count_in_the_statistics(tmp_path: Path, key: str) -> None:
    both, single = (world_shards(tmp_path / f"{n}", episodes=n) for n in (2, 1))

    def statistics(*folders: Path, weights: list[float]) -> list[float]:
        keys = {"dataset_manifest": [*map(str, folders)], "dataset_weighting": weights}
        info = RoboticsKind().load_info(RoboticsDataConfig.model_validate(keys))
        return info.statistics[XYZ_COMMAND][key]

    assert statistics(both, single, weights=[1, 0]) == pytest.approx(statistics(both, weights=[1]))
