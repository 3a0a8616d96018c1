"""A reader in one file, without packaging."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.builders.errors import fails
from vlatool.config.resolve import config_of, load_config
from vlatool.errors import BugError, ConfigError, UsageError
from vlatool.plugin import read_table
from vlatool.workflows.preprocess import PreprocessConfig, PreprocessResult, preprocess

READER = """
import numpy as np

from vlatool.plugin import (
    ConfigModel, Episode, EpisodeRef, FormatReader, natural_key, no_episodes, option, read_table,
    survey_by_reading,
)


class Config(ConfigModel):
    rate: float = option(10.0, "Frames per second.")


class Reader(FormatReader):
    Config = Config

    def discover(self, sources):
        for source in sources:
            paths = sorted(source.glob("*.csv"), key=natural_key)
            if not paths:
                raise no_episodes(source, "*.csv")
            for path in paths:
                yield EpisodeRef(id=path.stem, path=path, source=str(source))

    def survey(self, refs):
        return survey_by_reading(self.read, refs)

    def read(self, ref):
        table = read_table(ref.path)
        values = np.stack([table["x"], table["y"]], axis=1)
        return Episode(
            id=ref.id, task=str(table["task"][0]), fps=self.config.rate, num_frames=len(values),
            cameras={}, lowdim={"action": values}, language={"original": [table["task"][0]]},
            action_fields=("action",),
        )
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reader.py").write_text(READER)
    (tmp_path / "raw").mkdir()
    for number in range(2):
        rows = "".join(f"{step},{step * 2},push\n" for step in range(24))
        (tmp_path / f"raw/e{number}.csv").write_text(f"x,y,task\n{rows}")
    return tmp_path


def run(name: str = "./reader.py:Reader", **options: Any) -> PreprocessResult:
    tree = {"format": name, "sources": ["raw"], "output": "out", "workers": 1, **options}
    return preprocess(config_of(PreprocessConfig, tree))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_class_in_a_file_reads_recordings_in_any_number_of_processes(
    folder: Path, workers: int
) -> None:
    result = run(workers=workers, sink={"type": "frames"})
    assert (result.episodes, result.frames, result.action_fields) == (2, 48, ("action",))


def test_a_resume_with_another_file_is_refused(folder: Path) -> None:
    run()
    (folder / "reader.py").write_text(f"{READER}\n# changed\n")
    with fails("usage.output_differs"):
        run()


def test_a_file_that_a_file_names_is_never_run(folder: Path) -> None:
    (folder / "options.yaml").write_text("format: ./reader.py:Reader\n")
    with pytest.raises(UsageError, match="only when it is typed"):
        load_config(PreprocessConfig, files=["options.yaml"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [("./other.py:Reader", "no such file"), ("./reader.py:Raeder", "has no class")],
)
def test_a_wrong_name_says_what_is_wrong(name: str, reason: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        run(name)


def test_an_error_of_the_file_names_it_once_with_its_line(folder: Path) -> None:
    shutil.copy("reader.py", "broken.py")
    text = READER.replace('table["y"]', 'table["z"]')
    (folder / "broken.py").write_text(text)
    line = 1 + text[: text.index('table["z"]')].count("\n")
    with pytest.raises(BugError) as caught:
        run("./broken.py:Reader")
    assert f"broken.py:{line}" in caught.value.hint
    assert "check_reader" in caught.value.hint


def test_columns_of_a_table_are_numbers_or_texts(folder: Path) -> None:
    table = read_table(folder / "raw/e0.csv")
    assert table["y"].tolist()[:3] == [0, 2, 4]
    assert table["task"].dtype.kind == "U"
