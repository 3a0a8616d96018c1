"""Options that choose episodes: `0:4,7`, or `@CURATION` for the episodes that a curation keeps."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, TypeVar

from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, UsageError
from vlatool.events import counted
from vlatool.recordings.curation.layout import selected_positions

_RANGE = re.compile(r"^([0-9]{0,18})(:)?([0-9]{0,18})\Z")


class _Numbered(Protocol):
    """Episode that may have a number in its data set."""

    @property
    def number(self) -> int | None: ...


T = TypeVar("T", bound=_Numbered)


def select(
    refs: Sequence[T], include: str | None, exclude: str | None = None, option: str = "--episodes"
) -> list[T]:
    """Returns the episodes of a selection such as `0:4,7`, without the episodes of `exclude`.

    The end of a range is excluded. `numbered` says which number an episode has. `option` is the
    name of the option for messages.

    Raises:
        UsageError: The selection is not a list of numbers and ranges.
        DataError: A number does not exist, or no episode is left.
    """
    known = numbered(refs)
    selected = list(known) if include is None else sorted(_numbers(option, include, known))
    if exclude is not None:
        excluded = _numbers("--exclude", exclude, known)
        selected = [number for number in selected if number not in excluded]
    if refs and not selected:
        options = [] if include is None else [f"{option} {include}"]
        if exclude is not None:
            options.append(f"--exclude {exclude}")
        raise DataError(
            f"{' '.join(options)} leaves none of your {counted(len(refs), 'episode')}",
            hint=f"{_numbers_text(known)}; the end of a range is excluded",
            code="data.no_episodes",
        )
    return [known[number] for number in selected]


def numbered(refs: Sequence[T]) -> dict[int, T]:
    """Returns the episodes by number: their numbers in the data set, or else their positions."""
    by_number = {ref.number: ref for ref in refs if ref.number is not None}
    return by_number if len(by_number) == len(refs) else dict(enumerate(refs))


def _numbers(option: str, text: str, known: Collection[int]) -> set[int]:
    """Known numbers that a selection contains."""
    numbers: set[int] = set()
    for part in text.split(","):
        numbers.update(_parse_part(part.strip(), known, option))
    return numbers


def _parse_part(part: str, known: Collection[int], option: str) -> Iterable[int]:
    match = _RANGE.match(part)
    if not part or match is None:
        raise UsageError(
            f"{option}: {part[:40]!r} is no number or range",
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
            f"{option}: there is no episode {int(start)}",
            hint=_numbers_text(known),
            code="data.no_episodes",
        )
    return [int(start)]


def _numbers_text(known: Collection[int]) -> str:
    if not known:
        return "you have no episodes"
    return f"you have {counted(len(known), 'episode')}, from number {min(known)} to {max(known)}"


def chosen_numbers(episodes: str | None, refs: Sequence[EpisodeRef]) -> str | None:
    """Returns `--episodes` as numbers and ranges, also for `@CURATION`."""
    if episodes is None or not episodes.startswith("@"):
        return episodes
    numbers = [*numbered(refs)]
    positions = selected_positions(episodes.removeprefix("@"), [ref.id for ref in refs])
    runs: list[tuple[int, int]] = []  # first number and the one after the last
    for number in sorted(numbers[position] for position in positions):
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return ",".join(f"{first}:{stop}" for first, stop in runs)
