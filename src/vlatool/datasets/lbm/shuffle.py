"""Shards of shuffled samples, made of the tars of single episodes.

`SampleIndex` has the byte range of each sample, and plans the shards in a seeded shuffle; a shard
is copied from these ranges by any worker, and the journal lists the shards of an earlier run.
"""

import hashlib
import math
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlatool.datasets.lbm import layout as shards_layout
from vlatool.errors import StorageError
from vlatool.events import Reporter, per_second
from vlatool.jobs.executor import Executor
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Journal, Receipt, intact_receipt
from vlatool.media.tar import ShardIndex, TarWriter, index_path
from vlatool.storage.atomic import open_atomic, write_bytes
from vlatool.storage.byte_ranges import ByteRange, read_byte_ranges

RANGES = "ranges"  # array of receipts: (offset, length) in bytes of each sample, int64 [S, 2]


@dataclass(frozen=True)
class ShardPlan:
    """Samples of one shard."""

    path: str  # Path of the tar, relative to the output
    samples: tuple[tuple[str, int, int], ...]  # (episode's tar, offset, length) of each sample
    digest: str  # digest that changes with the content of the shard

    @property
    def id(self) -> str:
        return Path(self.path).stem


class SampleIndex:
    """Byte ranges of all samples; 16 bytes per sample, so that millions fit in memory."""

    def __init__(self) -> None:
        self.files: list[FileEntry] = []
        self._ends = array("q")
        self._offsets = array("q")
        self._lengths = array("q")

    @property
    def samples(self) -> int:
        return len(self._offsets)

    def shards(self, samples_per_shard: int) -> int:
        return math.ceil(self.samples / samples_per_shard)

    def add(self, receipt: Receipt) -> None:
        """Adds the samples of the next episode; an episode without samples is skipped."""
        if not receipt.files:
            return
        self.files += receipt.files
        for offset, length in receipt.arrays[RANGES].tolist():
            self._offsets.append(offset)
            self._lengths.append(length)
        self._ends.append(len(self._offsets))

    def plans(self, seed: int, samples_per_shard: int) -> Iterator[ShardPlan]:
        """Plans of the shards, in order."""
        order = np.random.default_rng(seed).permutation(self.samples)
        for number in range(self.shards(samples_per_shard)):
            start = number * samples_per_shard
            digest = hashlib.blake2b(digest_size=16)
            samples: list[tuple[str, int, int]] = []
            for sample in order[start : start + samples_per_shard].tolist():
                episode = self.files[bisect_right(self._ends, sample)]
                offset = self._offsets[sample]
                length = self._lengths[sample]
                samples.append((episode.path, offset, length))
                digest.update(f"{episode.sha256} {offset} {length}\n".encode())
            path = shards_layout.shard_name(number)
            yield ShardPlan(path, tuple(samples), digest.hexdigest())


@dataclass(frozen=True)
class ShardWriter:
    """Copies the byte ranges of one shard and indexes them; picklable."""

    output: Path

    def __call__(self, plan: ShardPlan) -> Receipt:
        journal = Journal(self.output, "shards")
        previous = intact_receipt(self.output, journal.find(plan.id, plan.digest))
        if previous is not None:
            return previous
        path = self.output / plan.path
        with open_atomic(path) as file:
            tar = TarWriter(file)
            ranges = [tar.append(data) for data in _samples(self.output, plan)]
            tar.finish()
        shard = FileEntry(plan.path, tar.position, tar.sha256, len(plan.samples))
        index = write_index(self.output, plan.path, ranges, tar.position)
        receipt = Receipt(plan.id, plan.digest, files=(shard, index))
        journal.store(receipt)
        return receipt


def write_index(output: Path, tar: str, ranges: Sequence[tuple[int, int]], size: int) -> FileEntry:
    """Writes the index of a tar of `size` bytes, from the (offset, length) of its samples."""
    rows = np.array(ranges, np.int64).reshape(-1, 2)
    content = ShardIndex(rows[:, 0], rows[:, 1], size).content()
    path = index_path(output / tar)
    write_bytes(path, content, synced=False)
    name = path.relative_to(output).as_posix()
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest(), len(rows))


def write_shards(
    output: Path,
    index: SampleIndex,
    seed: int,
    samples_per_shard: int,
    executor: Executor,
    reporter: Reporter,
) -> list[tuple[FileEntry, FileEntry]]:
    """Writes all shards; returns the (tar, index) entries of each."""
    entries: list[tuple[FileEntry, FileEntry]] = []
    plans = index.plans(seed, samples_per_shard)
    start = time.monotonic()
    megabytes = 0.0
    with reporter.progress("shards", index.shards(samples_per_shard), "shards") as bar:
        for outcome in executor.map(ShardWriter(output), plans):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None
            shard, index_entry = outcome.value.files
            entries.append((shard, index_entry))
            megabytes += shard.bytes / 1e6
            rate = per_second(megabytes, time.monotonic() - start)
            if rate is None:
                bar.advance(1)
            else:
                bar.advance(1, **{"MB/s": round(rate, 1)})
    return entries


def _samples(output: Path, plan: ShardPlan) -> Iterator[bytes]:
    """Bytes of the samples; raises StorageError if the tar of an episode has changed."""
    parts: list[ByteRange] = []
    for name, start, length in plan.samples:
        parts.append(ByteRange(output / name, start, start + length))
    contents = read_byte_ranges(parts)
    for part in parts:
        try:
            data = next(contents)
        except FileNotFoundError:
            data = b""
        if len(data) != part.stop - part.start:
            raise StorageError.at(
                part.path,
                "was removed or truncated while shards were written",
                hint="run the same command again to resume",
                code="storage.changed",
            )
        yield data
