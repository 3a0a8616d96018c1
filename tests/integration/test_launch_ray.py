"""`vlatool launch ray preprocess`: file of a new cluster, driver on a running one, bad input."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlatool.cli.app import run as vlatool
from vlatool.config.resolve import load_config
from vlatool.workflows.preprocess import PreprocessConfig

SOURCE = ("spartan", "s3://lab/raw", "--output", "s3://lab/data", "--past-lowdim-steps", "3")
VALUES = (
    *("--ray.image", "ami-0abc", "--ray.key-pair", "robots", "--ray.subnet", "subnet-1a"),
    *("--ray.security-group", "sg-2b", "--ray.account", "123456789012"),
    *("--ray.head-profile", "head", "--ray.worker-profile", "worker"),
)
Launch = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Launch:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # for pip, this means none

    def start(*words: str) -> tuple[int, dict[str, Any]]:
        code = vlatool(["launch", "ray", "preprocess", *words, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return start


def test_new_cluster_gets_its_file_and_the_command_of_its_head(
    launch: Launch, tmp_path: Path
) -> None:
    code, result = launch(*SOURCE, *VALUES)

    assert (code, result["status"]) == (0, "written")
    assert yaml.safe_load((tmp_path / "ray-cluster.yaml").read_text())["provider"]["type"] == "aws"
    assert [command.split()[1] for command in result["commands"]] == [
        *("up", "rsync-up", "exec", "down"),
    ]
    # Every node installs the program that is here.
    cluster = yaml.safe_load((tmp_path / "ray-cluster.yaml").read_text())
    ((there, wheel),) = cluster["file_mounts"].items()
    assert there == f"~/{Path(wheel).name}"
    assert "vlatool/launching/ray_cluster.yaml" in zipfile.ZipFile(wheel).namelist()
    assert f'pip install "$HOME/{Path(wheel).name}[ray]"' in "\n".join(cluster["setup_commands"])
    on_head = load_config(PreprocessConfig, files=[result["config"]]).config
    assert (on_head.format, on_head.sources, on_head.output) == (
        *("spartan", ["s3://lab/raw"], "s3://lab/data"),
    )
    assert on_head.sink.past_lowdim_steps == 3
    assert launch(*SOURCE)[1]["status"] == "unchanged"


def test_placeholders_are_an_error_until_the_file_has_none(launch: Launch, tmp_path: Path) -> None:
    code, result = launch(*SOURCE, *VALUES[:4])
    assert (code, result["error"]["code"]) == (2, "usage.bad_value")
    assert (tmp_path / "ray-cluster.yaml").exists()
    assert not (tmp_path / "ray-cluster-preprocess.yaml").exists()
    assert launch(*SOURCE, *VALUES[4:])[0] == 0


def test_dry_run_writes_nothing_and_lists_the_placeholders(launch: Launch, tmp_path: Path) -> None:
    code, result = launch(*SOURCE, "--dry-run")
    assert (code, result["status"]) == (0, "planned")
    assert {name for names in result["placeholders"].values() for name in names} > {
        *("ami-PLACEHOLDER", "subnet-PLACEHOLDER", "sg-PLACEHOLDER", "PLACEHOLDER-ACCOUNT"),
    }
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "exit_code"),
    [
        (["raw/", "-o", "s3://lab/d"], "config.invalid_value", 2),
        (["s3://lab/raw"], "usage.missing_key", 2),
        ([*SOURCE, "--engine", "local"], "config.invalid_value", 2),
        ([*SOURCE, "--ray.image", "a b"], "config.invalid_value", 2),
        ([*SOURCE, "--ray.cluster", "odd"], "usage.bad_value", 2),
        ([*SOURCE, "--ray.cluster", "odd/x"], "storage.write", 5),
    ],
)
def test_bad_input(
    words: list[str], code: str, exit_code: int, launch: Launch, tmp_path: Path
) -> None:
    (tmp_path / "odd").write_bytes(b"\xff")
    result = launch(*words)
    assert (result[0], result[1]["error"]["code"]) == (exit_code, code)
