"""Image shards for training a visual tokenizer: one tar per episode, and the lists of a split.

A tar holds `00000000.png` or `.jpg` and, if vlatool wrote it, `00000000.json` beside it; keys
count from 0 in every tar. Published folders have no manifest and no indexes.

Shards are selected by a list, a pattern, a folder, or one tar, at any location. A list is a text
file with a path per line. Patterns are as in shells: `{0000..0252}`, `{a,b}`, and, where folders
can be listed, `*`, `?` and `[...]`.

Source: reference/future-vla 2.1, 2.2, 2.3; formats/image-shards 1, 2, 5.
"""

import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from vlatool.errors import DataError
from vlatool.jobs.ownership import check_downloaded, contents_record, require_input
from vlatool.media.tar import INDEX_SUFFIX
from vlatool.recordings.artifact import other_contents_error
from vlatool.storage.atomic import remove_file, write_text
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.documents import DocumentError, parse_json, read_document
from vlatool.storage.manifest import Count, FileName, ManifestType
from vlatool.storage.uri import can_list, is_file_name, is_missing, is_remote, location

SINK = "image-shards"
MANIFEST = "manifest.json"
Split = Literal["train", "val"]
# Lists in a folder of shards.
LISTS: Mapping[Split, str] = {"train": "train_files.txt", "val": "val_files.txt"}
TRAIN_LIST, VAL_LIST = LISTS.values()
METADATA_SUFFIX = "json"
LABEL_SUFFIX = "cls"
SUFFIXES = {"png": "png", "jpeg": "jpg"}
# Suffixes that published readers accept as the image of a sample, the first that exists.
IMAGE_SUFFIXES = ("jpg", "png", "jpeg", "webp")
# Names of published tars; the group is the number of the episode.
PUBLISHED_NAME = r"^train-episode_(\d+)\.tar$"

_FIRST_MEMBER = re.compile(rb"^\d{8}\.(jpe?g|png|webp)\0")
_HEADER_BYTES = 512
_SHOWN = 100
SHARD_SUFFIX = ".tar"
LIST_SUFFIX = ".txt"
_MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.([1-9]\d*))?\Z")
_PADDED = re.compile(r"-?0\d")
_WILDCARDS = re.compile(r"[*?\[]")


def image_suffix(members: Iterable[str]) -> str | None:
    """Suffix of the only image among the members of a sample; None if there is none or several."""
    suffixes = [suffix for suffix in members if suffix.lower() in IMAGE_SUFFIXES]
    return suffixes[0] if len(suffixes) == 1 else None


def sample_image(contents: Mapping[str, bytes]) -> bytes | None:
    """Image of a sample, as published readers select it; None without one."""
    return next((contents[suffix] for suffix in IMAGE_SUFFIXES if suffix in contents), None)


def sample_metadata(contents: Mapping[str, bytes]) -> Mapping[str, Any]:
    """Metadata of a sample; empty if it has none, or if they are broken."""
    try:
        metadata = parse_json(contents.get(METADATA_SUFFIX, b"{}"))
    except DocumentError:
        return {}
    return cast(dict[str, Any], metadata) if isinstance(metadata, dict) else {}


def split_patterns(split: str) -> tuple[str, str]:
    """Patterns of the tars and of the indexes of a split."""
    return f"{split}-*.tar", f"{split}-*{INDEX_SUFFIX}"


def shard_name(split: str, episode: str) -> str:
    """Path of the tar of an episode, relative to the folder."""
    return f"{split}-{episode}.tar"


def image_key(number: int) -> str:
    """Key of an image in its tar, counted from 0."""
    return f"{number:08d}"


@dataclass(frozen=True)
class ImageShard:
    """Entry of a tar in the manifest."""

    name: FileName  # Path relative to the folder
    pictures: Count  # number of images
    bytes: Count  # size of the tar


@dataclass(frozen=True)
class ImageManifest:
    shards: tuple[ImageShard, ...]  # tars in the order of the episodes
    options: Mapping[str, Any]  # options of the run that wrote the images, by key; empty if unknown

    @property
    def images(self) -> int:
        return sum(shard.pictures for shard in self.shards)


_TYPE = ManifestType(
    MANIFEST,
    "vlatool.image-shards",
    1,
    ImageManifest,
    hint="copy the shards again, or write them again with --overwrite",
    optional=("options",),
)


def write_manifest(folder: Path, manifest: ImageManifest) -> None:
    """Writes the manifest of a folder, its last file."""
    shards = [asdict(shard) for shard in manifest.shards]
    _TYPE.write(folder, {**manifest.options, "pictures": manifest.images, "shards": shards})


def read_manifest(folder: Path) -> ImageManifest | None:
    """Manifest of a folder; None if it has no manifest of image shards."""
    document = _TYPE.document(folder)
    if document is None:
        return None
    reserved_keys = ("format", "version", "pictures", "shards")
    options = {key: value for key, value in document.items() if key not in reserved_keys}
    return _TYPE.parse(folder, {"shards": document.get("shards"), "options": options})


def recognize(location: Path) -> str | None:
    """`image-shards` at a location of image shards, else None."""
    return "image-shards" if is_image_shards(location) else None


def is_image_shards(path: Path) -> bool:
    """True for a folder of image shards, the output of a started run of them, or one such tar."""
    if path.suffix == ".tar":
        return path.is_file() and _is_image_tar(path)
    if _TYPE.is_in(path):
        return True
    record = contents_record(path)
    if record is not None:
        return record.command == "preprocess" and record.options.get("sink") == SINK
    first = min(published_tars(path), default=None)
    return first is not None and _is_image_tar(first)


def published_tars(folder: Path, pattern: str = PUBLISHED_NAME) -> list[Path]:
    """Tars with a matching name, sorted by the number in the first group."""
    if not can_list(folder) or not folder.is_dir():
        return []
    numbered: list[tuple[int, str, Path]] = []
    for path in folder.glob("*.tar"):
        match = re.match(pattern, path.name)
        if match is None:
            continue
        number = match.group(1) if match.groups() else None
        if number is None or not number.isdecimal():
            raise DataError.at(
                path,
                f"{pattern!r} matches no number in the name",
                hint="put a group around the number of the episode, such as "
                r"'^train-episode_(\d+)\.tar$'",
                code="data.broken",
            )
        numbered.append((int(number), path.name, path))
    return [path for *_, path in sorted(numbered)]


def image_tars(folder: Path) -> list[Path]:
    """Tars of a folder: listed in its manifest, or else with a published name."""
    manifest = read_manifest(folder)
    if manifest is None:
        return published_tars(folder)
    return [folder / shard.name for shard in manifest.shards]


def _is_image_tar(path: Path) -> bool:
    try:
        return _FIRST_MEMBER.match(read_byte_range(ByteRange(path, 0, _HEADER_BYTES))) is not None
    except OSError:
        return False


def validation_positions(count: int, ratio: float) -> list[int]:
    """Evenly spaced positions of the validation shards among `count` sorted shards; at least one.

    The others are for training; a single shard leaves none. Deterministic, without a seed.
    Source: reference/future-vla 2.2, the numbers included.
    """
    num_validation = max(1, int(count * ratio + 0.999999))
    step = max(1, count // num_validation)
    return list(range(0, count, step))[:num_validation]


def write_lists(
    train: tuple[Path, Sequence[Path]], val: tuple[Path, Sequence[Path]], *, absolute: bool = False
) -> None:
    """Writes both lists; the training list last, so that its presence marks both as complete.

    `absolute`: write absolute paths; else they are relative to the list if both are on the same
    storage.
    """
    remove_file(train[0])
    for path, tars in (val, train):
        text = ""
        for tar in tars:
            text += f"{_line(tar, path.parent, absolute=absolute)}\n"
        write_text(path, text)


def _line(tar: Path, folder: Path, *, absolute: bool) -> str:
    """Path of a tar as it stands in a list in a folder."""
    tar_path = _absolute(tar)
    folder_path = _absolute(folder)
    root = _storage_root(tar_path)
    if absolute or root != _storage_root(folder_path):
        return tar_path
    return posixpath.relpath(tar_path.removeprefix(root), folder_path.removeprefix(root))


def _absolute(path: Path) -> str:
    return str(path) if is_remote(path) else os.path.abspath(path)


def _storage_root(path: str) -> str:
    """Scheme and root of a remote path; empty for a local path."""
    match = re.match(r"[A-Za-z0-9+.-]+://[^/]*", path)
    return match.group() if match else ""


def read_list(path: Path) -> list[Path]:
    """Tars of a list; paths that are not absolute are relative to the list."""
    try:
        lines = read_document(path).splitlines()
    except OSError as error:
        raise _list_error(path, f"cannot be read: {error.strerror or error}") from None
    except DocumentError as error:
        raise _list_error(path, error.reason) from None
    tars: list[Path] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not all(is_file_name(part) for part in line.split("/")):
            raise _list_error(path, f"line {number}: {line[:_SHOWN]!r} is not a path", number)
        is_absolute = line.startswith("/") or "://" in line
        tars.append(location(line) if is_absolute else path.parent / line)
    return tars


def _list_error(path: Path, problem: str, line: int | None = None) -> DataError:
    details: dict[str, Any] = {"finding": "broken_list", "path": str(path)}
    if line is not None:
        details["line"] = line
    return DataError(
        f"{path}: {problem}",
        hint="write the lists again with `vlatool split`",
        code="data.broken",
        details=details,
    )


def is_list(path: Path) -> bool:
    """True if a file is a list, possibly empty; other files are never overwritten."""
    try:
        lines = read_document(path).split()
    except (OSError, DocumentError):
        return False
    return all(line.endswith(".tar") for line in lines)


def metadata_bytes(info: Mapping[str, Any]) -> bytes:
    """Content of the JSON metadata of an image."""
    return json.dumps(info, ensure_ascii=False, separators=(",", ":")).encode()


def global_key(parts: Iterable[object]) -> str:
    """Globally unique key of an image: data set, episode, camera, frame."""
    return "/".join(map(str, parts))


def find_shards(text: str, split: Split = "train") -> list[Path]:
    """Tars that `text` selects, in the order of the list, else sorted by name."""
    shards = list(islice(_shards(text, split), _MAX_SHARDS + 1))
    if len(shards) > _MAX_SHARDS:
        raise _shards_error(text, f"selects more than {_MAX_SHARDS:,} shards", "mismatch")
    if not shards:
        error = _shards_error(text, "no shards here", "no_samples")
        other_error = other_contents_error(
            location(text),
            "image shards",
            "write them from raw episodes or windows with `vlatool preprocess SOURCE "
            "--sink image-shards --output DIR`",
            error.code,
        )
        raise other_error or error
    for shard in {shard.parent: shard for shard in shards}.values():
        check_downloaded(shard)
    return shards


def expand_braces(pattern: str) -> Iterator[str]:
    """Expansions of a pattern with `{first..last}` and `{a,b}`; the last braces vary fastest.

    A range keeps the zero padding of its ends; other braces are unchanged. Braces do not nest.
    """
    for match in _BRACES.finditer(pattern):
        values = _values(match[1])
        if values is not None:
            head = pattern[: match.start()]
            tail = pattern[match.end() :]
            for value in values:
                yield from expand_braces(f"{head}{value}{tail}")
            return
    yield pattern


def _values(inside: str) -> Iterator[str] | None:
    """Values of the text between braces; None if the braces are literal."""
    match = _RANGE.match(inside)
    if match is None:
        return iter(inside.split(",")) if "," in inside else None
    first = int(match[1])
    last = int(match[2])
    step = int(match[3] or 1)
    width = 0
    if _PADDED.match(match[1]) or _PADDED.match(match[2]):
        width = max(len(match[1]), len(match[2]))
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (f"{number:0{width}d}" for number in numbers)


def _shards(text: str, split: Split) -> Iterator[Path]:
    for path in expand_braces(text):
        if path.endswith(LIST_SUFFIX):
            yield from _read_shards(require_input(path))
        elif _WILDCARDS.search(path):
            yield from _matching(path)
        elif path.endswith(SHARD_SUFFIX):
            yield location(path)  # reading its size raises if it is missing
        else:
            yield from _in_folder(require_input(path), split)


def _matching(pattern: str) -> Iterator[Path]:
    """Tars that match a pattern with wildcards, sorted; the path before the first is a folder."""
    start = _WILDCARDS.search(pattern)
    assert start is not None
    folder, slash, _ = pattern[: start.start()].rpartition("/")
    below = pattern[len(folder) + len(slash) :]
    root = location(folder or slash or ".")
    if is_missing(root):
        return
    check_downloaded(root)
    yield from sorted(path for path in root.glob(below) if path.suffix == SHARD_SUFFIX)


def _in_folder(folder: Path, split: Split) -> Iterator[Path]:
    """Tars of the list of a split; without any list, all in the folder."""
    present = [name for name in LISTS.values() if (folder / name).is_file()]
    if LISTS[split] in present:
        yield from _read_shards(folder / LISTS[split])
    elif present:
        raise _shards_error(folder, f"has {present[0]} but no {LISTS[split]}", "no_samples")
    elif folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix == SHARD_SUFFIX and not path.name.startswith("."):
                yield path


def _read_shards(path: Path) -> Iterator[Path]:
    for shard in read_list(path):
        is_below = not is_remote(path) and shard.is_relative_to(path.parent)
        if is_below and not shard.exists():
            # Published lists may be relative to the working directory.
            relative = shard.relative_to(path.parent)
            if relative.exists():
                shard = relative
        if shard.suffix != SHARD_SUFFIX:
            raise _shards_error(path, f"{shard.name[:100]!r} is not a .tar", "broken")
        if is_remote(path) and not is_remote(shard):
            message = f"a remote list names {str(shard)[:100]!r} on this machine"
            raise _shards_error(path, message, "broken")
        yield shard


def _shards_error(source: str | Path, problem: str, code: str) -> DataError:
    return DataError.at(
        source,
        problem,
        hint="give a folder of .tar shards, a list of them (.txt), a pattern such as "
        "train-{0000..0252}.tar, or one .tar",
        code=f"data.{code}",
    )
