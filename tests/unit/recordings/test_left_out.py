"""What nothing takes is named: planted things in every format, with every sink."""

from pathlib import Path
from typing import Any

import pytest

from tests.builders.planted import FIELD, PLANTED, PLANTS
from vlatool.inspection import verify_location
from vlatool.recordings.check import CheckOptions
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.verify import InspectConfig, inspect


def missing(paths: list[str]) -> list[str]:
    return [name for name in PLANTED if not any(name in path for path in paths)]


def fields_of(output: Path) -> list[str]:
    """Columns of an output; of a LeRobot set also those that a policy does not observe."""
    facts = inspect(InspectConfig(location=str(output))).report.facts
    return [*facts["fields"], *(part["path"] for part in facts.get("left_out", ()))]


@pytest.mark.parametrize(
    ("name", "sink"),
    [
        *((name, "frames") for name in PLANTS),
        *(("lerobot", sink) for sink in ("lbm", "jsonl", "image-shards", "lerobot")),
        ("hdf5", "lerobot"),
    ],
)
def test_a_planted_camera_text_and_action_are_named_by_preprocess(
    name: str, sink: str, tmp_path: Path
) -> None:
    source = PLANTS[name](tmp_path)
    config = PreprocessConfig.specialize({"format": name, "sink": sink})
    fields: dict[str, Any] = {"format": name, "sources": [str(source)], "workers": 1}
    section = config.model_fields["source"].default_factory
    keys = {} if name == "lerobot" else {"fps": 10.0}
    source_keys = section().model_copy(update=keys)
    result = preprocess(config(**fields, output=str(tmp_path / "out"), source=source_keys))
    assert missing([part["path"] for part in result.left_out]) == []
    stored = [*result.left_out_fields, *(part["path"] for part in result.left_out)]
    if sink in ("frames", "lbm", "lerobot"):
        stored += fields_of(tmp_path / "out")
    assert any(FIELD in name for name in stored)
    assert all(part["reason"] for part in result.left_out)
    assert any(warning.startswith("left_out.wanted") for warning in result.warnings)


@pytest.mark.parametrize("name", PLANTS)
def test_inspect_and_verify_name_them_too(name: str, tmp_path: Path) -> None:
    source = PLANTS[name](tmp_path)
    facts = inspect(InspectConfig(location=str(source), format=name)).report.facts
    assert missing([part["path"] for part in facts["left_out"]]) == []
    findings = list(verify_location(source, CheckOptions()).findings)
    messages = [each.message for each in findings if each.code == "left_out.wanted"]
    assert missing(messages) == []
