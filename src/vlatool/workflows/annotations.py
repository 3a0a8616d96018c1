"""Download of the published language annotations of the LBM tasks."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from vlatool.artifacts.task_table import TaskTable
from vlatool.errors import DataError, UsageError
from vlatool.results import Result, outcome
from vlatool.storage.atomic import remove_partials_of, write_bytes
from vlatool.storage.remote import find_object
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.tree import sha256_of, size_text
from vlatool.storage.uri import location

_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class AnnotationsResult(Result):
    """Result of the download of the annotations."""

    output: str  # the file
    source: str  # its location
    bytes: int
    status: str  # `written`, `already complete` or `planned`

    def lines(self) -> list[str]:
        size = size_text(self.bytes)
        return [outcome(self.output, self.status, size, f"would download {size}")]


def download_annotations(
    table: TaskTable, registry: str | None, target: Path, *, dry_run: bool = False
) -> AnnotationsResult:
    """Downloads the annotations of a table to a file, unless they are there already.

    `table`: the table, which has their location and digest; `registry`: location that replaces the
    folder of their location; None: the one of the table.
    """
    address = table.annotations_location(registry)
    if target.is_dir():
        raise UsageError(
            f"{target}: is a folder",
            hint=f"name the file: --output {target / Path(address).name}",
            code="usage.output_exists",
        )
    digest = table.annotations_sha256
    here = sha256_of(target) if target.exists() else ""
    if here and here == digest:
        return AnnotationsResult(str(target), address, target.stat().st_size, "already complete")
    data = _content(address, digest)
    if here and here != hashlib.sha256(data).hexdigest():
        raise UsageError(
            f"{target}: exists with other content than {address}",
            hint="remove it, or choose another --output",
            code="usage.output_exists",
        )
    if not (here or dry_run):
        remove_partials_of(target)
        write_bytes(target, data)
    status = "already complete" if here else "planned" if dry_run else "written"
    return AnnotationsResult(str(target), address, len(data), status)


def _content(address: str, sha256: str) -> bytes:
    """Content of the annotations; compared with the digest of the table if it has one."""
    source = location(address)
    size = 0
    if isinstance(source, RemotePath):
        info = find_object(source.address)
        if info is None or info.is_dir:
            raise FileNotFoundError(address)
        size = info.size
    if size <= _MAX_BYTES:
        data = source.read_bytes()
        if sha256 in ("", hashlib.sha256(data).hexdigest()):
            return data
    raise DataError.at(
        address,
        "is not the file that the table of tasks names: its SHA-256 differs",
        hint="check --registry; another table can name another file and digest: --task-table",
        code="data.wrong_digest",
    )
