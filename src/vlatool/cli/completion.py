"""Shell completion of options and of the values of options and arguments.

The words of a command are cached on disk after the first key press, because collecting them imports
configuration classes, which takes a second.
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

_MAX_AGE_S = 24 * 3600.0  # code of a plugin may change without a change of the installed state


@dataclass(frozen=True)
class Completion:
    """Completion with the attributes that the shell scripts of Typer read."""

    value: str
    help: str | None = None
    type: str = "plain"


@dataclass(frozen=True)
class CompletionWords:
    """Completion words of one command."""

    # Option to its known values, empty if any value is allowed; None for a switch.
    options: Mapping[str, Sequence[str] | None]
    arguments: Sequence[Sequence[str]] = ()  # known values of each argument


def completions(words: CompletionWords, typed: Sequence[str], text: str) -> list[Completion]:
    """Completions of a word, of which `text` is typed, after the complete words `typed`."""
    values = _values(words, typed)
    if text.startswith("-") or (values is None and not text):
        values = [name for name in words.options if name.startswith("--")]
        text = text.replace("_", "-")
    return [Completion(value) for value in values or () if value.startswith(text)]


def _values(words: CompletionWords, typed: Sequence[str]) -> Sequence[str] | None:
    """Values of the option before, or of the next argument; None if the command has none."""
    position = 0
    option_values: Sequence[str] | None = None  # of an option whose value is the next word
    for word in typed:
        if option_values is not None:
            option_values = None
        elif word.startswith("-"):
            name, equals, _ = word.partition("=")
            option_values = None if equals else words.options.get(name.replace("_", "-"))
        else:
            position += 1
    if option_values is not None:
        return option_values
    if not words.arguments:
        return None
    if position < len(words.arguments):
        return words.arguments[position]
    return ()


def cached(command: str, make: Callable[[], CompletionWords]) -> CompletionWords:
    """Completion words of a command, from the cache if possible."""
    file = _cache() / f"{hashlib.sha256(command.encode()).hexdigest()[:16]}.json"
    state = _installed_state()
    with suppress(OSError, ValueError, KeyError, TypeError):
        entry = json.loads(file.read_text(encoding="utf-8"))
        if entry["state"] == state and 0 <= time.time() - file.stat().st_mtime < _MAX_AGE_S:
            return CompletionWords(**entry["words"])
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
    """Digest of the times of the files of vlatool and of the folders of installed packages."""
    digest = hashlib.sha256(__version__.encode())
    package = Path(__file__).resolve().parent.parent
    for root in (package, package.parent.parent / "presets"):
        for folder, _, files in os.walk(root):
            for name in files:
                if name.endswith((".py", ".yaml")):
                    modified_ns = os.stat(os.path.join(folder, name)).st_mtime_ns
                    digest.update(f"\n{name}:{modified_ns}".encode())
    packages = {os.path.realpath(path) for path in sys.path if path.endswith("-packages")}
    for path in sorted(packages):
        if os.path.isdir(path):
            digest.update(f"\n{path}:{os.stat(path).st_mtime_ns}".encode())
    return digest.hexdigest()
