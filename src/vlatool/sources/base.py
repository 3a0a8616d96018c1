"""What every dataset format provides, and the refusals all formats share."""

import re
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef
from vlatool.errors import DataError
from vlatool.plugins import did_you_mean
from vlatool.storage.parts import Part, read_part

# First line of the small text file that stands for content kept in Git LFS. Source: lerobot 11.7
_LFS_HEADER = b"version https://git-lfs"


class FormatReader(Protocol):
    """Reads the episodes of one dataset format.

    Attributes:
        Config: The keys of this format; an instance is the only argument of the constructor.
        warnings: `(code, message)` pairs about the data set as a whole, filled by `discover`.
    """

    Config: ClassVar[type[ConfigModel]]
    warnings: list[tuple[str, str]]

    def __init__(self, config: Any) -> None: ...

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every episode below `sources`, in natural order; cheap and deterministic.

        Raises:
            DataError: `data.no_episodes` when a source is missing, empty or without episodes.
        """
        ...

    def read(self, ref: EpisodeRef) -> Episode:
        """The episode, its pictures still on disk.

        Raises:
            DataError: The episode is broken; names file and field.
        """
        ...


class DatasetWarnings:
    """Collects the oddities of data sets, each told once."""

    def __init__(self) -> None:
        self.items: list[tuple[str, str]] = []
        self._keys: set[Hashable] = set()

    def add_once(self, code: str, message: str, key: Hashable = None) -> None:
        """Keeps the warning unless one with this `key` (default: the message) is there."""
        key = (code, message if key is None else key)
        if key not in self._keys:
            self._keys.add(key)
            self.items.append((code, message))


def id_part(name: str) -> str:
    """`name` with everything but letters, digits, `_` and `-` replaced, for `EpisodeRef.id`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "dataset"


def no_episodes(source: Path, searched: str) -> DataError:
    """The refusal of a source that holds no episode.

    Args:
        source: As the user gave it.
        searched: What would have made it one, e.g. `meta/info.json`.
    """
    if not source.exists():
        state = "does not exist"
    elif not source.is_dir():
        state = "is not a folder"
    elif not any(source.iterdir()):
        state = "is an empty folder"
    else:
        state = "holds no episodes"
    return DataError(
        f"{source}: {state}; searched for {searched}",
        hint="check the path, and that FORMAT is the format of this data",
        code="data.no_episodes",
        details={"source": str(source), "searched": searched},
    )


def unknown_field(name: str, known: Sequence[str], where: Path, noun: str = "field") -> DataError:
    """The refusal of a field that the user asked for and the data does not have."""
    there = ", ".join(known) or "none"
    nearest = did_you_mean(name, list(known))
    return DataError(
        f"{where}: there is no {noun} {name!r}; there are: {there}",
        hint=nearest if nearest.startswith("did you mean") else f"choose one of: {there}",
        code="data.unknown_field",
        details={"field": name, "known": list(known), "file": str(where)},
    )


def refuse_missing_or_pointer(path: Path, what: str) -> None:
    """Checks that `path` is a file with content of its own.

    Args:
        path: The file that is about to be opened.
        what: Whose file it is, e.g. `episode 3`.

    Raises:
        DataError: `data.missing_file`, or `data.lfs_pointer` for a Git LFS pointer.
    """
    try:
        head = read_part(Part(path, 0, len(_LFS_HEADER)))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(
            f"{what}: {path} is missing",
            hint="complete the download, or leave the episode out with --episodes",
            code="data.missing_file",
            details={"file": str(path)},
        ) from None
    if head == _LFS_HEADER:
        raise DataError(
            f"{what}: {path} is a Git LFS pointer ({path.stat().st_size} bytes), not data",
            hint="run `git lfs pull` in the data set, or download it again",
            code="data.lfs_pointer",
            details={"file": str(path)},
        )
