"""Folders of training shards: layout and detection.

An output of the `lbm` sink has `shards/` (shuffled tars, their manifest, statistics and options)
and `episodes/` (the same samples, one tar per episode). A published folder may hold only the
content of `shards/`, under any name. Source: formats/lbm 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.shards import manifest, provenance
from vlatool.artifacts.shards.manifest import Shard, read_manifest
from vlatool.artifacts.shards.provenance import read_preprocessing_config, read_processing_metadata
from vlatool.artifacts.stats.format import DIGESTS_NAME, STATS_NAME, Statistics, read_stats
from vlatool.artifacts.tar import INDEX_SUFFIX, is_shard
from vlatool.errors import DataError
from vlatool.jobs.files import read_file_list
from vlatool.jobs.record import OutputRecord, read_valid_record

SHARDS_NAME, EPISODES_NAME = "shards", "episodes"
_COMPACT_NAME = "stats_compact.json"

# Files that mark an output as complete: removed first, written last.
CLOSING_FILES = (
    f"{SHARDS_NAME}/{manifest.NAME}",
    f"{SHARDS_NAME}/{STATS_NAME}",
    f"{SHARDS_NAME}/{DIGESTS_NAME}",
    f"{EPISODES_NAME}/{manifest.NAME}",
)
LISTED_FILES = (f"{SHARDS_NAME}/{provenance.CONFIG_NAME}", *CLOSING_FILES)
# Files that hold times.
VOLATILE_FILES = (f"{SHARDS_NAME}/{provenance.METADATA_NAME}",)
EPISODE_FILES = (f"{EPISODES_NAME}/episode_*.tar",)
DATA_FILES = (
    f"{SHARDS_NAME}/shard_*.tar",
    f"{SHARDS_NAME}/shard_*{INDEX_SUFFIX}",
    *EPISODE_FILES,
)
# Patterns of all files that vlatool writes there; other files are not touched.
OWNED_FILES = (*DATA_FILES, *LISTED_FILES, *VOLATILE_FILES)


def episode_tar_name(episode: str) -> str:
    """Path of the tar of an episode, relative to the output."""
    return f"{EPISODES_NAME}/episode_{episode}.tar"


def shard_name(number: int) -> str:
    """Path of a shard, relative to the output."""
    return f"{SHARDS_NAME}/shard_{number:06d}.tar"


@dataclass(frozen=True)
class ShardFolder:
    """Training shards, detected by their manifest and read lazily.

    Attributes:
        manifest: The file that lists the shards.
    """

    manifest: Path

    @classmethod
    def find(cls, location: Path) -> "ShardFolder | None":
        """Shards at an output, a folder with a manifest, or a manifest; None if there are none.

        `shards/` takes precedence over the folder itself, which precedes `episodes/`.
        """
        if location.name == manifest.NAME:
            return cls(location) if location.is_file() else None
        folders = (location / SHARDS_NAME, location, location / EPISODES_NAME)
        manifests = (folder / manifest.NAME for folder in folders)
        return next((cls(path) for path in manifests if path.is_file()), None)

    @classmethod
    def open(cls, location: Path) -> "ShardFolder":
        """Shards at a location; raises DataError, with the paths tried, if there are none."""
        folder = cls.find(location)
        if folder is None:
            raise DataError.at(
                location,
                f"no training data here: neither {SHARDS_NAME}/{manifest.NAME} nor "
                f"{manifest.NAME} nor {EPISODES_NAME}/{manifest.NAME} exists",
                hint="give the --output folder of `vlatool preprocess`, or a manifest",
                code="data.no_manifest",
            )
        return folder

    @classmethod
    def of(cls, output: Path, part: str) -> "ShardFolder":
        """Folder of an output, which need not exist."""
        return cls(output / part / manifest.NAME)

    @classmethod
    def parts(cls, location: Path) -> list["ShardFolder"]:
        """`shards/`, even without its manifest, and `episodes/`; else the location itself."""
        names = (SHARDS_NAME, EPISODES_NAME)
        folders: list[ShardFolder] = [cls.of(location, name) for name in names]
        present = [folder for folder in folders if folder.manifest.is_file()]
        if not present:
            return [cls(location / manifest.NAME)]
        is_lost = folders[0] not in present and folders[0].path.is_dir()
        return [folders[0], *present] if is_lost else present

    @property
    def path(self) -> Path:
        """Folder that the names in the manifest are relative to."""
        return self.manifest.parent

    @property
    def output(self) -> Path:
        """Output that the folder belongs to, or the folder itself."""
        return self.path.parent if self.path.name in (SHARDS_NAME, EPISODES_NAME) else self.path

    @property
    def episodes(self) -> "ShardFolder | None":
        """Folder with one tar per episode, samples in frame order; None if missing."""
        path = self.output / EPISODES_NAME / manifest.NAME
        return ShardFolder(path) if path.is_file() else None

    @property
    def statistics_file(self) -> Path:
        """Path of stats.json; for `episodes` it is in `shards`."""
        return self._find_file(STATS_NAME)

    def statistics_copies(self) -> Iterator[Path]:
        """Copies of the statistics in published data and outputs of earlier versions."""
        candidates = (self.path / _COMPACT_NAME, self.path.parent / EPISODES_NAME / STATS_NAME)
        yield from (path for path in candidates if path != self.statistics_file and path.is_file())

    @property
    def options_file(self) -> Path:
        """Path of preprocessing_config.yaml; for `episodes` it is in `shards`."""
        return self._find_file(provenance.CONFIG_NAME)

    def _find_file(self, name: str) -> Path:
        own_path, shards_path = self.path / name, self.path.parent / SHARDS_NAME / name
        return shards_path if not own_path.is_file() and shards_path.is_file() else own_path

    def shards(self) -> list[Shard]:
        """Tars of the manifest; raises DataError if it is broken."""
        return read_manifest(self.manifest)

    def statistics(self) -> Statistics:
        """Content of stats.json; raises DataError if it is missing or broken."""
        return read_stats(self.statistics_file)

    def options(self) -> dict[str, Any]:
        """Content of preprocessing_config.yaml; raises DataError if it is missing or broken."""
        return read_preprocessing_config(self.options_file.parent)

    def metadata(self) -> dict[str, Any]:
        """Content of processing_metadata.json, empty if missing; raises DataError if damaged."""
        return read_processing_metadata(self.path)

    def record(self) -> OutputRecord | None:
        """Record of the run that wrote the output; None if missing, raises DataError if damaged."""
        return read_valid_record(self.output)


def recognize(location: Path) -> str | None:
    """`shard` for a tar, `output` for a folder of shards or a started run of them, else None."""
    if is_shard(location):
        return "shard"
    return "output" if is_output(location) else None


def is_output(location: Path) -> bool:
    """True for a folder of training shards, or the output of a started run of them."""
    return ShardFolder.find(location) is not None or is_unfinished(location)


def is_unfinished(location: Path) -> bool:
    """True for the output of a started `preprocess` run, or if the record is damaged."""
    try:
        record = read_valid_record(location)
    except DataError:
        return True
    return record is not None and record.command == "preprocess"


def expects_manifest(location: Path) -> bool:
    """True if the output should have a manifest; only the `lbm` sink writes one."""
    try:
        entries = read_file_list(location)
    except DataError:
        return True
    return entries is None or any(entry.path.endswith(f"/{manifest.NAME}") for entry in entries)
