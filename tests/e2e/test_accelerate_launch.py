"""`accelerate launch` with a configuration file, as labs have one, beside torchrun."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.builders.training import tiny_arguments


@pytest.mark.slow
def test_configuration_file_of_accelerate_starts_the_ranks_of_a_run(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    file = tmp_path / "accelerate.yaml"
    machine = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_CPU"}
    ranks = {"num_machines": 1, "num_processes": 2, "machine_rank": 0, "use_cpu": True}
    file.write_text(yaml.safe_dump({**machine, **ranks, "mixed_precision": "fp16"}))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(file)]
    arguments = tiny_arguments(data, run, total_train_steps=2, num_checkpoints=1)

    command = [sys.executable, *launch, "-m", "vlatool", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 2
    assert json.loads((run / "checkpoints/step_00000002/manifest.json").read_text())


@pytest.mark.parametrize(
    ("words", "exit_code", "message", "hint"),
    [
        ([], "3", "nothing/shards/manifest.jsonl: does not exist", "there is no nothing in"),
        (["--steps", "2"], "2", "unknown option --steps", "did you mean --total-train-steps?"),
    ],
)
def test_last_lines_of_a_failed_launch_are_the_error(
    words: list[str], exit_code: str, message: str, hint: str, tmp_path: Path
) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1"]
    arguments = tiny_arguments(tmp_path / "nothing", tmp_path / "run", total_train_steps=2)

    done = subprocess.run(
        [*launch, "-m", "vlatool", *arguments, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )

    *_, code, _, shown, last, end = done.stderr.rstrip().splitlines()
    assert code.split("(")[0].split() == ["exitcode", ":", exit_code]
    assert message in shown
    assert last.startswith(f"  hint: {hint}")
    assert set(end) == {"="}
