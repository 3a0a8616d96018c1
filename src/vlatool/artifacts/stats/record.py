"""Record of computed statistics: a JSON file beside them with the digests of both files.

Statistics may lie in a folder that another command owns, whose record `.vlatool/run.json` they must
not touch. The record is written first, `stats.json` last: the statistics are complete exactly if
both files are those of the record. Source: formats/lbm 4.6.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatool import __version__
from vlatool.artifacts.check import OUTPUT, CheckOptions, check_file
from vlatool.artifacts.stats.format import digests_bytes, digests_path, stats_bytes, without_digests
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.jobs.files import FileEntry, entry_of, is_intact, row_of
from vlatool.storage.atomic import remove_file, remove_partials_of, write_bytes
from vlatool.storage.documents import DocumentError, read_checksummed, write_checksummed


@dataclass(frozen=True)
class StatsRecord:
    """Input and files of computed statistics."""

    inputs: str  # digest of names, sizes and sample counts of the shards
    # the digests file and the statistics, in the order in which they are written
    files: tuple[FileEntry, ...]
    contents: str = ""  # digest of the contents of the shards; empty for remote ones

    def changed(self, stats: Path) -> list[Path]:
        """Files that are missing or differ from the record."""
        folder = stats.parent
        return [folder / entry.path for entry in self.files if not is_intact(folder, entry)]


def record_path(stats: Path) -> Path:
    """Path of the record of a statistics file, in the same folder."""
    return stats.with_name(f"{stats.stem}_record.json")


def read_stats_record(stats: Path) -> StatsRecord | None:
    """Record of a statistics file; None if there is none."""
    path = record_path(stats)
    try:
        document = read_checksummed(path)
        files = tuple(entry_of(row) for row in document["files"])
        return StatsRecord(str(document["inputs"]), files, str(document.get("contents", "")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, DocumentError, ValueError, KeyError, TypeError) as error:
        raise DataError.at(
            path,
            f"is not a record of statistics ({error})",
            hint="compute the statistics again with --overwrite",
            code="data.broken_record",
        ) from None


def write_recorded(
    stats: Path, entries: Mapping[str, Mapping[str, Any]], inputs: str, contents: str
) -> None:
    """Writes statistics, their digests and their record, in place of earlier ones.

    `inputs` and `contents` are those of `StatsRecord`.
    """
    written = {
        digests_path(stats): digests_bytes(entries),
        stats: stats_bytes(without_digests(entries)),
    }
    for path in (record_path(stats), *written):
        remove_partials_of(path)
    # A new record with old files would make those look changed by someone else.
    for path in (stats, digests_path(stats)):
        remove_file(path)
    files = [
        FileEntry(path.name, len(content), hashlib.sha256(content).hexdigest())
        for path, content in written.items()
    ]
    document = {
        "command": "stats compute",
        "version": __version__,
        "inputs": inputs,
        "contents": contents,
        "files": [row_of(entry) for entry in files],
    }
    write_checksummed(record_path(stats), document)
    for path, content in written.items():
        write_bytes(path, content)


def check_recorded(stats: Path, check: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of a statistics file and its digests if they have a record."""
    try:
        record = read_stats_record(stats)
    except DataError as error:
        yield OUTPUT("broken_record", error.message, path=str(record_path(stats)))
        return
    for entry in record.files if record else ():
        yield from check_file(OUTPUT, stats.with_name(entry.path), entry, check)
