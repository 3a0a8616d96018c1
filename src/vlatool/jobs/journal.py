"""What is already written: one entry per episode and per shard, so that a killed run goes on.

An entry is made after the file it speaks of has its final name. Entries are not synced to disk one
by one: one that a power cut left torn fails its checksum and its episode is done again.
"""

import io
import json
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.jobs.files import FileEntry
from vlatool.sinks.base import Receipt
from vlatool.storage.atomic import remove_tree, write_bytes
from vlatool.transforms.quantiles import Digest
from vlatool.transforms.statistics import WindowStatistics

# Whatever a torn or empty file makes numpy, zipfile and json say.
_BROKEN = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    zipfile.BadZipFile,
)
_MOMENTS = ("count", "mean", "m2", "minimum", "maximum")


@dataclass(frozen=True)
class Journal:
    """The entries of an output that is not complete yet; picklable.

    Attributes:
        output: The output folder.
    """

    output: Path

    @property
    def folder(self) -> Path:
        """Where the entries are."""
        return self.output / ".vlatool" / "journal"

    def store(self, receipt: Receipt) -> None:
        """Enters an episode."""
        write_bytes(self._episode(receipt.episode), _pack(receipt), synced=False)

    def find(self, episode: str, key: str) -> Receipt | None:
        """The receipt of an episode written from the same input by the same plan, if any."""
        try:
            receipt = _unpack(self._episode(episode).read_bytes())
        except _BROKEN:
            return None
        return replace(receipt, resumed=True) if receipt.key == key else None

    def store_shard(self, digest: str, entry: FileEntry) -> None:
        """Enters a shard whose plan has the digest."""
        document = json.dumps({"plan": digest, **asdict(entry)})
        write_bytes(self._shard(entry.path), document.encode(), synced=False)

    def find_shard(self, path: str, digest: str) -> FileEntry | None:
        """The entry of a shard that was written by the same plan; None without one."""
        try:
            document = json.loads(self._shard(path).read_bytes())
            plan = document.pop("plan")
            return FileEntry(**document) if plan == digest else None
        except _BROKEN:
            return None

    def remove(self) -> None:
        """Forgets everything: the output is complete."""
        remove_tree(self.folder)

    def _episode(self, episode: str) -> Path:
        return self.folder / "episodes" / f"{episode}.npz"

    def _shard(self, path: str) -> Path:
        return self.folder / "shards" / f"{Path(path).stem}.json"


def _pack(receipt: Receipt) -> bytes:
    facts = {
        name: value
        for name, value in vars(receipt).items()
        if name not in ("ranges", "statistics", "resumed")
    }
    arrays: dict[str, Any] = {
        "facts": np.frombuffer(json.dumps(facts, default=dict).encode(), np.uint8),
        "ranges": np.array(receipt.ranges, np.int64).reshape(-1, 2),
    }
    stats = receipt.statistics
    if stats is not None:
        arrays |= {name: getattr(stats, name) for name in _MOMENTS}
        arrays["means"] = stats.digest.means
        if stats.digest.weights is not None:
            arrays["weights"] = stats.digest.weights
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _unpack(data: bytes) -> Receipt:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        facts["warnings"] = tuple((code, message) for code, message in facts["warnings"])
        statistics = None
        if "means" in arrays:
            weights = arrays.get("weights")
            moments = {name: arrays[name] for name in _MOMENTS}
            statistics = WindowStatistics(**moments, digest=Digest(arrays["means"], weights))
        ranges = tuple((int(start), int(length)) for start, length in arrays["ranges"].tolist())
    return Receipt(**facts, ranges=ranges, statistics=statistics)
