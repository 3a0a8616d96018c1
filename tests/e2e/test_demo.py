"""The demo at a fraction of its size: all stages run, the success rate is not checked."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders.forks import Forks

VLATOOL = [sys.executable, "-m", "vlatool"]
SMALL = ["--episodes", "4", "--steps", "4", "--rollouts", "2"]
COMMAND = "vlatool demo --seed 0 --episodes 4 --steps 4 --rollouts 2"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [*VLATOOL, "demo", "--output", str(folder), *SMALL, "--json", "--progress", "plain"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return folder, json.loads(done.stdout), done.stderr


def test_result_has_the_documented_keys(finished: tuple[Path, dict, str]) -> None:
    result = finished[1]
    assert result["baselines"].keys() == {"random", "do_nothing"}
    promised = {"success_rate", "wrong_instruction_success_rate", "steps", "seconds", "report"}
    assert promised <= result.keys()
    assert result["steps"] == 4


def test_report_is_one_page_with_its_images_inside(finished: tuple[Path, dict, str]) -> None:
    page = Path(finished[1]["report"]).read_text()
    assert page.count("data:image/png;base64,") == 4  # two sheets, two camera strips
    assert "http" not in page.replace("http-equiv", "")


def test_results_name_their_seed_and_command(finished: tuple[Path, dict, str]) -> None:
    _, result, _ = finished
    assert (result["seed"], result["command"]) == (0, COMMAND)
    assert COMMAND in Path(result["report"]).read_text()


def test_each_stage_is_printed_as_a_command(
    finished: tuple[Path, dict, str],
) -> None:
    lines = [line for line in finished[2].splitlines() if "$ vlatool" in line]
    stages = [line.split("$ vlatool ")[1].split()[0] for line in lines]
    assert stages == ["sample", "preprocess", "train", "eval"]


def test_printed_train_command_resumes_the_same_run(
    finished: tuple[Path, dict, str], warm: Forks
) -> None:
    line = next(line for line in finished[2].splitlines() if "$ vlatool train" in line)
    again = warm.run([*line.split("$ vlatool ")[1].split(), "--json"])
    assert again.document["status"] == "already complete"


def test_second_run_repeats_only_the_evaluation_and_prints_the_seed(
    finished: tuple[Path, dict, str], warm: Forks
) -> None:
    folder, result, _ = finished
    checkpoint = folder / "run" / "checkpoints" / "step_00000004" / "model.safetensors"
    before = checkpoint.stat().st_mtime_ns
    again = warm.run(["demo", "--output", folder, *SMALL], seconds=120)
    assert again.code == 0, again.stderr
    assert f"seed 0: {COMMAND}" in again.stdout
    report = json.loads((folder / "report.json").read_text())
    assert report["success_rate"] == result["success_rate"]
    assert checkpoint.stat().st_mtime_ns == before
