"""Small files with large content are rejected before it fills the memory."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.builders.broken_sources import DATA, FRONT
from tests.builders.lerobot import lerobot_dataset
from tests.builders.preprocessing import FRAMES, processed
from tests.builders.spartan import spartan_task
from vlatool.episode import RowSegment
from vlatool.errors import DataError
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.reader import LeRobotReader
from vlatool.recordings.lerobot.tables import read_rows
from vlatool.recordings.spartan.config import SpartanConfig
from vlatool.recordings.spartan.reader import SpartanReader

MEBIBYTE = 2**20


def error_of_second(reader: LeRobotReader | SpartanReader, root: Path) -> DataError:
    """Error of the second episode."""
    refs = list(reader.discover([root]))
    with pytest.raises(DataError) as caught:
        reader.read(refs[1])
    return caught.value


def test_parquet_of_few_bytes_with_millions_of_rows_is_not_read(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set")
    table = pq.read_table(root / DATA).slice(0, 1)
    indices = pa.array(np.zeros(1_100_000, np.int32))
    with pq.ParquetWriter(root / DATA, table.schema) as file:
        for _ in range(2):
            file.write_table(table.take(indices))
    error = error_of_second(LeRobotReader(LeRobotConfig()), root)
    assert (root / DATA).stat().st_size < MEBIBYTE
    assert (error.code, "2,097,152" in error.message) == ("data.broken", True)


def test_repeated_text_is_stored_once(tmp_path: Path) -> None:
    pq.write_table(pa.table({"task": ["put it there"] * 9}), tmp_path / "rows.parquet")
    texts = read_rows(RowSegment(tmp_path / "rows.parquet"), "episode 0", ["task"]).labels("task")
    assert texts == ["put it there"] * 9
    assert len(set(map(id, texts))) == 1


def test_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    root = lerobot_dataset(tmp_path / "set", cameras={FRONT: "image"})
    Image.new("1", (12_000, 12_000)).save(root / "large.png")
    table = pq.read_table(root / DATA)
    cells = pa.array([{"bytes": None, "path": "large.png"}] * len(table))
    position = table.schema.get_field_index(FRONT)
    pq.write_table(table.set_column(position, FRONT, cells), root / DATA)
    reader = LeRobotReader(LeRobotConfig())
    episode = reader.read(list(reader.discover([root]))[1])
    with pytest.raises(DataError) as caught:
        episode.cameras[FRONT].read([0])
    assert caught.value.code == "data.broken"


def test_metadata_over_the_limit_are_not_parsed(tmp_path: Path) -> None:
    root = spartan_task(tmp_path, 2, FRAMES)
    with (processed(root) / "metadata.yaml").open("r+b") as file:
        file.truncate(300 * MEBIBYTE)
    error = error_of_second(SpartanReader(SpartanConfig()), root)
    assert (error.code, "64 MiB" in error.message) == ("data.broken", True)
