"""The road at tiny size of the FUTURE-VLA guide, with fewer episodes and steps."""

import re
import shlex
from pathlib import Path

import pytest

from vlatool.cli import app

DOCS = Path(__file__).parents[2]
# Added to the lines that begin with these words.
SHORTER = {
    "vlatool sample": "--episodes 4",
    "vlatool tokenizer train": "--total-train-steps 2",
    "vlatool train": "--total-train-steps 2",
    "vlatool eval open-loop": "--max-samples 3 --future-samples 1",
    "vlatool eval rollout": "--episodes 1 --max-steps 2",
}


def road(page: str) -> list[str]:
    """Lines of the pipeline that begins with episodes in the layout of LIBERO."""
    block = re.search(
        r"^```\n(vlatool sample libero.*?)^```$", (DOCS / page).read_text(), re.S | re.M
    )
    assert block is not None
    return [line for line in block[1].splitlines() if not line.startswith("#")]


def shortened(line: str) -> list[str]:
    """Arguments of a line with less work."""
    more = [words for start, words in SHORTER.items() if line.startswith(start)]
    return shlex.split(" ".join([line, *more]))[1:]


def test_lines_of_the_readme_are_those_of_the_guide() -> None:
    guide = iter(road("docs/guides/future-vla.md"))
    assert all(line in guide for line in road("README.md"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_road_runs_from_sample_to_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in road("docs/guides/future-vla.md"):
        assert app.run(shortened(line)) == 0, capsys.readouterr().err
    assert {"actions.png", "future-image.png", "futures.mp4"} <= {
        path.name for path in (folder / "look").iterdir()
    }
    assert (folder / "exported/future_vla.json").is_file()
