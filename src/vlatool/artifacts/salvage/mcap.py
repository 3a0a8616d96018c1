"""MCAP files without a summary, cut off, or with damaged chunks.

Source: MCAP specification, section Records.
"""

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlatool.artifacts.salvage.base import NothingWhole, Salvaged
from vlatool.errors import installed
from vlatool.events import counted

_LARGEST = 2**28  # bytes of a record


def is_whole(path: Path) -> bool:
    """True if a file has a summary and all of its chunks are there."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            summary = installed("mcap.reader").make_reader(file).get_summary()
        except _errors():
            return False
    chunks = summary.chunk_indexes if summary is not None else [None]
    return all(c is not None and c.chunk_start_offset + c.chunk_length <= size for c in chunks)


def salvage(path: Path, target: Path, others: Iterable[Path]) -> Salvaged:
    """Writes the messages, attachments and metadata up to the end of what is whole."""
    with path.open("rb") as file, target.open("wb") as output:
        copy = _Copy(output)
        reader = installed("mcap.stream_reader").StreamReader(
            file, emit_chunks=True, record_size_limit=_LARGEST
        )
        whole, size = 0, path.stat().st_size
        try:
            for record in reader.records:
                if type(record).__name__ == "DataEnd":
                    whole = size
                    break
                copy.add(record, whole := file.tell())
        except _errors() as error:
            copy.lost.append(f"bytes {whole:,} to {size:,}: {_text(error)}")
        copy.writer.finish()
    if not copy.messages:
        raise NothingWhole("it has no whole messages")
    return Salvaged(counted(copy.messages, "message"), ("the summary", *copy.lost))


def _errors() -> tuple[type[Exception], ...]:
    own = (installed("mcap.exceptions").McapError, installed("zstandard").ZstdError)
    return (
        *own,
        ValueError,
        LookupError,
        struct.error,
        RuntimeError,
        EOFError,
        MemoryError,
        OverflowError,
    )


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


class _Copy:
    """Writer of a file with the records of another."""

    def __init__(self, output: Any) -> None:
        self.writer: Any = installed("mcap.writer").Writer(output)
        self.lost: list[str] = []
        self.messages = 0
        self._ids: dict[tuple[str, int], int] = {("Schema", 0): 0}

    def add(self, record: Any, position: int) -> None:
        kind = type(record).__name__
        if kind == "Chunk":
            try:
                for part in installed("mcap.stream_reader").breakup_chunk(
                    record, validate_crc=True
                ):
                    self.add(part, position)
            except _errors() as error:
                self.lost.append(f"the chunk that ends at byte {position:,}: {_text(error)}")
        elif kind == "Header":
            self.writer.start(record.profile, record.library)
        elif kind == "Message":
            self.writer.add_message(
                self._ids["Channel", record.channel_id],
                record.log_time,
                record.data,
                record.publish_time,
                record.sequence,
            )
            self.messages += 1
        elif kind in ("Schema", "Channel") and (kind, record.id) not in self._ids:
            self._ids[kind, record.id] = self._register(kind, record)
        elif kind == "Attachment":
            values = (record.create_time, record.log_time, record.name, record.media_type)
            self.writer.add_attachment(*values, record.data)
        elif kind == "Metadata":
            self.writer.add_metadata(record.name, record.metadata)

    def _register(self, kind: str, record: Any) -> int:
        if kind == "Schema":
            return self.writer.register_schema(record.name, record.encoding, record.data)
        schema = self._ids["Schema", record.schema_id]
        return self.writer.register_channel(
            record.topic, record.message_encoding, schema, record.metadata
        )
