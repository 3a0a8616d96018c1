"""JSON documents with a digest of their content, which detects damage."""

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
    """Writes a JSON object and its digest atomically."""
    write_json(path, {**document, _KEY: _digest(document)})


def read_checksummed(path: Path) -> dict[str, Any]:
    """Reads a JSON object and checks its digest, if it has one; returns it without the digest."""
    content: object = read_json(path)
    if not isinstance(content, dict):
        raise DocumentError("no JSON object")
    document = cast("dict[str, Any]", content)
    digest = document.pop(_KEY, None)
    if digest is None:
        # The key of the digest itself may be damaged.
        is_intact = not any(isinstance(v, str) and _DIGEST.match(v) for v in document.values())
    else:
        is_intact = digest == _digest(document)
    if not is_intact:
        raise DocumentError("was changed after it was written")
    return document


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form: sorted keys, no spaces."""
    plain = json.loads(json.dumps(document))
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
