"""Plans of commands with `--dry-run`, and the commands that have it."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.builders.preprocessing import run as preprocessed
from tests.builders.spartan import spartan_task
from vlatool.cli.app import run


def stdout_of(*words: str) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        assert run(["-q", *words]) == 0
    return text.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    preprocessed(spartan_task(root / "raw", 2, 6), root / "data")
    for number in range(4):
        (root / f"images/train-episode_{number}.tar").parent.mkdir(exist_ok=True)
        (root / f"images/train-episode_{number}.tar").write_bytes(b"")
    return root


@pytest.mark.parametrize(
    ("words", "counts"),
    [
        ("sample spartan new --episodes 2 --frames 3", {"episodes": 2, "frames": 6}),
        ("split images --val-ratio 0.5", {"train": 2, "val": 2}),
        ("stats merge data data --output merged.json", {"steps": 5}),
        ("stats merge data data", {"steps": 5}),
    ],
)
def test_plan_has_the_counts_and_writes_nothing(
    words: str, counts: dict[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    document = json.loads(stdout_of(*words.split(), "--dry-run", "--json"))
    assert document["status"] == "planned"
    assert document | counts == document
    assert "would" in stdout_of(*words.split(), "--dry-run")
    assert sorted(folder.rglob("*")) == before
