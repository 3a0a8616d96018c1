"""Outputs of the version before jobs: accepted if complete, refused otherwise."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.preprocessing import FRAMES, contents, refusal, run
from tests.builders.spartan import spartan_task
from vlatool.workflows.sample import SampleConfig, SampleResult, sample
from vlatool.workflows.verify import VerifyConfig, verify

PREPROCESS_KEYS = ("command", "version", "options", "inputs", "complete", "result")
SAMPLE_KEYS = ("command", "options", "complete", "result")


def rewrite_record(output: Path, keys: tuple[str, ...], **changes: Any) -> None:
    """Reduces a record to the keys that the earlier version wrote."""
    path = output / ".vlatool/run.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: document[key] for key in keys}, indent=2))


def without_indexes(output: Path) -> Iterator[str]:
    """Lines of the file list without shard indexes, which are removed."""
    for index in output.glob("shards/*.index.npz"):
        index.unlink()
    for line in (output / ".vlatool/files.jsonl").read_text().splitlines(keepends=True):
        if ".index.npz" not in line:
            yield line


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("old") / "raw", 2, FRAMES)


@pytest.fixture
def output(source: Path, tmp_path: Path) -> Path:
    """Training data as written by the earlier version."""
    output = tmp_path / "out"
    run(source, output)
    rewrite_record(output, PREPROCESS_KEYS)
    lines = list(without_indexes(output))
    (output / ".vlatool/files.jsonl").write_text("".join(lines))
    return output


def test_old_output_is_already_complete(source: Path, output: Path) -> None:
    before = contents(output)

    result = run(source, output)

    assert (result.status, result.samples) == ("already complete", 2 * FRAMES)
    assert contents(output) == before


def test_old_output_has_no_findings(output: Path) -> None:
    assert verify(VerifyConfig(location=str(output))).findings == ()


def test_damaged_old_output_is_written_again(source: Path, output: Path) -> None:
    before = contents(output)
    (output / "shards/stats.json").unlink()

    assert run(source, output).status == "written"
    indexes = {f"shards/{path.name}" for path in output.glob("shards/*.index.npz")}
    assert contents(output).keys() == before.keys() | indexes


def test_unfinished_old_output_is_refused(source: Path, output: Path) -> None:
    rewrite_record(output, PREPROCESS_KEYS, complete=False, result=None)

    error = refusal(source, output)

    assert (error.code, error.exit_code) == ("usage.output_differs", 2)


def test_unfinished_old_output_can_be_overwritten(source: Path, output: Path) -> None:
    rewrite_record(output, PREPROCESS_KEYS, complete=False, result=None)

    assert run(source, output, overwrite=True).status == "written"


def test_old_sample_is_already_complete(tmp_path: Path) -> None:
    def record() -> SampleResult:
        keys = {"layout": "spartan", "episodes": 1, "frames": 2, "workers": 1}
        return sample(SampleConfig.model_validate({**keys, "output": str(tmp_path / "raw")}))

    record()
    rewrite_record(tmp_path / "raw", SAMPLE_KEYS)
    (tmp_path / "raw/.vlatool/files.jsonl").unlink()

    result = record()

    assert (result.status, result.frames) == ("already complete", 2)
