"""Choice of episodes: `0:4,7`, or `@CURATION` for those that a curation keeps."""

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, UsageError
from vlatool.events import counted
from vlatool.formats.curation.layout import selected_positions

_RANGE = re.compile(r"^([0-9]{0,18})(:)?([0-9]{0,18})\Z")


class _Numbered(Protocol):
    """Episode that may have a number in its data set."""

    @property
    def number(self) -> int | None: ...


T = TypeVar("T", bound=_Numbered)


def select(
    refs: Sequence[T], include: str | None, exclude: str | None = None, option: str = "--episodes"
) -> list[T]:
    """Episodes of a selection such as `0:4,7`, which `option` gives, minus those of `exclude`.

    Numbers are those of `numbered`. The end of a range is excluded.
    """
    known = numbered(refs)
    selected = list(known) if include is None else sorted(_numbers(option, include, known))
    if exclude is not None:
        excluded = _numbers("--exclude", exclude, known)
        selected = [number for number in selected if number not in excluded]
    if refs and not selected:
        options = {option: include, "--exclude": exclude}
        options_text = " ".join(
            f"{name} {text}" for name, text in options.items() if text is not None
        )
        raise DataError(
            f"{options_text}: selects none of the {counted(len(refs), 'episode')}",
            hint="select other episodes",
            code="data.no_episodes",
        )
    return [known[number] for number in selected]


def numbered(refs: Sequence[T]) -> dict[int, T]:
    """Map from number to episode; numbers of the data set if all have one, else positions."""
    numbers = [ref.number for ref in refs]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(refs)))
    return {number: ref for number, ref in zip(numbers, refs, strict=True) if number is not None}


def _numbers(option: str, text: str, known: Collection[int]) -> set[int]:
    """Known numbers that a selection contains."""
    return {
        number for part in text.split(",") for number in _parse_part(part.strip(), known, option)
    }


def _parse_part(part: str, known: Collection[int], option: str) -> Iterable[int]:
    match = _RANGE.match(part)
    if not part or match is None:
        raise UsageError(
            f"{option}: invalid selection {part[:40]!r}",
            hint="write numbers and ranges, such as 0:4,7",
            code="usage.bad_value",
        )
    start, colon, stop = match.groups()
    if colon:
        low = int(start or 0)
        high = int(stop) if stop else float("inf")
        return [number for number in known if low <= number < high]
    if int(start) not in known:
        raise DataError(
            f"{option}: episode {int(start)} does not exist",
            hint=f"there are {counted(len(known), 'episode')}",
            code="data.no_episodes",
        )
    return [int(start)]


def chosen_numbers(episodes: str | None, refs: Sequence[EpisodeRef]) -> str | None:
    """Numbers and ranges of `--episodes`, of `@CURATION` those of the episodes that it keeps."""
    if episodes is None or not episodes.startswith("@"):
        return episodes
    numbers = [*numbered(refs)]
    positions = selected_positions(episodes.removeprefix("@"), [ref.id for ref in refs])
    chosen = enumerate(sorted(numbers[position] for position in positions))
    runs = ([*run] for _, run in groupby(chosen, key=lambda each: each[1] - each[0]))
    return ",".join(f"{run[0][1]}:{run[-1][1] + 1}" for run in runs)
