"""Row groups of parquet files without a footer, read by pyarrow from the written copy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.builders.lerobot import lerobot_dataset
from tests.builders.lerobot_shared import DATA_FILE
from vlatool.recordings.lerobot import repair, thrift
from vlatool.recordings.lerobot.output import arrow_type

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "zstd": {"compression": "zstd"},
    "plain": {"use_dictionary": False},
    "pages of version 2": {"data_page_version": "2.0"},
    "many pages": {"data_page_size": 400, "write_batch_size": 7},
    "page index": {"write_page_index": True},
}


def table(rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    cells = [{"bytes": rng.bytes(2000), "path": None} for _ in range(rows)]
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    states = pa.array(rng.random(rows * 7), pa.float32())
    columns: dict[str, Any] = {
        "state": pa.FixedSizeListArray.from_arrays(states, 7),
        "action": pa.array(rng.random((rows, 7)).tolist(), pa.list_(pa.float32())),
        "done": pa.array(np.arange(rows) % 2 == 0),
        "index": pa.array(np.arange(rows)),
        "task": pa.array(["pick" if row % 3 else "place" for row in range(rows)]),
        "image": pa.array(cells, cell),
    }
    return pa.table(columns)


def page(values: int, content: bytes) -> bytes:
    """A page of plain values, not compressed."""
    numbers = {1: (5, values), 2: (5, 0), 3: (5, 3), 4: (5, 3)}
    header = {1: (5, 0), 2: (5, len(content)), 3: (5, len(content)), 5: (12, numbers)}
    return thrift.encoded(header) + content


def without_footer(data: bytes) -> bytes:
    return data[: -8 - int.from_bytes(data[-8:-4], "little")]


@pytest.mark.parametrize("share", [0.6, 1])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_whole_row_groups_are_read_with_the_columns_of_another_file(
    tmp_path: Path, options: dict[str, Any], share: float
) -> None:
    whole, path, healthy = (tmp_path / name for name in ("whole", "cut", "healthy"))
    pq.write_table(table(30, 1), whole, **options)
    parts = [table(rows) for rows in (50, 83, 20)]
    with pq.ParquetWriter(path, parts[0].schema, **options) as writer:
        for part in parts:
            writer.write_table(part)
    pages = without_footer(path.read_bytes())
    path.write_bytes(pages[: int(len(pages) * share)])
    assert not repair.is_whole(path)
    repair.salvage(path, healthy, [whole])
    expected = pa.concat_tables(parts if share == 1 else parts[:1])
    assert pq.read_table(healthy).equals(expected)


def test_columns_of_a_lerobot_set_come_from_its_features(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (6, 4), version="v3.0")
    declared = json.loads((root / "meta/info.json").read_text())["features"]
    columns = pq.read_table(root / DATA_FILE)
    kinds = [arrow_type(declared[name]) for name in columns.column_names]
    before = columns.cast(pa.schema([*zip(columns.column_names, kinds, strict=True)]))
    pq.write_table(before, root / DATA_FILE, row_group_size=6)
    (root / DATA_FILE).write_bytes(without_footer((root / DATA_FILE).read_bytes()))
    repair.salvage(root / DATA_FILE, tmp_path / "healthy", ())
    assert pq.read_table(tmp_path / "healthy").equals(before)


def test_columns_that_are_stored_otherwise_than_declared_are_not_read(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", (6, 4), version="v3.0")  # doubles, declared as floats
    (root / DATA_FILE).write_bytes(without_footer((root / DATA_FILE).read_bytes()))
    with pytest.raises(repair.NothingWhole, match="no whole file with the same columns"):
        repair.salvage(root / DATA_FILE, tmp_path / "healthy", ())


@pytest.mark.parametrize("other", [pa.table({"a": [1.5]}), table(30).select(["index", "task"])])
def test_a_file_of_other_columns_is_not_taken(tmp_path: Path, other: pa.Table) -> None:
    whole, path = tmp_path / "whole", tmp_path / "cut"
    pq.write_table(other, whole)
    pq.write_table(table(30), path)
    path.write_bytes(without_footer(path.read_bytes()))
    with pytest.raises(repair.NothingWhole, match="no whole file with the same columns"):
        repair.salvage(path, tmp_path / "healthy", [whole])


def test_the_other_file_whose_columns_are_taken_is_named(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.parquet", tmp_path / "cut"
    for each in (whole, path):
        pq.write_table(table(30), each)
    path.write_bytes(without_footer(path.read_bytes()))
    salvaged = repair.salvage(path, tmp_path / "healthy", [whole])
    assert salvaged.content == "30 rows in 1 row group, with the columns of whole.parquet"


def test_data_that_fit_two_kinds_of_columns_are_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "cut"
    others = [tmp_path / "integers.parquet", tmp_path / "floats.parquet"]
    for other, dtype in zip(others, (np.int32, np.float32), strict=True):
        pq.write_table(pa.table({"a": np.arange(30, dtype=dtype)}), other, use_dictionary=False)
    path.write_bytes(without_footer(others[0].read_bytes()))
    with pytest.raises(repair.NothingWhole, match=r"integers\.parquet as well as floats\.parquet"):
        repair.salvage(path, tmp_path / "healthy", others)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"features": 3}', '{"features": {"a": {}}}'])
def test_a_damaged_description_of_the_set_describes_nothing(tmp_path: Path, content: str) -> None:
    root = lerobot_dataset(tmp_path / "set", (6,), version="v3.0")
    (root / "meta/info.json").write_text(content)
    (root / DATA_FILE).write_bytes(without_footer((root / DATA_FILE).read_bytes()))
    with pytest.raises(repair.NothingWhole, match="no whole file with the same columns"):
        repair.salvage(root / DATA_FILE, tmp_path / "healthy", ())


def test_the_time_is_linear_in_the_number_of_pages(tmp_path: Path) -> None:
    """With a try of every page for every number of rows it would be hours."""
    whole, path = tmp_path / "whole", tmp_path / "cut"
    pq.write_table(pa.table({"a": [1], "b": ["x"], "c": [1.0]}), whole, use_dictionary=["c"])
    path.write_bytes(b"PAR1" + page(1, bytes(8)) * 30_000)
    with pytest.raises(repair.NothingWhole):
        repair.salvage(path, tmp_path / "healthy", [whole])
