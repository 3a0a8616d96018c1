"""Errors of ranks, and the choice of the reported one."""

import os
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tests.builders.errors import fails
from vlatool.cli.app import run as run_command
from vlatool.cli.output import write_error_file
from vlatool.errors import DataError, VlatoolError
from vlatool.training.ranks import (
    Launch,
    RankExit,
    cause,
    rank_error,
    slurm_variables,
)

DATA = {"kind": "data", "code": "data.unknown_field", "message": "no x", "hint": "", "details": {}}
BUG = {"kind": "bug", "code": "bug", "message": "closed by peer", "hint": "", "details": {}}
LOST = DATA | {"kind": "environment", "code": "environment.lost_rank"}
STOPPED = {"kind": "terminated", "code": "terminated", "message": "", "hint": "", "details": {}}


# a rank


def test_data_of_a_launch_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = Launch(os.getpid(), "folder")
    for name, value in launch.variables().items():
        monkeypatch.setenv(name, value)
    assert Launch.of_this_process() == launch
    assert Launch.of_this_process() is None  # a vlatool started from here is not a rank


def passed(error: VlatoolError, file: Path, rank: int) -> VlatoolError:
    """The error after torchrun has read the error file of a rank."""
    write_error_file(error, file)
    failure = ProcessFailure(rank, 1, error.exit_code, str(file))
    return rank_error(RankExit(rank, error.exit_code, failure.timestamp, failure.error_file_data))


def test_error_of_a_rank_is_passed_completely(tmp_path: Path) -> None:
    error = DataError("no x", hint="write y", code="data.x", details={"path": tmp_path})
    reported = passed(error, tmp_path / "error.json", 1)
    assert (reported.exit_code, reported.kind, reported.code) == (3, "data", "data.x")
    assert (reported.message, reported.hint) == ("rank 1: no x", "write y")
    assert reported.details == {"path": str(tmp_path), "rank": 1, "exit_code": 3}
    assert rank_error(RankExit(0, 3, 0, DATA)).message == "no x"


# ends


@pytest.mark.parametrize(
    ("exits", "rank", "exit_code"),
    [
        pytest.param([RankExit(0, 3, 5, DATA), RankExit(1, 3, 5, DATA)], 0, 3, id="same on all"),
        pytest.param([RankExit(0, 1, 5, BUG), RankExit(1, 3, 5, DATA)], 1, 3, id="data over bug"),
        pytest.param([RankExit(0, 6, 5, LOST), RankExit(1, 3, 5, DATA)], 1, 3, id="data over lost"),
        pytest.param([RankExit(0, 1, 5, BUG), RankExit(1, -9, 5)], 1, 137, id="killed over bug"),
        pytest.param([RankExit(0, 143, 5, STOPPED), RankExit(1, 7, 5)], 1, 7, id="code over stop"),
        pytest.param([RankExit(0, -9, 36), RankExit(1, 1, 5, BUG)], 1, 1, id="agent kills later"),
        pytest.param([RankExit(0, 130, 5), RankExit(1, 143, 5)], 1, 143, id="one was terminated"),
        pytest.param([RankExit(1, -15, 5)], 1, 143, id="terminated before its start"),
        pytest.param([RankExit(1, -34, 5)], 1, 162, id="signal without a name"),
    ],
)
def test_the_end_that_caused_the_others_is_reported(
    exits: list[RankExit], rank: int, exit_code: int
) -> None:
    end = cause(exits)
    assert (end.rank, end.code) == (rank, exit_code)
    error = rank_error(end)
    assert (error.exit_code, error.details["rank"]) == (exit_code, rank)


SLURM = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "40012",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-08,11],gpu20",
    "SLURM_STEP_TASKS_PER_NODE": "1,2,1",
    "SLURM_NODEID": "1",
}
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "gpu07",
    "MASTER_PORT": "10012",
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, TORCHRUN, id="task of srun"),
        pytest.param({"SLURM_STEP_NODELIST": "a,b[1-2]"}, TORCHRUN | {"MASTER_ADDR": "a"}, id="b"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "0"}, TORCHRUN | {"LOCAL_RANK": "0"}, id="one gpu"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "0,1"}, TORCHRUN, id="gpus of the node"),
        pytest.param({"CUDA_VISIBLE_DEVICES": ""}, TORCHRUN, id="no gpu"),
        pytest.param({"MASTER_ADDR": "x"}, TORCHRUN | {"MASTER_ADDR": "x"}, id="own address"),
        pytest.param({"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, TORCHRUN, id="equal nodes"),
        pytest.param(
            {"SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "0"},
            TORCHRUN | {"LOCAL_WORLD_SIZE": "4"},
            id="one node",
        ),
        pytest.param({"SLURM_STEP_NUM_TASKS": "1"}, {}, id="one task"),
        pytest.param({"RANK": "0"}, {}, id="torchrun in a task"),
    ],
)
def test_variables_of_slurm_are_those_of_torchrun(
    changes: dict[str, str], expected: dict[str, str]
) -> None:
    assert slurm_variables(SLURM | changes) == expected


def test_incomplete_variables_of_slurm_are_an_error() -> None:
    batch_script = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}
    assert slurm_variables(batch_script) == {}
    with fails("environment.process_failed"):
        slurm_variables({"SLURM_STEP_NUM_TASKS": "8"})


def test_command_on_ranks_reads_the_variables_of_slurm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert run_command(["train", "--preset", "diffusion-policy-tiny"]) == 6
    assert "SLURM_STEP_NUM_TASKS" in capsys.readouterr().err
