"""Images in a column of a parquet file, decoded on access."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.artifacts.images import decode_rgb
from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.uri import as_native_file

_LARGEST_FILE = 2**28
_LARGEST_GROUP = 2**31


class ParquetImages:
    """Image column of a parquet file as a `FrameSource`.

    A cell is a struct of `bytes` and `path`, encoded bytes, or a path relative to the data set.
    One row group is held in memory at a time.
    """

    def __init__(self, path: Path, column: str, root: Path, rows: Sequence[int]) -> None:
        """Opens nothing yet; paths of images must stay below `root`, the folder of the data set."""
        self.path = path
        self.column = column
        self._root = root
        self._rows = tuple(int(row) for row in rows)
        self._size: tuple[int, int] | None = None
        self._file: pq.ParquetFile | None = None
        self._cells: pa.ChunkedArray | None = None
        self._first_row = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_cells": None, "_first_row": 0}

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first image, in pixels."""
        if self._size is None:
            height, width, _ = self._image(0).shape
            self._size = (height, width)
        return self._size

    def read(self, indices: Sequence[int]) -> UInt8Array:
        """Images uint8 [N, H, W, 3], RGB."""
        images = np.empty((len(indices), *self.size, 3), np.uint8)
        for position, frame in enumerate(indices):
            image = self._image(frame)
            if image.shape[:2] != self.size:
                actual = f"{image.shape[1]}x{image.shape[0]} pixels"
                raise self._image_error(
                    frame, f"{actual}, the first has {self.size[1]}x{self.size[0]}"
                )
            images[position] = image
        return images

    def encoded(self, frame: int) -> bytes:
        """The stored bytes of an image."""
        cell: Any = self._cell(self._rows[frame])
        parts = (cell.get("bytes"), cell.get("path")) if isinstance(cell, Mapping) else (cell,)
        for part in parts:
            if isinstance(part, bytes) and part:
                return part
            if isinstance(part, str) and part:
                return self._file_content(frame, part)
        raise self._image_error(frame, "the cell has neither bytes nor a path")

    def close(self) -> None:
        """Releases the file; a later read opens it again."""
        if self._file is not None:
            self._file.close()
        self._file, self._cells = None, None

    def _image(self, frame: int) -> UInt8Array:
        data = self.encoded(frame)
        try:
            return decode_rgb(data)
        except ValueError as error:
            raise self._image_error(frame, str(error)) from error

    def _file_content(self, frame: int, relative: str) -> bytes:
        """Bytes of the image file `relative`, searched below the root, then below `images/`."""
        root = self._root.resolve()
        for folder in (root, root / "images"):
            try:
                path = (folder / relative).resolve()
                is_file = path.is_file()
            except (OSError, ValueError) as error:  # not a valid file name
                raise self._image_error(frame, f"its path is not valid: {error}") from error
            if not path.is_relative_to(root):
                raise DataError.at(
                    self.path,
                    f"{self.column} row {self._rows[frame]}: the image path "
                    f"{relative!r} leaves the data set {self._root}",
                    hint="do not trust this file; get the data set from its publisher",
                    code="data.unsafe_path",
                    field=self.column,
                    picture=relative,
                )
            if is_file:
                if (size := path.stat().st_size) > _LARGEST_FILE:
                    raise self._image_error(
                        frame, f"{size:,} bytes; the limit is {_LARGEST_FILE:,}"
                    )
                return read_file(path)
        raise self._image_error(frame, f"the image file {relative!r} is missing")

    def _cell(self, row: int) -> object:
        cells = self._cells
        if cells is None or not 0 <= row - self._first_row < len(cells):
            try:
                cells = self._cells = self._load_row_group(row)
            except (pa.ArrowException, OSError) as error:
                raise self._image_error(self._rows.index(row), str(error)) from error
        return cells[row - self._first_row].as_py()

    def _load_row_group(self, row: int) -> pa.ChunkedArray:
        file = self._file = self._file or pq.ParquetFile(as_native_file(self.path))
        first = 0
        for group in range(file.num_row_groups):
            group_info = file.metadata.row_group(group)
            count = group_info.num_rows
            if row < first + count:
                self._first_row = first
                chunks = map(group_info.column, range(group_info.num_columns))
                bytes_in_memory = sum(chunk.total_uncompressed_size for chunk in chunks)
                if bytes_in_memory > _LARGEST_GROUP:
                    limit = f"the limit is {_LARGEST_GROUP:,}"
                    raise pa.ArrowInvalid(f"its rows take {bytes_in_memory:,} bytes; {limit}")
                return file.read_row_group(group, columns=[self.column]).column(0)
            first += count
        raise pa.ArrowInvalid(f"row {row} of {first} does not exist")

    def _image_error(self, frame: int, reason: str) -> DataError:
        row = self._rows[frame]
        return DataError.at(
            self.path,
            f"{self.column} row {row}: unreadable image: {reason}",
            hint="the file is damaged; download or record the episode again",
            code="data.picture_unreadable",
            field=self.column,
            frame=frame,
            row=row,
        )
