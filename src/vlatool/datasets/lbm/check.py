"""Checks of training shards: the files of the run, the folders of shards, their samples.

All headers of shards are checked, and the contents of some samples.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import IO, Any

from vlatool.datasets.lbm.check_samples import (
    SHARDS,
    STATS,
    ExpectedSample,
    SampleCheck,
    SampleContext,
    StatsCheck,
    missing_members,
)
from vlatool.datasets.lbm.layout import (
    EPISODES_NAME,
    MANIFEST_NAME,
    SHARDS_NAME,
    VOLATILE_FILES,
    ShardFolder,
    ShardInfo,
    ShardTable,
    expects_manifest,
)
from vlatool.datasets.stats.layout import STATS_NAME, check_recorded
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding
from vlatool.media.tar import (
    TarSample,
    TarScan,
    index_path,
    is_shard,
    read_index,
    scan_tar,
)
from vlatool.media.tar_sample import METADATA
from vlatool.recordings.check import OUTPUT, CheckOptions, check_record_and_files
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.uri import can_list

LARGEST_SAMPLE = 2**28  # its check takes three times that memory


@dataclass
class ShardList:
    """The shards of a folder to check."""

    folder: ShardFolder  # folder of the shards and their metadata
    # shards of the manifest; without a manifest, the tar files of the folder
    shards: Sequence[ShardInfo] | ShardTable
    # True if there is a manifest; counts and statistics are then checked too
    has_manifest: bool = True
    keys: set[str] = field(default_factory=set[str])  # keys of the samples that were checked

    @property
    def num_samples(self) -> int:
        """Number of samples according to the manifest."""
        return sum(shard.size for shard in self.shards)


FINDINGS = (SHARDS, STATS)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of training data, a copy of them, or one shard."""
    if is_shard(location):
        folder = ShardFolder(location.parent / MANIFEST_NAME)
        single = ShardList(folder, [ShardInfo(location, 0)], has_manifest=False)
        yield from _check_shards(single, options)
        return
    root = location.parent if location.is_file() else location
    has_ended = yield from check_record_and_files(location, root, options, volatile=VOLATILE_FILES)
    if has_ended and (ShardFolder.find(root) is not None or expects_manifest(root)):
        yield from _check_folders(root, options)


def _check_folders(location: Path, check: CheckOptions) -> Iterator[Finding]:
    """Checks `shards` and `episodes`; the folder itself if it has none of them."""
    lists: dict[str, ShardList] = {}
    for folder in ShardFolder.parts(location):
        for result in _list_shards(folder):
            if isinstance(result, Finding):
                yield result
            else:
                lists[folder.path.name] = result
    for name, listed in lists.items():
        if name == EPISODES_NAME and len(lists) > 1:
            # These samples are also in `shards`: their headers are enough.
            yield from _check_shards(listed, replace(check, samples=0), name)
            check.counts.add(samples=-len(listed.keys), episodes=len(listed.shards))
        else:
            yield from _check_shards(listed, check)


def _list_shards(folder: ShardFolder) -> Iterator[Finding | ShardList]:
    """Yields the findings of a manifest, then its list of shards if it could be read."""
    manifest = folder.manifest
    try:
        shards = folder.shards()
    except DataError as error:
        code = "broken_manifest"
        if error.code == "data.no_manifest":
            code = "no_manifest"
        yield SHARDS(code, error.message, path=str(manifest), line=error.details.get("line"))
        return
    listed = Counter(shard.location for shard in shards)
    tars: set[Path] = set()
    for folder_of_shards in {path.parent for path in listed if can_list(path)}:
        tars.update(folder_of_shards.glob("*.tar"))
    for tar in sorted(tars):
        if tar not in listed:
            yield SHARDS.at("unlisted_shard", tar, f"is not in {manifest}")
    for tar in (tar for tar, times in listed.items() if times > 1):
        yield SHARDS.at("listed_twice", manifest, f"lists {tar.name} twice")
    yield ShardList(folder, shards)


def _check_shards(
    listed: ShardList, check: CheckOptions, unit: str = SHARDS_NAME
) -> Iterator[Finding]:
    """Yields the findings of shards, samples and statistics; fills `listed.keys`."""
    before = check.counts.samples
    options: dict[str, Any] = {}
    try:
        listed.folder.metadata()
    except DataError as error:
        yield OUTPUT("broken_metadata", error.message, path=error.details["path"])
    try:
        options = listed.folder.options()
    except DataError as error:
        if listed.has_manifest:
            yield SHARDS("no_config", error.message, path=str(listed.folder.options_file))
    folder = _FolderCheck(listed, ExpectedSample.of(options), check)
    if listed.has_manifest:
        yield from check_recorded(listed.folder.path / STATS_NAME, check)
        yield from folder.stats.read()
    with check.reporter.progress(unit, len(listed.shards), unit) as bar:
        for shard in listed.shards:
            yield from folder.shard(shard)
            bar.advance(samples=check.counts.samples - before)
    if listed.has_manifest:
        yield from folder.stats.findings(folder.contents.fields, len(listed.keys))


class _FolderCheck:
    """Checks of one folder, shard by shard."""

    def __init__(self, listed: ShardList, expected: ExpectedSample, check: CheckOptions) -> None:
        self.expected = expected
        self.contents = SampleCheck(expected)
        self.stats = StatsCheck(listed.folder, expected)
        self._listed = listed
        self._check = check
        self._positions = count()

    def shard(self, shard: ShardInfo) -> Iterator[Finding]:
        """Yields the findings of a shard and its samples."""
        name = str(shard.location)
        if not shard.location.is_file():
            yield SHARDS("missing_shard", f"{name}: is missing", shard=name)
            return
        self._check.counts.add(files=1, bytes=shard.location.stat().st_size)
        scan = scan_tar(shard.location)
        for problem in scan.problems:
            message = f"{name}: {problem.message}"
            yield SHARDS(problem.code, message, shard=name, sample=problem.sample)
        if self._listed.has_manifest and shard.size != len(scan.samples):
            message = f"{name}: has {counted(len(scan.samples), 'sample')}, the manifest says "
            yield SHARDS("count_mismatch", f"{message}{shard.size}", shard=name)
        yield from check_index(shard.location, scan)
        yield from self._samples(shard.location, scan.samples)

    def _samples(self, path: Path, samples: Sequence[TarSample]) -> Iterator[Finding]:
        shard_keys: set[str] = set()
        images = self.contents.images
        with open_file(path) as file:
            for sample in samples:
                if sample.key in self._listed.keys and sample.key not in shard_keys:
                    message = f"{path}: sample {sample.key} is also in another shard"
                    yield SHARDS("duplicate_sample", message, shard=str(path), sample=sample.key)
                shard_keys.add(sample.key)
                yield from self._sample(file, path, sample)
        self._check.counts.add(samples=len(samples), pictures=self.contents.images - images)

    def _sample(self, file: IO[bytes], path: Path, sample: TarSample) -> Iterator[Finding]:
        """Checks the members of a sample, and its contents if it is selected."""
        self._listed.keys.add(sample.key)
        is_selected = self._check.selects(next(self._positions), self._listed.num_samples)
        if sample.end - sample.start > LARGEST_SAMPLE:
            message = f"has {sample.end - sample.start} bytes; the limit is {LARGEST_SAMPLE}"
            yield SampleContext(str(path), sample.stored(b"")).finding("huge_sample", message)
            return
        missing = missing_members(sample.members, self.expected)
        data = b""
        if is_selected or missing:
            file.seek(sample.start)
            data = file.read(sample.end - sample.start)
        context = SampleContext(str(path), sample.stored(data))
        if missing:
            # The metadata of the sample may list fewer cameras.
            names = (context.json(METADATA) or {}).get("camera_names")
            cameras = tuple(map(str, names)) if isinstance(names, list) else ()
            expected = replace(self.expected, cameras=cameras or self.expected.cameras)
            missing = missing_members(sample.members, expected)
        if missing:
            yield context.finding("incomplete_sample", f"lacks {', '.join(missing)}")
        if is_selected:
            self._check.counts.add(samples_read=1)
            yield from self.contents.check(context, self.stats.add)


def check_index(shard: Path, scan: TarScan) -> Iterator[Finding]:
    """Compares an index with the headers of its shard; published data have no index."""
    path = index_path(shard)
    if not path.is_file() or any(problem.code == "broken_tar" for problem in scan.problems):
        return
    index = read_index(path)
    if index is None:
        problem = "cannot be read"
    elif index.shard_bytes != (size := shard.stat().st_size):
        problem = f"was made for a shard of {index.shard_bytes} bytes, the shard has {size}"
    elif index.ranges() != [(sample.start, sample.end - sample.start) for sample in scan.samples]:
        problem = "its byte ranges differ from the tar headers"
    else:
        return
    yield SHARDS.at("index_mismatch", path, problem, shard=str(shard))
