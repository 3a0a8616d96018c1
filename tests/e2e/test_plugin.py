"""A third-party package with a format, model types, a data kind and a preset."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.plugin import acme_data, acme_distribution, hostile_distribution

VLATOOL = str(Path(sys.executable).parent / "vlatool")
CHECKS = """
from acme_vla.reader import AcmeReader
from acme_vla.line import AcmeLineType
from acme_vla.spec import AcmeMlpType
from vlatool.testing import check_model_type, check_reader
check_reader(AcmeReader, {data!r}, {{"camera": "front"}})
check_model_type(AcmeMlpType)
check_model_type(AcmeLineType, data={data!r})
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    acme_distribution(folder / "site")
    hostile_distribution(folder / "site")
    acme_data(folder / "raw")
    return folder


def python(root: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    inherited = os.environ.get("PYTHONPATH")
    path = [str(root / "site"), *([inherited] if inherited else [])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.run(
        [sys.executable, *argv],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=env,
        timeout=240,
    )


def vlatool(root: Path, *argv: str) -> tuple[int, dict[str, Any]]:
    done = python(root, VLATOOL, "--json", *argv)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def preprocess(
    root: Path, output: str, *camera: str, source: str = "raw"
) -> tuple[int, dict[str, Any]]:
    options = ["--workers", "1", "--past-lowdim-steps", "0", "--future-lowdim-steps", "1"]
    options += ["--image-indices", "0", *camera]
    return vlatool(root, "preprocess", "acme", source, "-o", output, *options)


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    status, result = preprocess(root, "data", "--source.camera", "front")
    assert status == 0, result
    return root / "data"


def test_plugins_are_listed_with_their_distribution_and_their_errors(root: Path) -> None:
    status, document = vlatool(root, "plugins")
    rows = {(row["registry"], row["name"], row["origin"]): row for row in document["plugins"]}
    assert status == 0
    assert rows["format", "acme", "acme_vla"]["error"] == ""
    assert rows["model type", "acme_mlp", "acme_vla"]["error"] == ""
    assert rows["model type", "acme_line", "acme_vla"]["error"] == ""
    assert rows["format", "spartan", "vlatool"]["error"] == ""
    assert "built-in" in rows["format", "spartan", "hostile_vla"]["error"]
    broken = rows["format", "broken", "hostile_vla"]["error"]
    assert "hostile_vla" in broken
    assert "no licence found" in broken


def test_format_is_used_with_its_own_keys(root: Path, data: Path) -> None:
    status, result = preprocess(root, "flat", "--camera", "front")
    assert status == 0, result
    assert (result["episodes"], result["cameras"]) == (3, ["front"])
    assert result["action_fields"] == ["action"]
    names = [
        sorted(p.name for p in (path / "shards").glob("*.tar")) for path in (data, root / "flat")
    ]
    assert names[0] == names[1] != []


def test_error_of_a_format_is_reported_like_a_built_in_error(root: Path) -> None:
    status, document = preprocess(root, "none")
    assert (status, document["error"]["code"]) == (3, "data.missing_file")


def test_bug_of_a_format_fails_only_its_episode_and_is_reported_as_a_bug(root: Path) -> None:
    raw = acme_data(root / "cut")
    np.save(raw / "episode_1/front.npy", np.zeros((3, 16, 20, 3), np.uint8))  # of 8 frames

    status, document = preprocess(root, "rest", "--camera", "front", source="cut")

    (failure,) = document["error"]["details"]["failures"]
    assert (status, failure["episode"][-1], failure["code"]) == (1, "1", "bug.unexpected")
    assert "acme_vla.reader:" in " ".join(failure["details"]["traceback"])
    assert str(root) not in json.dumps(failure["details"])
    assert document["episodes"] == 2


def test_model_type_trains_and_is_evaluated(root: Path, data: Path) -> None:
    status, result = vlatool(
        root, "train", "--preset", "acme-linear", "--data", str(data), "-o", "runs/acme",
        "--total-train-steps", "30", "--set", "log_every_n_steps=5",
    )  # fmt: skip
    assert status == 0, result
    assert result["parameters"] == 3 * 2 * 2
    rows = [
        json.loads(line) for line in (root / "runs/acme/metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["loss"] < rows[0]["loss"]
    status, report = vlatool(root, "eval", "open-loop", "runs/acme", str(data))
    assert status == 0, report
    assert report["overall"]["policy"] < report["overall"]["mean_action"]


def test_data_kind_of_a_plugin_trains_from_raw_episodes(root: Path) -> None:
    options = ["--set", "model.type=acme_line", "--data", "raw", "-o", "runs/line"]
    options += ["--hparams.lr", "0.05", "--hparams.precision", "float32"]
    options += ["--hparams.global_batch_size", "8", "--hparams.warmup", "0"]
    options += ["--data.num_workers", "1", "--set", "data.allow_multiple_epochs=true"]
    options += ["--data.val_folders", "raw", "--set", "total_val_samples=16"]
    options += ["--set", "log_every_n_steps=5"]

    status, result = vlatool(root, "train", *options, "--total-train-steps", "30")

    assert status == 0, result
    assert (result["parameters"], result["dataset_samples"]) == (3 * 2 + 2, 3 * 8)
    rows = [
        json.loads(line) for line in (root / "runs/line/metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert rows[-1]["val/numbers"] == 16 * 2
    assert json.loads((root / "runs/line/acme_scale.json").read_text()) > 0


def test_data_kind_that_a_model_type_does_not_take_is_an_error(root: Path) -> None:
    options = ["--set", "model.type=acme_line", "--set", "data.type=robotics"]
    status, document = vlatool(root, "train", *options, "--total-train-steps", "2")
    assert status == 2
    assert "acme_steps" in json.dumps(document["error"])


def test_type_key_selects_the_model(root: Path, data: Path) -> None:
    status, result = vlatool(
        root, "train", "--set", "model.type=acme_mlp", "--data", str(data), "-o", "runs/typed",
        "--total-train-steps", "2", "--hparams.global_batch_size", "8", "--data.num_workers", "0",
        "--set", "data.allow_multiple_epochs=true", "--hparams.precision", "float32",
    )  # fmt: skip
    assert (status, result["steps"]) == (0, 2)


def test_unknown_key_of_a_plugin_is_an_error_with_the_nearest(root: Path, data: Path) -> None:
    status, document = vlatool(
        root, "train", "--preset", "acme-linear", "--data", str(data), "--model.bais", "true"
    )
    problem = document["error"]["details"]["problems"][0]
    assert (status, problem["key"]) == (2, "model.bais")
    assert "bias" in json.dumps(problem)


def test_broken_plugin_fails_only_when_it_is_used(root: Path) -> None:
    status, document = vlatool(root, "preprocess", "broken", "raw", "-o", "none")
    assert (status, document["error"]["code"]) == (6, "environment.broken_plugin")


def test_builtin_is_not_shadowed(root: Path) -> None:
    status, document = vlatool(root, "preprocess", "spartan", "raw", "-o", "none")
    assert (status, document["error"]["code"]) == (3, "data.no_episodes")


def test_plugin_fulfills_the_contracts(root: Path) -> None:
    done = python(root, "-c", CHECKS.format(data=str(root / "raw")))
    assert done.returncode == 0, done.stderr
