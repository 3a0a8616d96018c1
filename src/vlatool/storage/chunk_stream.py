"""Chunks of an object in order, fetched in parallel ranges that run ahead of their consumer."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import NamedTuple

from vlatool.errors import StorageError
from vlatool.storage.background import in_background
from vlatool.storage.reader import RangeDownload, changed_error
from vlatool.storage.remote import Address, ConditionFailed, ObjectInfo, Remote, call
from vlatool.storage.transfer import TransferPool, body_blocks

# Chunks in memory: requested or received, up to the one that is being consumed.
RUN_AHEAD = 16

# Gets the number of a chunk and its bytes; chunks come in order, each once.
Consumer = Callable[[int, bytes], None]


@dataclass(frozen=True)
class ChunkStream:
    """Chunks of one version of an object."""

    address: Address  # the object
    info: ObjectInfo  # its size and version
    chunk_bytes: int  # size of a chunk; the last one may be smaller
    pool: TransferPool  # streams and limits

    def read(self, numbers: Sequence[int], consume: Consumer) -> None:
        """Hands chunks to a consumer, up to one per stream and `RUN_AHEAD` ahead of it; `numbers`:
        numbers of the chunks, from 0, ascending.
        """
        remaining = iter(numbers)
        for number in islice(remaining, 1):
            first = self._fetch_first(number)
            if first is None:
                self._read_whole(numbers, consume)
                return
            consume(number, first)
        limit = min(self.pool.streams, RUN_AHEAD)
        running: deque[tuple[int, Future[_Chunk]]] = deque()
        while True:
            for number in islice(remaining, limit - len(running)):
                running.append((number, in_background(partial(self._fetch, number))))
            if not running:
                return
            number, chunk = running[0]
            consume(number, chunk.result().data)
            running.popleft()

    def _fetch_first(self, number: int) -> bytes | None:
        """Fetches a chunk; None if the server has no ranges."""
        try:
            chunk = self._fetch(number)
            return chunk.data if chunk.is_range else None
        except StorageError as error:
            if error.code != "storage.unsupported" or number == 0:
                raise
            return None

    def _fetch(self, number: int) -> "_Chunk":
        start = number * self.chunk_bytes
        stop = min(start + self.chunk_bytes, self.info.size)
        version = self.info if self.info.etag else None
        blocks: list[bytes] = []
        part = RangeDownload(
            self.address, start, stop, version, sink=self.pool.counted(blocks.append)
        )
        with self.pool.stream():
            part.fill()
        assert part.info is not None
        if part.info.size != self.info.size:
            raise changed_error(self.address)
        return _Chunk(b"".join(blocks), part.is_range)

    def _read_whole(self, numbers: Sequence[int], consume: Consumer) -> None:
        """Reads the object with one request; a retry reads from its start and skips."""
        self.pool.on_note(
            f"{self.address}: the server has no byte ranges; an interrupted download reads it from"
            " the start again"
        )
        remaining = deque(numbers)

        def receive(remote: Remote) -> None:
            body = remote.get(self.address.key, 0, self.info.size, self.info.etag)
            try:
                if body.info.size != self.info.size:
                    raise ConditionFailed
                for number in range(numbers[-1] + 1):
                    size = min(self.chunk_bytes, self.info.size - number * self.chunk_bytes)
                    data = b"".join(body_blocks(body, size, self.address, self.pool))
                    if remaining and number == remaining[0]:
                        consume(number, data)
                        remaining.popleft()
            finally:
                body.close()

        with self.pool.stream():
            try:
                call(self.address, receive)
            except ConditionFailed:
                raise changed_error(self.address) from None


class _Chunk(NamedTuple):
    """Bytes of a chunk; `is_range` is False if the server sent the whole object."""

    data: bytes
    is_range: bool
