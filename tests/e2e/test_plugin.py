"""Plugins of docs/guides/plugins.md, installed: format, model type, data kind; and a preset."""

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
from safetensors.numpy import save_file

from tests.builders.forks import Forks, forks
from tests.builders.plugin import acme_data, acme_distribution, hostile_distribution
from tests.builders.toys import write_numbers

VLATOOL = str(Path(sys.executable).parent / "vlatool")


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
        options = [
            "--sink",
            "lbm",
            "--workers",
            "1",
            "--past-lowdim-steps",
            "0",
            "--future-lowdim-steps",
            "1",
        ]
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
    write_numbers(folder / "rows", nan_row=5)
    teacher = {"weight": np.eye(4, dtype=np.float32), "bias": np.zeros(4, np.float32)}
    save_file(teacher, folder / "teacher.safetensors")
    with forks(environment=variables(folder)) as started:
        yield Site(folder, started)


@pytest.fixture(scope="module")
def data(site: Site) -> Path:
    status, result = site.preprocess("data", "--source.camera", "wrist")
    assert status == 0, result
    return site.root / "data"


def test_plugins_are_listed_with_their_distribution_and_their_errors(site: Site) -> None:
    done = site.python(VLATOOL, "--json", "plugins")
    status, document = done.returncode, json.loads(done.stdout)
    rows = {(row["registry"], row["name"], row["origin"]): row for row in document["plugins"]}
    assert status == 0
    assert rows["format", "acme", "acme_vla"]["error"] == ""
    assert rows["model type", "acme_gan", "acme_vla"]["error"] == ""
    assert rows["format", "spartan", "vlatool"]["error"] == ""
    assert "built-in" in rows["format", "spartan", "hostile_vla"]["error"]
    broken = rows["format", "broken", "hostile_vla"]["error"]
    assert "hostile_vla" in broken
    assert "no licence found" in broken


def test_format_is_used_with_its_own_keys(site: Site, data: Path) -> None:
    status, result = site.preprocess("flat", "--camera", "wrist")
    assert status == 0, result
    assert (result["episodes"], result["cameras"]) == (3, ["wrist"])
    assert result["action_fields"] == ["action"]
    names = [
        sorted(p.name for p in (path / "shards").glob("*.tar"))
        for path in (data, site.root / "flat")
    ]
    assert names[0] == names[1] != []


@pytest.mark.parametrize(
    ("words", "status", "code", "named"),
    [
        ("preprocess acme raw -o none", 3, "data", "front"),
        ("preprocess broken raw -o none", 6, "environment.missing_dependency", "hostile_vla"),
        ("preprocess spartan raw -o none", 3, "data.no_episodes", ""),  # not shadowed
        ("train --preset acme-rows --model.widht 3", 2, "config.unknown_key", "width"),
        (
            "train --set model.type=acme_gan --set data.type=robotics --total-train-steps 2",
            2,
            "config.invalid_value",
            "rows",
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
    np.save(raw / "episode_1/wrist.npy", np.zeros((3, 16, 20, 3), np.uint8))  # of 8 frames

    status, document = site.preprocess("rest", "--camera", "wrist", source="cut")

    (failure,) = document["error"]["details"]["failures"]
    assert (status, failure["episode"][-1], failure["code"]) == (1, "1", "bug.unexpected")
    assert "acme_vla:" in " ".join(failure["details"]["traceback"])
    assert str(site.root) not in json.dumps(failure["details"])
    assert document["episodes"] == 2


def test_model_type_and_data_kind_train_with_a_preset_of_their_package(site: Site) -> None:
    options = ["--preset", "acme-rows", "--data", "rows", "-o", "runs/gan"]
    options += ["--data.val_folders", "rows", "--set", "total_val_samples=16"]

    status, result = site.vlatool("train", *options, "--total-train-steps", "60")

    assert status == 0, result
    assert (result["dataset_samples"], result["dropped"]) == (48, {"not_finite": 10})
    text = (site.root / "runs/gan/metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    errors = [row["error"] for row in rows if "error" in row]
    assert errors[-1] < 0.7 * errors[0]
    assert "val/error" in rows[-1]
