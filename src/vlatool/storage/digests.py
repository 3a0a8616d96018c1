"""Digests of downloaded content: ours, and the comparison with the one of the server."""

import hashlib
from collections.abc import Iterable

from vlatool.errors import DataError


def verified_sha256(
    where: object, digest: str, size: int, blocks: Iterable[bytes | bytearray]
) -> str:
    """Hexadecimal SHA-256 of content, after comparing the digest that the server vouches for;
    `size`: number of bytes of the content; `blocks`: the content, read once.
    """
    kind, _, expected = digest.partition(":")
    ours = hashlib.sha256()
    other = None
    if kind == "md5":
        other = hashlib.md5(usedforsecurity=False)
    elif kind == "git-sha1":
        other = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for block in blocks:
        ours.update(block)
        if other is not None:
            other.update(block)
    compared = ours if kind == "sha256" else other
    if compared is not None and compared.hexdigest() != expected:
        raise DataError.at(
            where,
            f"the content does not have the {kind} digest of the server",
            hint="run the same command again; if it fails again, the object or a proxy is damaged",
            code="data.wrong_digest",
        )
    return ours.hexdigest()


def has_git_digest(digest: str, size: int, blocks: Iterable[bytes | bytearray]) -> bool:
    """True if content has a digest of a hub: `sha256:` for large files, `git-sha1:` for others."""
    kind, _, expected = digest.partition(":")
    if kind == "sha256":
        ours = hashlib.sha256()
    else:
        ours = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for block in blocks:
        ours.update(block)
    return ours.hexdigest() == expected
