"""Order, uniqueness and selection of episodes, for all formats."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from vlatool.episode import EpisodeRef
from vlatool.errors import DataError, UsageError
from vlatool.events import counted

_ID = re.compile(r"^[A-Za-z0-9_-]+\Z")
_RANGE = re.compile(r"^([0-9]{0,18})(:)?([0-9]{0,18})\Z")


def unique_refs(refs: Sequence[EpisodeRef]) -> Iterator[EpisodeRef]:
    """Episodes without repeated paths; the N-th episode with the same id gets the suffix `-N`."""
    seen_paths: set[Path] = set()
    used_ids: set[str] = set()
    for ref in refs:
        resolved = ref.path.resolve()
        if resolved in seen_paths:
            continue
        seen_paths.add(resolved)
        ref_id, number = ref.id, 1
        while ref_id in used_ids:
            number += 1
            ref_id = f"{ref.id}-{number}"
        used_ids.add(ref_id)
        yield ref if number == 1 else replace(ref, id=ref_id)


def checked_refs(refs: Sequence[EpisodeRef]) -> Sequence[EpisodeRef]:
    """The refs, after a check of their ids, which name files and seed random generators."""
    seen: dict[str, EpisodeRef] = {}
    for ref in refs:
        if not _ID.match(ref.id):
            problem = f"the episode id {ref.id!r} must consist of letters, digits, _ and -"
        elif ref.id in seen:
            problem = f"two episodes have the id {ref.id!r}: {seen[ref.id].path} and {ref.path}"
        else:
            seen[ref.id] = ref
            continue
        raise DataError(
            f"{ref.path}: {problem}",
            hint="this is a bug of the format's reader: see unique_refs in vlatool.sources.order",
            code="data.bad_episode_id",
            details={"episode": ref.id, "path": str(ref.path)},
        )
    return refs


class _Numbered(Protocol):
    """Episode that may have a number in its data set."""

    @property
    def number(self) -> int | None: ...


T = TypeVar("T", bound=_Numbered)


def select(refs: Sequence[T], include: str | None, exclude: str | None = None) -> list[T]:
    """Episodes of a selection such as `0:4,7`, minus those of `exclude`.

    Numbers are those of `numbered`. The end of a range is excluded.
    """
    known = numbered(refs)
    selected = list(known) if include is None else sorted(_numbers("--episodes", include, known))
    if exclude is not None:
        excluded = _numbers("--exclude", exclude, known)
        selected = [number for number in selected if number not in excluded]
    if refs and not selected:
        options = {"--episodes": include, "--exclude": exclude}
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
            code="usage.bad_selection",
        )
    start, colon, stop = match.groups()
    if colon:
        low, high = int(start or 0), int(stop) if stop else float("inf")
        return [number for number in known if low <= number < high]
    if int(start) not in known:
        raise DataError(
            f"{option}: episode {int(start)} does not exist",
            hint=f"there are {counted(len(known), 'episode')}",
            code="data.no_episodes",
        )
    return [int(start)]
