"""Digests of downloaded content: ours, and the comparison with the one of the server."""

import hashlib
from collections.abc import Iterable
from typing import Any

from vlatool.errors import DataError

_OTHERS = ("md5", "git-sha1")


def verified_sha256(
    where: object, digest: str, size: int, blocks: Iterable[bytes | bytearray]
) -> str:
    """Returns the hexadecimal SHA-256 of content, after comparing it with the server's digest.

    `size`: number of bytes of the content; `blocks`: the content, read once.
    """
    kind, _, expected = digest.partition(":")
    hashes = [hashlib.sha256()]
    if kind in _OTHERS:
        hashes.append(_digest(kind, size))
    for block in blocks:
        for each in hashes:
            each.update(block)
    if expected and hashes[-1].hexdigest() != expected:
        raise DataError.at(
            where,
            f"the content does not have the {kind} digest of the server",
            hint="run the same command again; if it fails again, the object or a proxy is damaged",
            code="data.wrong_digest",
        )
    return hashes[0].hexdigest()


def has_git_digest(digest: str, size: int, blocks: Iterable[bytes | bytearray]) -> bool:
    """True if content has a digest of a hub: `sha256:` for large files, `git-sha1:` for others."""
    kind, _, expected = digest.partition(":")
    ours = _digest(kind, size)
    for block in blocks:
        ours.update(block)
    return ours.hexdigest() == expected


def _digest(kind: str, size: int) -> Any:
    if kind == "md5":
        return hashlib.md5(usedforsecurity=False)
    if kind == "git-sha1":
        return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    return hashlib.sha256()
