"""A run on a mixture of different data sets with augmentation: metrics and policy."""

import json
from pathlib import Path

import pytest

from tests.builders.training import CAMERAS, HAND_COMMAND, XYZ_COMMAND, tiny_config, world_shards
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.workflows.evaluate import open_loop
from vlatool.workflows.train import train


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data with both cameras, and with one of them."""
    root = tmp_path_factory.mktemp("data")
    both = world_shards(root / "both", episodes=2)
    return both, world_shards(root / "one", episodes=1, cameras=CAMERAS[:1])


@pytest.fixture(scope="module")
def run(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    both, single = (str(path) for path in folders)
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
    train(tiny_config(folders[0], folder, **keys))
    return folder


def test_metrics_contain_errors_of_fields_and_losses_of_data_sets(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = next(row for row in rows if "loss" in row)
    validated = next(row for row in rows if "val/loss" in row)

    names = [f"denoising_loss/{XYZ_COMMAND}_relative", f"denoising_loss/{HAND_COMMAND}"]
    for row, prefix in ((trained, ""), (validated, "val/")):
        xyz, hand = (row[prefix + name] for name in names)
        assert (3 * xyz + hand) / 4 == pytest.approx(row[f"{prefix}loss"], rel=1e-5)
    assert {name for name in trained if name.startswith("loss/")} == {
        "loss/both/data",
        "loss/one/data",
    }


@pytest.mark.parametrize("number", [0, 1])
def test_policy_is_evaluated_on_each_data_set(
    run: Path, folders: tuple[Path, Path], number: int, tmp_path: Path
) -> None:
    config = OpenLoopConfig(
        checkpoint=str(run), data=str(folders[number]), output=str(tmp_path / "x"), max_samples=2
    )

    assert open_loop(config).samples == 2
