"""Options of a verification and counts of what was checked."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vlatool.events import NULL, Reporter
from vlatool.findings import Finding, FindingCodes
from vlatool.jobs.files import FileEntry
from vlatool.storage.tree import sha256_of


@dataclass
class CheckCounts:
    """Numbers of files, bytes, samples, images and episodes that were checked."""

    files: int = 0
    bytes: int = 0
    samples: int = 0
    samples_read: int = 0
    pictures: int = 0
    episodes: int = 0

    def add(self, **counts: int) -> None:
        """Adds to the counts of these names."""
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)


@dataclass(frozen=True)
class CheckOptions:
    """Options of one verification.

    Attributes:
        samples: Number of samples whose contents are read; None for all.
        is_full: Recompute statistics and decode every image.
        is_quick: Compare no digests.
        counts: Counts of what was checked so far.
        reporter: Receives progress.
    """

    samples: int | None = 200
    is_full: bool = False
    is_quick: bool = False
    counts: CheckCounts = field(default_factory=CheckCounts)
    reporter: Reporter = NULL


def check_file(
    codes: FindingCodes, path: Path, entry: FileEntry, check: CheckOptions
) -> Iterator[Finding]:
    """Compares a file with its entry in a list; the finding codes are in all families of lists."""
    try:
        if not path.is_file():
            yield codes("missing_file", f"{path}: is missing", path=str(path))
        elif (size := path.stat().st_size) != entry.bytes:
            message = f"{path}: has {size} bytes, expected {entry.bytes}"
            yield codes("size_mismatch", message, path=str(path))
        elif not check.is_quick and sha256_of(path) != entry.sha256:
            message = f"{path}: was changed after it was written"
            yield codes("digest_mismatch", message, path=str(path))
    except OSError as error:
        message = f"{path}: {error.strerror or error}"
        yield codes("unreadable_file", message, path=str(path))
