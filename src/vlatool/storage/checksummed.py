"""JSON documents that carry a digest of themselves, so that a flipped bit is noticed."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from vlatool.storage.atomic import write_json
from vlatool.storage.documents import DocumentError, read_json

_KEY = "digest"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def write_checksummed(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON object with its digest atomically."""
    write_json(path, {**document, _KEY: _digest(document)})


def read_checksummed(path: Path) -> dict[str, Any]:
    """The object in a file without its digest; one that never had any is believed.

    Raises:
        DocumentError: It is no JSON object, or another one than was written.
        OSError: It cannot be read.
        StorageError: The same in a bucket.
    """
    content: object = read_json(path)
    if not isinstance(content, dict):
        raise DocumentError("no JSON object")
    document = cast("dict[str, Any]", content)
    digest = document.pop(_KEY, None)
    if digest is None:
        # Under a name that is not the one it was written with.
        is_whole = not any(isinstance(one, str) and _DIGEST.match(one) for one in document.values())
    else:
        is_whole = digest == _digest(document)
    if not is_whole:
        raise DocumentError("has another content than when it was written")
    return document


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form: keys in order, nothing between the parts."""
    plain = json.loads(json.dumps(document))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
