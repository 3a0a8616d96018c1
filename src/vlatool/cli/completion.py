"""Shell completion of options and of the values of options and arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """Completion with the attributes that the shell scripts of Typer read."""

    value: str
    help: str | None = None
    type: str = "plain"


# Option to its known values, empty if any value is allowed; None for a switch.
Options = Mapping[str, Sequence[str] | None]


def completions(
    options: Options, arguments: Sequence[Sequence[str]], typed: Sequence[str], text: str
) -> list[Completion]:
    """Completions of a word, of which `text` is typed, after the complete words `typed`.

    `arguments` are the known values of each argument.
    """
    values = _values(options, arguments, typed)
    if text.startswith("-") or (values is None and not text):
        values = [name for name in options if name.startswith("--")]
        text = text.replace("_", "-")
    return [Completion(value) for value in values or () if value.startswith(text)]


def _values(
    options: Options, arguments: Sequence[Sequence[str]], typed: Sequence[str]
) -> Sequence[str] | None:
    """Values of the option before, or of the next argument; None if the command has none."""
    position = 0
    option_values: Sequence[str] | None = None  # of an option whose value is the next word
    for word in typed:
        if option_values is not None:
            option_values = None
        elif word.startswith("-"):
            name, equals, _ = word.partition("=")
            option_values = None if equals else options.get(name.replace("_", "-"))
        else:
            position += 1
    if option_values is not None or not arguments:
        return option_values
    return arguments[position] if position < len(arguments) else ()
