"""The loop over items with toy jobs: kills, growth, bugs, nesting."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.builders.errors import fails
from tests.builders.jobs import (
    ALL,
    Killed,
    KillingExecutor,
    ToyJob,
    Write,
    contents,
    run_toy,
)
from vlatool.errors import BugError, DataError
from vlatool.jobs.executor import ProcessExecutor
from vlatool.jobs.files import FileEntry, changed_files, digests_below, read_file_list
from vlatool.jobs.job import InputState, JobRun
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord, read_record
from vlatool.jobs.run import failure_of
from vlatool.recordings.check import CheckOptions, check_files
from vlatool.storage.append_log import AppendLog, read_log
from vlatool.storage.remote_path import RemotePath

WORDS = "ant bird cat dog eel"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a run that was not interrupted."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
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
def test_killed_job_resumes_and_writes_the_same_bytes(
    outcomes: int, undisturbed: dict[str, bytes], tmp_path: Path, *, has_arrays: bool
) -> None:
    work = Write(tmp_path, has_arrays=has_arrays)
    job = ToyJob(tmp_path, WORDS, work, has_arrays=has_arrays)
    try:
        run_toy(job, KillingExecutor(outcomes))
    except Killed:
        assert not record_of(tmp_path).complete

    run = run_toy(job)

    assert contents(tmp_path) == undisturbed
    assert run.status == ("already complete" if outcomes == 5 else "written")
    assert run.resumed >= outcomes % 5


def test_item_whose_file_was_changed_after_the_kill_is_processed_again(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run_toy(ToyJob(tmp_path, WORDS), KillingExecutor(3))
    (tmp_path / "words/bird").write_text("moth")

    run = run_toy(ToyJob(tmp_path, WORDS))

    assert (run.resumed, contents(tmp_path)) == (2, undisturbed)


class FailingFinish(ToyJob):
    """Job whose `finish` fails after the first receipt."""

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        next(receipts)
        raise DataError(f"{next(receipts).item} does not fit")


def test_finished_items_survive_a_job_that_cannot_finish(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        run_toy(FailingFinish(tmp_path, WORDS))

    run = run_toy(ToyJob(tmp_path, WORDS))

    assert (run.resumed, contents(tmp_path)) == (2, undisturbed)


# Items that grow


def test_grown_job_processes_only_new_items(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    run_toy(ToyJob(tmp_path, "ant bird", command="download"))
    again = run_toy(ToyJob(tmp_path, "ant bird", command="download"))
    assert (again.status, again.record.complete) == ("already complete", True)
    work = Write(tmp_path, bad={"ant": ValueError("worked on twice")})

    run = run_toy(ToyJob(tmp_path, "ant bird cat", work, command="download"))

    assert (run.resumed, run.new_counts, run.failures) == (2, {"letters": 3}, [])
    assert listed(tmp_path) == [ALL, "words/ant", "words/bird", "words/cat"]
    run_toy(ToyJob(tmp_path, WORDS, command="download"))
    assert contents(tmp_path) == undisturbed


def test_job_that_is_no_download_does_not_grow(tmp_path: Path) -> None:
    run_toy(ToyJob(tmp_path, "ant bird"))
    with fails("usage.output_differs"):
        run_toy(ToyJob(tmp_path, "ant bird cat"))


def test_growing_job_without_input_files_records_its_items(tmp_path: Path) -> None:
    for words, status in (("ant", "written"), ("ant bird", "written"), ("ant bird", "already")):
        run = run_toy(ToyJob(tmp_path, words, command="download", state=InputState))
        assert run.status.startswith(status)


def test_grown_job_that_is_killed_resumes(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    run_toy(ToyJob(tmp_path, "ant bird", command="download"))
    with pytest.raises(Killed):
        run_toy(ToyJob(tmp_path, WORDS, command="download"), KillingExecutor(3))

    run = run_toy(ToyJob(tmp_path, WORDS, command="download"))

    assert (run.resumed, contents(tmp_path)) == (3, undisturbed)


# Bugs


class WorkerWithBug:
    """Work with a bug; picklable."""

    def __init__(self, output: Path) -> None:
        self._write = Write(output)

    def __call__(self, word: str) -> Any:
        return len(word) // (word != "cat") and self._write(word)


def test_bug_in_a_worker_fails_only_its_item_and_is_reported_as_a_bug(tmp_path: Path) -> None:
    job = ToyJob(tmp_path, WORDS, WorkerWithBug(tmp_path))
    run = run_toy(job, ProcessExecutor(2))

    assert (tmp_path / ALL).read_text() == "ant bird dog eel"
    assert [failure["word"] for failure in run.failures] == ["cat"]
    assert not record_of(tmp_path).complete
    problem = failure_of(run, job.spec, 4)
    assert isinstance(problem, BugError)
    assert (problem.exit_code, problem.code) == (1, "bug.unexpected")

    (failure,) = (record_of(tmp_path).result or {})["failures"]
    assert failure["details"] == run.failures[0]["details"]
    assert "test_run:" in failure["details"]["traceback"][-1]
    report = json.dumps(run.failures) + (tmp_path / ".vlatool/run.json").read_text()
    here = Path(__file__).parents[3], tmp_path
    assert not [path for path in here if str(path) in report]


def test_stop_ends_at_the_first_bug(tmp_path: Path) -> None:
    with pytest.raises(BugError):
        run_toy(ToyJob(tmp_path, WORDS, WorkerWithBug(tmp_path)), on_error="stop")

    assert sorted(path.name for path in (tmp_path / "words").iterdir()) == ["ant", "bird"]


def test_fixed_worker_processes_the_failed_items(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    run_toy(ToyJob(tmp_path, WORDS, WorkerWithBug(tmp_path)))

    run = run_toy(ToyJob(tmp_path, WORDS))

    assert (run.resumed, contents(tmp_path)) == (4, undisturbed)


# Nested outputs


INNER = "words/deep"


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """Output with another inside, in a folder that its patterns match."""
    run_toy(ToyJob(tmp_path, WORDS))
    run_toy(ToyJob(tmp_path / INNER, "fox gnu"))
    return tmp_path


def test_nested_output_is_not_in_the_file_list_of_its_parent(
    nested: Path, undisturbed: dict[str, bytes]
) -> None:
    assert run_toy(ToyJob(nested, WORDS)).status == "already complete"
    for output in (nested, nested / INNER):
        assert list(check_files(output, CheckOptions())) == []
    assert record_of(nested / INNER).parent == record_of(nested).fingerprint
    (nested / "words/eel").unlink()

    run_toy(ToyJob(nested, WORDS))

    assert contents(nested) == undisturbed


def test_overwriting_the_parent_keeps_the_nested_output(nested: Path) -> None:
    before = contents(nested / INNER)

    run_toy(ToyJob(nested, "owl"), overwrite=True)

    assert sorted(path.name for path in (nested / "words").iterdir()) == ["deep", "owl"]
    assert contents(nested / INNER) == before
    with fails("usage.output_differs"):  # it was made from the replaced parent
        run_toy(ToyJob(nested / INNER, "fox gnu"))


# Folders of many files as one entry


def folders(output: Path, **spec: Any) -> ToyJob:
    return ToyJob(output, WORDS, Write(output, is_folder=True), **spec)


def test_folder_is_one_entry_of_the_list_and_repaired_as_one(tmp_path: Path) -> None:
    run_toy(folders(tmp_path))
    before = digests_below(tmp_path / "words")

    bird = next(entry for entry in read_file_list(tmp_path) or () if entry.path == "words/bird/")
    assert (bird.count, bird.bytes) == (4, 4)
    assert list(check_files(tmp_path, CheckOptions())) == []
    (tmp_path / "words/bird/2").unlink()
    assert changed_files(tmp_path) == ["words/bird/"]

    run = run_toy(folders(tmp_path))
    assert (run.status, digests_below(tmp_path / "words")) == ("written", before)


def test_folder_that_lost_a_file_after_a_kill_is_written_again(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run_toy(folders(tmp_path), KillingExecutor(3))
    (tmp_path / "words/ant/0").unlink()

    run = run_toy(folders(tmp_path))

    assert (run.resumed, changed_files(tmp_path)) == (2, [])


def test_nested_output_in_a_listed_folder_does_not_change_the_folder(tmp_path: Path) -> None:
    run_toy(folders(tmp_path, command="download"))
    run_toy(ToyJob(tmp_path / "words/bird/deep", "fox"))

    assert changed_files(tmp_path) == []
    assert list(check_files(tmp_path, CheckOptions())) == []
    words = ToyJob(tmp_path, f"{WORDS} fly", Write(tmp_path, is_folder=True), command="download")
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
            log.sync()  # nothing is pending: no empty batch

    assert sorted(batch.name for batch in path.iterdir()) == [f"0000000{n}.jsonl" for n in range(3)]
    assert [row["word"] for row in read_log(path)] == ["ant", "bird", "cat"]


def test_job_that_is_killed_in_s3_resumes(s3_bucket: str, undisturbed: dict[str, bytes]) -> None:
    output = RemotePath(f"s3://{s3_bucket}/out")
    with pytest.raises(Killed):
        run_toy(ToyJob(output, WORDS), KillingExecutor(3))

    run = run_toy(ToyJob(output, WORDS))

    assert (run.resumed, contents(output)) == (3, undisturbed)
