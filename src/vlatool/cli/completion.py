"""Shell completion of options and of the values of options and arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
