"""Images in a column of a parquet file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.builders.errors import fails
from vlatool.media import frames
from vlatool.media.frames import ParquetImages
from vlatool.media.images import encode_png

COLUMN = "observation.images.front"


def images_of(path: Path) -> ParquetImages:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    cells = [{"bytes": encode_png(image), "path": None} for image in pixels]
    others = [np.random.default_rng(1).bytes(100_000) for _ in cells]
    pq.write_table(pa.table({COLUMN: cells, f"{COLUMN}2": others}), path)
    return ParquetImages(path, COLUMN, path.parent, range(4))


def test_a_row_group_is_as_large_as_the_column_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(tmp_path / "rows.parquet")
    monkeypatch.setattr(frames, "_LARGEST_GROUP", 10_000)
    assert images.read([0, 3]).shape == (2, 8, 8, 3)


def test_a_row_group_with_a_larger_column_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(tmp_path / "rows.parquet")
    monkeypatch.setattr(frames, "_LARGEST_GROUP", 100)
    with fails("data.broken", 3):
        images.read([0])
