"""`vlatool launch slurm train`: the script, the file of the run, its submission, bad input."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.builders.slurm import slurm_programs
from tests.builders.training import tiny_arguments
from vlatool.checkpoints.layout import RunDir
from vlatool.cli.app import run as vlatool
from vlatool.config.resolve import load_config
from vlatool.training.config import TrainConfig

TASKS = ("--slurm.gpus-per-node", "0", "--slurm.tasks-per-node", "2")


@pytest.fixture
def launch(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs the command for two tasks; returns its exit code and document."""

    def start(*options: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        words = tiny_arguments(data, tmp_path / "runs" / "pick", **changes)
        code = vlatool(["launch", "slurm", *words, *TASKS, *options, "--json"])
        return code, json.loads(capsys.readouterr().out)

    return start


def test_script_and_configuration_are_written(
    launch: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLATOOL_BINARY", "/lab/bin/vlatool")
    code, result = launch("--dry-run", "--submit")
    assert (code, result["status"]) == (0, "planned")
    assert (result["start"], "cpus-per-task" in result["script_text"]) == (None, False)
    assert "--ntasks-per-node=2" in result["script_text"]
    assert "/lab/bin/vlatool train --config" in result["script_text"]
    assert not (tmp_path / "runs").exists()
    monkeypatch.delenv("VLATOOL_BINARY")

    code, result = launch()
    folder = tmp_path / "runs" / "launch"
    assert (code, result["status"]) == (0, "written")
    assert (result["start"], result["processes"]) == ("new", 2)
    assert Path(result["script"]).read_text() == result["script_text"]
    assert sorted(path.name for path in folder.iterdir()) == ["pick.sbatch", "pick.yaml"]
    written = load_config(TrainConfig, files=[result["config"]])
    assert written.config.name == "pick"
    # Like the record of a run: rules that inherited values break are no errors.
    assert written.typed == frozenset()
    # A run without a name gets one that a second start finds.
    _, result = launch(name="null", save_path=str(tmp_path / "runs"))
    assert load_config(TrainConfig, files=[result["config"]]).config.name == result["name"]
    assert result["name"].startswith("diffusion_policy-")


@pytest.mark.parametrize(("workers", "cpus"), [("3", 4), ("null", 8)])
def test_dry_run_needs_no_data_and_gives_the_loader_workers_processors(
    workers: str, cpus: int, launch: Callable[..., Any]
) -> None:
    bucket = "s3://no-such-bucket-here/data"
    gpus = ("--slurm.gpus-per-node", "2", "--data.num-workers", workers)
    code, result = launch("--dry-run", *gpus, data__dataset_manifest=bucket)
    assert (code, result["status"]) == (0, "planned")
    assert f"#SBATCH --cpus-per-task={cpus}\n" in result["script_text"]
    code, result = launch("--dry-run", "--slurm.nodes", "3", data__dataset_manifest=bucket)
    assert (code, result["error"]["code"]) == (2, "usage.bad_value")


def test_submitted_job_does_not_get_variables_that_hold_credentials(
    launch: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", slurm_programs(tmp_path / "bin")["PATH"])
    hidden = {
        "WANDB_API_KEY": "secret",
        "GITHUB_PAT": "secret",
        "NETRC_AUTH": "secret",
        "DATABASE_URL": "postgres://ada:hunter22@db/robots",
    }
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    code, result = launch("--submit")
    names = (tmp_path / "bin" / "sbatch.environment").read_text().split("\n")
    assert (code, result["status"]) == (0, "submitted")
    assert result["job"].isdigit()
    assert "PATH" in names
    assert not hidden.keys() & {*names}


@pytest.mark.parametrize("text", ["no program", "#!/bin/sh\n"], ids=["broken", "silent"])
def test_sbatch_that_gives_no_number_is_an_environment_problem(
    text: str, launch: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", slurm_programs(tmp_path / "bin")["PATH"])
    (tmp_path / "bin" / "sbatch").write_text(text)
    code, result = launch("--submit")
    assert (code, result["error"]["code"]) == (6, "environment.process_failed")


@pytest.mark.parametrize(
    ("options", "changes", "code", "exit_code"),
    [
        (["--submit"], {}, "environment.missing_dependency", 6),
        (["--submit", "--slurm.partition", "missing"], {}, "environment.process_failed", 6),
        (["--slurm.nodes", "3"], {}, "usage.bad_value", 2),
        ([], {"name": "'my run'"}, "usage.bad_value", 2),
        ([], {"save_path": "s3://lab/runs"}, "usage.bad_value", 2),
        ([], {"data__dataset_manifest": "gone"}, "data.no_source", 3),
        (["--slurm.folder", __file__], {}, "storage.write", 5),
    ],
)
def test_bad_input_is_an_error_before_anything_is_written(
    options: list[str],
    changes: dict[str, Any],
    code: str,
    exit_code: int,
    launch: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if code == "environment.process_failed":
        monkeypatch.setenv("PATH", slurm_programs(tmp_path / "bin")["PATH"])
    result = launch(*options, **changes)
    assert (result[0], result[1]["error"]["code"]) == (exit_code, code)
    if code != "environment.process_failed":  # the script stays, to be submitted with other options
        assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_script_trains_on_two_nodes_and_goes_on_after_its_time_limit(
    launch: Callable[..., Any], tmp_path: Path
) -> None:
    nodes = ("--slurm.nodes", "2", "--slurm.tasks-per-node", "1")
    _, result = launch(*nodes, total_train_steps=100)
    run = RunDir(tmp_path / "runs" / "pick")
    environment = slurm_programs(tmp_path / "bin")
    environment |= {"SLURM_JOB_ID": "40012", "SLURM_NTASKS": "2", "OMP_NUM_THREADS": "1"}
    environment["SLURM_JOB_NUM_NODES"] = "2"
    command = ["bash", result["script"]]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        while not run.metrics.is_file() or not run.metrics.stat().st_size:
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGUSR1)
    stopped = run.latest()

    assert process.returncode == 143
    assert stopped is not None
    assert 0 < stopped[0] < 100
    assert (tmp_path / "bin" / "scontrol.log").read_text() == "requeue 40012\n"
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    latest = run.latest()
    assert latest is not None
    assert latest[0] == 100
