"""Options as records keep them: names of files, never the folders above them."""

from hashlib import sha256
from typing import Any

from vlatool.config.base import ConfigModel
from vlatool.storage.uri import location


def published(section: ConfigModel, named: ConfigModel) -> dict[str, Any]:
    """Keys of a section; those that hold a file, as `named` has them, without its folders."""
    values = section.model_dump(mode="json")
    for key in named.location_keys:
        path = getattr(named, key)
        values[key] = None if path is None else location(path).name
    return values


def side_files(section: ConfigModel) -> dict[str, str]:
    """Digests of the files that a section names, such as annotations, under `KEY content`."""
    files = {key: _content(getattr(section, key)) for key in sorted(section.location_keys)}
    return {f"{key} content": digest for key, digest in files.items() if digest}


def _content(path: str | None) -> str:
    """Empty without a file that can be read."""
    try:
        return "" if path is None else sha256(location(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""  # the reader tells
