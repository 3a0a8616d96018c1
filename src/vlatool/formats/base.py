"""Reader interface of dataset formats; surveys and errors of all formats."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vlatool.config.base import ConfigModel
from vlatool.episode import NO_CAMERAS, Episode, EpisodeRef, FieldSpec, Role, StoredPart, Survey
from vlatool.errors import BugError, DataError, VlatoolError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes
from vlatool.jobs.executor import attempt
from vlatool.plugins import DEFAULT_SINK, did_you_mean
from vlatool.storage.tree import LINKS_VARIABLE, first_link_out, real_folders, walk
from vlatool.storage.uri import can_list, is_remote

_LONGEST_CAMERA_NAME = 200  # bytes; file names add a prefix and a suffix to it
POLICY_KEYS = ("action_fields", "proprioception_fields", "pose_groups", "declared")


class FormatReader(Protocol):
    """Reader of the episodes of one dataset format.

    Attributes:
        Config: Config class of this format; an instance is the only argument of the constructor.
        findings: Codes of its own findings; None: it has none.
        base_format: Name of a more general format that also recognizes the same data.
        is_fallback: True if any other format that finds episodes at a location takes precedence.
        default_sink: Name of the sink that is used if none is given.
        needs_rate: True if episodes have rows at the rate only, whatever the sink stores.
        layout: Name of the layout within the format; empty if it has one.
        config: Resolved config.
        source_findings: Findings of `discover` on the data set as a whole.
    """

    Config: ClassVar[type[ConfigModel]]
    findings: ClassVar[FindingCodes | None] = None
    base_format: ClassVar[str] = ""
    is_fallback: ClassVar[bool] = False
    default_sink: ClassVar[str] = DEFAULT_SINK
    needs_rate: ClassVar[bool] = False
    config: Any
    layout: str = ""
    source_findings: Sequence[Finding] = ()

    def __init__(self, config: Any) -> None:
        self.config = config

    def discover(self, sources: Sequence[Path]) -> Iterator[EpisodeRef]:
        """All episodes below `sources`, in natural order; cheap and deterministic.

        Raises:
            DataError: `data.no_episodes` if a source is missing, empty or without episodes.
        """
        ...

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Merged cameras, fields and lengths of the episodes, without decoding images.

        Episodes that cannot be read are skipped; `read` reports them. A reader without a cheap
        way returns `survey_by_reading(self.read, refs)`.

        Raises:
            DataError: No episode can be read; the error of the first one.
        """
        ...

    def read(self, ref: EpisodeRef) -> Episode:
        """The episode; its images stay on disk.

        Raises:
            DataError: The episode is broken; names file and field.
        """
        ...

    def sink_config(self, sink: Any, sources: Sequence[Path]) -> Any:
        """The keys of a sink, with those that the sources determine.

        Raises:
            UsageError: The sink cannot store these episodes, or keys contradict them.
        """
        return sink

    @staticmethod
    def propose(source: Path) -> str | None:
        """Proposes a mapping of a source (`vlatool.formats.mapping`) as YAML.

        None: the format has no mappings, or the source is of another one.
        """
        return None

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding] | None:
        """Returns findings on an episode; with `deep` every frame is decoded.

        None: the rules of all formats (`vlatool.formats.rules`) are enough.
        """
        return None

    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]:
        """Yields findings that concern more than one episode."""
        yield from ()


def merge_surveys(surveys: Iterable[Survey], reasons: Sequence[VlatoolError]) -> Survey:
    """One survey of many episodes, merged from a survey per episode, in their order.

    A field is included if most episodes have it, with its most frequent width; ties are decided by
    the earlier episode. `reasons` are errors of the other episodes, which may be added while
    `surveys` is consumed; the first one is raised if there is no survey.
    """
    variants: Counter[tuple[tuple[str, FieldSpec], ...]] = Counter()  # few distinct ones
    cameras: dict[str, tuple[int, int] | None] = {}
    frames: list[int | None] = []
    policy = {name: dict[Any, None]() for name in POLICY_KEYS}
    rates: set[float | None] = set()
    text_kinds: dict[str, None] = {}
    parts: dict[str, StoredPart] = {}
    for survey in surveys:
        variants[tuple(survey.fields.items())] += 1
        for name, size in survey.cameras.items():
            cameras[name] = cameras.get(name) or size
        frames.append(survey.frames)
        rates.add(survey.fps)
        text_kinds.update(dict.fromkeys(survey.text_kinds))
        for part in survey.parts:
            if part.is_loss or part.path not in parts:  # what some episodes use, others may not
                parts[part.path] = part
        for name, distinct in policy.items():
            distinct.update(dict.fromkeys(getattr(survey, name)))
    if not frames:
        first = reasons[0]
        raise type(first)(
            f"none of the {counted(len(reasons), 'episode')} can be read; first error: "
            f"{first.message}",
            hint=first.hint,
            code=first.code,
            details={**first.details, "episodes": len(reasons)},
        )
    known_frames = [count for count in frames if count is not None]
    has_all = len(known_frames) == len(frames)
    return Survey(
        episodes=len(frames),
        cameras=cameras,
        fields=_majority_fields(variants),
        frames=sum(known_frames) if has_all else None,
        fps=rates.pop() if len(rates) == 1 else None,
        text_kinds=tuple(text_kinds),
        parts=tuple(parts.values()),
        **{name: tuple(distinct) for name, distinct in policy.items()},
    )


def _majority_fields(variants: Counter[tuple[tuple[str, FieldSpec], ...]]) -> dict[str, FieldSpec]:
    """Fields of a merged survey, from the number of episodes per set of fields."""
    first = dict(next(iter(variants)))
    episodes = variants.total()
    widths: dict[str, Counter[int]] = {}
    names: dict[tuple[str, int], tuple[str, ...]] = {}
    for fields, count in variants.items():
        for name, spec in fields:
            widths.setdefault(name, Counter())[spec.width] += count
            names.setdefault((name, spec.width), spec.names)
    majority: dict[str, FieldSpec] = {}
    for name, counts in widths.items():
        missing = episodes - counts.total()
        if counts.total() > missing or (counts.total() == missing and name in first):
            width = counts.most_common(1)[0][0]
            majority[name] = FieldSpec(width, names[name, width])
    return majority


def parts_of(episode: Episode) -> tuple[StoredPart, ...]:
    """What an episode stores; of a reader that does not say it, what it uses."""
    if episode.parts:
        return episode.parts
    parts: list[StoredPart] = []
    images: dict[Role, Iterable[str]] = {
        "camera": [*episode.cameras, *episode.missing_cameras],
        "depth": episode.depth,
        "labels": episode.labels,
    }
    for role, names in images.items():
        for name in names:
            parts.append(StoredPart(f"{role}/{name}", role, name, "images"))
    for name in episode.lowdim:
        parts.append(StoredPart(name, "field", name))
    for kind in episode.texts():
        parts.append(StoredPart(f"language/{kind}", "language", kind, "text"))
    return tuple(parts)


def survey_episode(episode: Episode) -> Survey:
    """Survey of one episode that has been read."""
    cameras: dict[str, tuple[int, int] | None] = {}
    for name, camera in episode.cameras.items():
        cameras[name] = camera.size
    cameras |= dict.fromkeys(episode.missing_cameras)
    return Survey(
        episodes=1,
        cameras=cameras,
        fields=field_specs(episode),
        frames=episode.num_frames,
        fps=episode.fps or None,
        text_kinds=tuple(kind for kind in episode.texts() if kind != "original"),
        parts=parts_of(episode),
        **{name: getattr(episode, name) for name in POLICY_KEYS},
    )


def survey_each(
    survey: Callable[[EpisodeRef], Survey], refs: Iterable[EpisodeRef], reasons: list[VlatoolError]
) -> Iterator[Survey]:
    """Surveys of the readable episodes; data errors and bugs are appended to `reasons`."""
    for ref in refs:
        outcome = attempt(survey, ref)
        if outcome.value is not None:
            yield outcome.value
        elif isinstance(outcome.error, DataError | BugError):
            reasons.append(outcome.error)
        elif outcome.error is not None:
            raise outcome.error


def survey_by_reading(read: Callable[[EpisodeRef], Episode], refs: Sequence[EpisodeRef]) -> Survey:
    """Survey of a format without a cheap way: reads the fields of every episode."""
    reasons: list[VlatoolError] = []
    return merge_surveys(survey_each(lambda ref: survey_episode(read(ref)), refs, reasons), reasons)


def field_specs(episode: Episode) -> dict[str, FieldSpec]:
    """Width and dimension names of each field; names only if there is one per dimension."""
    specs: dict[str, FieldSpec] = {}
    for name, values in episode.lowdim.items():
        width = 0 if values.dtype.kind == "U" else math.prod(values.shape[1:])
        names = tuple(episode.dimension_names.get(name, ()))
        specs[name] = FieldSpec(width, names if len(names) == width else ())
    return specs


def field_mismatch(
    episode: str, fields: Mapping[str, FieldSpec], expected: Mapping[str, FieldSpec | int]
) -> DataError | None:
    """Error if the fields of an episode differ from those of the other episodes, else None."""
    for name in (*expected, *fields):
        width = fields[name].width if name in fields else None
        other = expected.get(name)
        if isinstance(other, FieldSpec):
            other = other.width
        if width != other:
            return DataError(
                f"{episode}: field {name!r} is {width_text(width)}, "
                f"in the other episodes {width_text(other)}",
                hint="episodes of one run must have the same fields; leave the field out or "
                "preprocess these episodes separately",
                code="data.mismatch",
                details={"field": name},
            )
    return None


def width_text(width: int | None) -> str:
    """Width of a field in a message; 0 is text, None absent."""
    if width is None:
        return "absent"
    return "text" if width == 0 else f"{width} wide"


def camera_name_problem(name: str) -> DataError | None:
    """Error if a camera name cannot be part of a file name, else None."""
    is_short = len(name.encode(errors="replace")) <= _LONGEST_CAMERA_NAME
    if name not in ("", NO_CAMERAS) and name.isprintable() and "/" not in name and is_short:
        return None
    return DataError(
        f"the camera name {name[:40]!r} cannot be part of a file name",
        hint="rename it with `preprocess --rename cameras.NEW=OLD`, or choose others with "
        "--camera-names",
        code="data.bad_name",
        details={"finding": "bad_camera_name", "camera": name},
    )


def walk_source(source: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """(folder, folder names, file names) of a source, as `walk`; none of a web server."""
    if can_list(source):
        yield from walk(source)


def first_middle_last(count: int) -> list[int]:
    """Positions that stand for all of some rows or episodes."""
    return sorted({0, count // 2, count - 1}) if count else []


def text_of(value: object) -> str:
    """A stored text, which may be bytes."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode(errors="replace")
    return str(value)


def id_part(name: str) -> str:
    """`name` with everything but letters, digits, `_` and `-` replaced, for `EpisodeRef.id`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "dataset"


def no_episodes(source: Path, searched: str) -> DataError:
    """Error for a source without episodes; `searched` is what was looked for."""
    if not can_list(source):
        state = "is on a web server, which cannot be listed, and has no episodes"
    elif not source.exists():
        state = "does not exist"
    elif not source.is_dir():
        state = "is not a folder"
    elif not any(source.iterdir()):
        state = "is an empty folder"
    else:
        state = "contains no episodes"
    return DataError.at(
        source,
        f"{state}; searched for {searched}",
        hint="check the path, and that the data has the given FORMAT",
        code="data.no_episodes",
        searched=searched,
    )


def unknown_field(name: str, known: Sequence[str], path: Path, kind: str = "field") -> DataError:
    """Error for a field that the user requested and that the data does not have."""
    known_names = ", ".join(known) or "none"
    hint = did_you_mean(name, list(known))
    if not hint.startswith("did you mean"):
        hint = f"choose one of: {known_names}" if known else f"the data has no such {kind}s"
    return DataError(
        f"{path}: has no {kind} {name!r}; available: {known_names}",
        hint=hint,
        code="data.unknown_field",
        details={"field": name, "known": list(known), "path": str(path)},
    )


_ID = re.compile(r"^[A-Za-z0-9_-]+\Z")


def unique_refs(refs: Sequence[EpisodeRef]) -> Iterator[EpisodeRef]:
    """Episodes without repeated paths; the N-th episode with the same id gets the suffix `-N`."""
    seen_paths: set[Path] = set()
    used_ids: dict[str, int] = {}
    for ref in refs:
        resolved = ref.path.resolve()
        if resolved not in seen_paths:
            seen_paths.add(resolved)
            yield replace(ref, id=unused_id(ref.id, used_ids))


def unused_id(name: str, used: dict[str, int]) -> str:
    """`name`, or the next of NAME-2, NAME-3, ...; `used`: a name to its last number."""
    unused = name
    while unused in used:
        used[name] += 1
        unused = f"{name}-{used[name]}"
    used[unused] = 1
    return unused


def checked_refs(refs: Sequence[EpisodeRef]) -> Sequence[EpisodeRef]:
    """The refs, after a check of their ids, which name files and seed random generators, and of
    links in their files.

    Raises:
        DataError: A link leads out of the source: `data.unsafe`.
    """
    _check_links(refs)
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
            hint="this is a bug of the format's reader: see unique_refs in vlatool.formats.base",
            code="data.broken",
            details={"episode": ref.id, "path": str(ref.path)},
        )
    return refs


def _check_links(refs: Sequence[EpisodeRef]) -> None:
    """Raises an error if a file of an episode is a link that leads out of its source.

    Recordings from elsewhere could name any file of this machine, which would be copied.
    """
    by_source: dict[str, tuple[tuple[Path, ...], set[str]]] = {}
    checked: set[Path] = set()
    for ref in refs:
        source = Path(ref.source)
        if is_remote(ref.path) or not source.exists():
            continue
        if ref.source not in by_source:
            by_source[ref.source] = real_folders(source), set()
        folders, inside = by_source[ref.source]
        for path in (ref.path, *ref.files):
            if path in checked or (path == source and not source.is_dir()):
                continue
            checked.add(path)
            link = first_link_out(path, folders, inside)
            if link is not None:
                raise links_out_error(link, source)


def links_out_error(link: Path, source: Path) -> DataError:
    """Error for a file of a source that is a link to a place outside of it."""
    return DataError.at(
        link,
        f"is a link to {link.resolve()}, outside of {source}",
        hint=f"copy the file into {source}; if you trust the recording, repeat with the "
        f"environment variable {LINKS_VARIABLE}=1",
        code="data.unsafe",
    )
