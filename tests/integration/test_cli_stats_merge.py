"""Command line of `vlatool stats merge`."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.builders.preprocessing import run
from tests.builders.spartan import spartan_task

MERGE = [sys.executable, "-m", "vlatool", "stats", "merge"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("data")
    for name, frames, past in (("a", 6, 1), ("b", 9, 2)):
        raw = spartan_task(folder / f"raw-{name}", 1, frames)
        run(raw, folder / name, past_lowdim_steps=past, max_padding_left=past)
    return str(folder / "a"), str(folder / "b")


def merge(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*MERGE, *words], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done


def strict(text: str) -> Any:
    def raise_error(literal: str) -> None:
        raise AssertionError(literal)

    return json.loads(text, parse_constant=raise_error)


def test_without_output_stdout_is_only_the_statistics(data: tuple[str, str]) -> None:
    done = merge(*data)

    assert done.returncode == 0, done.stderr
    assert len(strict(done.stdout)["robot__version"]["count"]) == 5


def test_json_document_holds_the_statistics(data: tuple[str, str]) -> None:
    done = subprocess.run(
        [*MERGE, *data, "--json"], capture_output=True, text=True, timeout=60, check=True
    )

    assert "robot__version" in strict(done.stdout)["statistics"]


def test_output_has_the_content_of_stdout(data: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "merged.json"

    done = merge(*data, "--output", str(path), "--weights", "1,3")

    assert done.returncode == 0, done.stderr
    assert strict(path.read_text()) == strict(merge(*data, "--weights", "1,3").stdout)


@pytest.mark.parametrize(
    ("content", "words", "code"),
    [
        ("{}", ["a"], 2),
        ("{}", ["a", "bad", "--weights", "1"], 2),
        ("{}", ["a", "bad", "--weights", "1,-1"], 2),
        ("{}", ["a", "missing"], 3),
        ("{}", ["a", "bad"], 3),
        ("{", ["a", "bad"], 3),
        ("[]", ["a", "bad"], 3),
        ('{"robot__version": {"count": [1]}}', ["a", "bad"], 3),
    ],
    ids=["one", "weights", "negative", "missing", "no fields", "no JSON", "list", "broken entry"],
)
def test_failure_has_its_exit_code_and_an_empty_stdout(
    data: tuple[str, str], tmp_path: Path, content: str, words: list[str], code: int
) -> None:
    bad = tmp_path / "stats.json"
    bad.write_text(content)
    paths = {"a": data[0], "bad": str(bad), "missing": str(tmp_path / "missing")}

    done = merge(*(paths.get(word, word) for word in words))

    assert (done.returncode, done.stdout) == (code, "")


def test_output_that_cannot_be_written_ends_with_exit_code_5(
    data: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    assert merge(*data, "--output", str(tmp_path / "file/merged.json")).returncode == 5
