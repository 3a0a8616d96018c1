"""Completions of a word from the words of its command."""

import pytest

from vlatool.cli.completion import completions

VALUES = {"--preset": ["tiny"], "--image-size": [], "--json": None}
OPTIONS = ["--preset", "--image-size", "--json"]


@pytest.mark.parametrize(
    ("typed", "text", "expected"),
    [
        ([], "", ["one"]),
        ([], "--", OPTIONS),
        ([], "--image_", ["--image-size"]),
        (["one"], "", []),
        (["--json"], "o", ["one"]),
        (["--preset"], "", ["tiny"]),
        (["--image_size", "3"], "", ["one"]),
        (["--image-size"], "o", []),
    ],
)
def test_words_of_a_command(typed: list[str], text: str, expected: list[str]) -> None:
    assert [item.value for item in completions(VALUES, [["one"]], typed, text)] == expected


def test_a_command_without_arguments_offers_its_options() -> None:
    assert [item.value for item in completions(VALUES, [], [], "")] == OPTIONS
