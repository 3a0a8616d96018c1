"""Membership of a rank, and the choice of the reported error."""

import json
import os
from pathlib import Path

import pytest

from vlatool.errors import DataError, EnvironmentProblem, PartialFailure
from vlatool.training.ranks import MEMBERSHIP, Membership, RankEnd, RankResult, cause, rank_error

DATA = {"kind": "data", "code": "data.unknown_field", "message": "no x", "hint": "", "details": {}}
BUG = {"kind": "bug", "code": "bug", "message": "closed by peer", "hint": "", "details": {}}
STOPPED = {"kind": "terminated", "code": "terminated", "message": "", "hint": "", "details": {}}


# a rank


def membership(folder: Path, processes: int = 2) -> str:
    fields = {"starter": os.getpid(), "folder": str(folder), "owns_threads": False}
    return json.dumps({"processes": processes, **fields})


def test_membership_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MEMBERSHIP, membership(tmp_path))
    assert Membership.of_this_process() == Membership(2, os.getpid(), str(tmp_path), False)
    assert Membership.of_this_process() is None  # a vlatool started from here is not a rank


@pytest.mark.parametrize("world_size", [None, "3"])
def test_other_number_of_processes_is_an_error(
    world_size: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MEMBERSHIP, membership(tmp_path))
    if world_size is not None:
        monkeypatch.setenv("WORLD_SIZE", world_size)
    rank = Membership.of_this_process()
    assert rank is not None
    with pytest.raises(EnvironmentProblem) as caught:
        rank.join()
    assert caught.value.code == "environment.processes"


def test_error_of_a_rank_is_passed_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    error = DataError("no x", hint="write y", code="data.x", details={"path": tmp_path})
    Membership(2, 1, str(tmp_path), owns_threads=False).report_error(error)
    reported = rank_error(RankEnd(1, 3, 0, json.loads((tmp_path / "1.json").read_text())))
    assert (reported.exit_code, reported.kind, reported.code) == (3, "data", "data.x")
    assert (reported.message, reported.hint) == ("rank 1: no x", "write y")
    assert reported.details == {"path": str(tmp_path), "rank": 1, "exit_code": 3}


def test_partial_result_is_passed_with_the_error(tmp_path: Path) -> None:
    error = PartialFailure("1 of 2 failed")
    error.result = RankResult({"episodes": 1, "failures": ["b"]}, "codes of 1 episode")
    Membership(2, 1, str(tmp_path), owns_threads=False).report_error(error)
    reported = rank_error(RankEnd(0, 4, 0, json.loads((tmp_path / "0.json").read_text())))
    assert reported.result == error.result


# ends


@pytest.mark.parametrize(
    ("rank_ends", "rank", "exit_code"),
    [
        pytest.param([RankEnd(0, 3, 5, DATA), RankEnd(1, 3, 5, DATA)], 0, 3, id="same on all"),
        pytest.param([RankEnd(0, 1, 5, BUG), RankEnd(1, 3, 5, DATA)], 1, 3, id="reported over bug"),
        pytest.param([RankEnd(0, 1, 5, BUG), RankEnd(1, -9, 5)], 1, 137, id="killed over bug"),
        pytest.param([RankEnd(0, 143, 5, STOPPED), RankEnd(1, 7, 5)], 1, 7, id="code over stop"),
        pytest.param([RankEnd(0, -9, 36), RankEnd(1, 1, 5, BUG)], 1, 1, id="agent kills later"),
        pytest.param([RankEnd(0, 130, 5), RankEnd(1, 143, 5)], 1, 143, id="one was terminated"),
        pytest.param([RankEnd(1, -15, 5)], 1, 143, id="terminated before its start"),
        pytest.param([RankEnd(1, -34, 5)], 1, 162, id="signal without a name"),
    ],
)
def test_the_end_that_caused_the_others_is_reported(
    rank_ends: list[RankEnd], rank: int, exit_code: int
) -> None:
    end = cause(rank_ends)
    assert (end.rank, end.code) == (rank, exit_code)
    error = rank_error(end)
    assert (error.exit_code, error.details["rank"]) == (exit_code, rank)


def test_error_of_rank_0_has_no_prefix() -> None:
    assert rank_error(RankEnd(0, 3, 0, DATA)).message == "no x"
