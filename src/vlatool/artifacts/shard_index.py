"""shards/<shard>.index.npz: where each sample of a shard is, so that any one can be read alone.

Readers of the published layout do not know these files and need not. Source: data-order, Reading.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlatool.artifacts.npz_bytes import read_arrays, write_arrays
from vlatool.episode import Array

SUFFIX = ".index.npz"


@dataclass(frozen=True)
class ShardIndex:
    """Byte ranges of the samples of a tar, in its order.

    Attributes:
        offsets: int64 [S], where the first header of each sample begins.
        lengths: int64 [S], bytes up to the end of its last member, padding included.
        shard_bytes: Size of the tar; for one of another size the index says nothing.
    """

    offsets: Array
    lengths: Array
    shard_bytes: int

    def __len__(self) -> int:
        return len(self.offsets)

    def ranges(self) -> list[tuple[int, int]]:
        """(offset, length) of each sample."""
        return list(zip(self.offsets.tolist(), self.lengths.tolist(), strict=True))

    def content(self) -> bytes:
        """The file; equal indexes give equal bytes."""
        return write_arrays(
            {
                "offsets": np.asarray(self.offsets, np.int64),
                "lengths": np.asarray(self.lengths, np.int64),
                "shard_bytes": np.array(self.shard_bytes, np.int64),
            }
        )


def index_path(shard: Path) -> Path:
    """Where the index of a shard is: beside it."""
    return shard.with_name(f"{shard.name.removesuffix('.tar')}{SUFFIX}")


def read_index(path: Path) -> ShardIndex | None:
    """The index at `path`; None where there is none or it cannot be read."""
    try:
        arrays = read_arrays(path.read_bytes(), ("offsets", "lengths", "shard_bytes"))
    except (OSError, KeyError, ValueError):
        return None
    offsets, lengths = arrays["offsets"], arrays["lengths"]
    if offsets.dtype.kind != "i" or lengths.shape != offsets.shape or offsets.ndim != 1:
        return None
    return ShardIndex(offsets, lengths, int(arrays["shard_bytes"]))
