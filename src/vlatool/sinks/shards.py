"""Seeded shuffle of samples into tar shards, and one tar per episode.

Each sample is encoded once, into its episode's tar; shards are made of byte ranges copied from
those. Source: lbm-data 3.8, 3.11, 8.1.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from vlatool.artifacts.manifest import write_manifest
from vlatool.artifacts.sample import TarWriter, member_bytes, sample_members
from vlatool.artifacts.stats import write_stats
from vlatool.episode import EpisodeRef, Sample
from vlatool.errors import DataError
from vlatool.parallel.executor import Executor
from vlatool.sinks.base import Receipt
from vlatool.storage.atomic import open_atomic
from vlatool.transforms.statistics import FieldStatistics, merge, summary


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its name and the (episode id, offset, length) of each sample in it."""

    stem: str
    samples: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class ShardsSummary:
    """What a finished shard folder holds."""

    samples: int
    shards: int
    frames: int
    bytes: int
    dropped: Mapping[str, int]


class EpisodeTar:
    """Writes the samples of one episode."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = TarWriter(file)
        self._ranges: list[tuple[int, int]] = []

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of each sample written so far."""
        return tuple(self._ranges)

    def write(self, sample: Sample, images: Mapping[tuple[str, int], bytes]) -> None:
        """Adds a sample."""
        members = sample_members(sample, images)
        self._ranges.append(self._tar.append(b"".join(member_bytes(*one) for one in members)))

    def finish(self) -> None:
        """Ends the tar file."""
        self._tar.finish()


@dataclass(frozen=True)
class ShardSink:
    """The `lbm` sink: `shards/` and `episodes/` below `output`."""

    output: Path
    samples_per_shard: int
    seed: int
    executor: Executor

    @contextmanager
    def open_episode(self, ref: EpisodeRef) -> Iterator[EpisodeTar]:
        """A writer for one episode."""
        with open_atomic(episode_tar(self.output, ref.id)) as file:
            tar = EpisodeTar(file)
            yield tar
            tar.finish()

    def finish(self, receipts: Iterable[Receipt]) -> ShardsSummary:
        """Shuffles, assembles shards, writes statistics and, last, the manifests.

        Raises:
            DataError: No sample was written.
        """
        samples: list[tuple[str, int, int]] = []
        episodes: list[tuple[str, int]] = []
        statistics: dict[str, FieldStatistics] = {}
        dropped: dict[str, int] = {}
        frames = 0
        for receipt in receipts:
            frames += receipt.num_frames
            for reason, count in receipt.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            if receipt.ranges:
                samples += [(receipt.episode, *span) for span in receipt.ranges]
                episodes.append((f"episode_{receipt.episode}", len(receipt.ranges)))
                statistics = _merged(statistics, receipt.statistics)
        if not samples:
            raise DataError(
                f"no sample is left to write; dropped: {dropped or 'none'}",
                hint="allow more padding with --max-padding-left and --max-padding-right",
                code="data.no_samples",
                details={"dropped": dropped},
            )
        plans = self._plan(samples)
        self._write_shards(plans)
        entries = {name: summary(stats) for name, stats in statistics.items()}
        for folder in ("shards", "episodes"):
            write_stats(self.output / folder / "stats.json", entries)
        write_manifest(self.output / "episodes" / "manifest.jsonl", episodes)
        write_manifest(
            self.output / "shards" / "manifest.jsonl",
            [(plan.stem, len(plan.samples)) for plan in plans],
        )
        size = sum(file.stat().st_size for file in (self.output / "shards").glob("*.tar"))
        return ShardsSummary(len(samples), len(plans), frames, size, dropped)

    def _plan(self, samples: list[tuple[str, int, int]]) -> list[ShardPlan]:
        order = np.random.default_rng(self.seed).permutation(len(samples))
        step = self.samples_per_shard
        return [
            ShardPlan(f"shard_{n:06d}", tuple(samples[i] for i in order[start : start + step]))
            for n, start in enumerate(range(0, len(order), step))
        ]

    def _write_shards(self, plans: list[ShardPlan]) -> None:
        for outcome in self.executor.map(_ShardWriter(self.output), plans):
            if outcome.error is not None:
                raise outcome.error


@dataclass(frozen=True)
class _ShardWriter:
    """Copies the byte ranges of one shard; picklable."""

    output: Path

    def __call__(self, plan: ShardPlan) -> None:
        with open_atomic(self.output / "shards" / f"{plan.stem}.tar") as file:
            tar = TarWriter(file)
            for episode, offset, length in plan.samples:
                with episode_tar(self.output, episode).open("rb") as source:
                    source.seek(offset)
                    tar.append(source.read(length))
            tar.finish()


def episode_tar(output: Path, episode: str) -> Path:
    """Where an episode's tar is."""
    return output / "episodes" / f"episode_{episode}.tar"


def _merged(
    total: Mapping[str, FieldStatistics], part: Mapping[str, FieldStatistics]
) -> dict[str, FieldStatistics]:
    if not total:
        return dict(part)
    return {name: merge(stats, part[name]) for name, stats in total.items()}
