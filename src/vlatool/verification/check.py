"""What every check is given: how much is looked into, what was looked at, who is told."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vlatool.events import NULL, Reporter
from vlatool.findings import Finding, FindingCodes
from vlatool.jobs.files import FileEntry
from vlatool.storage.tree import sha256_of


@dataclass
class CheckCounts:
    """How much was looked at."""

    files: int = 0
    bytes: int = 0
    samples: int = 0
    samples_read: int = 0
    pictures: int = 0
    episodes: int = 0

    def add(self, **amounts: int) -> None:
        """Counts more."""
        for name, amount in amounts.items():
            setattr(self, name, getattr(self, name) + amount)


@dataclass(frozen=True)
class CheckOptions:
    """One verification.

    Attributes:
        samples: Samples whose contents are read; None for all.
        is_full: Recompute statistics, decode every picture.
        is_quick: Compare no digests.
        checked: Counts what was looked at.
        reporter: Shows progress.
    """

    samples: int | None = 200
    is_full: bool = False
    is_quick: bool = False
    counts: CheckCounts = field(default_factory=CheckCounts)
    reporter: Reporter = NULL


def check_file(
    family: FindingCodes, path: Path, listed: FileEntry, check: CheckOptions
) -> Iterator[Finding]:
    """Whether a file is what a list says of it; the codes are those that each list has."""
    try:
        if not path.is_file():
            yield family("missing_file", f"{path}: is missing", path=str(path))
        elif (size := path.stat().st_size) != listed.bytes:
            message = f"{path}: has {size} bytes, written were {listed.bytes}"
            yield family("size_mismatch", message, path=str(path))
        elif not check.is_quick and sha256_of(path) != listed.sha256:
            message = f"{path}: has other bytes than when it was written"
            yield family("digest_mismatch", message, path=str(path))
    except OSError as error:
        message = f"{path}: {error.strerror or error}"
        yield family("unreadable_file", message, path=str(path))
