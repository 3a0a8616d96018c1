"""Commands that are given a folder of another kind: the message says what the folder holds."""

import json
from pathlib import Path

import pytest

from tests.builders.lerobot import lerobot_dataset
from vlatool.cli.app import run
from vlatool.datasets.fast.layout import find_chunks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    raw = lerobot_dataset(root / "raw", (24, 20))
    for sink, output in (("lbm", "samples"), ("jsonl", "windows"), ("image-shards", "pictures")):
        words = ["preprocess", "lerobot", str(raw), "--sink", sink, "--workers", "1"]
        assert run(["-q", *words, "--output", str(root / output)]) == 0
    return root


@pytest.mark.parametrize(
    ("words", "code", "holds"),
    [
        ("build-dataset samples --fast fast -o new", "data.no_samples", "shards of samples"),
        ("build-dataset raw --fast fast -o new", "data.no_samples", "raw episodes"),
        ("build-dataset pictures --fast fast -o new", "data.no_samples", "image shards"),
        (
            "tokenizer train -p vqgan-tiny --num-epochs 1 --data samples -o new",
            "data.no_samples",
            "shards of samples",
        ),
        (
            "train -p diffusion-policy-tiny --num-epochs 1 --data pictures -o new",
            "data.no_manifest",
            "image shards",
        ),
        ("tokenizer fit-fast raw -o new", "data.no_samples", "raw episodes"),
        ("preprocess samples -o new", "data.no_episodes", "shards of samples"),
        ("stats compute windows", "data.no_manifest", "windows"),
    ],
)
def test_message_says_what_the_folder_holds(
    words: str,
    code: str,
    holds: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    assert run(["-q", *words.split(), "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert f"holds {holds}, not" in error["message"]


def test_wrong_format_is_told_the_right_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["preprocess", "hdf5", str(folder / "raw"), "-o", str(folder / "new"), "--json"]
    assert run(words) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["hint"] == "your recordings have the format lerobot: write lerobot instead of hdf5"


def test_action_fields_of_a_lerobot_data_set_are_known(folder: Path) -> None:
    for name in ("samples", "windows"):
        source = find_chunks(folder / name)
        assert source.files
        assert source.fields == (("action",) if name == "samples" else ())
