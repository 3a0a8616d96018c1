"""MCAP files without a summary, cut off, or with damaged chunks.

Source: MCAP specification, section Records.
"""

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlatool.errors import installed
from vlatool.events import counted
from vlatool.formats.media.repair import NothingWhole, Salvaged

_LARGEST = 2**28  # bytes of a record
_ERRORS = (ValueError, LookupError, ArithmeticError, RuntimeError, EOFError, MemoryError)


def is_whole(path: Path) -> bool:
    """True if a file has a summary and all of its chunks are there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            summary = installed("mcap.reader").make_reader(file).get_summary()
        except _errors():
            return False
    if summary is None:
        return False
    ends = [chunk.chunk_start_offset + chunk.chunk_length for chunk in summary.chunk_indexes]
    return max(ends, default=0) <= size


def salvage(path: Path, target: Path, others: Iterable[Path]) -> Salvaged:
    """Writes the messages, attachments and metadata up to the end of what is whole."""
    with path.open("rb") as file, target.open("wb") as output:
        copy = _Copy(output)
        reader = installed("mcap.stream_reader").StreamReader(
            file, emit_chunks=True, record_size_limit=_LARGEST
        )
        whole = 0
        size = path.stat().st_size
        try:
            for record in reader.records:
                if type(record).__name__ == "DataEnd":
                    break
                whole = file.tell()
                copy.add(record, whole)
        except _errors() as error:
            copy.lose(f"bytes {whole:,} to {size:,}", error)
        copy.writer.finish()
    if not copy.messages:
        raise NothingWhole("it has no whole messages")
    return Salvaged(counted(copy.messages, "message"), ("the summary", *copy.lost))


def _errors() -> tuple[type[Exception], ...]:
    own = installed("mcap.exceptions").McapError, installed("zstandard").ZstdError
    return (*own, *_ERRORS, struct.error)


class _Copy:
    """Writer of a file with the records of another."""

    def __init__(self, output: Any) -> None:
        self.writer: Any = installed("mcap.writer").Writer(output)
        self.lost: list[str] = []
        self.messages = 0
        self._ids: dict[tuple[str, int], int] = {("Schema", 0): 0}

    def lose(self, place: str, error: Exception) -> None:
        self.lost.append(f"{place}: {str(error) or type(error).__name__}")

    def add(self, record: Any, position: int) -> None:
        kind = type(record).__name__
        writer = self.writer
        key = (kind, getattr(record, "id", 0))
        if kind == "Chunk":
            parts = installed("mcap.stream_reader").breakup_chunk
            try:
                for part in parts(record, validate_crc=True):
                    self.add(part, position)
            except _errors() as error:
                self.lose(f"the chunk that ends at byte {position:,}", error)
        elif kind == "Header":
            writer.start(record.profile, record.library)
        elif kind == "Message":
            values = (record.log_time, record.data, record.publish_time, record.sequence)
            writer.add_message(self._ids["Channel", record.channel_id], *values)
            self.messages += 1
        elif kind == "Schema" and key not in self._ids:
            self._ids[key] = writer.register_schema(record.name, record.encoding, record.data)
        elif kind == "Channel" and key not in self._ids:
            values = (self._ids["Schema", record.schema_id], record.metadata)
            self._ids[key] = writer.register_channel(record.topic, record.message_encoding, *values)
        elif kind == "Attachment":
            values = (record.create_time, record.log_time, record.name, record.media_type)
            writer.add_attachment(*values, record.data)
        elif kind == "Metadata":
            writer.add_metadata(record.name, record.metadata)
