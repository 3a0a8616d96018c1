"""The one loop over items, on toy jobs: kills, growth, ranks, own executors, bugs, nesting."""

import json
import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.builders.jobs import (
    ALL,
    Batches,
    Doomed,
    Killed,
    ToyJob,
    Write,
    contents,
    run_toy,
    share,
)
from vlatool.errors import BugError, DataError, PartialFailure, UsageError
from vlatool.jobs.append_log import AppendLog, read_log
from vlatool.jobs.files import FileEntry, changed_files, digests_below, read_file_list
from vlatool.jobs.inputs import InputState
from vlatool.jobs.job import JobOptions, JobRun, Ranks, failure_of
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord, read_record
from vlatool.jobs.run import run_job
from vlatool.parallel.executor import ProcessExecutor, SerialExecutor
from vlatool.storage.remote_path import RemotePath
from vlatool.verification.check import CheckOptions
from vlatool.verification.output import check_files

WORDS = "ant bird cat dog eel"


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run leaves that nobody disturbs."""
    output = tmp_path_factory.mktemp("quiet") / "out"
    run_toy(ToyJob(output, WORDS))
    return contents(output)


def record_of(output: Path) -> OutputRecord:
    record = read_record(output)
    assert record is not None
    return record


def listed(output: Path) -> list[str]:
    return [entry.path for entry in read_file_list(output) or ()]


# Kills


@pytest.mark.parametrize("has_arrays", [False, True], ids=["log", "arrays"])
@pytest.mark.parametrize("outcomes", range(6))
def test_killed_job_goes_on_and_gives_the_undisturbed_bytes(
    outcomes: int, quiet: dict[str, bytes], tmp_path: Path, *, has_arrays: bool
) -> None:
    work = Write(tmp_path, has_arrays=has_arrays)
    job = ToyJob(tmp_path, WORDS, work, has_arrays=has_arrays)
    try:
        run_toy(job, Doomed(outcomes))
    except Killed:
        assert not record_of(tmp_path).complete

    run = run_toy(job)

    assert contents(tmp_path) == quiet
    assert run.status == ("already complete" if outcomes == 5 else "written")
    assert run.resumed >= outcomes % 5


def test_item_whose_file_was_changed_after_the_kill_is_done_again(
    quiet: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run_toy(ToyJob(tmp_path, WORDS), Doomed(3))
    (tmp_path / "words/bird").write_text("moth")

    run = run_toy(ToyJob(tmp_path, WORDS))

    assert (run.resumed, contents(tmp_path)) == (2, quiet)


class Hasty(ToyJob):
    """Gives up before it has seen all."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        next(receipts)
        raise DataError(f"{next(receipts).item} does not fit")


def test_items_that_are_done_survive_a_job_that_cannot_finish(
    quiet: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        run_toy(Hasty(tmp_path, WORDS))

    run = run_toy(ToyJob(tmp_path, WORDS))

    assert (run.resumed, contents(tmp_path)) == (2, quiet)


# Items that grow


def test_grown_job_does_only_the_new_items(tmp_path: Path) -> None:
    run_toy(ToyJob(tmp_path, "ant bird", grows=True))
    work = Write(tmp_path, bad={"ant": ValueError("worked on twice")})

    run = run_toy(ToyJob(tmp_path, "ant bird cat", work, grows=True))

    assert (run.resumed, run.new_counts, run.failures) == (2, {"letters": 3}, [])


def test_growing_job_is_complete_between_its_runs(tmp_path: Path) -> None:
    run_toy(ToyJob(tmp_path, "ant bird", grows=True))

    again = run_toy(ToyJob(tmp_path, "ant bird", grows=True))

    assert (again.status, again.record.complete) == ("already complete", True)


def test_growing_job_without_input_files_knows_its_items(tmp_path: Path) -> None:
    for words, status in (("ant", "written"), ("ant bird", "written"), ("ant bird", "already")):
        run = run_toy(ToyJob(tmp_path, words, grows=True, state=InputState))
        assert run.status.startswith(status)


def test_list_of_files_follows_the_items(quiet: dict[str, bytes], tmp_path: Path) -> None:
    for words in ("bird", "ant bird dog", WORDS):
        run_toy(ToyJob(tmp_path, words, grows=True))
        assert listed(tmp_path) == [ALL, *(f"words/{word}" for word in words.split())]

    assert contents(tmp_path) == quiet


def test_grown_job_that_is_killed_goes_on(quiet: dict[str, bytes], tmp_path: Path) -> None:
    run_toy(ToyJob(tmp_path, "ant bird", grows=True))
    with pytest.raises(Killed):
        run_toy(ToyJob(tmp_path, WORDS, grows=True), Doomed(3))

    run = run_toy(ToyJob(tmp_path, WORDS, grows=True))

    assert (run.resumed, contents(tmp_path)) == (3, quiet)


def test_other_items_are_refused_by_a_job_that_does_not_grow(tmp_path: Path) -> None:
    run_toy(ToyJob(tmp_path, "ant bird"))

    with pytest.raises(UsageError) as caught:
        run_toy(ToyJob(tmp_path, "ant bird cat"))

    assert caught.value.code == "usage.output_differs"


# Several ranks


class Pair:
    """Two processes that do one job; `spawn`, as launchers start them."""

    def __init__(self, words: str, work: Write, **spec: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._answers = context.Queue()
        self._barrier = context.Barrier(2)
        given = (self._barrier, self._answers, words, work)
        self._processes = [
            context.Process(target=share, args=(rank, *given), kwargs=spec) for rank in range(2)
        ]
        for process in self._processes:
            process.start()

    def answers(self) -> list[dict[str, Any]]:
        """What each of them learned."""
        found = dict(self._answers.get(timeout=60) for _ in self._processes)
        for process in self._processes:
            process.join()
        return [found[0], found[1]]

    def end_when_second_dies(self) -> None:
        """What a launcher does when it loses a process."""
        first, second = self._processes
        second.join()
        self._barrier.abort()
        first.join()
        assert (first.exitcode, second.exitcode) == (1, -9)


def test_two_ranks_write_the_bytes_of_one(quiet: dict[str, bytes], tmp_path: Path) -> None:
    first, second = Pair(WORDS, Write(tmp_path)).answers()

    assert contents(tmp_path) == quiet
    assert (first["status"], second["status"]) == ("written", "shared")
    assert first["sums"] == {"letters": 16}
    assert record_of(tmp_path).complete


def test_failure_on_the_second_rank_is_in_the_report_of_the_first(tmp_path: Path) -> None:
    bad = {"bird": DataError("no birds", code="data.bird")}

    first, _ = Pair(WORDS, Write(tmp_path, has_arrays=True, bad=bad), has_arrays=True).answers()

    assert [(one["word"], one["code"]) for one in first["failures"]] == [("bird", "data.bird")]
    assert (tmp_path / ALL).read_text() == "ant cat dog eel"


def test_job_that_lost_a_rank_goes_on_in_one_process(
    quiet: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Pair(WORDS, Write(tmp_path, fatal="dog")).end_when_second_dies()

    run = run_toy(ToyJob(tmp_path, WORDS))

    assert "BrokenBarrierError" in capfd.readouterr().err
    assert run.resumed >= 3  # those of the first, which was not lost
    assert contents(tmp_path) == quiet


def test_item_that_failed_on_another_rank_counts_as_it_is_now(
    quiet: dict[str, bytes], tmp_path: Path
) -> None:
    """`cat` failed on the second rank; with one more word before it, it is the first's."""
    bad = {"cat": DataError("no cats")}
    Pair("bird cat dog eel", Write(tmp_path, bad=bad), grows=True).answers()

    first, _ = Pair(WORDS, Write(tmp_path), grows=True).answers()

    assert (first["failures"], contents(tmp_path)) == ([], quiet)


def test_dry_run_of_a_rank_waits_for_nobody(tmp_path: Path) -> None:
    def meet() -> None:
        pytest.fail("nobody else comes")

    for rank in range(2):
        options = JobOptions(dry_run=True)
        job, ranks = ToyJob(tmp_path / "out", WORDS), Ranks(rank, 2, meet)
        run = run_job(job, SerialExecutor(), options=options, ranks=ranks)
        assert run.status == "planned"


# Executors of their own


def test_executor_of_its_own_gets_whole_batches(quiet: dict[str, bytes], tmp_path: Path) -> None:
    executor = Batches(2)

    run_toy(ToyJob(tmp_path, WORDS, is_pipelined=True), executor)

    assert executor.taken == [("ant", "bird"), ("cat", "dog"), ("eel",)]
    assert contents(tmp_path) == quiet


@pytest.mark.parametrize("has_arrays", [False, True], ids=["log", "arrays"])
def test_executor_of_its_own_gets_only_what_is_not_done(
    quiet: dict[str, bytes], tmp_path: Path, *, has_arrays: bool
) -> None:
    work = Write(tmp_path, has_arrays=has_arrays)
    job = ToyJob(tmp_path, WORDS, work, is_pipelined=True, has_arrays=has_arrays)
    with pytest.raises(Killed):
        run_toy(job, Batches(2, dies_after=1))
    (tmp_path / "words/ant").unlink()
    executor = Batches(2)

    run = run_toy(job, executor)

    assert executor.taken == [("ant", "cat"), ("dog", "eel")]
    assert (run.resumed, contents(tmp_path)) == (1, quiet)


def test_item_that_fails_in_a_batch_costs_only_itself(tmp_path: Path) -> None:
    bad = {"bird": DataError("no birds")}
    job = ToyJob(tmp_path, WORDS, Write(tmp_path, bad=bad), is_pipelined=True)

    run = run_toy(job, Batches(3))

    assert [one["word"] for one in run.failures] == ["bird"]
    assert (tmp_path / ALL).read_text() == "ant cat dog eel"


def test_item_whose_input_cannot_be_looked_at_costs_only_itself(tmp_path: Path) -> None:
    job = ToyJob(tmp_path, WORDS, is_pipelined=True, state=no_bird)

    run = run_toy(job, Batches(3))

    assert [(one["word"], one["code"]) for one in run.failures] == [("bird", "data.unreadable")]


def no_bird(word: str) -> InputState:
    if word == "bird":
        raise PermissionError(13, "Permission denied", "bird.txt")
    return InputState(word, sizes=word)


# Bugs


class Ark:
    """A worker with a bug; picklable."""

    def __init__(self, output: Path) -> None:
        self._write = Write(output)

    def __call__(self, word: str) -> Any:
        return len(word) // (word != "cat") and self._write(word)


@pytest.fixture(scope="module")
def buggy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A job with a bug in its worker, run by two processes; its output and its run."""
    output = tmp_path_factory.mktemp("buggy") / "out"
    return output, run_toy(ToyJob(output, WORDS, Ark(output)), ProcessExecutor(2))


def test_bug_in_a_worker_costs_only_its_item(buggy: tuple[Path, Any]) -> None:
    output, run = buggy

    assert (output / ALL).read_text() == "ant bird dog eel"
    assert [one["word"] for one in run.failures] == ["cat"]
    assert not record_of(output).complete


def test_bug_in_a_worker_is_no_bad_data(buggy: tuple[Path, Any]) -> None:
    problem = failure_of(buggy[1], "word", 4)

    assert isinstance(problem, BugError)
    assert (problem.exit_code, problem.code) == (1, "bug.unexpected")


def test_bad_data_is_no_bug(tmp_path: Path) -> None:
    run = run_toy(ToyJob(tmp_path, WORDS, Write(tmp_path, bad={"cat": DataError("no cats")})))

    assert isinstance(failure_of(run, "word", 4), PartialFailure)


def test_report_of_a_bug_has_the_traceback_without_a_folder_of_the_machine(
    buggy: tuple[Path, Any],
) -> None:
    output, run = buggy
    (failure,) = (record_of(output).result or {})["failures"]

    assert failure["details"] == run.failures[0]["details"]
    assert "test_jobs:" in failure["details"]["traceback"][-1]
    told = json.dumps(run.failures) + (output / ".vlatool/run.json").read_text()
    assert [
        place for place in (Path(__file__).parents[2], output.parent) if str(place) in told
    ] == []


def test_stop_ends_at_the_first_bug(tmp_path: Path) -> None:
    with pytest.raises(BugError):
        run_toy(ToyJob(tmp_path, WORDS, Ark(tmp_path)), on_error="stop")

    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == ["ant", "bird"]


def test_repaired_worker_does_what_the_bug_left(quiet: dict[str, bytes], tmp_path: Path) -> None:
    run_toy(ToyJob(tmp_path, WORDS, Ark(tmp_path)))

    run = run_toy(ToyJob(tmp_path, WORDS))

    assert (run.resumed, contents(tmp_path)) == (4, quiet)


# Outputs in outputs


INNER = "words/deep"


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """An output with another inside, at a place that its patterns match."""
    run_toy(ToyJob(tmp_path, WORDS))
    run_toy(ToyJob(tmp_path / INNER, "fox gnu"))
    return tmp_path


def test_output_inside_is_not_in_the_list_of_its_parent(
    nested: Path, quiet: dict[str, bytes]
) -> None:
    (nested / "words/eel").unlink()

    run_toy(ToyJob(nested, WORDS))

    assert contents(nested) == quiet


def test_output_inside_is_nothing_that_verify_finds(nested: Path) -> None:
    assert [list(check_files(one, CheckOptions())) for one in (nested, nested / INNER)] == [[], []]


def test_output_inside_does_not_change_its_parent(nested: Path) -> None:
    assert run_toy(ToyJob(nested, WORDS)).status == "already complete"


def test_overwriting_the_parent_leaves_the_output_inside(nested: Path) -> None:
    before = contents(nested / INNER)

    run_toy(ToyJob(nested, "owl"), overwrite=True)

    assert sorted(path.name for path in (nested / "words").iterdir()) == ["deep", "owl"]
    assert contents(nested / INNER) == before


def test_output_inside_knows_its_parent(nested: Path) -> None:
    assert record_of(nested / INNER).parent == record_of(nested).fingerprint


def test_output_inside_is_refused_once_its_parent_is_another(nested: Path) -> None:
    run_toy(ToyJob(nested, "owl"), overwrite=True)

    with pytest.raises(UsageError) as caught:
        run_toy(ToyJob(nested / INNER, "fox gnu"))

    assert caught.value.code == "usage.output_differs"


# Folders of many files as one entry


def folders(output: Path, **spec: Any) -> ToyJob:
    return ToyJob(output, WORDS, Write(output, is_folder=True), **spec)


def test_folder_is_one_entry_of_the_list(tmp_path: Path) -> None:
    run_toy(folders(tmp_path))

    bird = next(one for one in read_file_list(tmp_path) or () if one.path == "words/bird/")
    assert (bird.count, bird.bytes) == (4, 4)
    assert list(check_files(tmp_path, CheckOptions())) == []


def test_file_that_is_missing_from_a_listed_folder_is_noticed(tmp_path: Path) -> None:
    run_toy(folders(tmp_path))
    (tmp_path / "words/bird/2").unlink()

    assert changed_files(tmp_path) == ["words/bird/"]


def test_complete_output_whose_folder_lost_a_file_is_made_whole(tmp_path: Path) -> None:
    run_toy(folders(tmp_path))
    before = digests_below(tmp_path / "words")
    (tmp_path / "words/bird/2").unlink()

    run = run_toy(folders(tmp_path))

    assert (run.status, digests_below(tmp_path / "words")) == ("written", before)


def test_folder_that_lost_a_file_after_a_kill_is_written_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_toy(folders(tmp_path), Doomed(3))
    (tmp_path / "words/ant/0").unlink()

    run = run_toy(folders(tmp_path))

    assert (run.resumed, changed_files(tmp_path)) == (2, [])


def test_output_inside_a_listed_folder_is_no_change_of_the_folder(tmp_path: Path) -> None:
    run_toy(folders(tmp_path, grows=True))
    run_toy(ToyJob(tmp_path / "words/bird/deep", "fox"))

    assert changed_files(tmp_path) == []
    assert list(check_files(tmp_path, CheckOptions())) == []
    words = ToyJob(tmp_path, f"{WORDS} fly", Write(tmp_path, is_folder=True), grows=True)
    assert run_toy(words).resumed == 5
    assert (tmp_path / "words/bird/deep" / ALL).read_text() == "fox"


# In S3


def test_rows_in_s3_are_batches_in_order(s3_bucket: str) -> None:
    path = RemotePath(f"s3://{s3_bucket}/out/log")
    for words in ("ant bird", "cat"):
        with AppendLog(path) as log:
            for word in words.split():
                log.append({"word": word})
                log.sync()
            log.sync()  # nothing is left: no empty batch

    assert sorted(batch.name for batch in path.iterdir()) == [f"0000000{n}.jsonl" for n in range(3)]
    assert [row["word"] for row in read_log(path)] == ["ant", "bird", "cat"]


def test_job_that_is_killed_in_s3_goes_on(s3_bucket: str, quiet: dict[str, bytes]) -> None:
    output = RemotePath(f"s3://{s3_bucket}/out")
    with pytest.raises(Killed):
        run_toy(ToyJob(output, WORDS), Doomed(3))

    run = run_toy(ToyJob(output, WORDS))

    assert (run.resumed, contents(output)) == (3, quiet)


def test_output_inside_another_in_s3_is_left_alone(s3_bucket: str, quiet: dict[str, bytes]) -> None:
    output = RemotePath(f"s3://{s3_bucket}/out")
    run_toy(ToyJob(output, "ant"))
    run_toy(ToyJob(output / INNER, "fox gnu"))
    before = contents(output / INNER)

    run_toy(ToyJob(output, WORDS), overwrite=True)

    assert (contents(output), contents(output / INNER)) == (quiet, before)
