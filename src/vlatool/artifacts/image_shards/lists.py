"""Selection of shards by a list, a pattern, a folder, or one tar, at any location.

A list is a text file with a path per line. Patterns are those of shells: `{0000..0252}`, `{a,b}`,
and, where folders can be listed, `*`, `?` and `[...]`. Source: reference/future-vla 2.3.
"""

import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

from vlatool.artifacts.image_shards.format import TRAIN_LIST, VAL_LIST, read_list
from vlatool.errors import DataError
from vlatool.storage.uri import is_missing, is_remote, location, require_existing

Split = Literal["train", "val"]

# Lists in a folder of shards: training and validation.
LISTS: dict[Split, str] = {"train": TRAIN_LIST, "val": VAL_LIST}
SHARD_SUFFIX, LIST_SUFFIX = ".tar", ".txt"

_MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.([1-9]\d*))?\Z")
_PADDED = re.compile(r"-?0\d")
_WILDCARDS = re.compile(r"[*?\[]")


def find_shards(text: str, split: Split = "train") -> list[Path]:
    """Tars that `text` selects, in the order of the list, else sorted by name.

    Args:
        text: A list (`.txt`), a pattern, a tar, or a folder; a folder selects the tars of its list
            for `split`, or all tars directly in it if it has no lists.
        split: List to use in a folder.

    Raises:
        DataError: There are no shards or more than a million, or a list is broken.
        UsageError: The location has an unknown scheme.
    """
    shards = list(islice(_shards(text, split), _MAX_SHARDS + 1))
    if len(shards) > _MAX_SHARDS:
        raise _shards_error(text, f"selects more than {_MAX_SHARDS:,} shards", "too_many_shards")
    if not shards:
        raise _shards_error(text, "no shards here", "no_shards")
    return shards


def expand_braces(pattern: str) -> Iterator[str]:
    """Expansions of a pattern with `{first..last}` and `{a,b}`; the last braces vary fastest.

    A range keeps the zero padding of its ends; other braces are unchanged. Braces do not nest.
    """
    for match in _BRACES.finditer(pattern):
        values = _values(match[1])
        if values is not None:
            head, tail = pattern[: match.start()], pattern[match.end() :]
            for value in values:
                yield from expand_braces(f"{head}{value}{tail}")
            return
    yield pattern


def _values(inside: str) -> Iterator[str] | None:
    """Values of the text between braces; None if the braces are literal."""
    match = _RANGE.match(inside)
    if match is None:
        return iter(inside.split(",")) if "," in inside else None
    bounds = match[1], match[2]
    first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
    is_padded = any(_PADDED.match(end) for end in bounds)
    width = max(map(len, bounds)) if is_padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (f"{number:0{width}d}" for number in numbers)


def _shards(text: str, split: Split) -> Iterator[Path]:
    for path in expand_braces(text):
        if path.endswith(LIST_SUFFIX):
            yield from _read_shards(require_existing(path))
        elif _WILDCARDS.search(path):
            yield from _matching(path)
        elif path.endswith(SHARD_SUFFIX):
            yield location(path)  # reading its size raises if it is missing
        else:
            yield from _in_folder(require_existing(path), split)


def _matching(pattern: str) -> Iterator[Path]:
    """Tars that match a pattern with wildcards, sorted; the path before the first is a folder."""
    start = _WILDCARDS.search(pattern)
    assert start is not None
    folder, slash, _ = pattern[: start.start()].rpartition("/")
    below = pattern[len(folder) + len(slash) :]
    root = location(folder or slash or ".")
    if is_missing(root):
        return
    yield from sorted(path for path in root.glob(below) if path.suffix == SHARD_SUFFIX)


def _in_folder(folder: Path, split: Split) -> Iterator[Path]:
    present = [name for name in LISTS.values() if (folder / name).is_file()]
    if LISTS[split] in present:
        yield from _read_shards(folder / LISTS[split])
    elif present:
        raise _shards_error(folder, f"has {present[0]} but no {LISTS[split]}", "no_shards")
    elif folder.is_dir():
        tars = (path for path in folder.iterdir() if path.suffix == SHARD_SUFFIX)
        yield from sorted(path for path in tars if not path.name.startswith("."))


def _read_shards(path: Path) -> Iterator[Path]:
    """Shards of a list."""
    for shard in map(partial(_resolve, path), read_list(path)):
        if shard.suffix != SHARD_SUFFIX:
            raise _shards_error(path, f"{shard.name[:100]!r} is not a .tar", "broken_list")
        if is_remote(path) and not is_remote(shard):
            message = f"a remote list names {str(shard)[:100]!r} on this machine"
            raise _shards_error(path, message, "broken_list")
        yield shard


def _resolve(path: Path, shard: Path) -> Path:
    """Path of a shard of a list; published lists may be relative to the working directory."""
    if is_remote(path) or not shard.is_relative_to(path.parent) or shard.exists():
        return shard
    relative = shard.relative_to(path.parent)
    return relative if relative.exists() else shard


def _shards_error(source: str | Path, problem: str, code: str) -> DataError:
    return DataError(
        f"{source}: {problem}",
        hint="give a folder of .tar shards, a list of them (.txt), a pattern such as "
        "train-{0000..0252}.tar, or one .tar",
        code=f"data.{code}",
        details={"path": str(source)},
    )
