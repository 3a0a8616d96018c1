"""What a shell offers: names of options, and the values that options and arguments can have.

Kept in the user's cache between requests: finding them imports configuration classes, which takes
longer than a person waits.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vlatool import __version__

_MAX_AGE_S = 24 * 3600.0  # the code of a plugin may change without a trace in what is looked at


@dataclass(frozen=True)
class Completion:
    """What Typer's shell scripts read of a completion."""

    value: str
    help: str | None = None
    type: str = "plain"


@dataclass(frozen=True)
class CompletionWords:
    """What may stand on the command line of one command.

    Attributes:
        options: Option to the values that are known, maybe none; None for a switch.
        arguments: The known values of each argument.
    """

    options: Mapping[str, Sequence[str] | None]
    arguments: Sequence[Sequence[str]] = ()


def completions(words: CompletionWords, typed: Sequence[str], incomplete: str) -> list[Completion]:
    """What can stand where `incomplete` begins, after the words typed before it."""
    if incomplete.startswith("-"):
        known: Sequence[str] = [name for name in words.options if name.startswith("--")]
    else:
        known = _values(words, [word for word in typed if word != "="])
    return [Completion(value) for value in known if value.startswith(incomplete)]


def _values(words: CompletionWords, typed: Sequence[str]) -> Sequence[str]:
    position = 0
    waiting: Sequence[str] | None = None  # for the value of an option
    for word in typed:
        if waiting is not None:
            waiting = None
        elif word.startswith("-"):
            name, equals, _ = word.partition("=")
            waiting = None if equals else words.options.get(name.replace("_", "-"))
        else:
            position += 1
    if waiting is not None:
        return waiting
    if not words.arguments:
        return [name for name in words.options if name.startswith("--")]
    return words.arguments[position] if position < len(words.arguments) else ()


def cached(command: str, make: Callable[[], CompletionWords]) -> CompletionWords:
    """The vocabulary of a command: as it was found before, else found and kept.

    Args:
        command: Its name, and whatever else decides what its options are.
        make: Finds it.
    """
    file = _cache() / f"{hashlib.sha256(command.encode()).hexdigest()[:16]}.json"
    state = _installed_state()
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["state"] == state and 0 <= time.time() - file.stat().st_mtime < _MAX_AGE_S:
            return CompletionWords(**found["words"])
    words = make()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"state": state, "words": asdict(words)}))
        temporary.replace(file)
    return words


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root, "vlatool", "completion")


def _installed_state() -> str:
    """Changes with our own files and with what is installed."""
    package = Path(__file__).resolve().parent.parent
    found = [__version__]
    for root in (package, package.parent.parent / "presets"):
        for folder, _, files in os.walk(root):
            names = [name for name in files if name.endswith((".py", ".yaml"))]
            found += [f"{name}:{os.stat(os.path.join(folder, name)).st_mtime_ns}" for name in names]
    paths = {os.path.realpath(path) for path in sys.path if path.endswith("-packages")}
    there = sorted(filter(os.path.isdir, paths))
    found += [f"{path}:{os.stat(path).st_mtime_ns}" for path in there]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()
