"""Finds the files, rows and clips of the episodes of a LeRobot data set.

Files are found by the path templates, or else by name. Rows are found by their `episode_index`, so
wrong row numbers are only reported. Which frames of a video belong to an episode is written in the
list of episodes alone, so clips that overlap are errors.
Source: formats/lerobot 3.1, 5.1.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

from vlatool.episode import Clip, Declaration, RowSegment
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.recordings.lerobot import layout as lerobot_layout
from vlatool.recordings.lerobot import lists, meta, places
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.storage.uri import can_list, is_remote

_LONGEST_NAME = 255
_LONGEST_PATH = 1024
_MOST_LOCATED = 10_000  # paths that are remembered
_INT_SPEC = re.compile(r"^0?\d{0,2}d?$")


def fill_template(template: str, values: Mapping[str, int | str], key: str) -> str:
    """Fills in a path template of info.json; returns a path relative to the data set.

    Templates are untrusted: only plain fields in `values` are filled, and the path must stay in
    the data set. `key` is the key of the template in info.json.
    """
    parts: list[str] = []
    try:
        for literal, field, spec, conversion in Formatter().parse(template):
            parts.append(literal)
            if field is None:
                continue
            if field not in values or conversion:
                raise _template_error(key, f'uses the unknown field "{{{field}}}"')
            value = values[field]
            if isinstance(value, str):
                if spec:
                    raise _template_error(key, f'formats a name with ":{spec}"')
                parts.append(value)
            else:
                if not _INT_SPEC.match(spec or ""):
                    raise _template_error(key, f'formats a number with ":{spec}"')
                parts.append(format(value, spec or ""))
    except ValueError as error:
        raise _template_error(key, f"is not a path template: {error}") from error
    path = PurePosixPath("".join(parts))
    if path.is_absolute() or ".." in path.parts:
        raise _template_error(key, f'gives "{path}", which is outside the data set')
    longest = max((len(part.encode(errors="replace")) for part in path.parts), default=0)
    if longest > _LONGEST_NAME or len(str(path)) > _LONGEST_PATH or "\0" in str(path):
        raise _template_error(key, f'gives "{str(path)[:40]}...", which is not a valid path')
    return str(path)


def _template_error(key: str, problem: str) -> DataError:
    return DataError.at(
        lerobot_layout.INFO_FILE,
        f"{key} {problem}",
        hint=f"correct the template, such as {lerobot_layout.DATA_PATH}",
        code="data.broken",
        field=key,
    )


_Values = tuple[tuple[str, int | str], ...]  # of the fields of a template, by name


class FileFinder:
    """Paths of the parquet file and the videos of an episode.

    If the path of a template does not exist, the file with the usual name is used if there is only
    one (in v3.0, the path of the usual template), with one finding per template. If folders cannot
    be listed, paths are not checked; reading an episode reports missing files.
    Source: formats/lerobot 3.1.
    """

    def __init__(self, root: Path, info: meta.Info, findings: list[Finding]) -> None:
        self.root = root  # folder of the data set
        self.existing: set[Path] = set()  # requested paths that exist, as far as known
        self._info = info
        self._findings = findings
        self._reported: set[str] = set()
        self._located = lru_cache(_MOST_LOCATED)(self._locate)
        self._can_list = can_list(root)
        self._listed: dict[Path, Path] = {}  # remote files, which know their size and version

    def data_file(self, line: lerobot_layout.EpisodeLine) -> Path:
        """Path of the parquet file of an episode; it may not exist."""
        usual = lerobot_layout.SHARED_DATA_PATH if line.rows else lerobot_layout.DATA_PATH
        template = self._template(
            "data_path", self._info.data_path, lerobot_layout.SHARED_DATA_PATH
        )
        values = self._values(line.number, line.rows, template)
        return self._located("data_path", template, usual, values)

    def video_file(self, line: lerobot_layout.EpisodeLine, camera: str) -> Path | None:
        """Path of the video of a camera, which may not exist; None if the list names none."""
        span = line.clips.get(camera)
        if self._info.is_shared and span is None:
            return None
        usual = lerobot_layout.SHARED_VIDEO_PATH if span else lerobot_layout.VIDEO_PATH
        template = self._template(
            "video_path", self._info.video_path, lerobot_layout.SHARED_VIDEO_PATH
        )
        values = (*self._values(line.number, span, template), ("video_key", camera))
        return self._located("video_path", template, usual, values, camera)

    def _template(self, key: str, template: str, default: str) -> str:
        """Returns the template, or the default of v3.0 if the template is one of v2."""
        if not self._info.is_shared or "{file_index" in template:
            return template
        self._report(key, f"{key} is {template!r}, not a template of v3.0; using {default}")
        return default

    def numbered_data_files(self) -> dict[int, Path]:
        """Map from number to path of all `episode_N.parquet` below `data/`."""
        numbered: dict[int, Path] = {}
        for (folder, name), paths in sorted(self._by_name.items()):
            match = re.fullmatch(r"episode_(\d+)\.parquet", name)
            if folder == "data" and match:
                numbered[int(match.group(1))] = self.root / paths[0]
        return numbered

    def _locate(
        self,
        key: str,
        template: str,
        usual_template: str,
        values: _Values,
        camera: str = "",
    ) -> Path:
        """Returns the path of a template if it exists, else the file with the usual name."""
        relative = fill_template(template, dict(values), key)
        usual = fill_template(usual_template, dict(values), key)
        path = self.root / relative
        if not self._can_list:
            self.existing.add(path)
            return path
        folder, *_, name = PurePosixPath(usual).parts
        if relative not in self._by_name.get((folder, path.name), ()) and not path.exists():
            found: list[str] = []
            for other in self._by_name.get((folder, name), ()):
                # Names repeat in each chunk of v3.0, and in the folder of each camera.
                is_of_another = self._info.is_shared and other != usual
                if camera and camera not in PurePosixPath(other).parts:
                    is_of_another = True
                if not is_of_another:
                    found.append(other)
            if len(found) != 1:
                return path
            path = self.root / found[0]
            problem = f"{key} leads to {relative}, but the file is {found[0]}, which is used"
            self._report(key, problem)
        path = self._listed.get(path, path)
        self.existing.add(path)
        return path

    def _report(self, key: str, problem: str) -> None:
        if key not in self._reported:
            self._reported.add(key)
            self._findings.append(LEROBOT.at("template_mismatch", self.root, problem, field=key))

    def _values(self, number: int, span: lerobot_layout.Span | None, template: str) -> _Values:
        """Values of the fields of a template; in v3.0, many episodes share them."""
        if span is not None:
            shared = (("chunk_index", span.chunk), ("file_index", span.file))
            has_number = "{episode_index" in template
            return (*shared, ("episode_index", number)) if has_number else shared
        chunk = number // self._info.chunks_size
        # A published v2.1 set has chunk_index for episode_chunk. Source: formats/lerobot 3.1
        return ("episode_chunk", chunk), ("chunk_index", chunk), ("episode_index", number)

    @cached_property
    def _by_name(self) -> Mapping[tuple[str, str], list[str]]:
        """(`data` or `videos`, file name) to the paths with that name, relative to the data set."""
        index: dict[tuple[str, str], list[str]] = {}
        for folder in ("data", "videos") if self._can_list else ():
            # Skips broken links; in a bucket the listing answers this without a request.
            for path in sorted((self.root / folder).rglob("*.*")):
                if path.is_file():
                    relative = path.relative_to(self.root).as_posix()
                    index.setdefault((folder, path.name), []).append(relative)
                    if is_remote(path):
                        self._listed[path] = path
        return index


_LONGEST_VIDEO = 1e9  # seconds; times in ticks of a stream have 64 bits

Problem = tuple[str, str, int | None]  # code, problem, episode
_ClipOfEpisode = tuple[lerobot_layout.Span, lerobot_layout.EpisodeLine]


def first_rows(lines: Sequence[lerobot_layout.EpisodeLine]) -> dict[int, int]:
    """Map from episode to its first row in its file, for episodes with stated rows."""
    starts: dict[tuple[int, int], float] = {}
    for line in lines:
        if line.rows is not None:
            file = (line.rows.chunk, line.rows.file)
            starts[file] = min(line.rows.start, starts.get(file, math.inf))
    rows: dict[int, int] = {}
    for line in lines:
        if line.rows is not None:
            file = (line.rows.chunk, line.rows.file)
            rows[line.number] = int(line.rows.start - starts[file])
    return rows


def clip_defects(
    lines: Sequence[lerobot_layout.EpisodeLine], fps: float
) -> Mapping[int, Mapping[str, DataError]]:
    """Errors of clips by episode and camera: impossible times, and clips that share frames."""
    defects: dict[int, dict[str, DataError]] = {}
    for line in lines:
        for camera, clip in line.clips.items():
            if not _is_possible(clip):
                problem = f"its clip is from {clip.start:g} s to {clip.stop:g} s"
                error = _clip_error(line.number, camera, problem, "clip_outside")
                defects.setdefault(line.number, {})[camera] = error
    for camera, clips in _clips_of_files(lines):
        last_stop = 0.0
        last_number = -1
        for clip, line in clips:
            if last_number >= 0 and clip.start < last_stop - 0.5 / fps:
                for number, other in ((last_number, line.number), (line.number, last_number)):
                    problem = f"its clip overlaps the clip of episode {other}"
                    error = _clip_error(number, camera, problem, "clips_overlap")
                    defects.setdefault(number, {})[camera] = error
            stop = clip.stop if line.length is None else clip.start + line.length / fps
            if stop > last_stop:
                last_stop = stop
                last_number = line.number
    return defects


def _clip_error(number: int, camera: str, problem: str, code: str) -> DataError:
    return DataError(
        f"episode {number}, camera {camera}: {problem}, according to the list of episodes",
        hint=LEROBOT.codes[code].action,
        code="data.broken",
        details={"finding": code, "episode": number, "camera": camera},
    )


def _is_possible(clip: lerobot_layout.Span) -> bool:
    return 0 <= clip.start < clip.stop <= _LONGEST_VIDEO


def _clips_of_files(
    lines: Sequence[lerobot_layout.EpisodeLine],
) -> Iterator[tuple[str, list[_ClipOfEpisode]]]:
    """Yields (camera, clips sorted by start) of each video of v3.0, without impossible times."""
    files: dict[tuple[str, int, int], list[_ClipOfEpisode]] = {}
    for line in lines:
        for camera, clip in line.clips.items():
            if _is_possible(clip):
                file = (camera, clip.chunk, clip.file)
                files.setdefault(file, []).append((clip, line))
    for (camera, _, _), clips in files.items():
        yield camera, sorted(clips, key=lambda pair: pair[0].start)


def list_problems(
    lines: Sequence[lerobot_layout.EpisodeLine], chunks_size: int, fps: float
) -> Iterator[Problem]:
    """Yields (code, problem, episode) for numbers, rows and clips that contradict each other."""
    for expected, line in enumerate(lines):
        if line.number != expected:
            problem = f"episode_index {expected} is missing; readers that count lines would mix up"
            yield "list_gap", f"{problem} all later episodes", expected
            break
    yield from _row_problems(lines)
    yield from _gaps(lines, fps)
    for line in lines:
        spans = list(line.clips.values())
        if line.rows is not None:
            spans.insert(0, line.rows)
        for span in spans:
            if span.file >= chunks_size:
                place = f"file {span.file} of chunk {span.chunk}"
                yield "chunks", f"{place} is beyond chunks_size {chunks_size}", line.number
                return


def _row_problems(lines: Sequence[lerobot_layout.EpisodeLine]) -> Iterator[Problem]:
    expected = 0
    for line in lines:
        rows = line.rows
        if rows is None:
            continue
        start = int(rows.start)
        stop = int(rows.stop)
        if line.length is not None and stop - start != line.length:
            problem = f"dataset_from_index {start} and dataset_to_index {stop} are not"
            yield "row_offsets", f"{problem} {line.length} rows apart", line.number
        if start != expected:
            kind = "overlaps earlier rows" if start < expected else "leaves a gap"
            problem = f"dataset_from_index is {start} and should be {expected}: it {kind}"
            yield "row_offsets", problem, line.number
        expected = max(stop, start)


def _gaps(lines: Sequence[lerobot_layout.EpisodeLine], fps: float) -> Iterator[Problem]:
    for camera, clips in _clips_of_files(lines):
        end = 0.0
        for clip, line in clips:
            if clip.start > end + 0.5 / fps:
                problem = f"{camera}: the frames from {end:g} s to {clip.start:g} s, before its"
                yield "clip_gap", f"{problem} clip, belong to no episode", line.number
            end = max(end, clip.stop)


@dataclass(frozen=True)
class Dataset:
    """Data set, checked against the config."""

    root: Path  # folder with `meta/`, `data/`, `videos/`
    info: meta.Info  # content of `meta/info.json`
    cameras: tuple[meta.Feature, ...]  # camera features that have files
    observation_keys: tuple[str, ...]  # columns that the policy observes
    action_keys: tuple[str, ...]  # columns that the policy predicts
    # no video of its cameras is there; a finding of the set says so
    is_without_videos: bool = False
    declared: tuple[Declaration, ...] = ()  # of the actions
    # map from column of numbers besides `task_index` to the table of their texts
    text_tables: Mapping[str, Path] = field(default_factory=dict[str, Path])
    tasks_file: Path | None = None

    @property
    def name(self) -> str:
        return self.root.resolve().name

    @property
    def camera_names(self) -> frozenset[str]:
        return frozenset(camera.name for camera in self.cameras)

    @property
    def field_names(self) -> tuple[str, ...]:
        """Observed columns, then predicted ones, without repetitions."""
        return tuple(dict.fromkeys([*self.observation_keys, *self.action_keys]))

    @property
    def dimension_names(self) -> dict[str, tuple[str, ...]]:
        """Map from field to dimension names, for fields that have them."""
        names: dict[str, tuple[str, ...]] = {}
        for name in self.field_names:
            if self.info.features[name].dimension_names:
                names[name] = self.info.features[name].dimension_names
        return names


@dataclass(frozen=True)
class EpisodeFiles:
    """Parts of files that belong to one episode; files may be missing."""

    dataset: Dataset  # the data set of the episode
    line: lerobot_layout.EpisodeLine  # its entry in the list of episodes
    rows: RowSegment
    # map from camera, depth included, to its part of a video; of v3.0 only if the list names one
    clips: Mapping[str, Clip]
    present: frozenset[Path] = frozenset()  # Paths that existed when the data set was opened
    is_listed: bool = True  # False for an episode that has a file, but no entry in the list
    # map from camera to the reason why its clip cannot be used
    defects: Mapping[str, DataError] = field(default_factory=dict[str, DataError])

    @property
    def root(self) -> Path:
        return self.dataset.root

    @property
    def number(self) -> int:
        return self.line.number

    def segment(self) -> RowSegment:
        """Finds its rows by their `episode_index`, in any file; DataError if there are none."""
        return places.episode_segment(self.rows, self.number)

    @property
    def tasks(self) -> Sequence[str]:
        """Sentences in the list of episodes, in its order."""
        return self.line.tasks

    @property
    def document(self) -> Mapping[str, Any]:
        """Content of meta/info.json as written."""
        return self.dataset.info.document

    def texts_by_number(self, column: str = "task_index") -> Mapping[int, str]:
        """Map from number to text of a column, by its own table or the tasks; raises DataError."""
        path = self.dataset.text_tables.get(column)
        if path is not None:
            return lists.read_texts(path, lists.text_kind(column))
        tasks = self.dataset.tasks_file
        return {} if tasks is None else lists.read_texts(tasks, "task")

    def statistics(self) -> Mapping[str, Mapping[str, Any]]:
        """Map from feature to its published statistics; empty if there are none."""
        return lists.episode_statistics(self.dataset.root, self.dataset.info).get(self.number, {})


def text_tables(root: Path, columns: Iterable[str]) -> dict[str, Path]:
    """Map from columns whose numbers stand for texts of a table of their own to this table."""
    tables: dict[str, Path] = {}
    for column in columns:
        path = lists.texts_path(root, column)
        if path is not None:
            tables[column] = path
    return tables


def known_texts(recording: EpisodeFiles, column: str = "task_index") -> Mapping[int, str]:
    """Map from number to text; empty if the table cannot be read, which reading reports."""
    try:
        return recording.texts_by_number(column)
    except DataError:
        return {}


def split_names(recording: EpisodeFiles) -> tuple[str, ...]:
    """Returns the splits that contain an episode; `train` if the splits cannot be read."""
    spans = lerobot_layout.split_spans(recording.document)
    if not any(spans.values()):
        return ("train",)
    names: list[str] = []
    for name, ranges in spans.items():
        if any(recording.number in numbers for numbers in ranges or ()):
            names.append(name)
    return tuple(names)


def named_files(root: Path) -> list[tuple[str, bool]]:
    """Returns the files that the metadata name, and whether each must exist.

    For storage that cannot be listed. A camera without a video of the first episode counts as a
    camera without videos.
    """
    info = meta.read_info(root)
    finder = FileFinder(root, info, [])
    lines = lists.read_episodes(root, info)
    paths = [finder.data_file(line) for line in lines]
    for feature in info.features.values():
        if feature.dtype != "video":
            continue
        videos: list[Path] = []
        for line in lines:
            path = finder.video_file(line, feature.name)
            if path is not None:
                videos.append(path)
        if videos and videos[0].is_file():
            paths += videos

    needed = [lerobot_layout.INFO_FILE]
    tasks = lerobot_layout.TASKS_TABLE
    if info.is_shared:
        paths += meta.episode_tables(root)
    else:
        needed.append(lerobot_layout.EPISODES_FILE)
        tasks = lerobot_layout.TASKS_FILE
    optional = [
        tasks,
        lerobot_layout.STATS_FILE,
        lerobot_layout.EPISODE_STATS_FILE,
        lerobot_layout.MODALITY_FILE,
    ]
    for path in text_tables(root, info.features).values():
        optional.append(path.relative_to(root).as_posix())
    files = [(name, True) for name in needed]
    files += [(name, False) for name in optional]
    files += [(path.relative_to(root).as_posix(), True) for path in dict.fromkeys(paths)]
    return files
