"""Folders of training shards: layout, manifest, options and provenance, detection.

An output of the `lbm` sink has `shards/` (shuffled tars, their manifest, statistics and options)
and `episodes/` (the same samples, one tar per episode). A published folder may hold only the
content of `shards/`, under any name. No file contains information about the machine or the user.
Source: formats/lbm 1, 3.1 to 3.3.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field

from vlatool import __version__
from vlatool.conventions.file import Conventions, conventions_of
from vlatool.datasets.stats.layout import DIGESTS_NAME, STATS_NAME, Statistics, read_stats
from vlatool.errors import DataError, VlatoolError
from vlatool.events import counted
from vlatool.jobs.files import read_file_list
from vlatool.jobs.ownership import check_downloaded
from vlatool.jobs.record import OutputRecord, read_valid_record
from vlatool.media.tar import INDEX_SUFFIX, is_shard
from vlatool.recordings.artifact import other_contents_error
from vlatool.recordings.lerobot.layout import INFO_FILE
from vlatool.recordings.lerobot.layout import SINK as LEROBOT_SINK
from vlatool.storage import documents
from vlatool.storage.atomic import write_text
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.manifest import parse_values
from vlatool.storage.uri import is_file_name, is_missing, missing_error

MANIFEST_NAME = "manifest.jsonl"
CONFIG_NAME = "preprocessing_config.yaml"
METADATA_NAME = "processing_metadata.json"
SHARDS_NAME = "shards"
EPISODES_NAME = "episodes"
_COMPACT_NAME = "stats_compact.json"
# Key of the options: map from camera to the sizes [height, width] of its recordings.
RECORDED_SIZES = "recorded_sizes"

# Files that mark an output as complete: removed first, written last.
CLOSING_FILES = (
    f"{SHARDS_NAME}/{MANIFEST_NAME}",
    f"{SHARDS_NAME}/{STATS_NAME}",
    f"{SHARDS_NAME}/{DIGESTS_NAME}",
    f"{EPISODES_NAME}/{MANIFEST_NAME}",
)
LISTED_FILES = (f"{SHARDS_NAME}/{CONFIG_NAME}", *CLOSING_FILES)
# Files that hold times.
VOLATILE_FILES = (f"{SHARDS_NAME}/{METADATA_NAME}",)
EPISODE_FILES = (f"{EPISODES_NAME}/episode_*.tar",)
DATA_FILES = (
    f"{SHARDS_NAME}/shard_*.tar",
    f"{SHARDS_NAME}/shard_*{INDEX_SUFFIX}",
    *EPISODE_FILES,
)
# Patterns of all files that vlatool writes there; other files are not touched.
OWNED_FILES = (*DATA_FILES, *LISTED_FILES, *VOLATILE_FILES)

# Limit per shard, checked before the numbers are used.
MAX_SAMPLES = 10_000_000

_END_MARKER = bytes(1024)  # of a tar
_EPISODE_TAR = re.compile(r"episode_(.+)\.tar\Z")
# Line of a manifest as vlatool writes it, and its number. Two lists of texts take a tenth of the
# time that an object for each line takes, and the garbage collector has nothing to visit.
_WRITTEN = re.compile(
    r'^\{"shard": "([A-Za-z0-9_-]{1,200})", "num_sequences": [1-9][0-9]{0,6}\}$', re.MULTILINE
)
_WRITTEN_COUNT = re.compile(r" ([0-9]+)\}$", re.MULTILINE)
_HINT = "preprocess or copy the data again"
_SHOWN = 100


def episode_tar_name(episode: str) -> str:
    """Path of the tar of an episode, relative to the output."""
    return f"{EPISODES_NAME}/episode_{episode}.tar"


def tar_episode(path: Path) -> str | None:
    """Id of the episode that a tar holds, by its name; None for a shuffled shard."""
    match = _EPISODE_TAR.match(path.name)
    return match[1] if match else None


def shard_name(number: int) -> str:
    """Path of a shard, relative to the output."""
    return f"{SHARDS_NAME}/shard_{number:06d}.tar"


@dataclass(frozen=True)
class ShardInfo:
    """A file with samples that can be read by byte ranges."""

    location: Path  # Path or URI of any scheme
    size: int  # number of samples
    digest: str = ""  # digest of the file; empty: unknown
    first: int = 0  # number in the data set of its first sample, if a file has several parts


@dataclass(frozen=True, eq=False)
class ShardTable:
    """Shards of a folder as columns. A run may list a million of them, so each becomes an object
    only where it is used.
    """

    folder: Path
    names: Sequence[str]  # paths of the files without `suffix`, relative to the folder
    sizes: NDArray[np.int64]  # number of samples of each
    digests: Sequence[str] = ()  # digest of each file; empty: unknown
    suffix: str = ""  # of all names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[ShardInfo]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> ShardInfo:
        digest = self.digests[index] if self.digests else ""
        return ShardInfo(
            self.folder / f"{self.names[index]}{self.suffix}", int(self.sizes[index]), digest
        )

    @property
    def digest(self) -> str:
        """Digest of the names of the files, without folders, and of their numbers of samples."""
        # As `digest_of` the pairs, in a twentieth of its time; most names are written as they are.
        names = self.names
        together = "".join(names)
        is_plain = together.isascii() and together.isprintable()
        if not is_plain or any(character in together for character in '"\\/'):
            names = [encode_basestring_ascii(path.rpartition("/")[2])[1:-1] for path in names]
        rows: list[str] = []
        for name, size in zip(names, self.sizes.tolist(), strict=True):
            rows.append(f'["{name}{self.suffix}", {size}]')
        text = f"[{', '.join(rows)}]"
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Row:
    """Line of the manifest."""

    shard: str
    num_sequences: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)]


def read_manifest(path: Path) -> ShardTable:
    """Shards of a manifest; names are relative to its folder.

    Accepts blank lines, absolute names (only their stem is used) and a trailing `.tar`.
    """
    try:
        text = documents.read_document(path)
    except OSError as error:
        raise DataError.at(
            path,
            f"no manifest here ({error.strerror})",
            hint="give a folder that `vlatool preprocess` wrote",
            code="data.no_manifest",
            finding="no_manifest",
        ) from None
    except documents.DocumentError as error:
        raise _manifest_error(path, error.reason) from None
    stems: list[str] = _WRITTEN.findall(text)
    counts: list[str] = []
    if len(stems) == text.rstrip().count("\n") + 1:  # all lines are as vlatool writes them
        counts = _WRITTEN_COUNT.findall(text)
    else:
        stems.clear()
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                stem, count = _parsed_row(path, number, line)
                stems.append(stem)
                counts.append(str(count))
    if not stems:
        raise DataError.at(path, "the manifest lists no shard", hint=_HINT, code="data.no_samples")
    sizes = np.fromstring(" ".join(counts), np.int64, sep=" ")
    return ShardTable(path.parent, stems, sizes, suffix=".tar")


def write_manifest(path: Path, shards: Sequence[tuple[str, int]]) -> None:
    """Writes (stem, samples) pairs; without a final newline, like the published writer."""
    rows = (json.dumps({"shard": stem, "num_sequences": count}) for stem, count in shards)
    write_text(path, "\n".join(rows))


def check_shards(path: Path, shards: Iterable[ShardInfo]) -> None:
    """Checks that every shard of the manifest at `path` exists and is not truncated."""
    for shard in shards:
        try:
            with open_file(shard.location) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - len(_END_MARKER)))
                end = file.read(len(_END_MARKER))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise _shard_error(path, shard, "is missing", "data.missing") from None
        if size < len(_END_MARKER) or size % 512:
            raise _shard_error(path, shard, f"is truncated ({size} bytes)", "data.broken")
        if end != _END_MARKER:
            raise _shard_error(path, shard, "is truncated: no end marker", "data.broken")


def _parsed_row(path: Path, number: int, line: str) -> tuple[str, int]:
    """Name without its end, and number of samples, of a line that may be written by others."""
    try:
        row = parse_values(_Row, documents.parse_json(line))
    except ValueError as error:
        raise _manifest_error(path, error, number) from None
    stem = row.shard.removesuffix(".tar")
    if stem.startswith("/"):
        stem = stem.rsplit("/", 1)[1]
    parts = Path(f"{stem}.tar").parts
    if ".." in parts or not all(map(is_file_name, parts)):
        problem = f"{row.shard[:_SHOWN]!r} is not the name of a shard in the folder"
        raise _manifest_error(path, problem, number)
    return stem, row.num_sequences


def _manifest_error(path: Path, reason: object, line: int = 0) -> DataError:
    return DataError.at(
        path, reason, line=line, hint=_HINT, code="data.broken", finding="broken_manifest"
    )


def _shard_error(path: Path, shard: ShardInfo, problem: str, code: str) -> DataError:
    return DataError(
        f"{shard.location}: {problem}; {path} lists it with {counted(shard.size, 'sample')}",
        hint=_HINT,
        code=code,
        details={"shard": str(shard.location), "manifest": str(path)},
    )


def write_preprocessing_config(folder: Path, options: Mapping[str, Any]) -> None:
    """Writes the options of the data, keys in alphabetical order."""
    write_text(folder / CONFIG_NAME, yaml.safe_dump(dict(options), sort_keys=True))


def read_preprocessing_config(folder: Path, name: str = CONFIG_NAME) -> dict[str, Any]:
    """Options of a shard folder; unknown keys are kept, of a grouped form the first group."""
    path = folder / name
    try:
        content: object = documents.read_yaml(path)
    except OSError as error:
        raise DataError.at(
            path,
            f"missing ({error.strerror})",
            hint=f"copy {name} to the folder of the manifest",
            code="data.missing",
        ) from None
    except documents.DocumentError as error:
        raise _config_error(path, error.reason, error.line) from None
    if isinstance(content, dict) and isinstance(content.get(0), dict):
        content = content[0]
    if not isinstance(content, dict):
        raise _config_error(path, "expected a mapping")
    return content


def _config_error(path: Path, reason: str, line: int = 0) -> DataError:
    return DataError.at(
        path,
        reason,
        line=line,
        hint="copy it again from the original data",
        code="data.broken",
        finding="broken_config",
    )


def write_processing_metadata(
    folder: Path,
    *,
    started: datetime,
    counts: Mapping[str, Any],
    arguments: Mapping[str, Any],
    episodes: list[str],
) -> None:
    """Writes time, version, options and sample counts of the run that wrote the data."""
    now = datetime.now(UTC)
    document = {
        "metadata_version": "1.0",
        "created_at": now.isoformat(timespec="seconds"),
        "command_line": {"script_name": "vlatool preprocess", "arguments": dict(arguments)},
        "environment": {"vlatool": __version__},
        "source_data": {"num_episodes": len(episodes), "episodes": episodes},
        "processing": {
            "timestamp_start": started.isoformat(timespec="seconds"),
            "timestamp_end": now.isoformat(timespec="seconds"),
            **counts,
        },
    }
    documents.write_checksummed(folder / METADATA_NAME, document)


def read_processing_metadata(folder: Path) -> dict[str, Any]:
    """Content of processing_metadata.json; empty if it does not exist."""
    path = folder / METADATA_NAME
    try:
        return documents.read_checksummed(path)
    except (documents.DocumentError, OSError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        reason = error.reason if isinstance(error, documents.DocumentError) else error.strerror
        raise DataError.at(
            path,
            reason,
            hint="copy it again from the original data",
            code="data.broken",
            finding="broken_metadata",
        ) from None


@dataclass(frozen=True)
class ShardFolder:
    """Training shards, detected by their manifest and read lazily."""

    manifest: Path  # the file that lists the shards

    @classmethod
    def find(cls, location: Path) -> "ShardFolder | None":
        """Shards at an output, a folder with a manifest, or a manifest; None if there are none.

        `shards/` takes precedence over the folder itself, which precedes `episodes/`.
        """
        if location.name == MANIFEST_NAME:
            return cls(location) if location.is_file() else None
        folders = (location / SHARDS_NAME, location, location / EPISODES_NAME)
        manifests = (folder / MANIFEST_NAME for folder in folders)
        return next((cls(path) for path in manifests if path.is_file()), None)

    @classmethod
    def open(cls, location: Path) -> "ShardFolder":
        """Shards at a location, as input of a command."""
        check_downloaded(location)
        folder = cls.find(location)
        if folder is None:
            if is_missing(location):
                raise missing_error(location)
            record = read_valid_record(location)
            if record is not None and record.result is None:
                raise record.no_manifest_error(location)
            raise other_contents_error(
                location,
                "shards of samples",
                "write them with `vlatool preprocess SOURCE --sink lbm --output DIR`",
                "data.no_manifest",
            ) or DataError.at(
                location,
                f"no training data here: neither frames.json nor {SHARDS_NAME}/{MANIFEST_NAME}, "
                f"{MANIFEST_NAME} or {EPISODES_NAME}/{MANIFEST_NAME} exists",
                hint="give the folder that `vlatool preprocess` wrote (--output), or a manifest",
                code="data.no_manifest",
                finding="no_manifest",
            )
        return folder

    @classmethod
    def of(cls, output: Path, part: str) -> "ShardFolder":
        """Folder of an output, which need not exist."""
        return cls(output / part / MANIFEST_NAME)

    @classmethod
    def parts(cls, location: Path) -> list["ShardFolder"]:
        """`shards/`, even without its manifest, and `episodes/`; else the location itself."""
        names = (SHARDS_NAME, EPISODES_NAME)
        folders: list[ShardFolder] = [cls.of(location, name) for name in names]
        present = [folder for folder in folders if folder.manifest.is_file()]
        if not present:
            return [cls(location / MANIFEST_NAME)]
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
        path = self.output / EPISODES_NAME / MANIFEST_NAME
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
        return self._find_file(CONFIG_NAME)

    def _find_file(self, name: str) -> Path:
        own_path = self.path / name
        shards_path = self.path.parent / SHARDS_NAME / name
        return shards_path if not own_path.is_file() and shards_path.is_file() else own_path

    def shards(self) -> ShardTable:
        """Tars of the manifest; raises DataError if it is broken."""
        return read_manifest(self.manifest)

    def statistics(self) -> Statistics:
        """Content of stats.json; raises DataError if it is missing or broken."""
        return read_stats(self.statistics_file)

    def options(self) -> dict[str, Any]:
        """Content of preprocessing_config.yaml; raises DataError if it is missing or broken."""
        return read_preprocessing_config(self.options_file.parent)

    def conventions(self) -> Conventions | None:
        """Measured meaning of the recorded actions; None if there is none that can be read."""
        for folder in (self.path, self.path.parent):
            with suppress(VlatoolError):  # `verify` reports it; nothing needs the file
                if (conventions := conventions_of(folder)) is not None:
                    return conventions
        return None

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
    if record is None or record.command != "preprocess":
        return False
    # A LeRobot data set that is complete is a source, too, and checked as one.
    is_set = record.options.get("sink") == LEROBOT_SINK and (location / INFO_FILE).is_file()
    return not is_set


def expects_manifest(location: Path) -> bool:
    """True if the output should have a manifest; only the `lbm` sink writes one."""
    try:
        entries = read_file_list(location)
    except DataError:
        return True
    return entries is None or any(entry.path.endswith(f"/{MANIFEST_NAME}") for entry in entries)
