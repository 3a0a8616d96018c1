"""Names of joints from a recording in tables, pages, statistics and errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.builders.lerobot import Columns, lerobot_dataset
from tests.builders.preprocessing import refusal, run
from tests.builders.training import tiny_overrides
from tests.builders.verifying import verified
from vlatool.config.resolve import load_config, parse_override
from vlatool.datasets.lbm.layout import read_preprocessing_config
from vlatool.datasets.stats.layout import read_stats, write_stats
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.evaluation.control import ImageSizes
from vlatool.evaluation.offline import evaluate_open_loop
from vlatool.events import NullProgress
from vlatool.models.trained import open_trained
from vlatool.training.config import TrainConfig
from vlatool.workflows.evaluate import recorded_pairs
from vlatool.workflows.train import train
from vlatool.workflows.verify import InspectConfig, inspect

JOINTS = ["shoulder", "elbow"]


def named_dataset(root: Path, change: Any = lambda _number, _columns: None) -> Path:
    """A data set with names for action [2] and none for state [3]."""
    lerobot_dataset(root, (6, 5), change=change)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["action"]["names"] = {"motors": JOINTS}
    path.write_text(json.dumps(info))
    return root


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return named_dataset(tmp_path_factory.mktemp("raw") / "set")


@pytest.fixture(scope="module")
def data(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("data") / "out"
    run(raw, output, format="lerobot", resize_images_size=(32, 32))
    return output


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "policy"
    keys = tiny_overrides(data, folder, total_train_steps=1)
    keys = {key: value for key, value in keys.items() if not key.endswith("_fields")}
    overrides = [parse_override(f"{key}={value}", 1) for key, value in keys.items()]
    config = load_config(TrainConfig, presets=["diffusion-policy-tiny"], overrides=overrides)
    train(config.config)
    return folder


def test_names_are_in_tables_and_pages_of_recordings_and_of_shards(
    raw: Path, data: Path, tmp_path: Path
) -> None:
    assert read_preprocessing_config(data / "shards")["dimension_names"] == {"action": JOINTS}
    page = tmp_path / "page.html"
    for path in (raw, data, data / "shards/shard_000000.tar"):
        result = inspect(InspectConfig(location=str(path), html=str(page)))
        assert "elbow" in page.read_text()
        if path.is_dir():
            assert "shoulder, elbow" in result.text()
            assert result.document()["fields"]["action"]["names"] == tuple(JOINTS)


def test_a_run_and_its_evaluation_have_the_names(data: Path, trained: Path) -> None:
    opened = open_trained(str(trained))
    assert opened.assets.names == {"action": JOINTS}
    policy = opened.policy()
    pairs = recorded_pairs(str(data), policy, opened, 0)
    log = ImageSizes(policy.sees, print)
    report = evaluate_open_loop(policy, pairs, OpenLoopConfig(), log, NullProgress())
    curves = report.episodes[0].curves(pairs.fields)
    assert list(curves) == ["action: shoulder", "action: elbow"]
    assert report.fields["action"]["names"] == JOINTS


def findings_of(location: Path, code: str) -> list[str]:
    """Messages of `verify` for a code."""
    findings = verified(location).findings
    return [finding.message for finding in findings if finding.code == code]


def nan_in_second_action(number: int, columns: Columns) -> None:
    if number == 0:
        values = np.array(columns["action"].to_pylist(), np.float32)
        values[3, 1] = np.nan
        columns["action"] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)


def test_non_finite_value_is_reported_with_its_joint(tmp_path: Path) -> None:
    source = named_dataset(tmp_path / "raw", nan_in_second_action)
    error = refusal(source, tmp_path / "out", format="lerobot", on_error="stop")
    assert (error.code, error.details["frame"]) == ("data.not_finite", 3)
    assert "action: elbow" in error.message
    messages = findings_of(source, "lerobot.non_finite")
    assert len(messages) == 1
    assert "elbow" in messages[0]


def test_value_outside_its_statistics_is_reported_with_its_joint(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path, format="lerobot")
    path = tmp_path / "shards/stats.json"
    stats = read_stats(path)
    for row in stats["action"]["max_per_timestep"]:
        row[1] = -1000.0
    write_stats(path, stats)
    messages = findings_of(tmp_path, "stats.out_of_range")
    assert len(messages) == 1
    assert "action: elbow" in messages[0]
