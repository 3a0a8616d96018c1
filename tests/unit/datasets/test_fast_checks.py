"""`vlatool verify` and `vlatool inspect` of action tokenizers."""

import json
import shutil
from pathlib import Path

import pytest

from tests.builders.fast import byte_document, window_tree
from tests.surface.invoke import run_vlatool
from vlatool.datasets.fast.layout import (
    CODE_NAME,
    PROCESSOR_NAME,
    REPORT_NAME,
    TOKENIZER_NAME,
    write_fast,
)
from vlatool.datasets.samples.profile import NAME as PROFILE_NAME
from vlatool.recordings.artifact import recognize
from vlatool.transforms.action_tokenizer import ActionTokenizer, byte_characters
from vlatool.workflows.fit_fast import FitFastConfig, fit_fast


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    data, output = window_tree(folder / "windows"), folder / "fast"
    options = {"sources": [str(data)], "output": str(output), "profile": "libero", "workers": 1}
    fit_fast(FitFastConfig(**options, vocab_size=300))
    return output


@pytest.fixture
def folder(fitted: Path, tmp_path: Path) -> Path:
    """Copy without the file list, so that the content of a file is reported, not its change."""
    shutil.copytree(fitted, tmp_path / "fast", ignore=shutil.ignore_patterns(".vlatool"))
    return tmp_path / "fast"


def problem_codes(folder: Path) -> set[str]:
    """Codes of the errors and warnings of `verify`."""
    report = json.loads(run_vlatool("verify", str(folder), "--json")[1])
    report = report.get("result", report)
    return {finding["code"] for finding in report["findings"] if finding["severity"] != "info"}


def test_a_fitted_tokenizer_has_no_findings(fitted: Path, tmp_path: Path) -> None:
    code, text = run_vlatool("verify", str(fitted), "--json")
    report = json.loads(text)
    assert (code, report["kind"], report["findings"]) == (0, "fast", [])
    code, text = run_vlatool("inspect", str(fitted))
    assert (code, "300 ids" in text, "gripper" in text) == (0, True, True)

    copy = shutil.copytree(fitted, tmp_path / "fast")
    (copy / CODE_NAME).touch()  # the original reader may be there
    assert problem_codes(copy) == set()
    (tmp_path / PROCESSOR_NAME).write_text('{"processor_class": "Other", "image_size": 3}')
    assert recognize(tmp_path) is None  # the processor of a model


@pytest.mark.parametrize(
    ("name", "before", "after", "code"),
    [
        (PROCESSOR_NAME, '"scale": 10', '"scale": 20', "fast.broken_report"),
        (PROCESSOR_NAME, '"scale": 10', '"scale": "10"', "fast.broken"),
        (PROCESSOR_NAME, '"scale"', '"other"', "fast.broken"),
        (PROCESSOR_NAME, "UniversalActionProcessor", "Other", "fast.remote_code"),
        (TOKENIZER_NAME, '"ByteLevel"', '"Other"', "fast.broken"),
        (PROFILE_NAME, "gripper", "hand", "fast.broken_profile"),
        (REPORT_NAME, "{", "[", "fast.broken_report"),
    ],
)
def test_each_problem_is_reported(
    folder: Path, name: str, before: str, after: str, code: str
) -> None:
    text = (folder / name).read_text()
    assert before in text
    (folder / name).write_text(text.replace(before, after, 1))
    assert problem_codes(folder) == {code}


def test_a_vocabulary_without_every_byte_is_reported(tmp_path: Path) -> None:
    write_fast(tmp_path, ActionTokenizer(byte_document(byte_characters()[:99]), 10.0, 0))

    assert problem_codes(tmp_path) == {"fast.missing_bytes"}


def test_inspection_of_a_broken_tokenizer_reports_the_problem(folder: Path) -> None:
    (folder / TOKENIZER_NAME).write_text("{}")

    report = json.loads(run_vlatool("inspect", str(folder), "--json")[1])

    assert [finding["code"] for finding in report["findings"]] == ["data.broken"]
