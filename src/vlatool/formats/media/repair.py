"""Result of copying what is whole in a damaged file."""

from dataclasses import dataclass


class NothingWhole(ValueError):
    """Nothing in a file can be saved; the text says why."""


@dataclass(frozen=True)
class Salvaged:
    """Content of a healthy copy of a damaged file."""

    content: str  # such as `213 of 400 rows`
    lost: tuple[str, ...] = ()  # parts that are not in the copy, each with its reason
