"""Outputs of a version without format numbers: read, and written only with --overwrite."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.preprocessing import FRAMES, refusal, run
from tests.builders.spartan import spartan_task
from vlatool.workflows.verify import VerifyConfig, verify

PREPROCESS_KEYS = ("command", "version", "options", "inputs", "complete", "result")


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


@pytest.mark.parametrize("state", [{}, {"complete": False, "result": None}])
def test_old_output_is_valid_and_refused_unless_it_is_overwritten(
    state: dict[str, Any], source: Path, output: Path
) -> None:
    assert verify(VerifyConfig(location=str(output))).findings == ()
    rewrite_record(output, PREPROCESS_KEYS, **state)

    error = refusal(source, output)

    assert (error.code, error.exit_code) == ("usage.unsupported", 2)
    assert run(source, output, overwrite=True).status == "written"
