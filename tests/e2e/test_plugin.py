"""A third-party package with a format, model types, a data kind and a preset."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.forks import Forks, forks
from tests.builders.plugin import acme_data, acme_distribution, hostile_distribution

VLATOOL = str(Path(sys.executable).parent / "vlatool")
CHECKS = """
from acme_vla.reader import AcmeReader
from acme_vla.line import AcmeLineType
from vlatool.testing import check_model_type, check_reader
check_reader(AcmeReader, {data!r}, {{"camera": "front"}})
check_model_type(AcmeLineType, data={data!r})
"""


@dataclass(frozen=True)
class Site:
    """A folder with raw data, and commands that have the plugins of it.

    Attributes:
        root: The folder, which is the current one of the commands.
        forks: Runner of the commands.
    """

    root: Path
    forks: Forks

    def vlatool(self, *argv: str) -> tuple[int | None, dict[str, Any]]:
        """Exit code and document of a command."""
        done = self.forks.run(["--json", *argv], folder=self.root, seconds=240)
        assert done.stdout, done.stderr
        return done.code, done.document

    def preprocess(
        self, output: str, *camera: str, source: str = "raw"
    ) -> tuple[int | None, dict[str, Any]]:
        """Exit code and document of `preprocess` with the format of the plugin."""
        options = ["--workers", "1", "--past-lowdim-steps", "0", "--future-lowdim-steps", "1"]
        options += ["--image-indices", "0", *camera]
        return self.vlatool("preprocess", "acme", source, "-o", output, *options)

    def python(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Runs Python in a process of its own."""
        return subprocess.run(
            [sys.executable, *argv],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.root,
            env={**os.environ, **variables(self.root)},
            timeout=240,
        )


def variables(root: Path) -> dict[str, str]:
    """Environment variables of commands that have the plugins."""
    inherited = os.environ.get("PYTHONPATH")
    path = [str(root / "site"), *([inherited] if inherited else [])]
    return {"PYTHONPATH": os.pathsep.join(path)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("plugin")
    acme_distribution(folder / "site")
    hostile_distribution(folder / "site")
    acme_data(folder / "raw")
    with forks(environment=variables(folder)) as started:
        yield Site(folder, started)


@pytest.fixture(scope="module")
def data(site: Site) -> Path:
    status, result = site.preprocess("data", "--source.camera", "front")
    assert status == 0, result
    return site.root / "data"


def test_plugins_are_listed_with_their_distribution_and_their_errors(site: Site) -> None:
    done = site.python(VLATOOL, "--json", "plugins")
    status, document = done.returncode, json.loads(done.stdout)
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


def test_format_is_used_with_its_own_keys(site: Site, data: Path) -> None:
    status, result = site.preprocess("flat", "--camera", "front")
    assert status == 0, result
    assert (result["episodes"], result["cameras"]) == (3, ["front"])
    assert result["action_fields"] == ["action"]
    names = [
        sorted(p.name for p in (path / "shards").glob("*.tar"))
        for path in (data, site.root / "flat")
    ]
    assert names[0] == names[1] != []


@pytest.mark.parametrize(
    ("words", "status", "code", "named"),
    [
        ("preprocess acme raw -o none", 3, "data.missing_file", "wrist"),
        ("preprocess broken raw -o none", 6, "environment.broken_plugin", "hostile_vla"),
        ("preprocess spartan raw -o none", 3, "data.no_episodes", ""),  # not shadowed
        ("train --preset acme-linear --model.bais true", 2, "config.unknown_key", "bias"),
        (
            "train --set model.type=acme_line --set data.type=robotics --total-train-steps 2",
            2,
            "config.invalid_value",
            "acme_steps",
        ),
    ],
)
def test_error_of_a_plugin_is_reported_like_a_built_in_error(
    site: Site, words: str, status: int, code: str, named: str
) -> None:
    exit_code, document = site.vlatool(*words.split())
    assert (exit_code, document["error"]["code"]) == (status, code)
    assert named in json.dumps(document["error"])


def test_bug_of_a_format_fails_only_its_episode_and_is_reported_as_a_bug(site: Site) -> None:
    raw = acme_data(site.root / "cut")
    np.save(raw / "episode_1/front.npy", np.zeros((3, 16, 20, 3), np.uint8))  # of 8 frames

    status, document = site.preprocess("rest", "--camera", "front", source="cut")

    (failure,) = document["error"]["details"]["failures"]
    assert (status, failure["episode"][-1], failure["code"]) == (1, "1", "bug.unexpected")
    assert "acme_vla.reader:" in " ".join(failure["details"]["traceback"])
    assert str(site.root) not in json.dumps(failure["details"])
    assert document["episodes"] == 2


def test_model_type_trains_and_is_evaluated(site: Site, data: Path) -> None:
    status, result = site.vlatool(
        "train", "--preset", "acme-linear", "--data", str(data), "-o", "runs/acme",
        "--total-train-steps", "30", "--set", "log_every_n_steps=5",
    )  # fmt: skip
    assert status == 0, result
    assert result["parameters"] == 3 * 2 * 2
    rows = [
        json.loads(line)
        for line in (site.root / "runs/acme/metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["loss"] < rows[0]["loss"]
    status, report = site.vlatool("eval", "open-loop", "runs/acme", str(data))
    assert status == 0, report
    assert report["overall"]["policy"] < report["overall"]["mean_action"]


def test_data_kind_of_a_plugin_trains_from_raw_episodes(site: Site) -> None:
    options = ["--set", "model.type=acme_line", "--data", "raw", "-o", "runs/line"]
    options += ["--hparams.lr", "0.05", "--hparams.precision", "float32"]
    options += ["--hparams.global_batch_size", "8", "--hparams.warmup", "0"]
    options += ["--data.num_workers", "0", "--set", "data.allow_multiple_epochs=true"]
    options += ["--data.val_folders", "raw", "--set", "total_val_samples=16"]
    options += ["--set", "log_every_n_steps=5"]

    status, result = site.vlatool("train", *options, "--total-train-steps", "30")

    assert status == 0, result
    assert (result["parameters"], result["dataset_samples"]) == (3 * 2 + 2, 3 * 8)
    rows = [
        json.loads(line)
        for line in (site.root / "runs/line/metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    assert rows[-1]["val/numbers"] == 16 * 2
    assert json.loads((site.root / "runs/line/acme_scale.json").read_text()) > 0


def test_plugin_fulfills_the_contracts(site: Site) -> None:
    done = site.python("-c", CHECKS.format(data=str(site.root / "raw")))
    assert done.returncode == 0, done.stderr
