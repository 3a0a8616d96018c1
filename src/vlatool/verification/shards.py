"""Checks of a folder of shards, or of one tar: all headers, all digests, a part of the samples."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from vlatool.artifacts.manifest import Shard
from vlatool.artifacts.sample import METADATA
from vlatool.artifacts.shard import TarSample, TarScan, scan_tar
from vlatool.artifacts.shard_folder import ShardFolder
from vlatool.artifacts.shard_index import index_path, read_index
from vlatool.errors import DataError
from vlatool.events import Progress
from vlatool.findings import Finding
from vlatool.verification.check import Checked, Depth
from vlatool.verification.codes import SHARDS
from vlatool.verification.samples import (
    Expectation,
    Place,
    SampleCheck,
    missing_members,
)
from vlatool.verification.stats import StatsCheck

_LARGEST_SAMPLE = 2**30


@dataclass
class ShardList:
    """The tars to look at.

    Attributes:
        folder: Where they are, with what lies beside them.
        shards: What the manifest lists; without one, the tars themselves.
        has_manifest: Whether there is one, hence counts and statistics.
        digests: Key of each sample to the digest of its bytes, once checked; empty bytes where
            digests are not compared.
    """

    folder: ShardFolder
    shards: Sequence[Shard]
    has_manifest: bool = True
    digests: dict[str, bytes] = field(default_factory=dict[str, bytes])

    @property
    def samples(self) -> int:
        """How many samples the manifest promises."""
        return sum(shard.num_sequences for shard in self.shards)


def list_shards(folder: ShardFolder) -> Iterator[Finding | ShardList]:
    """The tars, with what is wrong with their manifest before them; only that when it is broken."""
    manifest = folder.manifest
    try:
        shards = folder.shards()
    except DataError as error:
        code = "no_manifest" if error.code == "data.no_manifest" else "broken_manifest"
        yield SHARDS(code, error.message, path=str(manifest), line=error.details.get("line"))
        return
    listed = [shard.path for shard in shards]
    for tar in sorted(
        {tar for folder in {p.parent for p in listed} for tar in folder.glob("*.tar")}
    ):
        if tar not in listed:
            yield SHARDS("unlisted_shard", f"{tar}: is not in {manifest}", path=str(tar))
    for tar in dict.fromkeys(tar for tar in listed if listed.count(tar) > 1):
        yield SHARDS("listed_twice", f"{manifest}: lists {tar.name} twice", path=str(manifest))
    yield ShardList(folder, shards)


def check_shards(
    listed: ShardList, depth: Depth, checked: Checked, bar: Progress
) -> Iterator[Finding]:
    """Everything that is wrong with tars, their samples and statistics.

    Args:
        listed: What to check; gets the digests of its samples.
        depth: How much is looked into.
        checked: Counts what was.
        bar: Advances by one for each tar.
    """
    options = dict[str, Any]()
    yield from _read_options(listed, options)
    check = _FolderCheck(listed, Expectation.of(options), depth, checked)
    if listed.has_manifest:
        yield from check.stats.open(check.expected)
    for shard in listed.shards:
        yield from check.shard(shard)
        bar.advance(samples=checked.samples)
    if listed.has_manifest:
        fields = check.contents.fields
        yield from check.stats.findings(fields, check.expected, len(listed.digests))


def _read_options(listed: ShardList, options: dict[str, Any]) -> Iterator[Finding]:
    try:
        options.update(listed.folder.options())
    except DataError as error:
        if listed.has_manifest:
            yield SHARDS("no_config", error.message, path=str(listed.folder.options_file))


class _FolderCheck:
    """The checks of one folder, shard by shard."""

    def __init__(
        self, listed: ShardList, expected: Expectation, depth: Depth, checked: Checked
    ) -> None:
        self.expected = expected
        self.contents = SampleCheck(expected)
        self.stats = StatsCheck(listed.folder, recompute=depth.is_full)
        self._listed = listed
        self._depth = depth
        self._checked = checked
        self._position = 0

    def shard(self, shard: Shard) -> Iterator[Finding]:
        """Everything that is wrong with a tar and the samples in it."""
        name = str(shard.path)
        if not shard.path.is_file():
            yield SHARDS("missing_shard", f"{name}: is missing", shard=name)
            return
        self._checked.add(files=1, bytes=shard.path.stat().st_size)
        scan = scan_tar(shard.path)
        for problem in scan.problems:
            message = f"{name}: {problem.message}"
            yield SHARDS(problem.code, message, shard=name, sample=problem.sample)
        if self._listed.has_manifest and shard.num_sequences != len(scan.samples):
            message = f"{name}: has {len(scan.samples)} samples, the manifest says "
            yield SHARDS("count_mismatch", f"{message}{shard.num_sequences}", shard=name)
        yield from _check_index(shard.path, scan)
        yield from self._samples(shard.path, scan.samples)

    def _samples(self, path: Path, samples: Sequence[TarSample]) -> Iterator[Finding]:
        own: set[str] = set()
        pictures = self.contents.pictures
        with path.open("rb") as file:
            for sample in samples:
                if sample.key in self._listed.digests and sample.key not in own:
                    message = f"{path}: sample {sample.key} is also in another shard"
                    yield SHARDS("duplicate_sample", message, shard=str(path), sample=sample.key)
                own.add(sample.key)
                yield from self._sample(file, path, sample)
        self._checked.add(samples=len(samples), pictures=self.contents.pictures - pictures)

    def _sample(self, file: IO[bytes], path: Path, sample: TarSample) -> Iterator[Finding]:
        """Digest and completeness of each sample, contents of those chosen."""
        is_chosen = self._is_next_chosen()
        if sample.end - sample.start > _LARGEST_SAMPLE:
            self._listed.digests[sample.key] = b""
            message = f"has {sample.end - sample.start} bytes; the limit is {_LARGEST_SAMPLE}"
            yield Place(str(path), sample.stored(b"")).finding("huge_sample", message)
            return
        absent = missing_members(sample.members, self.expected)
        data = b""
        if is_chosen or absent or not self._depth.is_quick:
            file.seek(sample.start)
            data = file.read(sample.end - sample.start)
        place = Place(str(path), sample.stored(data))
        digest = b"" if self._depth.is_quick else hashlib.blake2b(data, digest_size=16).digest()
        self._listed.digests[sample.key] = digest
        if absent:
            # The sample itself may say that its episode has fewer cameras.
            own = replace(self.expected, cameras=_own_cameras(place) or self.expected.cameras)
            absent = missing_members(sample.members, own)
        if absent:
            yield place.finding("incomplete_sample", f"lacks {', '.join(absent)}")
        if is_chosen:
            self._checked.add(samples_read=1)
            yield from self.contents.check(place, self.stats.take)

    def _is_next_chosen(self) -> bool:
        """Whether the next sample's contents are read: evenly spread over all."""
        position, self._position = self._position, self._position + 1
        wanted, total = self._depth.samples, self._listed.samples
        if wanted is None or wanted >= total:
            return True
        return position * wanted // total != (position - 1) * wanted // total


def _check_index(shard: Path, scan: TarScan) -> Iterator[Finding]:
    """Published data have no index; one that says something else than the headers misleads."""
    path = index_path(shard)
    if not path.is_file() or any(problem.code == "broken_tar" for problem in scan.problems):
        return
    index = read_index(path)
    if index is None:
        problem = "cannot be read"
    elif index.shard_bytes != shard.stat().st_size:
        problem = f"is of a shard of {index.shard_bytes} bytes"
    elif index.ranges() != [(one.start, one.end - one.start) for one in scan.samples]:
        problem = "has other places of samples than the headers"
    else:
        return
    yield SHARDS("index_mismatch", f"{path}: {problem}", path=str(path), shard=str(shard))


def _own_cameras(place: Place) -> tuple[str, ...] | None:
    """The cameras that the sample's own metadata name."""
    metadata = place.json(METADATA)
    names = metadata.get("camera_names") if isinstance(metadata, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) else None
