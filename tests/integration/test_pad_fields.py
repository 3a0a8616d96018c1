"""Fields that only some data sets have, padded in training, validation and evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.recording import Recorder
from tests.builders.training import (
    CAMERAS,
    HAND,
    HAND_COMMAND,
    XYZ_COMMAND,
    tiny_config,
    world_shards,
)
from vlatool.datasets.stats.layout import read_stats
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.loading.base import SampleRef
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.loading.robotics.mixture import RoboticsInfo
from vlatool.loading.robotics.reader import DecodedSample
from vlatool.workflows.open_loop import open_loop
from vlatool.workflows.predict import PredictConfig, predict
from vlatool.workflows.train import train

KIND = RoboticsKind()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards of a robot with a hand, and of one whose hand is not recorded."""
    root = tmp_path_factory.mktemp("sets")
    rename = {"fields": {"other_command": HAND_COMMAND, "other": HAND}}
    with_hand = world_shards(root / "hand", episodes=2)
    return with_hand, world_shards(root / "bare", episodes=1, rename=rename)


def loaded(*folders: Path, **keys: Any) -> tuple[RoboticsDataConfig, RoboticsInfo]:
    fields = {"action_fields": [XYZ_COMMAND, HAND_COMMAND], "proprioception_fields": [HAND]}
    names = [str(folder) for folder in folders]
    config = RoboticsDataConfig(dataset_manifest=names, camera_names=CAMERAS, **fields, **keys)
    info = KIND.load_info(config)
    return KIND.derive(config, info)[0], info


def test_without_the_key_a_field_that_a_set_lacks_is_an_error(sets: tuple[Path, Path]) -> None:
    with fails("data.mismatch", 3) as caught:
        loaded(*sets)
    assert "data.pad_missing_fields" in caught.value.hint


def test_statistics_are_those_of_the_sets_that_have_the_field(sets: tuple[Path, Path]) -> None:
    _, info = loaded(*sets, pad_missing_fields=True)
    own = read_stats(sets[0] / "shards/stats.json")[HAND_COMMAND]
    np.testing.assert_allclose(info.statistics[HAND_COMMAND]["mean"], own["mean"], rtol=1e-6)


def test_statistics_have_the_steps_that_all_sets_have(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    rename = {"fields": {"other_command": HAND_COMMAND, "other": HAND}}
    short = world_shards(tmp_path, episodes=1, rename=rename, future_lowdim_steps=3)
    _, info = loaded(sets[0], short, pad_missing_fields=True)
    counts = {name: len(info.statistics[name]["count"]) for name in (XYZ_COMMAND, HAND_COMMAND)}
    assert counts[HAND_COMMAND] == counts[XYZ_COMMAND] == info.statistics_past + 1 + 3


def test_padded_values_are_zero_when_normalized_and_known_as_padded(
    sets: tuple[Path, Path],
) -> None:
    config, info = loaded(*sets, pad_missing_fields=True)
    rngs = [np.random.default_rng(0)] * 2
    samples = KIND.reader(config, info).read([SampleRef(0, 0, 0), SampleRef(1, 0, 0)], rngs)
    assets = KIND.make_assets(config, info)
    real, padded = (assets.normalized(each) for each in samples if isinstance(each, DecodedSample))
    assert (real.padded_fields, padded.padded_fields) == (set(), {HAND_COMMAND, HAND})
    zeros = np.zeros_like(padded.fields[HAND_COMMAND])
    assert assets.normalizer.normalize(HAND_COMMAND, zeros).any()
    assert not padded.fields[HAND_COMMAND].any()


def test_what_is_padded_is_counted_at_the_start(sets: tuple[Path, Path]) -> None:
    config, info = loaded(*sets, pad_missing_fields=True)
    reporter = Recorder()
    KIND.check_samples(config, info, reporter)
    count = info.datasets[1].size
    texts = [
        f"zeros as {name} in {count} of {info.num_samples} samples: {sets[1]}"
        for name in (HAND_COMMAND, HAND)
    ]
    assert {*texts} <= {*reporter.notes}


def test_validation_and_evaluation_leave_out_what_is_padded(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    keys = {
        "data__dataset_manifest": f"[{sets[0]}, {sets[1]}]",
        "data__pad_missing_fields": "true",
        "data__val_dataset_manifest": f"[{sets[1]}]",
        "total_val_samples": 4,
        "total_train_steps": 2,
    }
    train(tiny_config(sets[0], run, **keys))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = next(row for row in rows if "val/loss" in row)
    xyz = f"denoising_loss/{XYZ_COMMAND}_relative"
    assert validated["val/loss"] == pytest.approx(validated[f"val/{xyz}"], rel=1e-5)
    assert not [name for name in validated if name.endswith(HAND_COMMAND)]

    output = str(tmp_path / "evaluation")
    config = OpenLoopConfig(checkpoint=str(run), data=str(sets[1]), output=output, max_samples=2)
    assert list(open_loop(config).fields) == [f"{XYZ_COMMAND}_relative"]
    frame = PredictConfig(checkpoint=str(run), source=str(sets[1]), output=str(tmp_path / "frame"))
    assert not len(predict(frame).fields[HAND_COMMAND].recorded)
