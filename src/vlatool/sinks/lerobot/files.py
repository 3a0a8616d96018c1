"""Final files of a LeRobot set from the parts of its episodes, with numbers and places.

A file is made as one, by any worker; the journal has those of an earlier run. Source:
formats/lerobot-writing 1, 2.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, Literal

import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.artifacts.clips import join_clips
from vlatool.artifacts.lerobot.format import AUTOMATIC
from vlatool.errors import StorageError
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.journal import Journal, Receipt, intact_receipt
from vlatool.storage.atomic import as_storage_error, open_atomic
from vlatool.storage.uri import as_native_file, is_remote

_HINT = "run the same command again with --overwrite"


@dataclass(frozen=True)
class Part:
    """Part of an episode in a final file.

    Attributes:
        path: Its file, relative to the output.
        sha256: Digest of the file.
        number: Number of the episode.
        first_row: Number of its first row in the whole set.
        tasks: Task index in the part to task index in the set; empty: they are equal.
    """

    path: str
    sha256: str
    number: int = 0
    first_row: int = 0
    tasks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class FilePlan:
    """A final file.

    Attributes:
        path: Its path, relative to the output.
        kind: Rows or a video.
        parts: Its parts, in order.
        delay: Largest delay of the clips of a video.
    """

    path: str
    kind: Literal["rows", "video"]
    parts: tuple[Part, ...]
    delay: int = 0

    @property
    def id(self) -> str:
        """Name in the journal, which is a valid file name."""
        return hashlib.sha256(self.path.encode()).hexdigest()[:32]

    @property
    def digest(self) -> str:
        """Digest that changes with the content of the file."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class FileWriter:
    """Writes a final file; picklable.

    Attributes:
        output: The output folder.
        rate: Frames per second.
        columns: Names of all columns, in order.
        annotations: Columns besides `task_index` that hold task indices.
    """

    output: Path
    rate: Fraction
    columns: tuple[str, ...]
    annotations: tuple[str, ...] = ()

    def __call__(self, plan: FilePlan) -> Receipt:
        """Receipt of the file, from the journal if an earlier run wrote it."""
        journal = Journal(self.output, "files")
        previous = intact_receipt(self.output, journal.find(plan.id, plan.digest))
        if previous is not None:
            return previous
        path = self.output / plan.path
        try:
            with _seekable(path) as file:
                if plan.kind == "rows":
                    self._write_rows(plan, file)
                else:
                    paths = [self.output / part.path for part in plan.parts]
                    join_clips(paths, self.rate, file, plan.delay)
        except (av.error.FFmpegError, pa.ArrowException, FileNotFoundError) as error:
            raise StorageError.at(
                path,
                f"cannot be made of the parts of its episodes: {error}",
                hint=_HINT,
                code="storage.damaged_parts",
            ) from error
        entry = file_entry(self.output, plan.path)
        samples = len(plan.parts) if plan.kind == "video" else None
        entry = FileEntry(entry.path, entry.bytes, entry.sha256, samples)
        receipt = Receipt(plan.id, plan.digest, files=(entry,))
        journal.store(receipt)
        return receipt

    def _write_rows(self, plan: FilePlan, file: IO[bytes]) -> None:
        writer: pq.ParquetWriter | None = None
        for part in plan.parts:
            with pq.ParquetFile(as_native_file(self.output / part.path)) as source:
                start = 0
                for group in range(source.num_row_groups):
                    table = self._numbered(source.read_row_group(group), part, start)
                    start += len(table)
                    writer = writer or pq.ParquetWriter(file, table.schema)
                    writer.write_table(table, row_group_size=len(table))
        assert writer is not None, "a file has rows"
        writer.close()

    def _numbered(self, table: pa.Table, part: Part, start: int) -> pa.Table:
        """Rows with the numbers of the set; `start` is the number of the first one."""
        frames = start + np.arange(len(table))
        columns: dict[str, Any] = {name: table.column(name) for name in table.column_names}
        columns |= automatic_columns(frames, self.rate, part.number, part.first_row)
        columns["task_index"] = table.column("task_index")
        for name in ("task_index", *self.annotations) if part.tasks else ():
            columns[name] = _mapped(columns[name], dict(part.tasks))
        return pa.table({name: columns[name] for name in self.columns})


def automatic_columns(
    frames: Any, rate: Fraction, number: int, first_row: int
) -> dict[str, pa.Array]:
    """The automatic columns besides `task_index`, for frames int [F] of an episode."""
    values = (
        (frames / float(rate)).astype(np.float32),
        frames,
        np.full(len(frames), number),
        first_row + frames,
    )
    return dict(zip(AUTOMATIC, map(pa.array, values), strict=False))


def _mapped(column: pa.ChunkedArray, numbers: Mapping[int, int]) -> pa.Array:
    values = [numbers.get(value, value) for value in column.to_pylist()]
    return pa.array(values, column.type)


def write_files(
    writer: FileWriter, plans: Sequence[FilePlan], executor: Any, reporter: Any
) -> Iterator[FileEntry]:
    """Writes all final files; yields their entries in order."""
    with reporter.progress("files", len(plans), "files") as bar:
        for outcome in executor.map(writer, plans):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None
            yield from outcome.value.files
            bar.advance(1)


@contextmanager
def _seekable(path: Path) -> Generator[IO[bytes]]:
    """A file that can be written at any position, and appears as `path` when it is complete."""
    if not is_remote(path):
        with open_atomic(path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as local:
        with as_storage_error(Path(tempfile.gettempdir())):
            yield local
            local.seek(0)
        with open_atomic(path) as file:
            shutil.copyfileobj(local, file, 1 << 20)


@dataclass
class Rolling:
    """Numbers of chunk and file, of files that are filled one after the other.

    Source: formats/lerobot-writing 2.
    """

    limit: int
    chunks_size: int
    size: int = 0
    position: int = 0
    kind: Any = None
    is_started: bool = False

    def place(self, size: int, kind: Any = None) -> tuple[int, int, bool]:
        """Chunk and file of the next part, and True if it is the first one in the file.

        Args:
            size: Bytes of the part.
            kind: What all parts of a file share.
        """
        is_full = self.size + size >= self.limit or kind != self.kind
        if self.is_started and is_full:
            self.position, self.size = self.position + 1, 0
        is_first = not self.is_started or self.size == 0
        self.size, self.kind, self.is_started = self.size + size, kind, True
        chunk, number = divmod(self.position, self.chunks_size)
        return chunk, number, is_first
