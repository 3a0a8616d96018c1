"""The demo at a fraction of its size: all stages run, the success rate is not checked."""

import json
import re
from pathlib import Path

import pytest

from tests.builders.forks import Forks
from tests.builders.preprocessing import contents

SMALL = ["--episodes", "2", "--steps", "4", "--rollouts", "1"]
COMMAND = "vlatool demo --seed 0 --episodes 2 --steps 4 --rollouts 1"


@pytest.mark.slow
def test_demo_runs_all_stages_and_a_second_one_only_the_evaluation(
    warm: Forks, tmp_path: Path
) -> None:
    words = ["demo", "--output", tmp_path, *SMALL]
    done = warm.run([*words, "--json", "--progress", "plain"], seconds=120)
    assert done.code == 0, done.stderr
    result = done.document
    assert result["baselines"].keys() == {"random", "do_nothing"}
    promised = {"success_rate", "wrong_instruction_success_rate", "steps", "seconds", "report"}
    assert promised <= result.keys()
    assert (result["steps"], result["seed"], result["command"]) == (4, 0, COMMAND)
    page = Path(result["report"]).read_text()
    assert page.count('class="strip sheet"') == 2  # of rollouts
    assert page.count(", frame ") == 16  # two camera strips of eight
    body = page.partition("<main>")[2]
    assert body.index("<video") < body.index("train --preset policy-tiny") < body.index("Success")
    assert "http" not in re.sub(r"data:\w+/\w+;base64,[^\"]*|http-equiv", "", page)
    assert COMMAND in page
    printed = [line.split("$ vlatool ")[1] for line in done.stderr.splitlines() if "$ v" in line]
    assert [line.split()[0] for line in printed] == ["sample", "preprocess", "train", "eval"]

    again = warm.run([*printed[2].split(), "--json"])
    assert again.document["status"] == "already complete"

    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000004" / "model.safetensors"
    before = checkpoint.stat().st_mtime_ns, contents(tmp_path / "data")
    again = warm.run([*words[:-1], "2"], seconds=120)
    assert again.code == 0, again.stderr
    assert f"seed 0: {COMMAND.replace('rollouts 1', 'rollouts 2')}" in again.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rollouts"] == 2
    assert (checkpoint.stat().st_mtime_ns, contents(tmp_path / "data")) == before
