"""Checks of image shards: the files of the run, keys, images, and the lists of a split."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from vlatool.datasets.image_shards.layout import (
    LISTS,
    METADATA_SUFFIX,
    ImageManifest,
    ImageShard,
    image_key,
    image_suffix,
    published_tars,
    read_list,
    read_manifest,
)
from vlatool.datasets.lbm.check import LARGEST_SAMPLE, check_index
from vlatool.datasets.lbm.check_samples import SHARDS
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.media.images import decoded_size, image_info
from vlatool.media.tar import TarSample, scan_tar
from vlatool.recordings.check import CheckOptions, check_record_and_files
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.documents import DocumentError, parse_json

_REWRITE = "copy the shards again, or write them again with --overwrite"
_RESPLIT = "write the lists again with `vlatool split`"

# Findings while shards are written and checked.
IMAGE_SHARDS = FindingCodes(
    "image_shards",
    converted=warning(
        "Images were not plain 8-bit RGB and were converted.",
        "nothing, if their colors are correct",
    ),
    several_frames=warning(
        "Images were animations; only their first frames were used.",
        "nothing, if the first frames are intended",
    ),
    mixed_sizes=warning(
        "The images of an episode have different sizes.",
        "resize all to one size with --resize-images-size",
    ),
    not_split=warning(
        "There are too few shards for a validation split; no lists were written.",
        "write shards of more episodes, then run `vlatool split`",
    ),
    broken_manifest=error("manifest.json cannot be read.", _REWRITE),
    no_manifest=info("manifest.json is missing; counts cannot be compared."),
    no_shards=error("The folder has no shards.", _REWRITE),
    missing_shard=error("A shard that the manifest lists is missing.", _REWRITE),
    count_mismatch=error("A shard has another number of images than in the manifest.", _REWRITE),
    bad_key=error("The keys of a shard are not consecutive numbers from 00000000.", _REWRITE),
    no_picture=error("A sample has no image, or several.", _REWRITE),
    bad_metadata=error("The JSON metadata of an image is broken.", _REWRITE),
    duplicate_picture=error("Two images have the same global key.", _REWRITE),
    broken_picture=error("An image cannot be decoded.", _REWRITE),
    picture_size=error("An image has another size than in the manifest.", _REWRITE),
    one_list=error("Only one of the two lists exists.", _RESPLIT),
    broken_list=error("A list cannot be read.", _RESPLIT),
    empty_list=warning("A list names no shard.", _RESPLIT),
    listed_missing=error("A list names a shard that does not exist.", _RESPLIT),
    listed_twice=error("A shard is in both lists, or twice in one.", _RESPLIT),
    unlisted=warning("A shard is in neither list.", _RESPLIT),
)

FINDINGS = (IMAGE_SHARDS,)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of a folder of image shards, or of one shard."""
    if location.is_file():
        shard = ImageShard(location.name, 0, 0)
        single = ImageManifest((shard,), {})
        yield from _FolderCheck(location.parent, single, options).shard(shard, None)
        return
    has_ended = yield from check_record_and_files(location, location, options)
    if not has_ended:
        return
    try:
        manifest = read_manifest(location)
    except DataError as error:
        yield IMAGE_SHARDS("broken_manifest", error.message, path=error.details["path"])
        return
    has_counts = manifest is not None
    if manifest is None:
        yield IMAGE_SHARDS.at("no_manifest", location, "has no manifest.json")
        shards = tuple(ImageShard(tar.name, 0, 0) for tar in published_tars(location))
        manifest = ImageManifest(shards, {})
    if not manifest.shards:
        yield IMAGE_SHARDS.at("no_shards", location, "contains no shard")
    yield from _FolderCheck(location, manifest, options).shards(has_counts=has_counts)
    yield from _check_lists(location, [location / shard.name for shard in manifest.shards])


class _SampleLocation(NamedTuple):
    shard: str
    sample: str

    def finding(self, code: str, message: str) -> Finding:
        text = f"{self.shard}: sample {self.sample}: {message}"
        return IMAGE_SHARDS(code, text, shard=self.shard, sample=self.sample)


class _FolderCheck:
    def __init__(self, folder: Path, manifest: ImageManifest, check: CheckOptions) -> None:
        self._folder = folder
        self._manifest = manifest
        self._check = check
        self._positions = count()
        self._keys: set[str] = set()  # of the current shard
        self._shards_of_episodes: dict[str, str] = {}
        size = manifest.options.get("resize_images_size")
        self._size = tuple(size) if isinstance(size, list) else None

    def shards(self, *, has_counts: bool) -> Iterator[Finding]:
        total = len(self._manifest.shards)
        with self._check.reporter.progress("shards", total, "shards") as bar:
            for shard in self._manifest.shards:
                yield from self.shard(shard, shard.pictures if has_counts else None)
                bar.advance(pictures=self._check.counts.pictures)

    def shard(self, shard: ImageShard, expected: int | None) -> Iterator[Finding]:
        """Yields the findings of one shard; `expected` is its number of images, if known."""
        path = self._folder / shard.name
        name = str(path)
        if not path.is_file():
            yield IMAGE_SHARDS("missing_shard", f"{name}: is missing", shard=name)
            return
        scan = scan_tar(path)
        self._check.counts.add(files=1, bytes=path.stat().st_size, samples=len(scan.samples))
        for problem in scan.problems:
            message = f"{name}: {problem.message}"
            yield SHARDS(problem.code, message, shard=name, sample=problem.sample)
        if expected is not None and expected != len(scan.samples):
            message = (
                f"{name}: has {counted(len(scan.samples), 'image')}, the manifest says {expected}"
            )
            yield IMAGE_SHARDS("count_mismatch", message, shard=name)
        yield from check_index(path, scan)
        yield from _check_keys(name, scan.samples)
        self._keys.clear()
        # Published folders have no counts.
        total = self._manifest.images or len(scan.samples) * len(self._manifest.shards)
        for sample in scan.samples:
            yield from self._sample(path, sample, total)

    def _sample(self, path: Path, sample: TarSample, total: int) -> Iterator[Finding]:
        location = _SampleLocation(str(path), sample.key)
        suffix = image_suffix(sample.members)
        if suffix is None:
            message = f"has only the members {', '.join(sample.members)}"
            yield location.finding("no_picture", message)
            return
        if not self._check.selects(next(self._positions), total):
            return
        size = sample.end - sample.start
        if size > LARGEST_SAMPLE:
            problem = f"sample {sample.key} has {size} bytes; the limit is {LARGEST_SAMPLE}"
            yield SHARDS.at("huge_sample", path, problem, shard=str(path), sample=sample.key)
            return
        data = read_byte_range(ByteRange(path, sample.start, sample.end))
        stored = sample.stored(data).members
        yield from self._image(location, stored[suffix])
        if METADATA_SUFFIX in stored:
            yield from self._metadata(location, stored[METADATA_SUFFIX])
        self._check.counts.add(samples_read=1, pictures=1)

    def _image(self, location: _SampleLocation, data: bytes) -> Iterator[Finding]:
        try:
            info = image_info(data)
            decoded_size(data)
        except ValueError as error:
            yield location.finding("broken_picture", str(error))
            return
        size = (info.width, info.height)
        if self._size is not None and size != self._size:
            message = f"has {size[0]}x{size[1]} pixels, not {self._size[0]}x{self._size[1]}"
            yield location.finding("picture_size", message)

    def _metadata(self, location: _SampleLocation, data: bytes) -> Iterator[Finding]:
        try:
            metadata: Any = parse_json(data)
        except DocumentError as error:
            yield location.finding("bad_metadata", error.reason)
            return
        key = metadata.get("key") if isinstance(metadata, Mapping) else None
        if not isinstance(key, str):
            yield location.finding("bad_metadata", "has no `key`")
            return
        # All images of an episode are in one shard: keys of other shards need not be stored.
        episode = key.rpartition("/")[0].rpartition("/")[0]
        shard = self._shards_of_episodes.setdefault(episode, location.shard)
        if shard != location.shard:
            yield location.finding("duplicate_picture", f"{key} is also in {shard}")
        elif key in self._keys:
            yield location.finding("duplicate_picture", f"{key} is also in this shard")
        self._keys.add(key)


def _check_keys(shard: str, samples: Sequence[TarSample]) -> Iterator[Finding]:
    for number, sample in enumerate(samples):
        if sample.key != image_key(number):
            message = f"{shard}: sample {number} has the key {sample.key}"
            yield IMAGE_SHARDS("bad_key", message, shard=shard, sample=sample.key)
            return


def _check_lists(folder: Path, shards: Sequence[Path]) -> Iterator[Finding]:
    """Yields the findings of the lists next to the shards, which name each shard once."""
    present: list[Path] = []
    absent: list[Path] = []
    for name in LISTS.values():
        path = folder / name
        (present if path.is_file() else absent).append(path)
    if not present:
        return
    if absent:
        yield IMAGE_SHARDS.at("one_list", present[0], f"has no counterpart {absent[0].name}")
    times: Counter[Path] = Counter()
    names: dict[Path, Path] = {}
    for path in present:
        try:
            tars = read_list(path)
        except DataError as error:
            yield IMAGE_SHARDS("broken_list", error.message, path=str(path))
            return
        if not tars:
            yield IMAGE_SHARDS.at("empty_list", path, "names no shard")
        for tar in tars:
            if not tar.is_file():
                yield IMAGE_SHARDS.at("listed_missing", path, f"{tar} is missing", shard=str(tar))
            times[tar.resolve()] += 1
            names[tar.resolve()] = tar
    for resolved, tar in names.items():
        if times[resolved] > 1:
            message = f"{tar}: is listed {times[resolved]} times"
            yield IMAGE_SHARDS("listed_twice", message, shard=str(tar))
    for tar in shards:
        if tar.resolve() not in times:
            yield IMAGE_SHARDS("unlisted", f"{tar}: is in no list", shard=str(tar))
