"""Listings of a prefix: one level, all levels, or the names that match a pattern."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from vlatool.errors import StorageError
from vlatool.storage.background import in_parallel
from vlatool.storage.remote import Address, ListPage, ObjectInfo, call, find_object

_MAX_CONCURRENT = 16
_PAGE = 1000
_WILDCARDS = frozenset("*?[")

# Relative path and information of an object or a folder.
Entry = tuple[str, ObjectInfo]

_FOLDER = ObjectInfo(is_dir=True)


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


def levels(address: Address) -> dict[str, tuple[list[str], list[str]]]:
    """Relative path of every folder to the names of the folders and of the files in it; `""` is
    the prefix itself.

    Uses one listing with one request per 1000 objects, instead of one request per folder.
    """
    folders: dict[str, tuple[list[str], list[str]]] = {"": ([], [])}
    for path, info in tree(address):
        parent, _, name = path.rpartition("/")
        folder_names, file_names = folders[parent]
        if info.is_dir:
            folders[path] = ([], [])
            folder_names.append(name)
        else:
            file_names.append(name)
    return folders


def matching(address: Address, pattern: str) -> Iterator[Entry]:
    """Yields the entries that `Path.glob` finds below a prefix.

    Folders are listed level by level, several concurrently, and only for parts of the pattern with
    wildcards; `**` lists everything below once.
    """
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts or pattern.startswith("/") or parts.count("**") > 1 or ".." in parts:
        raise NotImplementedError(f"pattern {pattern!r} in object storage")
    entries: list[tuple[str, ObjectInfo | None]] = [("", _FOLDER)]  # None: not requested so far
    while parts and parts[0] != "**":
        part = parts.pop(0)
        paths = [path for path, info in entries if info is None or info.is_dir]
        if _WILDCARDS.isdisjoint(part):
            entries = [(f"{path}/{part}".lstrip("/"), None) for path in paths]
        else:
            below = in_parallel(level, map(address.joined, paths), _MAX_CONCURRENT)
            entries = []
            for path, children in zip(paths, below, strict=True):
                for name, info in children:
                    if fnmatchcase(name, part):
                        entries.append((f"{path}/{name}".lstrip("/"), info))
    for path, info in _existing(address, entries):
        if parts:
            yield from _anywhere_below(address, path, parts[1:])
        else:
            yield path, info


def _existing(address: Address, entries: list[tuple[str, ObjectInfo | None]]) -> Iterator[Entry]:
    def find(entry: tuple[str, ObjectInfo | None]) -> ObjectInfo | None:
        return entry[1] or find_object(address.joined(entry[0]))

    infos = in_parallel(find, entries, _MAX_CONCURRENT)
    for (path, _), info in zip(entries, infos, strict=True):
        if info is not None:
            yield path, info


def _anywhere_below(address: Address, folder: str, tail: list[str]) -> Iterator[Entry]:
    """Yields what is below a folder and ends in `tail`; without `tail` folders, as `Path.glob`."""
    if not tail:
        yield folder, _FOLDER
    for below, info in tree(address.joined(folder)):
        parts = below.split("/")[-len(tail) :]
        is_match = len(parts) == len(tail) and all(map(fnmatchcase, parts, tail))
        if is_match or (info.is_dir and not tail):
            yield f"{folder}/{below}".lstrip("/"), info
