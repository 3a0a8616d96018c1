"""Completions of a line from the words of its command."""

import pytest

from vlatool.cli.completion import CompletionWords, Line, completions, unfinished_line

WORDS = CompletionWords(
    {"--preset": ["tiny"], "--data": [], "--sink.image-size": [], "--hparams.lr-scheduler": []},
    keys={
        "hparams.lr": ["0.1"],
        "hparams.lr_scheduler": ["cosine", "const"],
        "data.image_size": [],
    },
    has_bare_keys=True,
)
FLAT = CompletionWords({**WORDS.options, "--image-size": []}, [["one", "two"]], WORDS.keys)
SCHEDULES = ["hparams.lr_scheduler=cosine", "hparams.lr_scheduler=const"]


def values(words: CompletionWords, line: Line) -> list[str]:
    return [item.value for item in completions(words, line)]


@pytest.mark.parametrize(
    ("typed", "text", "expected"),
    [
        (["--set"], "hparams.lr", ["hparams.lr=", "hparams.lr_scheduler="]),
        (["--set"], "hparams.lr_s", SCHEDULES),
        (["--set"], "lr-sch", [value.replace("lr_", "lr-") for value in SCHEDULES]),
        (["--set"], "data.im", ["data.image_size="]),
        ([], "lr_sch", SCHEDULES),
        (["--preset", "tiny"], "hparams.lr_s", SCHEDULES),
        ([], "--lr_sch", ["--hparams.lr_scheduler"]),
        ([], "--hparams.lr-sch", ["--hparams.lr-scheduler"]),
        (["--data"], "hp", []),
    ],
)
def test_keys_are_completed_in_the_typed_spelling(
    typed: list[str], text: str, expected: list[str]
) -> None:
    assert values(WORDS, Line(typed, text)) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (Line(["--set"], "co", "hparams.lr_scheduler", is_split=True), ["cosine", "const"]),
        (Line(["--set"], "co", "hparams.lr_scheduler"), SCHEDULES),
        (Line([], "", "hparams.lr", is_split=True), ["0.1"]),
        (Line([], "t", "--preset", is_split=True), ["tiny"]),
        (Line([], "t", "--preset"), ["--preset=tiny"]),
        (Line([], "hparams.lr_s", "--set", is_split=True), SCHEDULES),
        (Line([], "x", "unknown"), []),
    ],
)
def test_values_after_equals(line: Line, expected: list[str]) -> None:
    assert values(WORDS, line) == expected


def test_sections_of_flat_commands_are_completed_after_a_dot_and_arguments_are_no_keys() -> None:
    assert values(FLAT, Line([], "--")) == ["--preset", "--data", "--image-size"]
    assert values(FLAT, Line([], "--sink.")) == ["--sink.image-size"]
    assert values(FLAT, Line([], "hp")) == []


@pytest.mark.parametrize(
    ("words", "text", "variables", "expected"),
    [
        (["--set", "a.b", "="], "c", {}, Line(["--set"], "c", "a.b", is_split=True)),
        (
            ["--set", "a.b"],
            "",
            {"COMP_WORDS": "v\n--set\na.b\n="},
            Line(["--set"], "", "a.b", is_split=True),
        ),
        (["--preset", "=", "x"], "--k", {}, Line(["--preset=x"], "--k")),
        (["--set"], "a.b=c", {}, Line(["--set"], "c", "a.b")),
        ([], "t", {"_TYPER_COMPLETE_ARGS": "v --preset=t"}, Line([], "t", "--preset")),
    ],
)
def test_line_of_each_shell(
    words: list[str],
    text: str,
    variables: dict[str, str],
    expected: Line,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert unfinished_line(words, text) == expected
