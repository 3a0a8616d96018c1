"""Shards of a data set: files with samples, which training lists as columns."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


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
