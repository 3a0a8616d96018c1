"""What is in one tar shard: its samples, and the members of the first."""

import io
import json
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.lib import format as npy
from PIL import Image

from vlatool.artifacts.manifest import Shard, check_shards
from vlatool.artifacts.tar_scan import BROKEN_TAR, PICTURE, split_name
from vlatool.errors import DataError
from vlatool.inspection.text import pairs, size_text, table

_LARGEST_MEMBER = 2**26


@dataclass(frozen=True)
class StoredSample:
    """The members of one sample by suffix (`lowdim.npz`); `contents` lacks those over 64 MiB."""

    key: str
    sizes: Mapping[str, int]
    contents: Mapping[str, bytes]

    def pictures(self) -> dict[str, tuple[int, int] | None]:
        """Suffix of each picture to its (width, height); None for one that cannot be opened."""
        names = [name for name in self.sizes if name.endswith((".jpg", ".jpeg", ".png"))]
        return {name: _picture_size(self.contents.get(name, b"")) for name in names}

    def cameras(self) -> dict[str, tuple[int, int] | None]:
        """Camera to the (width, height) of its first picture."""
        sizes: dict[str, tuple[int, int] | None] = {}
        for name, size in self.pictures().items():
            match = PICTURE.match(name)
            if match:
                sizes.setdefault(match["camera"], size)
        return sizes

    def arrays(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Low-dimensional array to shape and dtype, from the headers."""
        return dict(_array_headers(self.contents.get("lowdim.npz", b"")))

    def language(self) -> dict[str, list[str]]:
        """Kind of annotation to sentences."""
        try:
            content = json.loads(self.contents.get("language_instructions.json", b"{}"))
        except ValueError:
            return {}
        kinds = content.items() if isinstance(content, dict) else ()
        return {
            str(kind): [str(text) for text in texts]
            for kind, texts in kinds
            if texts and isinstance(texts, list)
        }


@dataclass(frozen=True)
class ShardReport:
    """What is in a shard.

    Attributes:
        samples: Keys with at least one member.
        members: Files in the tar.
        bytes: Size of the tar.
        members_per_sample: Number of members to how many samples have so many.
        first: The first sample; None in an empty tar.
        problem: Why it could not be read to its end; empty when it could.
    """

    samples: int
    members: int
    bytes: int
    members_per_sample: Mapping[int, int]
    first: StoredSample | None
    problem: str = ""
    kind: str = "shard"

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        document = {**asdict(self), "first": None}
        if self.first is not None:
            document["first"] = {
                "key": self.first.key,
                "members": dict(self.first.sizes),
                "pictures": self.first.pictures(),
                "arrays": {
                    name: {"shape": shape, "dtype": dtype}
                    for name, (shape, dtype) in self.first.arrays().items()
                },
                "language": self.first.language(),
            }
        return document

    def headline(self) -> str:
        """What it is, in a few words."""
        return f"shard, {self.samples} samples"

    def blocks(self) -> list[str]:
        """The report for people, block by block."""
        counts = ", ".join(
            f"{members} in {samples} samples" if len(self.members_per_sample) > 1 else str(members)
            for members, samples in self.members_per_sample.items()
        )
        summary = pairs(
            {
                "status": self.problem or "whole",
                "on disk": size_text(self.bytes),
                "members per sample": counts,
                "first sample": self.first.key if self.first else "none",
            }
        )
        return [summary, *(self._first_blocks(self.first) if self.first else ())]

    @staticmethod
    def _first_blocks(first: StoredSample) -> Iterator[str]:
        pictures = first.pictures()
        members = [
            (name, size_text(size), _size_text(pictures[name]) if name in pictures else "")
            for name, size in first.sizes.items()
        ]
        yield table("Members of the first sample", ("name", "size", "width x height"), members)
        arrays = [
            (name, " x ".join(map(str, shape)) or "scalar", dtype)
            for name, (shape, dtype) in first.arrays().items()
        ]
        yield table("Arrays of lowdim.npz", ("name", "shape", "dtype"), arrays)
        language = [(kind, f'"{texts[0]}"') for kind, texts in first.language().items()]
        yield table("Language", ("kind", "example"), language)


def inspect_shard(path: Path) -> ShardReport:
    """Walks through the headers of a tar; only the first sample is read.

    Raises:
        DataError: It is not a tar file.
    """
    counts: Counter[str] = Counter()
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            first = _first_sample(tar)
            problem = _count(tar, counts) or _end_problem(path)
    except (*BROKEN_TAR, OSError) as error:
        raise DataError(
            f"{path}: not a readable tar file: {error}",
            hint="copy or make the shard again",
            code="data.broken_shard",
            details={"path": str(path)},
        ) from None
    return ShardReport(
        samples=len(counts),
        members=counts.total(),
        bytes=path.stat().st_size,
        members_per_sample=dict(Counter(counts.values()).most_common()),
        first=first,
        problem=problem,
    )


def first_sample(path: Path) -> StoredSample | None:
    """The first sample of a tar; None when it holds none or cannot be read."""
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return _first_sample(tar)
    except (*BROKEN_TAR, OSError):
        return None


def _count(tar: tarfile.TarFile, counts: Counter[str]) -> str:
    """Counts the members of each key; returns why it had to stop, if it had to."""
    others = 0
    try:
        for member in tar:
            if member.isfile():
                counts[split_name(member.name)[0]] += 1
            else:
                others += 1
    except (*BROKEN_TAR, OSError) as error:
        return f"cut off: {error}"
    return f"{others} members are not plain files" if others else ""


def _end_problem(path: Path) -> str:
    try:
        check_shards(path, [Shard(path, 0)])
    except DataError:
        return "cut off: no end marker"
    return ""


def _first_sample(tar: tarfile.TarFile) -> StoredSample | None:
    """The members at the start of the tar that have one key; None when there is no member."""
    key: str | None = None
    sizes: dict[str, int] = {}
    contents: dict[str, bytes] = {}
    for member in tar:
        owner, suffix = split_name(member.name)
        if key is None:
            key = owner
        if owner != key:
            break
        sizes[suffix] = member.size
        file = tar.extractfile(member) if member.isfile() else None
        if file is not None and member.size <= _LARGEST_MEMBER:
            contents[suffix] = file.read()
    return None if key is None else StoredSample(key, sizes, contents)


def _picture_size(data: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.size
    except (OSError, Image.DecompressionBombError):
        return None


def _size_text(size: tuple[int, int] | None) -> str:
    return "unreadable" if size is None else f"{size[0]} x {size[1]}"


def _array_headers(data: bytes) -> Iterator[tuple[str, tuple[tuple[int, ...], str]]]:
    """Name, shape and dtype of each array of an npz; nothing but headers is inflated."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    is_first = npy.read_magic(member) == (1, 0)
                    read = npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0
                    shape, _, dtype = read(member)
                    yield info.filename.removesuffix(".npy"), (shape, str(dtype))
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, RuntimeError):
        return
