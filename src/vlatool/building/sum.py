"""Totals of the episodes of a folder of samples, and its lines in files of equal length."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from vlatool.artifacts.lines import write_lines
from vlatool.artifacts.samples_folder import lines_shard_name, read_packed
from vlatool.artifacts.shard import INDEX_SUFFIX
from vlatool.building.episode import WindowShape
from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry
from vlatool.jobs.journal import Receipt


@dataclass
class DatasetTotals:
    """Totals over the episodes added so far.

    Attributes:
        files: Written files.
        episodes: Number of episodes with samples.
        kinds: Map from kind to number of samples.
        tasks: Map from instruction to number of samples.
        id_counts: Number of action ids of a window to number of such windows.
        shape: Shape that all windows share.
    """

    files: list[FileEntry] = field(default_factory=list[FileEntry])
    episodes: int = 0
    kinds: Counter[str] = field(default_factory=Counter[str])
    tasks: Counter[str] = field(default_factory=Counter[str])
    id_counts: Counter[int] = field(default_factory=Counter[int])
    shape: WindowShape | None = None

    @property
    def samples(self) -> int:
        """Number of samples in all files."""
        return self.kinds.total()

    def add(self, receipt: Receipt) -> None:
        """Adds an episode.

        Raises:
            DataError: The shape of its windows differs from those of earlier episodes.
        """
        if not receipt.files:
            return
        shape = WindowShape(*receipt.facts["shape"])
        if self.shape not in (None, shape):
            raise DataError(
                f"{receipt.item}: windows of the shape {list(shape)}, those of earlier episodes "
                f"have {list(self.shape or ())} (images, future images, actions, values)",
                hint="build data of one shape at a time, selected with --pattern",
                code="data.mixed_windows",
                details={"episode": receipt.item},
            )
        self.shape = shape
        self.episodes += 1
        self.files += receipt.files
        self.tasks.update(receipt.facts["tasks"])
        self.id_counts.update(dict(receipt.facts["ids"]))
        samples_by_kind = {
            key: n for key, n in receipt.counts.items() if key not in ("samples", "windows")
        }
        self.kinds.update(samples_by_kind)

    def action_ids(self) -> dict[str, float]:
        """Minimum, mean and maximum number of action ids of a window; empty without windows."""
        windows = self.id_counts.total()
        if not windows:
            return {}
        total = sum(length * times for length, times in self.id_counts.items())
        lengths = (min(self.id_counts), max(self.id_counts))
        return {"min": lengths[0], "mean": round(total / windows, 3), "max": lengths[1]}

    def document(self) -> dict[str, Any]:
        """Entries of the manifest."""
        assert self.shape is not None
        return {
            "episodes": self.episodes,
            "samples": self.samples,
            "kinds": dict(sorted(self.kinds.items())),
            "shape": self.shape._asdict(),
            "action_ids": {
                **self.action_ids(),
                "counts": {
                    str(length): self.id_counts[length] for length in sorted(self.id_counts)
                },
            },
            "tasks": dict(self.tasks),
        }


def data_files(entries: Sequence[FileEntry]) -> list[tuple[str, int]]:
    """(path, number of samples) of each file of samples, indexes excluded."""
    return [
        (entry.path, entry.samples or 0)
        for entry in entries
        if not entry.path.endswith(INDEX_SUFFIX)
    ]


def write_shards(
    output: Path, packed: Sequence[FileEntry], prefix: str, limit: int
) -> Iterator[FileEntry]:
    """Writes the lines of packed episodes into files of `limit` lines; the last may be shorter."""
    episodes = (read_packed(output / entry.path) for entry in packed)
    lines = chain.from_iterable(episode.lines(prefix) for episode in episodes)
    for number in count():
        first = list(islice(lines, 1))
        if not first:
            return
        rest = islice(lines, limit - 1)
        yield from write_lines(output, lines_shard_name(number), chain(first, rest))
