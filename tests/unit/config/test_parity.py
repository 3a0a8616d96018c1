"""Rows of reference/parity: complete, with rows of the tables of differences, tests and values."""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlatool.config.resolve import load_config
from vlatool.training.config import TrainConfig

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
# Number of rows by letter: weaknesses and values of policies, weaknesses of tokenizers.
COUNTS = {"L": 72, "G": 56, "T": 21}
TABLES = {
    "L": ("guides/lbm.md", "Differences in training"),
    "G": ("guides/lbm.md", "Differences in training"),
    "T": ("guides/future-vla.md", "Differences of the visual tokenizer"),
}
MODEL_TYPES = {"L": "diffusion_policy", "G": "diffusion_policy", "T": "titok"}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


ROWS = {
    line[0]: line
    for line in map(cells, (DOCS / "reference/parity.md").read_text().splitlines())
    if re.fullmatch(r"[LGT]\d+", line[0])
}
# Row, what the last column names.
HELD_BY = [
    (number, item) for number, row in ROWS.items() for item in re.findall(r"`([^`]+)`", row[3])
]


def row_names(letter: str) -> set[str]:
    """First cells of the rows of a table of differences."""
    page, heading = TABLES[letter]
    section = (DOCS / page).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return {cells(line)[0] for line in section.splitlines() if line.startswith("|")}


@cache
def published_runs(model_type: str) -> dict[str, Any]:
    """Preset to its resolved values; that of PushT is of another program."""
    names = sorted(path.stem for path in (ROOT / "presets/runs").glob("[!p]*-published.yaml"))
    trees = {n: load_config(TrainConfig, presets=[n]).config.model_dump(mode="json") for n in names}
    return {name: tree for name, tree in trees.items() if tree["model"]["type"] == model_type}


def test_rows_are_complete() -> None:
    expected = [f"{letter}{i}" for letter, count in COUNTS.items() for i in range(1, count + 1)]
    assert list(ROWS) == expected
    assert all(len(row) == 4 for row in ROWS.values())


def test_every_row_says_what_happens_here() -> None:
    wrong = [
        number
        for number, (_, _, here, _) in ROWS.items()
        if not here.startswith(("as published", "not here: "))
        and here.removeprefix("differs: ") not in row_names(number[0])
    ]
    assert wrong == []


def test_every_row_is_held_by_a_test_or_says_by_reading() -> None:
    held = {number for number, _ in HELD_BY}
    assert [n for n, row in ROWS.items() if n not in held and "by reading" not in row[3]] == []


def test_every_named_test_exists() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [item for _, item in HELD_BY if ": " not in item and f"def {item}(" not in text]
    assert missing == []


@pytest.mark.parametrize(("number", "item"), [pair for pair in HELD_BY if ": " in pair[1]])
def test_published_presets_have_the_value_of_the_row(number: str, item: str) -> None:
    key, _, text = item.partition(": ")
    runs = published_runs(MODEL_TYPES[number[0]])
    values = Counter(repr(_at(tree, key)) for tree in runs.values())
    assert values == {repr(yaml.safe_load(text)): len(runs)}


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree
