"""The order and the uniqueness of episodes, for every format; which of them are asked for."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, UsageError

_DIGITS = re.compile(r"(\d+)")
_ID = re.compile(r"^[A-Za-z0-9_-]+\Z")
_RANGE = re.compile(r"^(\d{0,18})(:)?(\d{0,18})$")


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sorts numbers by value: episode_2 before episode_10."""
    parts = _DIGITS.split(str(path))
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def unique_refs(refs: Sequence[EpisodeRef]) -> Iterator[EpisodeRef]:
    """Episodes once each; another episode with a used id gets a number behind it."""
    seen_paths: set[Path] = set()
    used: set[str] = set()
    for ref in refs:
        resolved = ref.path.resolve()
        if resolved in seen_paths:
            continue
        seen_paths.add(resolved)
        name, number = ref.id, 1
        while name in used:
            number += 1
            name = f"{ref.id}-{number}"
        used.add(name)
        yield ref if number == 1 else replace(ref, id=name)


def checked_ids(refs: Sequence[EpisodeRef]) -> Sequence[EpisodeRef]:
    """Ids name files and seed keys; a reader that gives bad or equal ones would mix episodes.

    Raises:
        DataError: An id cannot be a file name, or two episodes have the same.
    """
    seen: dict[str, EpisodeRef] = {}
    for ref in refs:
        if not _ID.match(ref.id):
            problem = f"the episode id {ref.id!r} is not made of letters, digits, _ and -"
        elif ref.id in seen:
            problem = f"two episodes have the id {ref.id!r}: {seen[ref.id].path} and {ref.path}"
        else:
            seen[ref.id] = ref
            continue
        raise DataError(
            f"{ref.path}: {problem}",
            hint="a fault of the format's reader: see unique_refs in vlatool.sources.order",
            code="data.bad_episode_id",
            details={"episode": ref.id, "path": str(ref.path)},
        )
    return refs


def select(refs: Sequence[EpisodeRef], wanted: str | None) -> list[EpisodeRef]:
    """The episodes of a selection such as `0:4,7`.

    Numbers are the data set's own where every episode has one, else positions in the list; the
    end of a range is not included.

    Raises:
        UsageError: The selection cannot be parsed.
        DataError: A number that is named does not exist, or nothing is left.
    """
    if wanted is None:
        return list(refs)
    numbers = [ref.number for ref in refs]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(refs)))
    by_number = dict(zip(numbers, refs, strict=True))
    chosen: dict[int, EpisodeRef] = {}
    for part in wanted.split(","):
        chosen |= _part(part.strip(), by_number, wanted)
    if not chosen:
        raise DataError(
            f"--episodes {wanted}: selects none of the {len(refs)} episodes",
            code="data.no_episodes",
        )
    return [chosen[number] for number in sorted(chosen)]


def _part(part: str, by_number: dict[int | None, EpisodeRef], wanted: str) -> dict[int, EpisodeRef]:
    match = _RANGE.match(part)
    if not part or match is None:
        raise UsageError(
            f"--episodes {wanted}: cannot read {part!r}",
            hint="write numbers and ranges, such as 0:4,7",
            code="usage.bad_selection",
        )
    first, colon, last = match.groups()
    if not colon:
        number = int(first)
        if number not in by_number:
            raise DataError(
                f"--episodes {wanted}: there is no episode {number}",
                hint=f"there are {len(by_number)} episodes",
                code="data.no_episodes",
            )
        return {number: by_number[number]}
    low, high = int(first or 0), int(last) if last else float("inf")
    return {n: ref for n, ref in by_number.items() if n is not None and low <= n < high}
