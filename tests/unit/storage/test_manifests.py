"""Typed reader of manifests."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vlatool.errors import DataError
from vlatool.storage.documents import MAX_BYTES
from vlatool.storage.manifest import Count, FileName, ManifestType, Number


@dataclass(frozen=True)
class Row:
    name: FileName
    bytes: Count


@dataclass(frozen=True)
class Content:
    files: tuple[Row, ...]
    share: Number = 1.0


TYPE = ManifestType("m.json", "toy", 2, Content, hint="copy it again", optional=("share",))
WHOLE: dict[str, Any] = {"format": "toy", "version": 2, "files": [{"name": "a", "bytes": 3}]}


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    TYPE.write(tmp_path, {"files": [{"name": "a", "bytes": 3}], "share": 0.5})
    assert TYPE.read(tmp_path) == Content((Row("a", 3),), 0.5)
    assert json.loads((tmp_path / "m.json").read_text())["version"] == 2


def test_a_manifest_may_be_larger_than_other_documents(tmp_path: Path) -> None:
    TYPE.write(tmp_path, WHOLE | {"more": "x" * MAX_BYTES})
    assert TYPE.read(tmp_path) is not None


def test_a_missing_manifest_and_one_of_another_format_are_none(tmp_path: Path) -> None:
    assert TYPE.read(tmp_path) is None
    (tmp_path / "m.json").write_text('{"format": "other"}')
    assert TYPE.read(tmp_path) is None
    assert not TYPE.is_in(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 3}, "has version 3"),
        ({"files": ...}, "files: is missing"),
        ({"files": None}, "files: "),
        ({"files": [{"name": "a"}]}, "files.0.bytes: "),
        ({"files": [{"name": "a", "bytes": -1}]}, "files.0.bytes: "),
        ({"files": [{"name": "a", "bytes": True}]}, "files.0.bytes: "),
        ({"files": [{"name": "a", "bytes": "3"}]}, "files.0.bytes: "),
        ({"files": [{"name": "../a", "bytes": 3}]}, "files.0.name: "),
        ({"files": [{"name": "b/a", "bytes": 3}]}, "files.0.name: "),
        ({"share": "1"}, "share: "),
    ],
)
def test_an_error_names_file_key_and_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    tree = {key: value for key, value in (WHOLE | changes).items() if value is not ...}
    (tmp_path / "m.json").write_text(json.dumps(tree))
    with pytest.raises(DataError) as raised:
        TYPE.read(tmp_path)
    assert raised.value.message.startswith(f"{tmp_path / 'm.json'}: {reason}")
    assert raised.value.code == "data.broken"
    assert raised.value.details == {"path": str(tmp_path / "m.json")}
