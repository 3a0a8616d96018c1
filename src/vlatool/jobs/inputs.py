"""Digests of inputs and plans, by which finished items are recognized."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from vlatool.storage.tree import files_below_each

Item = TypeVar("Item")

_STAT_THREADS = 16
# Part of every plan: raise it when the same options give other bytes, not with a release.
_BYTES_VERSION = 2
# Packages that can change, with their version, the bytes that are written.
_SHAPING_PACKAGES = ("pillow", "pyvips-binary", "numpy", "av", "pyarrow", "scipy")


@dataclass(frozen=True)
class InputState:
    """Current state of the input of one item."""

    # digest of location, names, sizes and times of the input files and of `extra`. A copy of the
    # same files counts as changed, which only costs work
    digest: str
    sizes: str = ""  # digest without location and times: equal for a copy
    changed_ns: int = 0  # time of the latest change, nanoseconds since 1970; 0 without files


def input_state(paths: Sequence[Path], extra: Any = None) -> InputState:
    """State of the files at and below paths; `extra`: other input of the item, JSON."""
    groups = files_below_each(paths)
    sizes = [[(file.name, file.bytes) for file in files] for files in groups]
    times = [file.modified_ns for files in groups for file in files]
    return InputState(
        digest=digest_of([str(paths[0]), sizes, times, extra]),
        sizes=digest_of([sizes, extra]),
        changed_ns=max(times, default=0),
    )


def inputs_of(states: Iterable[tuple[str, str, int]], item_name: str) -> dict[str, Any]:
    """Inputs of a run, for its record."""
    digest = hashlib.blake2b(digest_size=8)
    count, changed_ns = 0, 0
    for name, sizes, changed in states:
        digest.update(f"{name} {sizes}\n".encode())
        count += 1
        changed_ns = max(changed_ns, changed)
    changed_at = datetime.fromtimestamp(changed_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    return {f"{item_name}s": count, "fingerprint": digest.hexdigest(), "changed_at": changed_at}


def current_states(
    items: Sequence[Item], name: Callable[[Item], str], state: Callable[[Item], InputState]
) -> list[tuple[str, str, int]]:
    """(name, sizes, changed_ns) of every item, from the current state of its input."""
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        states = zip(map(name, items), pool.map(state, items), strict=True)
        return [(item, now.sizes, now.changed_ns) for item, now in states]


def plan_digest(*parts: Any) -> str:
    """Digest of the values and the software versions that determine the bytes of an item."""
    return digest_of([*parts, _BYTES_VERSION, zlib.ZLIB_RUNTIME_VERSION, _versions()])


def digest_of(value: Any) -> str:
    """Digest of nested plain values, dataclasses and configurations, without class names."""
    text = json.dumps(_plain(value), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        private = value.__pydantic_private__ or {}
        return {**value.model_dump(mode="json"), **{k: _plain(v) for k, v in private.items()}}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return [[str(key), _plain(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version  # workers do not need it

    versions: dict[str, str] = {}
    for name in _SHAPING_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
