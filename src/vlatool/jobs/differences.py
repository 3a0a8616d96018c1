"""Differences between the record of an output and a run that is about to write it, in words."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlatool.config.scalars import value_text
from vlatool.errors import UsageError

_SHOWN = 6
# Text of a digest, which messages shorten.
_DIGEST = re.compile(r"\b(?=[0-9]*[a-f])[0-9a-f]{16,128}\b")
_DIGEST_SHOWN = 12
# Words for the keys of inputs that are no counts, from the recorded and the current value.
_INPUT_WORDS: Mapping[str, Callable[[Any, Any], str]] = {
    "changed_at": lambda old, new: (
        f"its last change was at {_time(old)}, now {_time(new)}"
        if str(old) < str(new)
        else "the times of its files differ"
    ),
    "digest": lambda old, new: "its content differs",
    "fingerprint": lambda old, new: "names or sizes of its files differ",
}


def check_no_differences(folder: Path, cause: str, differences: Sequence[str], hint: str) -> None:
    """Raises UsageError with the first differences; `cause` is such as `with other options`."""
    if differences:
        raise UsageError(
            f"{folder}: was made {cause}: {differences_text(differences)}",
            hint=hint,
            code="usage.output_differs",
            details={"differences": _short(differences)},
        )


def differences_text(differences: Sequence[str]) -> str:
    """The first differences, and the number of the others."""
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    return "; ".join(_short(differences[:_SHOWN])) + more


def _short(differences: Sequence[str]) -> list[str]:
    return [_DIGEST.sub(lambda match: match[0][:_DIGEST_SHOWN], text) for text in differences]


def option_differences(
    before: Mapping[str, Any],  # recorded options
    now: Mapping[str, Any],  # options of the run that is about to start
    words: Mapping[str, str] | None = None,  # names for keys that say too little; None for none
) -> list[str]:
    """Dotted keys with old and new value, where these are not equal as JSON.

    What `KEY digest` says of a KEY that both have counts more than its value, if both have it.
    """
    words = words or {}
    return [
        f"{words.get(key.rpartition('.')[2], key)} {value_text(old)} (now {value_text(new)})"
        for key, old, new in differing_keys(*_compared(_as_json(before), _as_json(now)))
    ]


def differing_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Yields dotted key, old and new value where two trees of JSON values differ."""
    # Common keys come first: the others are the keys of another reader or sink.
    common = old.keys() & new.keys()
    for key in (*sorted(common), *sorted((old.keys() | new.keys()) - common)):
        before, now = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differing_keys(before, now, f"{prefix}{key}.")
        elif before != now:
            yield f"{prefix}{key}", before, now


def _compared(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options without values of equal digest, and without digests that only one of both has."""
    ignored: set[str] = set()
    for key in old.keys() & new.keys():
        digests = [options.get(f"{key} digest") for options in (old, new)]
        if not all(digests):
            ignored.add(f"{key} digest")
        elif digests[0] == digests[1]:
            ignored.add(key)
    for key in ignored:
        old.pop(key, None)
        new.pop(key, None)
    return old, new


def input_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Differences of the inputs of two records, in words."""
    old, new = _as_json(before), _as_json(now)
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    counts = [
        f"{old.get(key, 0)} {key} (now {new.get(key, 0)})"
        for key in keys
        if key not in _INPUT_WORDS
    ]
    return counts or [_INPUT_WORDS[key](old.get(key), new.get(key)) for key in keys]


def _time(recorded: object) -> str:
    return str(recorded).replace("T", " ").replace("+00:00", " UTC")


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value)))
