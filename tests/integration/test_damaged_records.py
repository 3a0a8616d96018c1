"""Flipped bits in records are detected by every reader."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.errors import fails
from tests.builders.preprocessing import FRAMES, run
from tests.builders.spartan import spartan_task
from tests.builders.verifying import verified
from vlatool.cli import app
from vlatool.datasets.lbm.layout import read_processing_metadata
from vlatool.errors import DataError
from vlatool.jobs.record import read_valid_record
from vlatool.workflows.verify import InspectConfig, inspect

RECORDS = {
    ".vlatool/run.json": "broken_record",
    "shards/processing_metadata.json": "broken_metadata",
}
FLIPS = 200


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spartan_task(tmp_path_factory.mktemp("raw") / "raw", 1, FRAMES)


@pytest.fixture(scope="module")
def output(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "out"
    run(source, folder)
    return folder


@pytest.fixture
def damaged(output: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(output, tmp_path / "out"))


def flipped(content: bytes) -> Iterator[bytes]:
    """Copies of the content with one bit flipped, at evenly spaced positions, reproducible."""
    rng = random.Random(9)
    for number in range(FLIPS):
        position = number * len(content) // FLIPS
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def undetected_flips(path: Path) -> list[bytes]:
    """Contents that a reader accepts although their JSON value has changed."""
    original = path.read_bytes()
    undetected: list[bytes] = []
    for content in flipped(original):
        path.write_bytes(content)
        try:
            read_valid_record(path.parents[1])
            read_processing_metadata(path.parent)
        except DataError:
            continue
        undetected += [content] if json.loads(content) != json.loads(original) else []
    return undetected


@pytest.mark.parametrize("name", RECORDS)
def test_flipped_bit_is_detected_by_the_reader(damaged: Path, name: str) -> None:
    assert undetected_flips(damaged / name) == []


@pytest.mark.parametrize("name", RECORDS)
def test_flipped_bit_is_an_error_of_verify_inspect_and_a_resumed_run(
    source: Path, damaged: Path, name: str
) -> None:
    path = damaged / name
    path.write_text(path.read_text().replace("20", "21", 1))
    assert verified(damaged).codes.keys() == {f"output.{RECORDS[name]}"}

    findings = inspect(InspectConfig(location=str(damaged))).document()["findings"]
    assert [finding["code"] for finding in findings] == ["data.broken"]
    assert str(path) in findings[0]["message"]

    if name == ".vlatool/run.json":
        with fails("data.broken", 3) as caught:
            run(source, damaged)
        assert str(path) in caught.value.message


@pytest.mark.parametrize("name", RECORDS)
def test_record_without_a_digest_is_accepted(source: Path, damaged: Path, name: str) -> None:
    document = json.loads((damaged / name).read_text())
    del document["digest"]
    (damaged / name).write_text(json.dumps(document))

    assert run(source, damaged).status == "already complete"
    assert verified(damaged).findings == ()


HOSTILE = {
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "list": b"[1]",
    "empty": b"",
}


@pytest.mark.parametrize(
    "name", [*RECORDS, "shards/manifest.jsonl", "shards/preprocessing_config.yaml"]
)
def test_artifact_of_any_content_is_reported_in_two_lines(
    damaged: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for content in HOSTILE.values():
        (damaged / name).write_bytes(content)
        codes = [app.run([command, str(damaged), "-q"]) for command in ("verify", "inspect")]
        lines = capsys.readouterr().err.splitlines()
        assert (codes[0], codes[1] in (0, 3)) == (3, True)
        assert {line.partition(":")[0] for line in lines} <= {"error", "hint"}
