"""A training sample as tar members, and tar files made of them.

Members of a sample are contiguous and blocks are 512 bytes, so a sample is a byte range that can be
copied from one tar to another. Source: lbm-data 3.8-3.10, 8.1.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from vlatool.artifacts.npz_bytes import write_arrays
from vlatool.episode import Sample

_RECORD = tarfile.RECORDSIZE


def sample_members(sample: Sample, images: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each member, in the published order.

    Args:
        sample: The window.
        images: Encoded picture by member suffix (`front_t-1.jpg`), in the order they shall have.
    """
    for suffix, data in images.items():
        yield f"{sample.key}.{suffix}", data
    yield f"{sample.key}.lowdim.npz", write_arrays(sample.lowdim)
    yield f"{sample.key}.metadata.json", _json(sample.metadata, indent=2)
    yield f"{sample.key}.language_instructions.json", _json(dict(sample.language))


def member_bytes(name: str, data: bytes) -> bytes:
    """Header, content and padding of one tar member; no clock, no owner."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    header = info.tobuf(format=tarfile.PAX_FORMAT)
    padding = -len(data) % tarfile.BLOCKSIZE
    return header + data + bytes(padding)


class TarWriter:
    """Appends samples to an open file and ends it as a tar file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.position = 0

    @property
    def sha256(self) -> str:
        """Digest of what was written so far."""
        return self._digest.hexdigest()

    def append(self, data: bytes) -> tuple[int, int]:
        """Appends whole members; returns their (offset, length)."""
        start = self.position
        self._write(data)
        return start, len(data)

    def finish(self) -> None:
        """Writes the end marker and fills the last record."""
        end = bytes(2 * tarfile.BLOCKSIZE)
        self._write(end + bytes(-(self.position + len(end)) % _RECORD))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.position += len(data)


def _json(value: Mapping[str, Any] | Sequence[Any], indent: int | None = None) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False).encode()
