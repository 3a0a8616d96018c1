"""The samples in a tar, found by its headers and read one by one.

Nothing is unpickled or unpacked to disk. Source: lbm-data 3.8-3.10, 8.2.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vlatool.artifacts.npz_bytes import read_arrays
from vlatool.artifacts.tar_scan import BROKEN_TAR, PICTURE, split_name
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.inspection.shard import StoredSample

_LARGEST_MEMBER = 2**26
_ARRAYS, _METADATA, _LANGUAGE = "lowdim.npz", "metadata.json", "language_instructions.json"


@dataclass(frozen=True)
class Place:
    """Where a member is in its tar, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class TarIndex:
    """The samples of an open tar.

    Attributes:
        path: The file.
        samples: Key to suffix to place, in the order of the tar.
        problem: Why the tar could not be walked to its end; empty when it could.
    """

    path: Path
    file: IO[bytes]
    samples: Mapping[str, Mapping[str, Place]] = field(repr=False)
    problem: str = ""

    @property
    def keys(self) -> list[str]:
        """The samples in order."""
        return list(self.samples)

    def member(self, key: str, suffix: str) -> bytes | None:
        """Content of a member; None where it is missing or over 64 MiB."""
        place = self.samples[key].get(suffix)
        if place is None or place.size > _LARGEST_MEMBER:
            return None
        self.file.seek(place.offset)
        return self.file.read(place.size)

    def pictures(self, key: str) -> dict[tuple[str, int], str]:
        """(camera, offset) of each picture to its suffix, in the order of the tar."""
        matches = filter(None, map(PICTURE.match, self.samples[key]))
        return {(match["camera"], int(match["offset"])): match.string for match in matches}

    def metadata(self, key: str) -> dict[str, Any]:
        """metadata.json; empty where it is missing.

        Raises:
            DataError: It is not a JSON object.
        """
        content = self._json(key, _METADATA)
        return content if isinstance(content, dict) else {}

    def language(self, key: str) -> dict[str, list[str]]:
        """Kind of annotation to sentences; a lone sentence is a list of one.

        Raises:
            DataError: The member is not JSON.
        """
        content = self._json(key, _LANGUAGE)
        kinds = content.items() if isinstance(content, dict) else ()
        return {
            str(kind): [str(text) for text in (texts if isinstance(texts, list) else [texts])]
            for kind, texts in kinds
            if texts
        }

    def arrays(self, key: str, names: Sequence[str] | None = None) -> dict[str, Array]:
        """Arrays of lowdim.npz: those of `names` that are there, or all of them.

        Raises:
            DataError: The member is missing or broken.
        """
        data = self.member(key, _ARRAYS)
        if data is None:
            raise self._broken(key, f"no {_ARRAYS}, or one over 64 MiB")
        known = StoredSample(key, {}, {_ARRAYS: data}).arrays()
        if not known:
            raise self._broken(key, f"{_ARRAYS} is broken")
        try:
            return read_arrays(data, [name for name in names or known if name in known])
        except (KeyError, ValueError) as error:
            raise self._broken(key, f"{_ARRAYS}: {error}") from None

    def _json(self, key: str, suffix: str) -> object:
        data = self.member(key, suffix)
        try:
            return None if data is None else json.loads(data, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            raise self._broken(key, f"{suffix}: {error}") from None

    def _broken(self, key: str, reason: str) -> DataError:
        return DataError(
            f"{self.path.name}: sample {key}: {reason}",
            hint="preprocess or copy the data again",
            code="data.broken_sample",
            details={"path": str(self.path), "sample": key},
        )


@contextmanager
def open_index(path: Path) -> Iterator[TarIndex]:
    """The samples of a tar while it is open; only headers are read.

    Raises:
        DataError: It cannot be opened.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened: {error.strerror or error}",
            hint="copy or make the shard again",
            code="data.broken_shard",
            details={"path": str(path)},
        ) from None
    with file:
        samples: dict[str, dict[str, Place]] = {}
        problem = _walk(file, samples)
        yield TarIndex(path, file, samples, problem)


def _walk(file: IO[bytes], samples: dict[str, dict[str, Place]]) -> str:
    """Fills in the samples; returns why it had to stop, if it had to."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    key, suffix = split_name(member.name)
                    place = Place(member.offset_data, member.size)
                    samples.setdefault(key, {})[suffix] = place
    except (*BROKEN_TAR, OSError) as error:
        return f"cut off: {error}"
    return ""
