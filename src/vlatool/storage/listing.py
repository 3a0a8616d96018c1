"""Listings of a prefix: one level, all levels, or the names that match a pattern."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import NamedTuple

from vlatool.errors import StorageError
from vlatool.storage.background import in_parallel
from vlatool.storage.remote import Address, ListPage, ObjectInfo, call, find_object

_MAX_CONCURRENT = 16
_PAGE = 1000
_WILDCARDS = frozenset("*?[")

# Relative path and information of an object or a folder.
Entry = tuple[str, ObjectInfo]

_FOLDER = ObjectInfo(is_dir=True)


class ListedLevel(NamedTuple):
    """Names of the direct children of a folder."""

    folders: list[str]
    files: list[str]


def pages(address: Address, delimiter: str = "") -> Iterator[ListPage]:
    """Yields the pages of the listing of a prefix, in order.

    Each page is retried separately; an error is raised, so a listing is never incomplete.
    """
    token = ""
    visited: set[str] = set()
    while token not in visited:
        visited.add(token)
        page = _page(address, delimiter, token)
        yield page
        token = page.token
        if not token:
            return
    raise StorageError.at(
        address,
        "the server's listing has no end",
        hint="check the endpoint; copy the data to a local folder and give its path",
        code="storage.refused",
    )


def _page(address: Address, delimiter: str, token: str) -> ListPage:
    return call(address, lambda remote: remote.list_page(address.prefix, delimiter, token, _PAGE))


def level(address: Address) -> list[Entry]:
    """Direct children of a prefix."""
    below = address.prefix
    entries: dict[str, ObjectInfo] = {}
    for page in pages(address, "/"):
        for prefix in page.prefixes:
            entries[prefix[len(below) : -1]] = _FOLDER
        for key, info in page.objects:
            entries.setdefault(key[len(below) :], info)
    entries.pop("", None)  # some tools mark a folder by an empty object with the name of the prefix
    return list(entries.items())


def tree(address: Address) -> Iterator[Entry]:
    """Yields everything below a prefix; folders come before their content."""
    below = address.prefix
    seen: set[str] = set()
    for page in pages(address):
        for key, info in page.objects:
            path = key[len(below) :]
            parts = path.split("/")
            if "" in parts[:-1]:
                continue  # no path leads to such a key
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if folder not in seen:
                    seen.add(folder)
                    yield folder, _FOLDER
            if parts[-1]:
                yield path, info


def levels(address: Address) -> dict[str, ListedLevel]:
    """Relative path of every folder to the names of its children; `""` is the prefix itself.

    Uses one listing with one request per 1000 objects, instead of one request per folder.
    """
    folders = {"": ListedLevel([], [])}
    for path, info in tree(address):
        parent, _, name = path.rpartition("/")
        if info.is_dir:
            folders[path] = ListedLevel([], [])
            folders[parent].folders.append(name)
        else:
            folders[parent].files.append(name)
    return folders


def matching(address: Address, pattern: str) -> Iterator[Entry]:
    """Yields the entries that `Path.glob` finds below a prefix.

    Folders are listed level by level, several concurrently, and only for parts of the pattern with
    wildcards; `**` lists everything below once.
    """
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts or pattern.startswith("/") or parts.count("**") > 1 or ".." in parts:
        raise NotImplementedError(f"pattern {pattern!r} in object storage")
    entries: list[Entry] = [("", _FOLDER)]
    while parts:
        if parts[0] == "**":
            yield from _anywhere_below(address, entries, parts[1:])
            return
        plain = list(takewhile(_WILDCARDS.isdisjoint, parts))
        if plain:  # parts without wildcards need one request per entry
            entries = _existing(address, entries, "/".join(plain))
        else:
            entries = _expanded(address, entries, parts[0])
        parts = parts[max(1, len(plain)) :]
    yield from entries


def _expanded(address: Address, entries: list[Entry], pattern: str) -> list[Entry]:
    paths = [path for path, info in entries if info.is_dir]
    levels_below = in_parallel(level, [address.joined(path) for path in paths], _MAX_CONCURRENT)
    return [
        (f"{path}/{name}".lstrip("/"), info)
        for path, children in zip(paths, levels_below, strict=True)
        for name, info in children
        if fnmatchcase(name, pattern)
    ]


def _existing(address: Address, entries: list[Entry], name: str) -> list[Entry]:
    paths = [f"{path}/{name}".lstrip("/") for path, info in entries if info.is_dir]
    infos = in_parallel(find_object, [address.joined(path) for path in paths], _MAX_CONCURRENT)
    return [(path, info) for path, info in zip(paths, infos, strict=True) if info is not None]


def _anywhere_below(address: Address, entries: list[Entry], tail: list[str]) -> Iterator[Entry]:
    """Yields paths below the entries that end in `tail`; without `tail` folders, as `Path.glob`."""
    for folder, info in entries:
        if not info.is_dir:
            continue
        if not tail:
            yield folder, info
        for path, info_below in tree(address.joined(folder)):
            parts = path.split("/")[-len(tail) :] if tail else []
            is_match = len(parts) == len(tail) and all(map(fnmatchcase, parts, tail))
            if is_match and (tail or info_below.is_dir):
                yield f"{folder}/{path}".lstrip("/"), info_below
