"""Names below a prefix: one level, all levels, or those that match a pattern."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import takewhile
from typing import NamedTuple

from vlatool.storage.background import in_parallel
from vlatool.storage.remote import Address, ListPage, ObjectInfo, call, find_object

_AT_ONCE = 16
_PAGE = 1000
_WILDCARDS = frozenset("*?[")

Found = tuple[str, ObjectInfo]

_FOLDER = ObjectInfo(is_dir=True)


class Level(NamedTuple):
    """Names of what is directly in a folder."""

    folders: list[str]
    files: list[str]


def pages(address: Address, delimiter: str = "") -> Iterator[ListPage]:
    """The listing of what is below, in order.

    Every page is retried on its own; an error ends the iteration, so a listing is never short.
    """
    token = ""
    while True:
        page = _page(address, delimiter, token)
        yield page
        token = page.token
        if not token:
            return


def _page(address: Address, delimiter: str, token: str) -> ListPage:
    return call(address, lambda remote: remote.list_page(address.prefix, delimiter, token, _PAGE))


def level(address: Address) -> list[Found]:
    """Name and facts of what is directly below a prefix."""
    below = address.prefix
    found: dict[str, ObjectInfo] = {}
    for page in pages(address, "/"):
        for prefix in page.prefixes:
            found[prefix[len(below) : -1]] = _FOLDER
        for key, info in page.objects:
            found.setdefault(key[len(below) :], info)
    found.pop("", None)  # some tools mark a folder by an empty object named like its prefix
    return list(found.items())


def tree(address: Address) -> Iterator[Found]:
    """Path below the prefix and facts of everything below it; folders come before their content."""
    below = address.prefix
    seen: set[str] = set()
    for page in pages(address):
        for key, info in page.objects:
            path = key[len(below) :]
            parts = path.split("/")
            if "" in parts[:-1]:
                continue  # paths cannot name it
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                if folder not in seen:
                    seen.add(folder)
                    yield folder, _FOLDER
            if parts[-1]:
                yield path, info


def levels(address: Address) -> dict[str, Level]:
    """Path below the prefix to what is directly there, of every folder; `""` is the prefix.

    One listing: a request per 1000 objects, where a listing per folder would take one for each.
    """
    found = {"": Level([], [])}
    for path, info in tree(address):
        parent, _, name = path.rpartition("/")
        if info.is_dir:
            found[path] = Level([], [])
            found[parent].folders.append(name)
        else:
            found[parent].files.append(name)
    return found


def matching(address: Address, pattern: str) -> Iterator[Found]:
    """What `Path.glob` finds below a prefix: path and facts.

    Folders are listed level by level, several at a time, and only where a part of the pattern has
    wildcards; `**` lists everything below once.

    Raises:
        NotImplementedError: The pattern has more than one `**`, or is not relative.
    """
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts or pattern.startswith("/") or parts.count("**") > 1 or ".." in parts:
        raise NotImplementedError(f"pattern {pattern!r} in object storage")
    places: list[Found] = [("", _FOLDER)]
    while parts:
        if parts[0] == "**":
            yield from _anywhere_below(address, places, parts[1:])
            return
        plain = list(takewhile(_WILDCARDS.isdisjoint, parts))
        if plain:  # looked up together, with one request per place
            places = _existing(address, places, "/".join(plain))
        else:
            places = _expanded(address, places, parts[0])
        parts = parts[max(1, len(plain)) :]
    yield from places


def _expanded(address: Address, places: list[Found], pattern: str) -> list[Found]:
    paths = [path for path, info in places if info.is_dir]
    below = in_parallel(level, [address.joined(path) for path in paths], _AT_ONCE)
    return [
        (f"{path}/{name}".lstrip("/"), facts)
        for path, found in zip(paths, below, strict=True)
        for name, facts in found
        if fnmatchcase(name, pattern)
    ]


def _existing(address: Address, places: list[Found], name: str) -> list[Found]:
    paths = [f"{path}/{name}".lstrip("/") for path, info in places if info.is_dir]
    looked = in_parallel(find_object, [address.joined(path) for path in paths], _AT_ONCE)
    return [(path, facts) for path, facts in zip(paths, looked, strict=True) if facts is not None]


def _anywhere_below(address: Address, places: list[Found], tail: list[str]) -> Iterator[Found]:
    """What ends in `tail` below the places; folders only if there is no tail, as in `Path.glob`."""
    for place, info in places:
        if not info.is_dir:
            continue
        if not tail:
            yield place, info
        for path, below in tree(address.joined(place)):
            parts = path.split("/")[-len(tail) :] if tail else []
            fits = len(parts) == len(tail) and all(map(fnmatchcase, parts, tail))
            if fits and (tail or below.is_dir):
                yield f"{place}/{path}".lstrip("/"), below
