"""What a run is made from, so that the same input and the same plan are known again."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, is_dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from vlatool import __version__
from vlatool.episode import EpisodeRef
from vlatool.storage.tree import files_below_each

_STAT_THREADS = 16
# Whose other version may give other bytes.
_SHAPING_PACKAGES = ("pillow", "numpy", "av", "pyarrow", "scipy")


@dataclass(frozen=True)
class InputState:
    """The files of one episode as they are now.

    Attributes:
        digest: Changes with names, sizes and times of the files, and with what is known of the
            episode beforehand. A copy of the same files counts as changed; that costs work alone.
        sizes: The same without times and places: equal for a copy.
        changed_ns: When the latest change was, nanoseconds since 1970.
    """

    digest: str
    sizes: str
    changed_ns: int


def input_state(ref: EpisodeRef) -> InputState:
    """Looks at an episode's files."""
    groups = files_below_each((ref.path, *ref.files))
    known = [ref.task, {kind: list(texts) for kind, texts in ref.language.items()}]
    sizes = [[(file.name, file.bytes) for file in files] for files in groups]
    times = [file.modified_ns for files in groups for file in files]
    return InputState(
        digest=digest_of([str(ref.path), sizes, times, known]),
        sizes=digest_of([sizes, known]),
        changed_ns=max(times, default=0),
    )


def inputs_of(states: Iterable[tuple[str, str, int]]) -> dict[str, Any]:
    """The inputs of a run from (id, sizes, changed_ns) of its episodes, in order."""
    digest = hashlib.blake2b(digest_size=8)
    count, changed_ns = 0, 0
    for episode, sizes, changed in states:
        digest.update(f"{episode} {sizes}\n".encode())
        count += 1
        changed_ns = max(changed_ns, changed)
    changed_at = datetime.fromtimestamp(changed_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    return {"episodes": count, "fingerprint": digest.hexdigest(), "changed_at": changed_at}


def present_inputs(refs: Sequence[EpisodeRef]) -> dict[str, Any]:
    """The same, found by looking at every episode's files."""
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        found = zip(refs, pool.map(input_state, refs), strict=True)
        return inputs_of((ref.id, state.sizes, state.changed_ns) for ref, state in found)


def plan_digest(*parts: Any) -> str:
    """A digest of values that shape an episode's bytes, and of the software that makes them."""
    return digest_of([*parts, __version__, zlib.ZLIB_RUNTIME_VERSION, _versions()])


def digest_of(value: Any) -> str:
    """A digest of nested plain values, dataclasses and configurations."""
    text = json.dumps(_plain(value), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        private = value.__pydantic_private__ or {}
        return {**value.model_dump(mode="json"), **{k: _plain(v) for k, v in private.items()}}
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: _plain(vars(value))}
    if isinstance(value, Mapping):
        return [[str(key), _plain(item)] for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version  # only the driver pays for it

    found: dict[str, str] = {}
    for name in _SHAPING_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
