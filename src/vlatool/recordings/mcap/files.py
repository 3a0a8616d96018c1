"""Files of bags: their names, and local copies of those that are compressed or remote."""

import shutil
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.errors import StorageError, installed
from vlatool.recordings.base import walk_source
from vlatool.recordings.mcap.check import MCAP
from vlatool.storage.atomic import open_atomic
from vlatool.storage.byte_ranges import open_file
from vlatool.storage.cache import FileCache, FileVersion, default_cache_folder, local_copy
from vlatool.storage.documents import DocumentError, read_yaml
from vlatool.storage.tree import natural_key
from vlatool.storage.uri import can_list

METADATA = "metadata.yaml"
_PLAIN = (".mcap", ".bag", ".db3", ".bag.active")
_COMPRESSED = (".zstd", ".zst")
SUFFIXES = (*_PLAIN, *(plain + end for plain in _PLAIN[:3] for end in _COMPRESSED))
_LARGEST_FILE = 2**36  # bytes of an inflated file
_KEPT_FREE = 2**30  # bytes of the disk of the cache
_BLOCK = 2**20


def plain_name(name: str) -> str:
    """Name of a file without the suffix of its compression."""
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return name


def stem_of(path: Path) -> str:
    """Name of a bag without its suffixes."""
    name = plain_name(path.name)
    for suffix in reversed(_PLAIN):
        name = name.removesuffix(suffix)
    return name


def is_bag(path: Path) -> bool:
    """True for the file of a bag, by its name; False for folders."""
    return path.name.endswith(SUFFIXES) and not (can_list(path) and path.is_dir())


def bags_below(source: Path) -> list[Path]:
    """Bags at or below a source, in natural order: files, and folders with metadata.yaml."""
    if is_bag(source):
        return [source]
    bags: list[Path] = []
    for folder, _, files in walk_source(source):
        names = [name for name in files if name.endswith(SUFFIXES)]
        listed = _listed(folder) if METADATA in files and names else None
        if listed is not None:
            bags.append(folder)
        parts = {plain_name(name) for name in listed or ()}
        for name in names:
            if plain_name(name) not in parts and not _is_copy(name, names):
                bags.append(folder / name)
    return sorted(bags, key=natural_key)


def _is_copy(name: str, names: Collection[str]) -> bool:
    """True if a file is also there inflated, or is what `rosbag reindex` left beside its result."""
    is_inflated = plain_name(name) != name and plain_name(name) in names
    return is_inflated or (name.endswith(".orig.bag") and name.replace(".orig.", ".") in names)


def _listed(folder: Path) -> list[str] | None:
    """Names of the files in metadata.yaml; None if it does not describe a bag."""
    try:
        document: Any = read_yaml(folder / METADATA)
        if not isinstance(document, dict):
            return None
        facts = document.get("rosbag2_bagfile_information")
        if facts is None:
            return None
        return [Path(str(name)).name for name in facts["relative_file_paths"]]
    except (DocumentError, OSError, LookupError, TypeError) as error:
        hint = f"`ros2 bag reindex {folder}` writes it anew; if you remove it, each file is a bag"
        raise MCAP.error("unreadable", folder / METADATA, repr(error), hint=hint) from error


def parts_of_bag(path: Path) -> tuple[Path, ...]:
    """The files of a bag; the listed ones may have been compressed or inflated since."""
    if is_bag(path):
        return (path,)
    parts: list[Path] = []
    for name in _listed(path) or ():
        plain = plain_name(name)
        for other in (plain, name, *(plain + end for end in _COMPRESSED)):
            part = path / other
            if other.endswith(SUFFIXES) and part.is_file():
                parts.append(part)
                break
        else:
            hint = f"complete the folder, or list its files anew: ros2 bag reindex {path}"
            if not plain.endswith(SUFFIXES):
                hint = f"inflate it, then list the files anew: ros2 bag reindex {path}"
            reason = f"is listed in {METADATA}, but missing or of an unknown kind"
            raise MCAP.error("missing_part", path / name, reason, hint=hint)
    return tuple(parts)


def local_file(path: Path) -> Path:
    """The file, or a copy of it in the cache.

    Files that are compressed as a whole are inflated there once; libraries need local names of
    `.bag` and `.db3`.
    """
    name = plain_name(path.name)
    if name == path.name:
        is_read_by_ranges = path.name.endswith(".mcap")
        return path if is_read_by_ranges else local_copy(path.parent, [path.name]) / path.name
    cache = _InflatedFiles(default_cache_folder() / "inflated")
    try:
        return cache.local_copy(path.parent, [path.name]) / name
    except StorageError as error:
        hint = f"set XDG_CACHE_HOME to a folder with space, or inflate the bag: zstd -d {path}"
        raise StorageError(error.message, hint=hint, code=error.code) from error


class _InflatedFiles(FileCache):
    """Folder of the cache with the content of files that are compressed with zstd as a whole."""

    def _fetch(self, file: FileVersion, path: Path) -> None:
        zstandard = installed("zstandard")
        limit = min(_LARGEST_FILE, shutil.disk_usage(self.folder).free - _KEPT_FREE)
        inflated = path.with_name(plain_name(path.name))
        with open_file(file.path) as source, open_atomic(inflated, synced=False) as target:
            stream = zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True)
            try:
                for block in iter(partial(stream.read, _BLOCK), b""):
                    target.write(block)
                    if target.tell() > limit:
                        reason = f"inflates to more than {limit:,} bytes, the limit of the cache"
                        hint = f"inflate it yourself: zstd -d {file.path}"
                        raise MCAP.error("too_large", file.path, reason, hint=hint)
            except zstandard.ZstdError as error:
                hint = f"zstd -t {file.path} tests it; if it is damaged, copy it again"
                raise MCAP.error("unreadable", file.path, error, hint=hint) from error
