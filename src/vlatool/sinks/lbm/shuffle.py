"""Which sample goes into which shard: a seeded permutation over all samples of all episodes."""

import hashlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlatool.jobs.files import FileEntry
from vlatool.sinks.base import Receipt


@dataclass(frozen=True)
class ShardPlan:
    """One shard.

    Attributes:
        stem: Its name.
        samples: (episode id, offset, length) of each sample in the episode's tar.
        digest: Changes when the content of the shard would.
    """

    stem: str
    samples: tuple[tuple[str, int, int], ...]
    digest: str


class SampleIndex:
    """Where every sample is; 16 bytes each, so that millions fit in memory."""

    def __init__(self) -> None:
        self.files: list[FileEntry] = []
        self._names: list[str] = []
        self._ends = array("q")
        self._offsets = array("q")
        self._lengths = array("q")

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self._offsets)

    def shards(self, samples_per_shard: int) -> int:
        """How many shards they fill."""
        return -(-self.samples // samples_per_shard)

    def add(self, receipt: Receipt) -> None:
        """Adds the samples of the next episode; one without samples leaves nothing."""
        if not receipt.ranges:
            return
        name = f"episodes/episode_{receipt.episode}.tar"
        self.files.append(FileEntry(name, receipt.bytes, receipt.sha256, len(receipt.ranges)))
        self._names.append(receipt.episode)
        for offset, length in receipt.ranges:
            self._offsets.append(offset)
            self._lengths.append(length)
        self._ends.append(len(self._offsets))

    def plans(self, seed: int, samples_per_shard: int) -> Iterator[ShardPlan]:
        """The shards, one after the other."""
        order = np.random.default_rng(seed).permutation(self.samples)
        for number in range(self.shards(samples_per_shard)):
            chosen = order[number * samples_per_shard : (number + 1) * samples_per_shard]
            yield self._plan(f"shard_{number:06d}", chosen.tolist())

    def _plan(self, stem: str, chosen: list[int]) -> ShardPlan:
        digest = hashlib.blake2b(digest_size=16)
        samples: list[tuple[str, int, int]] = []
        for sample in chosen:
            episode = bisect_right(self._ends, sample)
            offset, length = self._offsets[sample], self._lengths[sample]
            samples.append((self._names[episode], offset, length))
            digest.update(f"{self.files[episode].sha256} {offset} {length}\n".encode())
        return ShardPlan(stem, tuple(samples), digest.hexdigest())
