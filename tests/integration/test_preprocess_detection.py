"""`preprocess SOURCE` without FORMAT: arguments, detected formats, errors."""

import json
from pathlib import Path

import pytest

from tests.builders.lerobot import lerobot_dataset
from tests.builders.preprocessing import contents
from vlatool.cli.app import run
from vlatool.errors import ConfigError
from vlatool.workflows.preprocess import PreprocessConfig, preprocess

WINDOW = ["--past-lowdim-steps", "1", "--future-lowdim-steps", "2", "--max-padding-right", "2"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lerobot_dataset(tmp_path / "pick", (4, 4), cameras={})


def preprocessed(*words: str, output: Path) -> int:
    """Exit code of `vlatool preprocess WORDS...`."""
    return run(["-q", "preprocess", *words, "-o", str(output), "--workers", "1", *WINDOW])


def test_output_is_that_of_the_format_by_name_and_both_resume_each_other(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source.parent)
    keys = ["--source.observation-keys", "observation.state"]
    assert preprocessed(source.name, *keys, output=tmp_path / "found") == 0
    assert preprocessed("lerobot", str(source), *keys, output=tmp_path / "named") == 0
    assert contents(tmp_path / "found") == contents(tmp_path / "named")
    assert preprocessed(source.name, *keys, output=tmp_path / "named") == 0
    config = PreprocessConfig(sources=[str(source)], output=str(tmp_path / "out"), dry_run=True)
    assert preprocess(config).episodes == 2


@pytest.mark.parametrize(
    ("words", "code", "exit_code", "word"),
    [
        (["lerobto", "pick"], "usage.unknown_format", 2, "lerobot"),
        (["lerobto"], "usage.unknown_format", 2, "lerobot"),
        (["./gone"], "data.no_source", 3, "gone"),
        (["pick", "--observation-keys", "x"], "usage.unknown_option", 2, "--observation-keys"),
        (["pick", "--source.observation-kyes", "x"], "config.unknown_key", 2, "observation_keys"),
        (["pick", "--source.observation-kyes", "x"], "config.unknown_key", 2, "lerobot key"),
        (["meta"], "data.no_episodes", 3, "meta"),
    ],
    ids=["misspelt", "misspelt alone", "missing", "flat key", "misspelt key", "key", "no source"],
)
def test_argument_that_is_neither_source_nor_format_is_reported(
    words: list[str],
    code: str,
    exit_code: int,
    word: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "meta").mkdir()
    monkeypatch.chdir(source.parent)
    assert run(["--json", "preprocess", *words, "-o", "out"]) == exit_code
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert word in error["message"] + error["hint"]


def test_keys_of_a_detected_format_are_checked(source: Path, tmp_path: Path) -> None:
    tree = {"sources": [str(source)], "output": str(tmp_path / "out"), "source": {"action_key": 1}}
    with pytest.raises(ConfigError) as caught:
        preprocess(PreprocessConfig.specialize(tree).model_validate(tree))
    assert caught.value.code == "config.unknown_key"
