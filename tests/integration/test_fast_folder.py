"""`vlatool verify` and `vlatool inspect` of action tokenizers."""

import json
import shutil
from pathlib import Path

import pytest

from tests.builders.fast import byte_document, window_tree
from tests.surface.invoke import run_vlatool
from vlatool.artifacts.fast import (
    CODE_NAME,
    PROCESSOR_NAME,
    REPORT_NAME,
    TOKENIZER_NAME,
    write_fast,
)
from vlatool.artifacts.profile import NAME as PROFILE_NAME
from vlatool.plugins import recognize
from vlatool.transforms.action_tokenizer import ActionTokenizer, byte_characters
from vlatool.workflows.fit_fast import FitFastConfig, fit_fast


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    data, output = window_tree(folder / "windows"), folder / "fast"
    given = {"sources": [str(data)], "output": str(output), "profile": "libero", "workers": 1}
    fit_fast(FitFastConfig(**given, vocab_size=300))
    return output


@pytest.fixture
def folder(fitted: Path, tmp_path: Path) -> Path:
    """A copy without the list of files: what a file says is told, not that it changed."""
    shutil.copytree(fitted, tmp_path / "fast", ignore=shutil.ignore_patterns(".vlatool"))
    return tmp_path / "fast"


def found(folder: Path) -> set[str]:
    """Codes of errors and warnings."""
    told = json.loads(run_vlatool("verify", str(folder), "--json")[1])
    told = told.get("result", told)
    return {one["code"] for one in told["findings"] if one["severity"] != "info"}


def test_a_fitted_tokenizer_is_whole(fitted: Path) -> None:
    code, text = run_vlatool("verify", str(fitted), "--json")

    told = json.loads(text)
    assert (code, told["kind"], told["findings"]) == (0, "fast", [])


def test_the_original_reader_may_lie_beside_it(fitted: Path, tmp_path: Path) -> None:
    copy = tmp_path / "fast"
    shutil.copytree(fitted, copy)
    (copy / CODE_NAME).touch()

    assert found(copy) == set()


@pytest.mark.parametrize(
    ("name", "before", "after", "code"),
    [
        (PROCESSOR_NAME, '"scale": 10', '"scale": 20', "fast.broken_report"),
        (PROCESSOR_NAME, '"scale": 10', '"scale": "10"', "fast.broken"),
        (PROCESSOR_NAME, "UniversalActionProcessor", "Other", "fast.remote_code"),
        (TOKENIZER_NAME, '"ByteLevel"', '"Other"', "fast.broken"),
        (PROFILE_NAME, "gripper", "hand", "fast.broken_profile"),
        (REPORT_NAME, "{", "[", "fast.broken_report"),
    ],
)
def test_what_is_wrong_is_found(
    folder: Path, name: str, before: str, after: str, code: str
) -> None:
    text = (folder / name).read_text()
    assert before in text
    (folder / name).write_text(text.replace(before, after, 1))

    assert found(folder) == {code}


def test_a_vocabulary_without_every_byte_is_told(tmp_path: Path) -> None:
    write_fast(tmp_path, ActionTokenizer(byte_document(byte_characters()[:99]), 10.0, 0))

    assert found(tmp_path) == {"fast.missing_bytes"}


def test_the_processor_of_a_model_is_none(tmp_path: Path) -> None:
    (tmp_path / PROCESSOR_NAME).write_text('{"processor_class": "Other", "image_size": 3}')

    assert recognize(tmp_path) is None


def test_inspection_shows_tokenizer_and_profile(fitted: Path) -> None:
    code, text = run_vlatool("inspect", str(fitted))

    assert code == 0
    assert "300 ids" in text
    assert "gripper" in text


def test_inspection_of_a_broken_one_tells_what_is_broken(folder: Path) -> None:
    (folder / TOKENIZER_NAME).write_text("{}")

    told = json.loads(run_vlatool("inspect", str(folder), "--json")[1])

    assert [one["code"] for one in told["findings"]] == ["data.broken_fast_tokenizer"]


def test_a_tokenizer_without_a_scale_is_told_of_as_one(folder: Path) -> None:
    path = folder / PROCESSOR_NAME
    content = json.loads(path.read_text())
    del content["scale"]
    path.write_text(json.dumps(content))

    assert "fast.broken" in found(folder)
