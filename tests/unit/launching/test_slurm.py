"""Batch script of Slurm: its options, and its behavior at the time limit."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.builders.slurm import slurm_programs
from vlatool.config.resolve import load_config, parse_override
from vlatool.errors import ConfigError
from vlatool.launching.slurm import SlurmConfig, SlurmJob, batch_script

JOB = SlurmJob("pick", Path("/lab/runs/launch"), Path("/lab"), ("vlatool",))


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        pytest.param(
            SlurmConfig(nodes=2, gpus_per_node=8, cpus_per_task=12, partition="gpu", time="1-12"),
            [
                "--nodes=2",
                "--ntasks-per-node=8",
                "--gpus-per-node=8",
                "--cpus-per-task=12",
                "--partition=gpu",
                "--time=1-12",
                "--chdir=/lab",
                "--output=/lab/runs/launch/pick-%j.log",
                "--requeue",
                "--signal=B:USR1@300",
            ],
            id="nodes with GPUs",
        ),
        pytest.param(
            SlurmConfig(gpus_per_node=0, tasks_per_node=2, requeue=False, options=["--mem=0"]),
            ["--nodes=1", "--ntasks-per-node=2", "--no-requeue", "--signal=TERM@300", "--mem=0"],
            id="processors",
        ),
    ],
)
def test_script_has_the_options_of_sbatch(config: SlurmConfig, lines: list[str]) -> None:
    text = batch_script(config, JOB)
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]
    assert set(lines) <= set(options)
    assert ("--gpus-per-node=8" in options) == (config.gpus_per_node == 8)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("time", "tomorrow"), ("partition", "gpu\nsrun"), ("setup", '["a\\nb"]'), ("nodes", "0")],
)
def test_value_that_would_break_the_script_is_an_error(key: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(SlurmConfig, overrides=[parse_override(f"{key}={value}")])
    assert caught.value.details["problems"][0]["key"].startswith(key)


# A program in place of vlatool: it ends with a code when it gets SIGTERM.
ENDS = "trap 'exit {code}' TERM; touch {started}; while :; do sleep 0.02; done"


@pytest.mark.parametrize(
    ("code", "requeue", "sent", "expected"),
    [
        pytest.param(143, True, signal.SIGUSR1, (143, True), id="checkpoint written"),
        pytest.param(0, True, signal.SIGUSR1, (0, False), id="finished in time"),
        pytest.param(5, True, signal.SIGUSR1, (5, False), id="failed"),
        pytest.param(143, True, signal.SIGTERM, (143, False), id="canceled"),
        pytest.param(143, False, signal.SIGTERM, (143, False), id="not to be queued again"),
    ],
)
def test_job_is_queued_again_only_after_a_checkpoint_at_the_time_limit(
    code: int, requeue: bool, sent: int, expected: tuple[int, bool], tmp_path: Path
) -> None:
    started = tmp_path / "started"
    program = ("bash", "-c", ENDS.format(code=code, started=started))
    text = batch_script(SlurmConfig(requeue=requeue), SlurmJob("pick", tmp_path, tmp_path, program))
    environment = slurm_programs(tmp_path / "bin")
    job = {"SLURM_JOB_ID": "40012", "SLURM_NTASKS": "1"}
    process = subprocess.Popen(["bash", "-c", text], env=environment | job, start_new_session=True)
    while not started.exists():
        time.sleep(0.01)
    # Slurm signals the script alone at the limit, all processes when a job is canceled.
    (os.kill if sent == signal.SIGUSR1 else os.killpg)(process.pid, sent)

    log = tmp_path / "bin" / "scontrol.log"
    exit_code = process.wait(timeout=20)
    assert (exit_code % 256 if exit_code >= 0 else 128 - exit_code, log.exists()) == expected
    if log.exists():
        assert log.read_text() == "requeue 40012\n"


def test_path_with_spaces_stays_one_value() -> None:
    folder = Path('/lab/my "runs"')
    text = batch_script(SlurmConfig(), SlurmJob("pick", folder, folder, ("vlatool",)))
    (line,) = [line for line in text.splitlines() if "--chdir" in line]
    assert shlex.split(line.removeprefix("#SBATCH "))[0] == f"--chdir={folder}"
    (srun,) = [line for line in text.splitlines() if line.startswith("srun")]
    assert shlex.split(srun)[-2] == str(folder / "pick.yaml")
