"""What is in one tar shard: its samples, and the members of the first."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.sample import ARRAYS, StoredSample, parse_picture
from vlatool.artifacts.shard import OpenShard, open_shard
from vlatool.errors import DataError
from vlatool.inspection.text import pairs, size_text, table

Size = tuple[int, int]


@dataclass(frozen=True)
class SampleFacts:
    """What is in a sample.

    Attributes:
        key: Its name.
        members: Suffix (`lowdim.npz`) to size in bytes.
        pictures: Suffix of each picture to its (width, height); None for one that cannot be opened.
        arrays: Low-dimensional array to shape and type.
        language: Kind of annotation to sentences.
    """

    key: str
    members: Mapping[str, int]
    pictures: Mapping[str, Size | None]
    arrays: Mapping[str, tuple[tuple[int, ...], str]]
    language: Mapping[str, list[str]]

    def cameras(self) -> dict[str, Size | None]:
        """Camera to the (width, height) of its first picture."""
        sizes: dict[str, Size | None] = {}
        for suffix, size in self.pictures.items():
            name = parse_picture(suffix)
            if name is not None:
                sizes.setdefault(name.camera, size)
        return sizes

    def document(self) -> dict[str, Any]:
        """The facts for programs."""
        arrays = {name: {"shape": s, "dtype": dtype} for name, (s, dtype) in self.arrays.items()}
        return {**asdict(self), "arrays": arrays}


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
    first: SampleFacts | None
    problem: str = ""
    kind: str = "shard"

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        first = None if self.first is None else self.first.document()
        return {**asdict(self), "first": first}

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
    def _first_blocks(first: SampleFacts) -> Iterator[str]:
        members = [
            (name, size_text(size), _text(first.pictures[name]) if name in first.pictures else "")
            for name, size in first.members.items()
        ]
        yield table("Members of the first sample", ("name", "size", "width x height"), members)
        arrays = [
            (name, " x ".join(map(str, shape)) or "scalar", dtype)
            for name, (shape, dtype) in first.arrays.items()
        ]
        yield table(f"Arrays of {ARRAYS}", ("name", "shape", "dtype"), arrays)
        language = [(kind, f'"{texts[0]}"') for kind, texts in first.language.items()]
        yield table("Language", ("kind", "example"), language)


def inspect_shard(path: Path) -> ShardReport:
    """Walks through the headers of a tar; only the first sample is read.

    Raises:
        DataError: It is not a tar file.
    """
    with open_shard(path) as shard:
        counts = Counter[str]()
        for sample in shard.scan.samples:
            counts[sample.key] += len(sample.members)
        others = sum(problem.code == "not_a_file" for problem in shard.scan.problems)
        return ShardReport(
            samples=len(counts),
            members=counts.total(),
            bytes=path.stat().st_size,
            members_per_sample=dict(Counter(counts.values()).most_common()),
            first=first_sample(shard),
            problem=shard.damage or (f"{others} members are not plain files" if others else ""),
        )


def first_sample(shard: OpenShard) -> SampleFacts | None:
    """The first sample of a tar; None when it holds none or cannot be read."""
    for key, places in shard.places.items():
        try:
            with shard.reading(key) as sample:
                sizes = {suffix: size for suffix, (_, size) in places.items()}
                return _facts(sample, sizes)
        except DataError:
            return None
    return None


def _facts(sample: StoredSample, sizes: Mapping[str, int]) -> SampleFacts:
    try:
        language = sample.language()
    except ValueError:
        language = {}
    arrays = sample.array_headers() if ARRAYS in sample.members else {}
    return SampleFacts(sample.key, sizes, sample.picture_sizes(), arrays, language)


def _text(size: Size | None) -> str:
    return "unreadable" if size is None else f"{size[0]} x {size[1]}"
