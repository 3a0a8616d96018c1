"""Seeded shuffle of samples into tar shards, and one tar per episode.

Each sample is encoded once, into its episode's tar; shards are made of byte ranges copied from
those. Source: lbm-data 3.8, 3.11, 8.1.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vlatool.artifacts.manifest import write_manifest
from vlatool.artifacts.sample import sample_members
from vlatool.artifacts.shard import TarWriter, member_bytes
from vlatool.artifacts.stats import write_compact_stats, write_stats
from vlatool.episode import EpisodeRef, Sample
from vlatool.errors import DataError, StorageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.files import FileEntry, file_entry, write_file_list
from vlatool.jobs.journal import Journal
from vlatool.parallel.executor import Executor
from vlatool.sinks.base import Receipt
from vlatool.sinks.lbm.shuffle import SampleIndex, ShardPlan
from vlatool.storage.atomic import open_atomic, remove_file
from vlatool.storage.digest import sha256_of
from vlatool.storage.parts import Part, read_parts
from vlatool.storage.uri import is_remote
from vlatool.transforms.statistics import StatisticsSum, field_entries

# What makes an output look whole: taken away first, written last.
_CLOSING_FILES = (
    "shards/manifest.jsonl",
    "shards/stats.json",
    "shards/stats_compact.json",
    "episodes/manifest.jsonl",
    "episodes/stats.json",
)
# Patterns of everything that is written here; what others put beside it is left alone.
OWNED_FILES = (
    "shards/shard_*.tar",
    "episodes/episode_*.tar",
    "shards/preprocessing_config.yaml",
    "shards/processing_metadata.json",
    *_CLOSING_FILES,
)
_HOW_TO_KEEP = {
    "padding": "allow more padding with --max-padding-left and --max-padding-right",
    "still": "lower --still-threshold or --still-field-thresholds, or leave out "
    "--filter-still-samples",
    "unsuccessful_episode": "leave out --only-successful",
    "success_unknown": "no episode says whether it succeeded; leave out --only-successful",
    "episode_missing_camera": "choose cameras that the episodes have with --camera-names, or leave "
    "out --skip-episodes-missing-cameras",
}


@dataclass(frozen=True)
class ShardsSummary:
    """What a finished shard folder holds."""

    samples: int
    shards: int
    frames: int
    bytes: int
    dropped: Mapping[str, int]
    files: tuple[FileEntry, ...]


class EpisodeTar:
    """Writes the samples of one episode."""

    def __init__(self, file: IO[bytes]) -> None:
        self.tar = TarWriter(file)
        self._ranges: list[tuple[int, int]] = []

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of each sample written so far."""
        return tuple(self._ranges)

    def write(self, sample: Sample, images: Mapping[str, bytes]) -> None:
        """Adds a sample."""
        members = sample_members(sample, images)
        self._ranges.append(self.tar.append(b"".join(member_bytes(*one) for one in members)))


@dataclass(frozen=True)
class ShardSink:
    """The `lbm` sink: `shards/` and `episodes/` below `output`; picklable.

    Attributes:
        output: The output folder.
        samples_per_shard: Samples in every shard but the last.
        seed: Seed of the shuffle.
        statistics: Whether statistics are written.
    """

    output: Path
    samples_per_shard: int
    seed: int
    statistics: bool = True

    @property
    def journal(self) -> Journal:
        """What is already written."""
        return Journal(self.output)

    @contextmanager
    def open_episode(self, ref: EpisodeRef) -> Generator[EpisodeTar]:
        """A writer for one episode."""
        with open_atomic(episode_tar(self.output, ref.id)) as file:
            writer = EpisodeTar(file)
            yield writer
            writer.tar.finish()

    def written(self, episode: str, key: str) -> Receipt | None:
        """The receipt of an episode that an earlier run wrote from the same input and plan."""
        receipt = self.journal.find(episode, key)
        if receipt is None or not receipt.ranges:
            return receipt
        path = episode_tar(self.output, episode)
        return receipt if _is_intact(path, receipt.bytes, receipt.sha256) else None

    def begin(self) -> None:
        """Takes away what would make a half-written output look whole."""
        for name in _CLOSING_FILES:
            remove_file(self.output / name)

    def finish(
        self,
        receipts: Iterable[Receipt],
        executor: Executor,
        widths: Mapping[str, int],
        reporter: Reporter = NULL,
    ) -> ShardsSummary:
        """Shuffles, assembles shards, writes statistics and, last, the manifests.

        Args:
            receipts: Of every episode, in the order of the episodes.
            executor: Where shards are assembled.
            widths: Field to number of channels, in the order of the receipts' statistics.
            reporter: Hears of each shard.

        Raises:
            DataError: No sample was written.
        """
        index, total = SampleIndex(), StatisticsSum()
        dropped: dict[str, int] = {}
        frames = 0
        for receipt in receipts:
            frames += receipt.num_frames
            for reason, count in receipt.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            index.add(receipt)
            if receipt.statistics is not None:
                total.add(receipt.statistics)
        if not index.samples:
            raise _nothing_left(dropped)
        stats = total.total()
        if self.statistics and stats is not None:
            self._write_stats(dict(field_entries(stats, widths)))
        shards = self._write_shards(index, executor, reporter)
        self._remove_strangers({entry.path for entry in (*shards, *index.files)})
        write_manifest(self.output / "episodes" / "manifest.jsonl", _rows(index.files))
        write_manifest(self.output / "shards" / "manifest.jsonl", _rows(shards))
        size = sum(entry.bytes for entry in shards)
        files = (*shards, *index.files)
        return ShardsSummary(index.samples, len(shards), frames, size, dropped, files)

    def seal(self, files: Iterable[FileEntry]) -> int:
        """Writes the list of all files, `files` being the tars; returns their size in bytes."""
        names = ("shards/preprocessing_config.yaml", *_CLOSING_FILES)
        small = [file_entry(self.output, name) for name in names if (self.output / name).is_file()]
        entries = [*files, *small]
        write_file_list(self.output, entries)
        return sum(entry.bytes for entry in entries)

    def _write_stats(self, entries: Mapping[str, Mapping[str, object]]) -> None:
        write_stats([self.output / part / "stats.json" for part in ("shards", "episodes")], entries)
        write_compact_stats(self.output / "shards" / "stats_compact.json", entries)

    def _write_shards(
        self, index: SampleIndex, executor: Executor, reporter: Reporter
    ) -> list[FileEntry]:
        entries: list[FileEntry] = []
        plans = index.plans(self.seed, self.samples_per_shard)
        clock, done = time.monotonic(), 0.0
        with reporter.progress("shards", index.shards(self.samples_per_shard), "shards") as bar:
            for outcome in executor.map(_ShardWriter(self.output), plans):
                if outcome.error is not None:
                    raise outcome.error
                assert outcome.value is not None
                entries.append(outcome.value)
                done += outcome.value.bytes / 1e6
                rate = done / max(time.monotonic() - clock, 1e-6)
                bar.advance(1, **{"MB/s": round(rate, 1)})
        return entries

    def _remove_strangers(self, known: set[str]) -> None:
        """Removes tar files of an earlier, different state of the same run."""
        for folder in ("shards", "episodes"):
            for path in (self.output / folder).glob("*.tar"):
                if f"{folder}/{path.name}" not in known:
                    remove_file(path)


@dataclass(frozen=True)
class _ShardWriter:
    """Copies the byte ranges of one shard; picklable."""

    output: Path

    def __call__(self, plan: ShardPlan) -> FileEntry:
        name = f"shards/{plan.stem}.tar"
        journal = Journal(self.output)
        before = journal.find_shard(name, plan.digest)
        path = self.output / name
        if before is not None and _is_intact(path, before.bytes, before.sha256):
            return before
        with open_atomic(path) as file:
            tar = TarWriter(file)
            for data in _samples(self.output, plan):
                tar.append(data)
            tar.finish()
        entry = FileEntry(name, tar.position, tar.sha256, len(plan.samples))
        journal.store_shard(plan.digest, entry)
        return entry


def episode_tar(output: Path, episode: str) -> Path:
    """Where an episode's tar is."""
    return output / "episodes" / f"episode_{episode}.tar"


def _samples(output: Path, plan: ShardPlan) -> Iterator[bytes]:
    """The bytes of each sample of a shard, in order."""
    parts = [
        Part(episode_tar(output, episode), offset, offset + length)
        for episode, offset, length in plan.samples
    ]
    read = read_parts(parts)
    for part in parts:
        try:
            data = next(read)
        except FileNotFoundError:
            data = b""
        if len(data) != part.stop - part.start:
            raise StorageError(
                f"{part.path}: was removed or cut while the shards were made",
                hint="run the same command again; it goes on with what is there",
                code="storage.output_changed",
                details={"path": str(part.path)},
            )
        yield data


def _rows(files: Iterable[FileEntry]) -> list[tuple[str, int]]:
    return [(Path(entry.path).stem, entry.samples or 0) for entry in files]


def _is_intact(path: Path, size: int, sha256: str) -> bool:
    """Whether a file is what was written; in S3, which keeps digests itself, by its size."""
    try:
        if path.stat().st_size != size:
            return False
        return is_remote(path) or sha256_of(path) == sha256
    except OSError:
        return False


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} for {reason}" for reason, count in counts.items())


def _nothing_left(dropped: Mapping[str, int]) -> DataError:
    most = max(dropped, key=lambda reason: dropped[reason], default="padding")
    return DataError(
        f"no sample is left to write; dropped: {_listed(dropped) or 'none'}",
        hint=_HOW_TO_KEEP.get(most, f"loosen what drops the most: {most}"),
        code="data.no_samples",
        details={"dropped": dict(dropped)},
    )
