"""Texts for users."""

import re
from pathlib import Path

import pytest

import vlatool
from vlatool.events import counted


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 episodes"), (1, "1 episode"), (3000, "3,000 episodes")]
)
def test_a_count_has_its_noun_and_verb_in_the_right_number(count: int, text: str) -> None:
    assert counted(count, "episode") == text

    texts = [counted(count, "image is", "images are") for count in (1, 2)]
    assert texts == ["1 image is", "2 images are"]


# Not counts, or counts that are large.
NOT_COUNTED = ("testing/", "demo.py", "detect.py")


@pytest.mark.parametrize("units", ["episodes", "windows", "shards"])
def test_counts_in_messages_have_the_noun_in_the_right_number(units: str) -> None:
    pattern = re.compile(r"\{(?!_?[A-Z]|window\.kind)[^{}]+\} " + units + r"\b")
    lines = [
        f"{path.name}:{number}"
        for path in sorted(Path(vlatool.__file__).parent.rglob("*.py"))
        if not any(name in path.as_posix() for name in NOT_COUNTED)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if 'f"' in line and pattern.search(line)
    ]
    assert lines == []
