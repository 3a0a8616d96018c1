"""What the reader of a dataset format must provide, and the helpers that all readers share."""

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
from vlatool.recordings.unread import unread_hint
from vlatool.storage.tree import LINKS_VARIABLE, first_link_out, real_folders, walk
from vlatool.storage.uri import can_list, is_remote

_LONGEST_CAMERA_NAME = 200  # bytes; file names add a prefix and a suffix to it
POLICY_KEYS = ("action_fields", "proprioception_fields", "pose_groups", "declared")


class FormatReader(Protocol):
    """Reads the episodes of one dataset format.

    `discover` lists the episodes, `survey` says what they store, and `read` returns one of them.
    The other methods are optional. docs/guides/plugins.md has an example.

    Attributes:
        Config: Class of the options of this format. The constructor takes one instance of it.
        findings: Codes of the format's own findings; None if it has none.
        base_format: Name of a more general format that recognizes the same data. If both find
            episodes, this format is used.
        is_fallback: True if this format is tried only after no other format finds episodes.
        default_sink: Name of the sink that `preprocess` uses without `--sink`.
        needs_rate: True if the reader needs `fps` to make the rows of an episode, as bags do.
            `preprocess` then requires it for every sink.
        layout: Name of the layout that was found, for formats with several; else empty.
        config: Options of this reader.
        source_findings: Findings on the data set as a whole, which `discover` sets.
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
        """Yields a reference to each episode below `sources`, in natural order.

        It must be cheap, and yield the same references every time: list folders and read headers
        only.

        Raises:
            DataError: `data.no_episodes` if a source is missing, empty or has no episodes.
        """
        ...

    def survey(self, refs: Sequence[EpisodeRef]) -> Survey:
        """Returns the cameras, fields and lengths of the episodes, without decoding images.

        Skip episodes that cannot be read: `read` reports them. If your format has no cheap way to
        find out, return `survey_by_reading(self.read, refs)`.

        Raises:
            DataError: No episode can be read. This is the error of the first episode.
        """
        ...

    def read(self, ref: EpisodeRef) -> Episode:
        """Returns an episode. Its images stay on disk until they are asked for.

        Raises:
            DataError: The episode is broken. The message names the file and the field.
        """
        ...

    def sink_config(self, sink: Any, sources: Sequence[Path]) -> Any:
        """Returns the options of a sink, completed with the values that the sources determine.

        Raises:
            UsageError: The sink cannot store these episodes, or its options contradict them.
        """
        return sink

    @staticmethod
    def propose(source: Path) -> str | None:
        """Returns a mapping for a source to start from (`vlatool.recordings.mapping`), as YAML.

        None if the format has no mappings, or the source has another format.
        """
        return None

    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding] | None:
        """Yields what `verify` finds in an episode; with `deep` it decodes every frame.

        Return None to use the rules for all formats (`vlatool.recordings.rules`).
        """
        return None

    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]:
        """Yields what `verify` finds in the source as a whole, beyond single episodes."""
        yield from ()


def merge_surveys(surveys: Iterable[Survey], reasons: Sequence[VlatoolError]) -> Survey:
    """Merges the surveys of single episodes, in their order, into one.

    The result has each field that most episodes have, with its most frequent width; on a tie the
    earlier episode decides. `reasons` are the errors of episodes without a survey. They may be
    added while `surveys` is consumed; if there is no survey at all, the first error is raised.
    """
    variants: Counter[tuple[tuple[str, FieldSpec], ...]] = Counter()  # few distinct ones
    cameras: dict[str, tuple[int, int] | None] = {}
    mixed_sizes: set[str] = set()
    frames: list[int | None] = []
    policy = {name: dict[Any, None]() for name in POLICY_KEYS}
    rates: set[float | None] = set()
    text_kinds: dict[str, None] = {}
    parts: dict[str, StoredPart] = {}
    for survey in surveys:
        variants[tuple(survey.fields.items())] += 1
        for name, size in survey.cameras.items():
            if size and cameras.get(name) not in (None, size):
                mixed_sizes.add(name)
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
            f"none of your {counted(len(reasons), 'episode')} can be read; first error: "
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
        mixed_sizes=frozenset(mixed_sizes),
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
    """Parts that an episode stores; if its reader does not list them, the parts that it uses."""
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
    """Returns the survey of one episode that has been read."""
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
    """Yields a survey of each readable episode; appends data errors and bugs to `reasons`."""
    for ref in refs:
        outcome = attempt(survey, ref)
        if outcome.value is not None:
            yield outcome.value
        elif isinstance(outcome.error, DataError | BugError):
            reasons.append(outcome.error)
        elif outcome.error is not None:
            raise outcome.error


def survey_by_reading(read: Callable[[EpisodeRef], Episode], refs: Sequence[EpisodeRef]) -> Survey:
    """Surveys episodes by reading all of them, for formats without a cheaper way."""
    reasons: list[VlatoolError] = []
    return merge_surveys(survey_each(lambda ref: survey_episode(read(ref)), refs, reasons), reasons)


def field_specs(episode: Episode) -> dict[str, FieldSpec]:
    """Returns the width of each field, and its dimension names if there is one per dimension."""
    specs: dict[str, FieldSpec] = {}
    for name, values in episode.lowdim.items():
        width = 0 if values.dtype.kind == "U" else math.prod(values.shape[1:])
        names = tuple(episode.dimension_names.get(name, ()))
        specs[name] = FieldSpec(width, names if len(names) == width else ())
    return specs


def field_mismatch(
    episode: str, fields: Mapping[str, FieldSpec], expected: Mapping[str, FieldSpec | int]
) -> DataError | None:
    """Returns an error if an episode has other fields than the other episodes, else None."""
    for name in (*expected, *fields):
        width = fields[name].width if name in fields else None
        other = expected.get(name)
        if isinstance(other, FieldSpec):
            other = other.width
        if width != other:
            return DataError(
                f"{episode}: field {name!r} is {width_text(width)}, "
                f"in the other episodes it is {width_text(other)}",
                hint="all episodes of one run need the same fields: leave this episode out with "
                "--exclude, or preprocess such episodes into another --output",
                code="data.mismatch",
                details={"field": name},
            )
    return None


def width_text(width: int | None) -> str:
    """Describes the width of a field in a message; 0 stands for text, None for a missing field."""
    if width is None:
        return "missing"
    return "text" if width == 0 else f"{width} wide"


def camera_name_problem(name: str) -> DataError | None:
    """Returns an error if a camera name cannot be part of a file name, else None."""
    is_short = len(name.encode(errors="replace")) <= _LONGEST_CAMERA_NAME
    if name not in ("", NO_CAMERAS) and name.isprintable() and "/" not in name and is_short:
        return None
    return DataError(
        f"the camera name {name[:40]!r} cannot be part of a file name",
        hint="rename the camera with --rename cameras.NEW=OLD, or leave it out: --camera-names "
        "lists the cameras to use",
        code="data.bad_name",
        details={"finding": "bad_camera_name", "camera": name},
    )


def walk_source(source: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walks a source as `os.walk` does; yields nothing for web servers, which cannot be listed."""
    if can_list(source):
        yield from walk(source)


def first_middle_last(count: int) -> list[int]:
    """Returns the first, middle and last of `count` positions, as a sample of all of them."""
    return sorted({0, count // 2, count - 1}) if count else []


def text_of(value: object) -> str:
    """Returns a stored text as `str`; it may be stored as bytes."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).decode(errors="replace")
    return str(value)


def id_part(name: str) -> str:
    """Makes a name fit for `EpisodeRef.id`: other characters than A-Za-z0-9_- become `_`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "dataset"


def no_episodes(source: Path, searched: str) -> DataError:
    """Returns the error for a source without episodes.

    `searched` says which files the reader looked for.
    """
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
    hint = f"`vlatool inspect {source}` says what is there, whatever its format"
    if not can_list(source):
        hint = "download the recordings first"
    elif said := unread_hint(source):
        hint = said
    return DataError.at(
        source,
        f"{state}; this format needs {searched}",
        hint=hint,
        code="data.no_episodes",
        searched=searched,
    )


def unknown_field(name: str, known: Sequence[str], path: Path, kind: str = "field") -> DataError:
    """Returns the error for a field that the user named and that the data do not have."""
    known_names = ", ".join(known) or "none"
    hint = did_you_mean(name, list(known))
    if not hint.startswith("did you mean"):
        hint = f"choose one of: {known_names}" if known else f"the data have no {kind}s at all"
    return DataError(
        f"{path}: has no {kind} {name!r}; available: {known_names}",
        hint=hint,
        code="data.unknown_field",
        details={"field": name, "known": list(known), "path": str(path)},
    )


_ID = re.compile(r"^[A-Za-z0-9_-]+\Z")


def unique_refs(refs: Sequence[EpisodeRef]) -> Iterator[EpisodeRef]:
    """Yields the episodes, each path once; the N-th episode with the same id gets the suffix `-N`.

    Call it in `discover` if two of your files or folders may have the same name.
    """
    seen_paths: set[Path] = set()
    used_ids: dict[str, int] = {}
    for ref in refs:
        resolved = ref.path.resolve()
        if resolved not in seen_paths:
            seen_paths.add(resolved)
            yield replace(ref, id=unused_id(ref.id, used_ids))


def unused_id(name: str, used: dict[str, int]) -> str:
    """Returns `name`, or NAME-2, NAME-3, ... if it is taken.

    `used` maps each name to the last number that it was given.
    """
    unused = name
    while unused in used:
        used[name] += 1
        unused = f"{name}-{used[name]}"
    used[unused] = 1
    return unused


def checked_refs(refs: Sequence[EpisodeRef]) -> Sequence[EpisodeRef]:
    """Returns the refs after a check of their ids and of links among their files.

    Ids become names of files and seeds of random generators.

    Raises:
        DataError: An id is invalid or used twice (`data.broken`), or a link leads out of the
            source (`data.unsafe`).
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
            hint="this is a bug of the format's reader: see unique_refs in vlatool.recordings.base",
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
    """Returns the error for a file that is a link to a place outside of its source."""
    return DataError.at(
        link,
        f"is a link to {link.resolve()}, outside of {source}",
        hint=f"copy the file into {source}; if you trust the recording, repeat with the "
        f"environment variable {LINKS_VARIABLE}=1",
        code="data.unsafe",
    )
