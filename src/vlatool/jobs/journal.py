"""What is already done: a receipt per item, so that a killed run goes on.

A receipt is entered after the files it speaks of have their final names. Receipts with arrays are
one file each, written by the worker; the others are lines of one log, written by the driver. Files
are not synced one by one: one that a power cut left torn fails its checksum and its item is done
again.
"""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import StorageError
from vlatool.findings import Finding
from vlatool.jobs.append_log import read_log
from vlatool.jobs.files import FileEntry, entry_of, is_intact, row_of
from vlatool.jobs.record import journal_folder
from vlatool.storage.atomic import remove_tree, write_bytes

_INFO = "__receipt__"


@dataclass(frozen=True)
class Receipt:
    """What became of one item; small without its arrays.

    Attributes:
        item: Its name, unique in the run.
        key: Digest of its input and of the plan it was made by.
        counts: What it holds (frames, samples), for sums and progress.
        dropped: Reason to number of what was left out on purpose.
        files: What was written for it.
        findings: What there is to say about it.
        facts: Small JSON values that the job needs to finish.
        arrays: Bulk for that purpose; only in the journal, never in a worker's answer.
        sizes: Digest of the names and sizes of its input files.
        changed_ns: When one of them was last changed, nanoseconds since 1970.
        resumed: Whether an earlier run made it.
    """

    item: str
    key: str = ""
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    files: tuple[FileEntry, ...] = ()
    findings: tuple[Finding, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    arrays: Mapping[str, Array] = field(default_factory=dict[str, Array])
    sizes: str = ""
    changed_ns: int = 0
    resumed: bool = False

    @property
    def bytes(self) -> int:
        """Size of its files."""
        return sum(file.bytes for file in self.files)

    def without_arrays(self) -> "Receipt":
        """Without arrays: answers of workers stay small."""
        return replace(self, arrays={})

    def row(self) -> dict[str, Any]:
        """As a JSON object, without arrays."""
        return {
            "item": self.item,
            "key": self.key,
            "counts": dict(self.counts),
            "dropped": dict(self.dropped),
            "files": [row_of(file) for file in self.files],
            "findings": [finding.document() for finding in self.findings],
            "facts": dict(self.facts),
            "sizes": self.sizes,
            "changed_ns": self.changed_ns,
            "resumed": self.resumed,
        }

    @classmethod
    def of(cls, row: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> "Receipt":
        """The receipt behind a row.

        Raises:
            ValueError: It is none.
        """
        try:
            return cls(
                item=str(row["item"]),
                key=str(row["key"]),
                counts=dict(row["counts"]),
                dropped=dict(row["dropped"]),
                files=tuple(map(entry_of, row["files"])),
                findings=tuple(Finding(**one) for one in row["findings"]),
                facts=dict(row["facts"]),
                arrays=dict(arrays or {}),
                sizes=str(row["sizes"]),
                changed_ns=int(row["changed_ns"]),
                resumed=bool(row["resumed"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"no receipt: {error}") from None


@dataclass(frozen=True)
class Journal:
    """Receipts of one kind of item of an output that is not complete yet; picklable.

    Attributes:
        output: The output folder.
        kind: What its items are: those of the job, or parts that its end is made of.
    """

    output: Path
    kind: str = "items"

    @property
    def folder(self) -> Path:
        """Where the receipts with arrays are."""
        return journal_folder(self.output) / self.kind

    def log(self, rank: int = 0) -> Path:
        """Where the others are, a log for each rank."""
        return journal_folder(self.output) / f"{self.kind}.{rank}.jsonl"

    def store(self, receipt: Receipt) -> None:
        """Enters a receipt in a file of its own."""
        write_bytes(self._file(receipt.item), _pack(receipt), synced=False)

    def find(self, item: str, key: str) -> Receipt | None:
        """The receipt that `store` entered, if it was made from the same input by the same plan."""
        receipt = _read(self._file(item))
        return receipt if receipt is not None and receipt.key == key else None

    def rows(self, rank: int = 0) -> Iterator[dict[str, Any]]:
        """The rows of a log: receipts, and failures under the key `failed`."""
        return read_log(self.log(rank))

    def all_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the logs of all ranks of earlier runs."""
        folder = journal_folder(self.output)
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(f"{self.kind}.") and path.name.endswith(".jsonl"):
                yield from read_log(path)

    def holds_work(self) -> bool:
        """Whether any receipt speaks of a file, or has anything else that took time to make."""
        stored = self.folder.glob("*.npz") if self.folder.is_dir() else ()
        rows = (row.get("files") or row.get("facts") for row in self.all_rows())
        return any(rows) or any(map(_is_work, stored))

    def count(self) -> int:
        """How many receipts there are."""
        stored = self.folder.glob("*.npz") if self.folder.is_dir() else ()
        names = {row.get("item") for row in self.all_rows() if "failed" not in row}
        return sum(1 for _ in stored) + len(names)

    def _file(self, item: str) -> Path:
        return self.folder / f"{item}.npz"


def intact_receipt(output: Path, receipt: Receipt | None) -> Receipt | None:
    """The receipt, if there is one and its files are still what was written."""
    if receipt is None or not all(is_intact(output, file) for file in receipt.files):
        return None
    return receipt


def remove_journal(output: Path) -> None:
    """Removes the whole journal of an output: it is complete."""
    remove_tree(journal_folder(output))


def _is_work(path: Path) -> bool:
    receipt = _read(path)
    return receipt is not None and bool(receipt.files or receipt.facts or receipt.arrays)


def _read(path: Path) -> Receipt | None:
    """The receipt in a file; None where there is none."""
    try:
        return _unpack(path.read_bytes())
    except StorageError:
        raise
    except Exception:  # noqa: BLE001 - a torn entry makes numpy's parsers raise anything
        return None


def _pack(receipt: Receipt) -> bytes:
    info = np.frombuffer(json.dumps(receipt.row()).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **{_INFO: info, **receipt.arrays})
    return buffer.getvalue()


def _unpack(data: bytes) -> Receipt:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        row = json.loads(archive[_INFO].tobytes())
        arrays = {name: archive[name] for name in archive.files if name != _INFO}
    return Receipt.of(row, arrays)
