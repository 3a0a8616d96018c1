"""Shell completion of options and of the values of options and arguments.

The words are cached on disk, because collecting them imports configuration classes, which is too
slow for a key press. Installing the completion collects the words of all commands.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
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
    # Dotted key of the configuration to values for it, for `--set KEY=VALUE`.
    keys: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])
    has_bare_keys: bool = False  # `KEY=VALUE` is also accepted without `--set`


@dataclass(frozen=True)
class Line:
    """Unfinished command line."""

    typed: Sequence[str]  # complete words; `KEY=VALUE` is one word
    text: str  # part of the word, or of the value after `=`, that is completed
    name: str = ""  # option or key before `=`; empty without one
    is_split: bool = False  # the shell splits words at `=`: a completion is the value alone


def unfinished_line(words: Sequence[str], text: str) -> Line:
    """Unfinished command line from its complete words and the text that is completed.

    Bash splits at `=`. Of `--option=text` in other shells, Click only passes on the text.
    """
    # Bash completes the word after `=`, for which Click passes on an empty text.
    if not text and os.environ.get("COMP_WORDS", "").rstrip().endswith("="):
        words = [*words, "="]
    joined: list[str] = []
    is_value = False
    for word in words:
        if word == "=" and joined:
            joined[-1] += "="
        elif is_value:
            joined[-1] += word
        else:
            joined.append(word)
        is_value = word == "="
    if is_value:
        return Line(joined[:-1], text, joined[-1].removesuffix("="), is_split=True)
    last_word = os.environ.get("_TYPER_COMPLETE_ARGS", "").rpartition(" ")[2]
    if last_word.startswith("--") and "=" in last_word:
        text = last_word
    name, equals, value = text.partition("=")
    return Line(joined, value, name) if equals else Line(joined, text)


def completions(words: CompletionWords, line: Line) -> list[Completion]:
    return [Completion(value) for value in _completed(words, line)]


def _completed(words: CompletionWords, line: Line) -> Sequence[str]:
    text = line.text
    if line.name and line.is_split:
        return _values_of(words, line.name, text)
    if line.name:
        return [f"{line.name}={value}" for value in _values_of(words, line.name, text)]
    if line.typed and line.typed[-1] == "--set":
        return _assignments(words, text)
    if text.startswith("-"):
        return _spelled(_matching(_long_options(words, text), text), text)
    values = _values(words, line.typed)
    if values is not None:
        return _starting(values, text)
    if not text:
        return _long_options(words, "")
    return _assignments(words, text) if words.has_bare_keys else []


def _values_of(words: CompletionWords, name: str, text: str) -> list[str]:
    """Values of an option or key that start with a text."""
    if name == "--set":
        return _assignments(words, text)
    if name.startswith("-"):
        return _starting(words.options.get(name.replace("_", "-")) or (), text)
    return _starting(words.keys.get(name.replace("-", "_")) or (), text)


def _assignments(words: CompletionWords, text: str) -> list[str]:
    keys = _matching(list(words.keys), text)
    names = _spelled(keys, text)
    if len(keys) != 1:
        return [f"{name}=" for name in names]
    values = words.keys[keys[0]]
    if len(values) < 2:
        # With a second completion the shell neither takes the only value nor adds a space.
        values = ["", *values]
    return [f"{names[0]}={value}" for value in values]


def _starting(values: Sequence[str], text: str) -> list[str]:
    return [value for value in values if value.startswith(text)]


def _long_options(words: CompletionWords, text: str) -> list[str]:
    """Long options; without bare keys, and keys of a section only for a text with a dot."""
    names = [name for name in words.options if name.startswith("--")]
    if words.has_bare_keys or "." in text:
        return names
    return [name for name in names if "." not in name]


def _matching(names: Sequence[str], text: str) -> list[str]:
    """Names that start with a text, else names with such a part after a dot; `-` equals `_`."""
    start = text.replace("-", "_")
    matches = [name for name in names if name.replace("-", "_").startswith(start)]
    part = start.lstrip("_")
    if matches or not part:
        return matches
    return [name for name in names if f".{part}" in name.replace("-", "_")]


def _spelled(names: Sequence[str], text: str) -> list[str]:
    """Names spelled with dashes or underscores, as in the text."""
    body = text.lstrip("-")
    spelled: list[str] = []
    for name in names:
        words = name.lstrip("-")
        dashes = name.removesuffix(words)
        if "_" in body:
            words = words.replace("-", "_")
        elif "-" in body:
            words = words.replace("_", "-")
        spelled.append(f"{dashes}{words}")
    return spelled


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
