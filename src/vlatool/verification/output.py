"""Checks of a whole output: the record of its run, the list of its files, its folders of shards."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vlatool.artifacts import manifest, shard_index
from vlatool.artifacts.manifest import Shard
from vlatool.artifacts.shard_folder import EPISODES_NAME, SHARDS_NAME, UNLISTED_FILES, ShardFolder
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.jobs.files import (
    NAME,
    FileEntry,
    digests_below,
    folder_entry,
    is_intact,
    is_listed,
    own_files,
    read_file_list,
)
from vlatool.jobs.record import read_record
from vlatool.verification.check import Check, Depth, check_listed
from vlatool.verification.codes import OUTPUT, SHARDS
from vlatool.verification.shards import ShardList, check_shards, list_shards


def check_output(location: Path, check: Check) -> Iterator[Finding]:
    """Everything that is wrong with training data, or a copy of them."""
    record = read_record(location)
    if record is not None and record.result is None:
        message = f"{location}: `vlatool {record.command}` runs here, or was interrupted"
        yield OUTPUT("incomplete", message, path=str(location))
        return
    if record is not None and not record.complete:
        message = f"{location}: `vlatool {record.command}` left out what failed"
        yield OUTPUT("partial", message, path=str(location))
    root = location.parent if location.is_file() else location
    yield from check_files(root, check)
    yield from _check_folders(root, check)


def check_shard(location: Path, check: Check) -> Iterator[Finding]:
    """Everything that is wrong with one tar of samples."""
    folder = ShardFolder(location.parent / manifest.NAME)
    alone = ShardList(folder, [Shard(location, 0)], has_manifest=False)
    with check.reporter.progress("shards", 1, "shard") as bar:
        yield from check_shards(alone, check.depth, check.checked, bar)


def check_files(location: Path, check: Check) -> Iterator[Finding]:
    """Compares every file with the list that its run wrote; outputs inside are left alone.

    Indexes of shards may be missing from it: they are also written later.
    """
    try:
        entries = read_file_list(location)
    except DataError as error:
        yield OUTPUT("broken_file_list", error.message, path=str(location / NAME))
        return
    if entries is None:
        yield OUTPUT("no_file_list", f"{location / NAME}: is not there", path=str(location / NAME))
        return
    with check.reporter.progress("files", len(entries), "file") as bar:
        for entry in entries:
            if entry.count is None:
                yield from check_listed(OUTPUT, location / entry.path, entry, check)
            else:
                yield from _check_listed_folder(location, entry, check)
            bar.advance()
    known = {entry.path for entry in entries}
    record = read_record(location)
    unlisted = (record.unlisted if record else ()) or UNLISTED_FILES
    for name in sorted(PurePosixPath(file.name) for file in own_files(location)):
        listed = {str(name), *(f"{parent}/" for parent in name.parents)}
        is_index = name.name.endswith(shard_index.SUFFIX)
        if known.isdisjoint(listed) and is_listed(str(name), unlisted) and not is_index:
            path = location / name
            yield OUTPUT("unlisted_file", f"{path}: is not in {NAME}", path=str(path))


def _check_listed_folder(location: Path, entry: FileEntry, check: Check) -> Iterator[Finding]:
    """A folder of many files has one entry."""
    path = location / entry.path
    if not is_intact(location, entry):
        message = f"{path}: does not hold {entry.count} files of {entry.bytes} bytes"
        yield OUTPUT("size_mismatch", message, path=str(path))
    elif not check.depth.is_quick and folder_entry(entry.path, digests_below(path)) != entry:
        message = f"{path}: holds other bytes than when it was written"
        yield OUTPUT("digest_mismatch", message, path=str(path))


def _check_folders(location: Path, check: Check) -> Iterator[Finding]:
    """`shards` and `episodes` of an output, each and against each other; else the folder itself."""
    found: dict[str, ShardList] = {}
    for folder in ShardFolder.parts(location):
        for one in list_shards(folder):
            if isinstance(one, Finding):
                yield one
            else:
                found[folder.path.name] = one
    total = sum(len(one.shards) for one in found.values())
    with check.reporter.progress("shards", total, "shard") as bar:
        for name, listed in found.items():
            if name == EPISODES_NAME and len(found) > 1:
                # Its samples are those of `shards`, which is compared below.
                headers = Depth(0, is_quick=check.depth.is_quick)
                yield from check_shards(listed, headers, check.checked, bar)
                check.checked.add(samples=-len(listed.digests), episodes=len(listed.shards))
            else:
                yield from check_shards(listed, check.depth, check.checked, bar)
    if len(found) > 1:
        yield from _compare(found[SHARDS_NAME], found[EPISODES_NAME])


def _compare(shards: ShardList, episodes: ShardList) -> Iterator[Finding]:
    """Whether both folders hold the same samples."""
    here, there = shards.folder.path, episodes.folder.path
    for key, digest in shards.digests.items():
        other = episodes.digests.get(key)
        if other is None:
            message = f"sample {key} is in {here}, not in {there}"
            yield SHARDS("only_in_shards", message, sample=key, path=str(here))
        elif other != digest:
            message = f"sample {key} differs between {here} and {there}"
            yield SHARDS("digest_mismatch", message, sample=key, path=str(here))
    for key in (key for key in episodes.digests if key not in shards.digests):
        message = f"sample {key} is in {there}, not in {here}"
        yield SHARDS("only_in_episodes", message, sample=key, path=str(there))
