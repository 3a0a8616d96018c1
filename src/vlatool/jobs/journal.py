"""Journal of a run: one receipt per finished item, from which a killed run resumes.

A receipt is stored after its files have their final names. Receipts with arrays are one file each,
written by the worker; the others are lines of one log, written by the driver. Files are not synced
one by one: a file torn by a power cut fails its checksum, and its item is processed again.
"""

import io
import json
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import StorageError
from vlatool.findings import Finding
from vlatool.jobs.files import FileEntry, entry_of, is_intact, row_of
from vlatool.jobs.record import journal_folder
from vlatool.storage.append_log import read_log
from vlatool.storage.atomic import remove_tree, write_bytes
from vlatool.storage.byte_ranges import read_file

_INFO = "__receipt__"
# Level 6 makes receipts a fifth smaller and takes twice the time (measured).
_LEVEL = 1


@dataclass(frozen=True)
class Receipt:
    """Result of one item; small without its arrays."""

    item: str  # name of the item, unique in the run
    key: str = ""  # digests of the plan and of the input
    # numbers of frames, samples and so on, for sums and progress
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    # map from reason to number of windows or samples that were left out
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    files: tuple[FileEntry, ...] = ()  # files that were written for the item
    findings: tuple[Finding, ...] = ()  # findings on the item
    # small JSON values that the job needs to finish
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # large values for that purpose; stored in the journal, not returned by workers
    arrays: Mapping[str, Array] = field(default_factory=dict[str, Array])
    sizes: str = ""  # digest of names and sizes of the input files
    changed_ns: int = 0  # time of the latest change of an input file, nanoseconds since 1970
    resumed: bool = False  # True if an earlier run finished the item

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def without_arrays(self) -> "Receipt":
        """Copy without arrays, small enough to return from a worker."""
        return replace(self, arrays={})

    def row(self) -> dict[str, Any]:
        """JSON object of the receipt, without arrays."""
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
        try:
            return cls(
                item=str(row["item"]),
                key=str(row["key"]),
                counts=dict(row["counts"]),
                dropped=dict(row["dropped"]),
                files=tuple(map(entry_of, row["files"])),
                findings=tuple(Finding(**finding) for finding in row["findings"]),
                facts=dict(row["facts"]),
                arrays=dict(arrays or {}),
                sizes=str(row["sizes"]),
                changed_ns=int(row["changed_ns"]),
                resumed=bool(row["resumed"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a receipt: {error}") from None


@dataclass(frozen=True)
class Journal:
    """Receipts of an incomplete output; picklable."""

    output: Path  # the output folder
    kind: str = "items"  # `items` for the items of the job; another name for parts of `finish`

    @property
    def folder(self) -> Path:
        """Folder of the receipts with arrays."""
        return journal_folder(self.output) / self.kind

    @property
    def log(self) -> Path:
        """Log of the other receipts. Earlier versions had further ones, numbered from 1 on."""
        return journal_folder(self.output) / f"{self.kind}.0.jsonl"

    def store(self, receipt: Receipt) -> None:
        """Writes a receipt to its own file."""
        info = np.frombuffer(json.dumps(receipt.row()).encode(), np.uint8)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
            for name, array in {_INFO: info, **receipt.arrays}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
        write_bytes(self._file(receipt.item), buffer.getvalue(), synced=False)

    def find(self, item: str, key: str) -> Receipt | None:
        """Stored receipt of an item with the same key (plan and input); None without one."""
        receipt = _read(self._file(item))
        return receipt if receipt is not None and receipt.key == key else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows of all logs: receipts, and failures of earlier versions under the key `failed`."""
        folder = journal_folder(self.output)
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith(f"{self.kind}.") and path.name.endswith(".jsonl"):
                yield from read_log(path)

    def logged(self) -> dict[str, Receipt]:
        """Map from item name to its last receipt in a log."""
        receipts: dict[str, Receipt] = {}
        for row in self.rows():
            if "failed" in row:
                continue
            with suppress(ValueError):
                receipt = Receipt.of(row)
                receipts[receipt.item] = receipt
        return receipts

    def holds_work(self) -> bool:
        """True if any receipt has files, facts or arrays."""
        if any(row.get("files") or row.get("facts") for row in self.rows()):
            return True
        for path in self._stored():
            receipt = _read(path)
            if receipt is not None and (receipt.files or receipt.facts or receipt.arrays):
                return True
        return False

    def count(self, items: Collection[str]) -> int:
        """Number of the items with a receipt."""
        names = {row.get("item") for row in self.rows() if "failed" not in row}
        names.update(path.stem for path in self._stored())
        return len(names.intersection(items))

    def _stored(self) -> list[Path]:
        """Files of receipts with arrays."""
        return list(self.folder.glob("*.npz")) if self.folder.is_dir() else []

    def _file(self, item: str) -> Path:
        return self.folder / f"{item}.npz"


def intact_receipt(output: Path, receipt: Receipt | None) -> Receipt | None:
    """The receipt if its files are unchanged, else None."""
    if receipt is None or not all(is_intact(output, file) for file in receipt.files):
        return None
    return receipt


def remove_journal(output: Path) -> None:
    remove_tree(journal_folder(output))


def _read(path: Path) -> Receipt | None:
    """Receipt in a file; None if there is none."""
    try:
        with np.load(io.BytesIO(read_file(path)), allow_pickle=False) as archive:
            row = json.loads(archive[_INFO].tobytes())
            arrays = {name: archive[name] for name in archive.files if name != _INFO}
        return Receipt.of(row, arrays)
    except StorageError:
        raise
    except Exception:  # noqa: BLE001 - a torn entry makes numpy's parsers raise anything
        return None
