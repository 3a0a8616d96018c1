"""What every dataset format provides; surveys and refusals that all formats share."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vlatool.config.base import ConfigModel
from vlatool.episode import Episode, EpisodeRef, FieldFacts, Survey
from vlatool.errors import DataError
from vlatool.plugins import did_you_mean
from vlatool.storage.parts import Part, read_part

# First line of the small text file that stands for content kept in Git LFS. Source: lerobot 11.7
_LFS_HEADER = b"version https://git-lfs"


class FormatReader(Protocol):
    """Reads the episodes of one dataset format.

    A reader may also have `noticed: list[Finding]`, what `discover` found odd about the data set
    as a whole; `specialises: ClassVar[str]`, the name of the more general format whose data it
    also recognises; and checks of its own (`vlatool.sources.rules`).

    Attributes:
        Config: The keys of this format; an instance is the only argument of the constructor.
    """

    Config: ClassVar[type[ConfigModel]]

    def __init__(self, config: Any) -> None: ...

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """Every episode below `sources`, in natural order; cheap and deterministic.

        Raises:
            DataError: `data.no_episodes` when a source is missing, empty or without episodes.
        """
        ...

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """What the chosen episodes have between them, found without a pixel and cheaply.

        An episode that cannot be read is passed over: reading it will tell. A reader that has no
        cheap way returns `survey_by_reading(self.read, refs)`.

        Raises:
            DataError: None of the episodes can be read; the first one's reason.
        """
        ...

    def read(self, ref: EpisodeRef) -> Episode:
        """The episode, its pictures still on disk.

        Raises:
            DataError: The episode is broken; names file and field.
        """
        ...


class SurveyUnion:
    """Joins what single episodes have, in the order they come.

    Attributes:
        episodes: How many were added.
    """

    def __init__(self) -> None:
        self.episodes = 0
        self._looks = 0
        self._first: frozenset[str] = frozenset()
        self._cameras: dict[str, tuple[int, int] | None] = {}
        self._widths: dict[str, Counter[int]] = {}
        self._names: dict[tuple[str, int], tuple[str, ...]] = {}
        self._frames: int | None = 0
        self._rates: set[float] = set()

    def add(
        self,
        cameras: Mapping[str, tuple[int, int] | None],
        fields: Mapping[str, FieldFacts] | None,
        frames: int | None,
        fps: float,
    ) -> None:
        """Takes in an episode, as in `Survey`; without `fields` where nobody looked at them."""
        self.episodes += 1
        if fields is not None:
            self._looks += 1
            self._first = self._first if self._looks > 1 else frozenset(fields)
        for name, size in cameras.items():
            self._cameras[name] = self._cameras.get(name) or size
        for name, facts in (fields or {}).items():
            self._widths.setdefault(name, Counter())[facts.width] += 1
            self._names.setdefault((name, facts.width), facts.names)
        self._frames = None if frames is None or self._frames is None else self._frames + frames
        self._rates.add(fps)

    @property
    def cameras(self) -> Mapping[str, tuple[int, int] | None]:
        """As in `Survey`."""
        return self._cameras

    @property
    def fields(self) -> dict[str, FieldFacts]:
        """As in `Survey`: what most episodes have; where they are equal, the earlier decide."""
        found: dict[str, FieldFacts] = {}
        for name, widths in self._widths.items():
            missing = self._looks - widths.total()
            if widths.total() > missing or (widths.total() == missing and name in self._first):
                width = widths.most_common(1)[0][0]
                found[name] = FieldFacts(width, self._names[name, width])
        return found

    def survey(self, **policy: Any) -> Survey:
        """The union; `policy` has `action_fields`, `proprioception_fields` and `pose_groups`."""
        fps = next(iter(self._rates)) if len(self._rates) == 1 else None
        return Survey(self.episodes, self._cameras, self.fields, self._frames, fps, **policy)


def survey_by_reading(read: Callable[[EpisodeRef], Episode], refs: Sequence[EpisodeRef]) -> Survey:
    """The survey of a format that has no cheap way: reads the numbers of every episode.

    Raises:
        DataError: None of the episodes can be read; the first one's reason.
    """
    union, reasons = SurveyUnion(), list[DataError]()
    policy: dict[str, dict[Any, None]] = {
        "action_fields": {}, "proprioception_fields": {}, "pose_groups": {}
    }  # fmt: skip
    for ref in refs:
        try:
            episode = read(ref)
            sizes = {name: camera.size for name, camera in episode.cameras.items()}
        except DataError as error:
            reasons.append(error)
            continue
        union.add(sizes, facts_of(episode), episode.num_frames, episode.fps)
        for name, known in policy.items():
            known.update(dict.fromkeys(getattr(episode, name)))
    if not union.episodes:
        raise none_readable(refs, reasons[0])
    return union.survey(**{name: tuple(known) for name, known in policy.items()})


def first_readable(
    read: Callable[[EpisodeRef], Episode], refs: Sequence[EpisodeRef], reasons: list[DataError]
) -> tuple[Episode | None, Sequence[EpisodeRef]]:
    """The first episode that can be read, and those after it; refusals go to `reasons`."""
    for position, ref in enumerate(refs):
        try:
            return read(ref), refs[position + 1 :]
        except DataError as error:
            reasons.append(error)
    return None, ()


def facts_of(episode: Episode) -> dict[str, FieldFacts]:
    """The fields of an episode, without names of their channels."""
    return {
        name: FieldFacts(0 if values.dtype.kind == "U" else math.prod(values.shape[1:]))
        for name, values in episode.lowdim.items()
    }


def none_readable(refs: Sequence[EpisodeRef], first: DataError) -> DataError:
    """The error where every episode is broken, which tells of the first one."""
    return DataError(
        f"none of the {len(refs)} episodes can be read; the first: {first.message}",
        hint=first.hint,
        code=first.code,
        details={**first.details, "episodes": len(refs)},
    )


def id_part(name: str) -> str:
    """`name` with everything but letters, digits, `_` and `-` replaced, for `EpisodeRef.id`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "dataset"


def no_episodes(source: Path, searched: str) -> DataError:
    """The refusal of a source that holds no episode.

    Args:
        source: As the user gave it.
        searched: What would have made it one, e.g. `meta/info.json`.
    """
    if not source.exists():
        state = "does not exist"
    elif not source.is_dir():
        state = "is not a folder"
    elif not any(source.iterdir()):
        state = "is an empty folder"
    else:
        state = "holds no episodes"
    return DataError(
        f"{source}: {state}; searched for {searched}",
        hint="check the path, and that FORMAT is the format of this data",
        code="data.no_episodes",
        details={"path": str(source), "searched": searched},
    )


def unknown_field(name: str, known: Sequence[str], where: Path, noun: str = "field") -> DataError:
    """The refusal of a field that the user asked for and the data does not have."""
    there = ", ".join(known) or "none"
    nearest = did_you_mean(name, list(known))
    return DataError(
        f"{where}: there is no {noun} {name!r}; there are: {there}",
        hint=nearest if nearest.startswith("did you mean") else f"choose one of: {there}",
        code="data.unknown_field",
        details={"field": name, "known": list(known), "path": str(where)},
    )


def refuse_missing_or_pointer(path: Path, what: str) -> None:
    """Checks that `path` is a file with content of its own.

    Args:
        path: The file that is about to be opened.
        what: Whose file it is, e.g. `episode 3`.

    Raises:
        DataError: `data.missing_file`, or `data.lfs_pointer` for a Git LFS pointer.
    """
    try:
        head = read_part(Part(path, 0, len(_LFS_HEADER)))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(
            f"{what}: {path} is missing",
            hint="complete the download, or leave the episode out with --episodes",
            code="data.missing_file",
            details={"path": str(path)},
        ) from None
    if head == _LFS_HEADER:
        raise DataError(
            f"{what}: {path} is a Git LFS pointer ({path.stat().st_size} bytes), not data",
            hint="run `git lfs pull` in the data set, or download it again",
            code="data.lfs_pointer",
            details={"path": str(path)},
        )
