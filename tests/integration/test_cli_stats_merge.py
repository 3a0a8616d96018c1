"""Command line of `vlatool stats merge`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders.preprocessing import run
from tests.builders.spartan import spartan_task
from tests.surface.invoke import run_vlatool


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("data")
    for name, frames, past in (("a", 6, 1), ("b", 9, 2)):
        raw = spartan_task(folder / f"raw-{name}", 1, frames)
        run(raw, folder / name, past_lowdim_steps=past, max_padding_left=past)
    return str(folder / "a"), str(folder / "b")


def merge(*words: str) -> tuple[int, str]:
    """Exit code and standard output."""
    return run_vlatool("stats", "merge", *words)


def test_stdout_and_output_hold_only_the_statistics(data: tuple[str, str], tmp_path: Path) -> None:
    code, text = merge(*data)
    assert (code, len(strict(text)["robot__version"]["count"])) == (0, 5)
    assert "robot__version" in strict(merge(*data, "--json")[1])["statistics"]
    path = tmp_path / "merged.json"
    assert merge(*data, "--output", str(path), "--weights", "1,3")[0] == 0
    assert strict(path.read_text()) == strict(merge(*data, "--weights", "1,3")[1])
    (tmp_path / "file").touch()
    assert merge(*data, "--output", str(tmp_path / "file/merged.json"))[0] == 5


def strict(text: str) -> Any:
    def raise_error(literal: str) -> None:
        raise AssertionError(literal)

    return json.loads(text, parse_constant=raise_error)


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
    assert merge(*(paths.get(word, word) for word in words)) == (code, "")
