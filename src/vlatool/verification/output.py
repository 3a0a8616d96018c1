"""Checks of a whole output: the record of its run, the list of its files, its folders of shards."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.artifacts.manifest import Shard
from vlatool.errors import DataError
from vlatool.events import Reporter
from vlatool.findings import Finding
from vlatool.jobs.files import NAME, FileEntry, is_listed, read_file_list
from vlatool.jobs.record import read_record
from vlatool.storage.digest import sha256_of
from vlatool.verification.codes import OUTPUT, SHARDS
from vlatool.verification.shards import (
    MANIFEST,
    Checked,
    Depth,
    ShardFolder,
    check_shards,
    open_folder,
)

_PARTS = ("shards", "episodes")


def is_output(location: Path) -> bool:
    """Whether a folder was written by `vlatool preprocess`, or looks as if it was."""
    folders = (location, *(location / part for part in _PARTS))
    if any((folder / MANIFEST).is_file() for folder in folders):
        return True
    record = read_record(location)
    return record is not None and record.command == "preprocess"


def check_output(
    location: Path, depth: Depth, checked: Checked, reporter: Reporter
) -> Iterator[Finding]:
    """Everything that is wrong with an output or a copy of one.

    Args:
        location: The output, or a folder with a manifest.
        depth: How much is looked into.
        checked: Counts what was.
        reporter: Shows progress.
    """
    record = read_record(location)
    if record is not None and record.result is None:
        message = f"{location}: `vlatool {record.command}` runs here, or was interrupted"
        yield OUTPUT("incomplete", message, path=str(location))
        return
    if record is not None and not record.complete:
        message = f"{location}: `vlatool {record.command}` left out what failed"
        yield OUTPUT("partial", message, path=str(location))
    yield from check_files(location, depth, reporter)
    yield from _check_folders(location, depth, checked, reporter)


def check_tar(path: Path, depth: Depth, checked: Checked, reporter: Reporter) -> Iterator[Finding]:
    """Everything that is wrong with one tar of samples."""
    folder = ShardFolder(path.parent, [Shard(path, 0)], has_manifest=False)
    with reporter.progress("shards", 1, "shard") as bar:
        yield from check_shards(folder, depth, checked, bar)


def check_files(location: Path, depth: Depth, reporter: Reporter) -> Iterator[Finding]:
    """Compares every file with the list that its run wrote."""
    try:
        entries = read_file_list(location)
    except DataError as error:
        yield OUTPUT("broken_file_list", error.message, path=str(location / NAME))
        return
    if entries is None:
        yield OUTPUT("no_file_list", f"{location / NAME}: is not there", path=str(location / NAME))
        return
    with reporter.progress("files", len(entries), "file") as bar:
        for entry in entries:
            yield from _check_file(location, entry, depth)
            bar.advance()
    known = {entry.path for entry in entries}
    for path in sorted(path for path in location.rglob("*") if path.is_file()):
        name = path.relative_to(location).as_posix()
        if is_listed(name) and name not in known:
            yield OUTPUT("unlisted_file", f"{path}: is not in {NAME}", path=str(path))


def _check_file(location: Path, entry: FileEntry, depth: Depth) -> Iterator[Finding]:
    path = location / entry.path
    try:
        if not path.is_file():
            yield OUTPUT("missing_file", f"{path}: is missing", path=str(path))
        elif (size := path.stat().st_size) != entry.bytes:
            message = f"{path}: has {size} bytes, written were {entry.bytes}"
            yield OUTPUT("size_mismatch", message, path=str(path))
        elif not depth.is_quick and sha256_of(path) != entry.sha256:
            message = f"{path}: has other bytes than when it was written"
            yield OUTPUT("digest_mismatch", message, path=str(path))
    except OSError as error:
        yield OUTPUT("unreadable_file", f"{path}: {error.strerror or error}", path=str(path))


def _check_folders(
    location: Path, depth: Depth, checked: Checked, reporter: Reporter
) -> Iterator[Finding]:
    """`shards` and `episodes` of an output, each and against each other; else the folder itself."""
    paths = [location / part for part in _PARTS if (location / part / MANIFEST).is_file()]
    if not paths:
        paths = [location]
    elif (location / "shards").is_dir() and location / "shards" not in paths:
        paths.insert(0, location / "shards")
    folders: dict[str, ShardFolder] = {}
    for path in paths:
        for one in open_folder(path):
            if isinstance(one, Finding):
                yield one
            else:
                folders[path.name] = one
    with reporter.progress(
        "shards", sum(len(one.shards) for one in folders.values()), "shard"
    ) as bar:
        for name, folder in folders.items():
            if name == "episodes" and len(folders) > 1:
                # Its samples are those of `shards`, which is compared below.
                yield from check_shards(folder, Depth(0, is_quick=depth.is_quick), checked, bar)
                checked.add(samples=-len(folder.digests), episodes=len(folder.shards))
            else:
                yield from check_shards(folder, depth, checked, bar)
    if len(folders) > 1:
        yield from _compare(folders["shards"], folders["episodes"])


def _compare(shards: ShardFolder, episodes: ShardFolder) -> Iterator[Finding]:
    """Whether both folders hold the same samples."""
    for key, digest in shards.digests.items():
        other = episodes.digests.get(key)
        if other is None:
            message = f"sample {key} is in {shards.path}, not in {episodes.path}"
            yield SHARDS("only_in_shards", message, sample=key, path=str(shards.path))
        elif other != digest:
            message = f"sample {key} differs between {shards.path} and {episodes.path}"
            yield SHARDS("digest_mismatch", message, sample=key, path=str(shards.path))
    for key in episodes.digests.keys() - shards.digests.keys():
        message = f"sample {key} is in {episodes.path}, not in {shards.path}"
        yield SHARDS("only_in_episodes", message, sample=key, path=str(episodes.path))
