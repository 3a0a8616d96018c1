import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlatool import __version__
from vlatool.errors import DataError, UsageError
from vlatool.jobs.ownership import claim_output, option_differences, plan_output
from vlatool.jobs.record import OutputRecord, read_record, read_valid_record

RESULT = {"samples": 3}


def record(seed: int = 1, result: Any = None, **inputs: Any) -> OutputRecord:
    options = {"seed": seed, "size": (2, 3)}
    return OutputRecord("preprocess", options, inputs, result, result is not None)


def start_run(folder: Path, now: OutputRecord, *, overwrite: bool = False) -> OutputRecord | None:
    """Starts a run; returns the record of the run to resume or of a complete one."""
    before = plan_output(folder, now, lambda: now.inputs, overwrite=overwrite)
    if before is None:
        claim_output(folder, now, ("shards/*.tar",))
    return before


def start_error(folder: Path, now: OutputRecord) -> UsageError:
    with pytest.raises(UsageError) as caught:
        start_run(folder, now)
    return caught.value


def make_output(folder: Path, before: OutputRecord) -> Path:
    """Folder with a file and the record of an earlier run."""
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "old.tar").touch()
    before.save(folder)
    return folder


def test_record_reads_back_equal(tmp_path: Path) -> None:
    record(result=RESULT, episodes=["a"]).save(tmp_path)

    read = read_record(tmp_path)

    assert read == OutputRecord(
        "preprocess", {"seed": 1, "size": [2, 3]}, {"episodes": ["a"]}, RESULT, complete=True
    )


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_broken_record_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / ".vlatool").mkdir()
    (tmp_path / ".vlatool/run.json").write_text(content)

    assert read_record(tmp_path) is None
    with pytest.raises(DataError) as caught:
        read_valid_record(tmp_path)
    assert caught.value.code == "data.broken"


def test_output_with_a_damaged_record_is_not_resumed(tmp_path: Path) -> None:
    folder = make_output(tmp_path / "out", record(1, RESULT))
    (folder / ".vlatool/files.jsonl").touch()
    path = folder / ".vlatool/run.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 3'))

    with pytest.raises(DataError) as caught:
        start_run(folder, record(3))
    assert (caught.value.code, caught.value.details["path"]) == ("data.broken", str(path))
    assert start_run(folder, record(1), overwrite=True) is None


def test_new_folder_is_claimed_and_accepts_other_options_until_something_is_written(
    tmp_path: Path,
) -> None:
    assert start_run(tmp_path / "out", record(1)) is None
    saved = read_record(tmp_path / "out")
    assert saved is not None
    assert saved.result is None
    assert start_run(tmp_path / "out", record(2)) is None


def test_complete_output_is_returned_and_replaced_on_request_if_its_record_is_lost(
    tmp_path: Path,
) -> None:
    folder = make_output(tmp_path / "out", record(1, RESULT))
    done = start_run(folder, record(1))
    assert done is not None
    assert done.result == RESULT

    (folder / ".vlatool/run.json").unlink()
    (folder / ".vlatool/files.jsonl").touch()
    assert start_error(folder, record(1)).code == "usage.output_exists"
    assert start_run(folder, record(1), overwrite=True) is None


def test_other_options_or_inputs_are_refused_with_the_difference_and_change_nothing(
    tmp_path: Path,
) -> None:
    folder = make_output(tmp_path / "out", record(1, RESULT, episodes=["a"]))

    error = start_error(folder, record(2, episodes=["a"]))
    assert (error.code, error.exit_code) == ("usage.output_differs", 2)
    assert error.details["differences"] == ["seed 1 (now 2)"]
    assert start_error(folder, record(1, episodes=["b"])).code == "usage.output_differs"

    before = read_record(folder)
    assert before is not None
    assert before.options["seed"] == 1
    assert (folder / "shards/old.tar").exists()


def test_overwrite_removes_the_files_of_the_earlier_run_and_keeps_those_of_others(
    tmp_path: Path,
) -> None:
    folder = make_output(tmp_path / "out", record(1, RESULT))
    (folder / "shards/notes.txt").touch()

    assert start_run(folder, record(2), overwrite=True) is None
    assert [path.name for path in (folder / "shards").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "before", [record(), record(episodes=["a"]), replace(record(), version="0.0.1")]
)
def test_incomplete_output_is_resumed_with_other_inputs_and_by_another_release(
    tmp_path: Path, before: OutputRecord
) -> None:
    folder = make_output(tmp_path / "out", before)

    now = record(episodes=["b"] if before.inputs else [])
    assert start_run(folder, now) is not None
    assert start_run(folder, now, overwrite=True) is not None
    assert (folder / "shards/old.tar").exists()


@pytest.mark.parametrize("result", [None, RESULT], ids=["unfinished", "complete"])
def test_output_of_another_format_is_refused_with_both_versions(
    result: dict[str, Any] | None, tmp_path: Path
) -> None:
    older = replace(record(1, result), format=0, version="0.0.1")
    folder = make_output(tmp_path / "out", older)

    error = start_error(folder, record())

    assert (error.code, error.exit_code) == ("usage.unsupported", 2)
    assert "vlatool 0.0.1 in format 0" in error.message
    assert f"vlatool {__version__}" in error.message
    assert "--overwrite" in error.hint
    assert start_run(folder, record(), overwrite=True) is None


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_foreign_files_is_refused_even_with_overwrite(
    tmp_path: Path, overwrite: bool
) -> None:
    (tmp_path / "thesis.txt").touch()

    with pytest.raises(UsageError) as caught:
        start_run(tmp_path, record(), overwrite=overwrite)

    assert caught.value.code == "usage.output_exists"


def test_messages_have_short_digests_and_words_for_inputs(tmp_path: Path) -> None:
    old, new = "ab12" * 16, "cd34" * 16
    made = {"fingerprint": old[:16], "changed_at": "2026-11-21T20:00:00.000+00:00"}
    folder = make_output(tmp_path / "out", record(1, RESULT, **made))
    later = {"fingerprint": new[:16], "changed_at": "2026-11-21T20:00:01.000+00:00"}
    other_input = start_error(folder, record(1, **later)).message
    replace(record(1, RESULT), options={"seed": 1, "fast digest": old}).save(folder)
    other = replace(record(1), options={"fast digest": new}, words={"fast digest": "tokenizer"})
    other_option = start_error(folder, other).message
    for message in (other_input, other_option):
        assert not re.search("[0-9a-f]{13}|changed_at|fingerprint", message)
    assert f"tokenizer {old[:12]}" in other_option


@pytest.mark.parametrize(
    ("old", "new", "is_equal"),
    [
        ({"codes": "a", "codes digest": "1"}, {"codes": "b", "codes digest": "1"}, True),
        ({"codes": "a", "codes digest": "1"}, {"codes": "a", "codes digest": "2"}, False),
        ({"codes": "a"}, {"codes": "a", "codes digest": "1"}, True),
        ({"codes": "a"}, {"codes": "b", "codes digest": "1"}, False),
        ({"codes digest": "1"}, {}, False),
    ],
)
def test_options_with_a_digest_are_compared_by_it(
    old: dict[str, Any], new: dict[str, Any], *, is_equal: bool
) -> None:
    assert (not option_differences(old, new)) == is_equal


@pytest.mark.parametrize(
    ("value", "is_equal"),
    [(None, True), (False, True), ([], True), ({"a": None}, True), (0, False), (0.0, False)],
)
def test_an_option_that_a_record_lacks_differs_if_it_has_an_effect(
    value: object, *, is_equal: bool
) -> None:
    assert (not option_differences({"x": 1}, {"x": 1, "new": value})) == is_equal
