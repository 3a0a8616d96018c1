"""What the files of an episode hold, each thing as `Stored`: read from headers and tables."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array, Clip, Role
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.media.frames import probe_video
from vlatool.media.images import image_info
from vlatool.recordings.base import first_middle_last
from vlatool.recordings.cuts import CutColumns, find_cuts, may_cut
from vlatool.recordings.folder.clocks import seconds_of
from vlatool.recordings.folder.layout import (
    EPISODE,
    HIDDEN,
    IMAGES,
    TEXTS,
    VIDEOS,
    FilesOfEpisode,
    image_series,
    is_image,
    is_video,
)
from vlatool.recordings.folder.tables import (
    FOLDER,
    EncodedColumn,
    StoredTable,
    flattened,
    is_table,
    plain,
    read_table,
)
from vlatool.recordings.inventory import TIME, Stored, encoded_thing, is_encoded, short_names
from vlatool.recordings.language import is_instruction, sentences_in
from vlatool.recordings.planned import EpisodeRows
from vlatool.recordings.rules import SOURCE
from vlatool.recordings.unread import unread_text
from vlatool.storage.byte_ranges import ByteRange, read_byte_range, read_file
from vlatool.storage.documents import DocumentError, read_yaml

RATE = re.compile(r"(.*[._])?(fps|hz|rate|frequency|freq|control_freq)", re.I)
MOST_CUT = 5  # frames that a clip may be longer or shorter than a table
_FIRST_ROWS = 8  # of a column of images, of which one must have an image
_HEAD = 2**16  # bytes of an image that have its size
_COUNTER = re.compile(
    r"([\w.]*[._])?(seq|frame|index|idx|step|frame_index|row|id|i|n|count|c0)", re.I
)
_COUNTERS = ("frame", "frame_index", "frame_id", "step", "index", "idx")
_PART_OF_TIME = re.compile(r"(?P<base>.*[._])(?P<part>secs?|nanosecs?|nsecs?)", re.I)
_CLOCKS = ("timestamp", "timestamps", "time", "time_stamp", "stamp", "t", "ts")
_SUCCESS = re.compile(r"(.*[._])?(is_)?success(ful)?", re.I)
_TASK = re.compile(r"(.*[._])?(task|goal|instruction|description|prompt|sentence|text)", re.I)
_SAYS_NOTHING = re.compile(r"(frames?|images?|img|rgb|colou?rs?|videos?|data)?[_.-]*\d*", re.I)
_OWN_FOLDERS = (
    "give each episode a folder with its rows and images, or move images that you do not need away"
)
_NOT_READ = "which the format folder does not read"


class Contents:
    """What an episode holds.

    Attributes:
        files: Its files.
        tables: File to its columns.
        facts: Reference such as `meta.json@fps` to a value of the whole episode.
        images: Reference to the image files of a camera.
        clocks: File, video or series of images to its stored times, in any unit.
        starts: Table or series of images to the number of its first row.
        moved: Table whose numbers of rows say that some are missing or moved, to the reason.
        restarts: Table whose numbers of rows begin again, to the reason.
        notes: Findings.
        broken: File that cannot be used to its error.
    """

    def __init__(
        self, files: FilesOfEpisode, episode: str, span: EpisodeRows | None = None
    ) -> None:
        """`episode`: its id, for findings; `span`: rows of the episode in files of several."""
        self.files = files
        self.span = span
        self.first_rows: dict[str, int] = {}  # of the episode, by table
        self.broken: dict[str, DataError] = {}
        self.tables: dict[str, StoredTable] = {}
        self.facts: dict[str, Any] = {}
        self.images: dict[str, list[Path]] = {}
        self.clocks: dict[str, Array] = {}
        self.starts: dict[str, float] = {}
        self.moved: dict[str, str] = {}
        self.restarts: dict[str, str] = {}
        self.notes: list[Finding] = []
        self._episode = episode
        self._shared_clocks: list[Array] = []  # of files that have nothing else
        self._named_images: set[Path] = set()  # that a table names

    def note(self, code: str, text: str) -> None:
        self.notes.append(FOLDER(code, f"{self._episode}: {text}", episode=self._episode))

    def things(self) -> list[Stored]:
        """All that the files hold, by their names and headers; tables are read."""
        things: list[Stored] = []
        for key, path in self.files.files.items():
            if is_table(path):
                try:
                    table = self._cut(key, read_table(path))
                except DataError as error:
                    self.broken[key] = error
                    reason = error.message.removeprefix(f"{path}: ")
                    things.append(Stored(key, "other", note=reason, role="left_out"))
                    continue
                self.tables[key] = table
                if table.doubt:
                    self.note("cut_row", f"{path}: {table.doubt}")
                self._add_facts(key, table.facts)
            else:
                things += self._file(key, path)
        for key, table in self.tables.items():
            things += self._columns(key, table)
        things += self._series()
        for reference, value in self.facts.items():
            things.append(_fact(reference, value))
        return things

    def images_of(self, path: Path, rows: int) -> slice:
        """Images of the episode, of a video or series with so many.

        Raises:
            DataError: The file has several episodes, and these images are not of all of them.
        """
        span = self.span
        if span is not None and abs(rows - span.total) > MOST_CUT and not span.is_whole:
            reason = f"{rows} images, but the rows of all episodes are {span.total}"
            raise SOURCE.error("shared_video", path, reason, hint=_OWN_FOLDERS)
        return self.rows_of(rows)

    def rows_of(self, rows: int) -> slice:
        """Rows of the episode in a file with so many; all but in a file of several episodes."""
        span = self.span
        if span is None or span.is_whole or abs(rows - span.total) > MOST_CUT:
            return slice(0, rows)
        return slice(span.first, min(span.stop, rows))

    def _cut(self, key: str, table: StoredTable) -> StoredTable:
        """The rows of the episode in a table; those of its name in a table of another length."""
        if self.span is None or self.span.is_whole:
            return table
        columns: dict[str, Any] = {}
        cuts = find_cuts(*cut_columns(key, table))
        for name, values in table.columns.items():
            rows = self.rows_of(values.shape[0])
            if rows == slice(0, values.shape[0]) and cuts and self.span.name in cuts.names:
                rows = slice(*cuts.spans[cuts.names.index(self.span.name)])
            self.first_rows[key] = rows.start
            if isinstance(values, EncodedColumn):
                columns[name] = EncodedColumn(values.read, values.rows[rows], values.close)
            else:
                columns[name] = values[rows]
        return replace(table, columns=columns)

    def _file(self, key: str, path: Path) -> Iterator[Stored]:
        """What a file is that is no table."""
        suffix = path.suffix.lower()
        if suffix in VIDEOS:
            info = probe_video(Clip(path))
            shape = (*info.size, 3)
            rows = self.images_of(path, info.num_frames)
            frames = rows.stop - rows.start
            yield Stored(key, "video", shape, "uint8", frames, self._camera_name(key))
        elif suffix in (".yaml", ".yml"):
            try:
                self._add_facts(key, flattened(read_yaml(path)))
            except (DocumentError, OSError) as error:
                yield Stored(key, "other", note=str(error), role="left_out")
        elif suffix in TEXTS:
            is_task = _TASK.fullmatch(stem_of(key)) is not None or not stem_of(key)
            yield Stored(key, "text", role="language" if is_task else None)
        elif said := unread_text(key):
            yield Stored(key, "other", note=said, role="left_out")
        else:
            yield Stored(key, "other", note=f"a file {suffix}, {_NOT_READ}")

    def _add_facts(self, key: str, values: Mapping[str, Any]) -> None:
        for name, value in {**values, **sentences_in(values)}.items():
            self.facts[f"{key}@{name}"] = value

    def _camera_name(self, key: str) -> str:
        """Name of a video: what its file says, with its ending if another one says the same."""
        path = Path(key)
        for other in self.files.files:
            is_other = is_video(other) and other != key
            if is_other and Path(other).with_suffix("") == path.with_suffix(""):
                return f"{series_name(key)}_{path.suffix[1:]}".lower()
        return series_name(key)

    # Tables

    def _columns(self, key: str, table: StoredTable) -> Iterator[Stored]:
        """Columns of a table; those with names of image files are cameras."""
        clocks = _joined_clocks(table)
        for name, times in clocks.items():
            self._add_clock(key, name, times)
        for name, values in table.columns.items():
            path = f"{key}/{name}" if name else key
            rows = values.shape[0]
            images: list[Path] | None = None
            if values.dtype.kind == "U":
                images = self._paths_of(values)
            if isinstance(values, EncodedColumn):
                yield _encoded_column(path, name, values)
            elif values.dtype.kind not in "fiubU":
                yield Stored(path, "other", note=f"values of {values.dtype}")
            elif images is not None:
                whole = read_table(self.files.files[key]).columns[name]
                self._named_images.update(images, self._paths_of(whole) or ())
                self.images[path] = images
                yield replace(_first_image(path, images), name=name.rpartition(".")[2])
            elif values.dtype.kind == "U":
                yield Stored(path, "text", rows=rows)
            else:
                role = self._role_of_column(key, name, values, has_clock=bool(clocks))
                yield Stored(
                    path,
                    "array",
                    tuple(values.shape[1:]),
                    values.dtype.name,
                    rows,
                    role=role,
                    name="" if role else name.rpartition("/")[2] or series_name(key),
                    names=table.names.get(name, ()),
                    look=partial(_three_rows, values),
                )
        for name, reason in table.left_out.items():
            yield Stored(f"{key}/{name}".rstrip("/"), "other", note=reason)

    def _role_of_column(
        self, key: str, name: str, values: Array, *, has_clock: bool
    ) -> Role | None:
        """Role of a column of numbers by its name; its times or numbers of rows are kept.

        `has_clock`: the table has better times.
        """
        if values.ndim != 1:
            return None
        name = name.rpartition("/")[2]
        if _is_time(name or stem_of(key), np.asarray(values)):
            if not has_clock:
                self._add_clock(key, name, np.asarray(values))
            return "time"
        if self._counts_rows(key, name, np.asarray(values)):
            return "time"
        return "success" if _SUCCESS.fullmatch(name) else None

    def _add_clock(self, key: str, column: str, times: Array) -> None:
        """Adds times of a table, or of the video or images beside it whose name they have."""
        unit = re.search(r"_(ms|us|ns)$", column.lower())
        if unit:
            times = times / {"ms": 1e3, "us": 1e6, "ns": 1e9}[unit[1]]
        folder = key.rpartition("/")[0]
        name = f"{stem_of(key)}_{column}".lower()
        is_alone = len(self.tables[key].columns) == 1
        for place in self.files.images:
            above, _, last = place.rpartition("/")
            is_named = last and above == folder and _has_word(name, last.lower())
            if is_named or (is_alone and place == folder):
                self.clocks[f"{place}/"] = times
                return
        longest = ""
        for video in self.files.files:
            stem = stem_of(video).lower()
            is_beside = video.rpartition("/")[0] in (folder, key)
            is_longer = len(stem) > len(stem_of(longest))
            if is_video(video) and is_beside and is_longer and _has_word(name, stem):
                longest = video
        owner = longest or key
        if owner not in self.clocks or column.lower() in _CLOCKS:
            self.clocks[owner] = times
        if is_alone and not longest:
            self._shared_clocks.append(times)

    def clock_of(self, key: str, rows: int) -> Array | None:
        """Stored times of a table, a video or a series, from itself or from a file of times."""
        own = self.clocks.get(key)
        if own is not None:
            return own if len(own) == rows else None
        if not is_table(Path(key)):
            return None
        fitting = [times for times in self._shared_clocks if len(times) == rows]
        return fitting[0] if len(fitting) == 1 else None

    def _counts_rows(self, key: str, name: str, values: Array) -> bool:
        """True for the numbers of rows."""
        if not _COUNTER.fullmatch(name) or values.dtype.kind not in "iuf" or len(values) < 2:
            return False
        steps = np.diff(values)
        if (steps == steps[0]).all() and steps[0] > 0:
            self.starts[key] = float(values[0])
            return True
        if name.lower() in _COUNTERS and {*steps[steps >= 0].tolist()} == {1}:
            back = np.flatnonzero((steps < 0) & (values[1:] == values[0]))
            if len(back):
                row = int(back[0])
                reason = f"{key}: {name} is {values[0]:g} again in row {row + 1}"
                self.restarts.setdefault(key, reason)
        if name.lower() in _COUNTERS and len(set(values.tolist())) == len(values):
            row = int((steps != 1).argmax()) + 1
            self.moved[key] = f"{name} is {values[row]:g} after {values[row - 1]:g}"
        return False

    # Images

    def _paths_of(self, values: Array) -> list[Path] | None:
        """Image files that a column names; None if it names none."""
        texts = values.tolist()
        if not texts or not all(text.lower().endswith(IMAGES) for text in texts):
            return None
        paths: list[Path] = []
        for text in texts:
            end = text.replace("\\", "/")
            while end and end not in self._image_files:
                end = end.partition("/")[2]
            if not end:
                reason = f"a table names the image {text}, which is missing"
                raise FOLDER.error("missing_file", self.files.root, reason)
            paths.append(self._image_files[end])
        return paths

    @cached_property
    def _image_files(self) -> dict[str, Path]:
        """Image files by their path below the root, and by their name where it is the only one."""
        files: dict[str, Path] = {}
        same_name: dict[str, list[Path]] = {}
        for folder, path in self.files.images.items():
            at = folder.replace(EPISODE, self.files.name)
            for file in _visible_files(path):
                if is_image(file.name):
                    files[f"{at}/{file.name}".lstrip("/")] = file
                    same_name.setdefault(file.name, []).append(file)
        for name, paths in same_name.items():
            if len(paths) == 1:
                files.setdefault(name, paths[0])
        return files

    def _series(self) -> Iterator[Stored]:
        """Image files that no table names, by folder and by what their names have in common."""
        has_others = bool(self.tables) or any(is_video(name) for name in self.files.files)
        for folder, path in self.files.images.items():
            files = [file for file in _visible_files(path) if file not in self._named_images]
            clock = self.clocks.get(f"{folder}/")
            for series in image_series([file.name for file in files]):
                key = f"{folder}/{series.pattern}".lstrip("/")
                rows = self.images_of(path / series.pattern, len(series.numbers))
                numbers = np.array(series.numbers[rows])
                if len(numbers) == 1 and has_others:
                    yield Stored(key, "other", note="a single image", role="left_out")
                    continue
                is_counted = True
                if len(numbers) > 1:
                    steps = np.diff(numbers)
                    step = np.median(steps)
                    is_counted = not (steps % max(step, 1)).any()
                    if is_counted and steps.max() > step:
                        reason = f"number {int(numbers[int(steps.argmax())] + step)} is missing"
                        raise FOLDER.error("missing_frames", path / series.pattern, reason)
                if clock is not None and len(clock) == len(numbers):
                    self.clocks[key] = clock
                elif not is_counted and seconds_of(numbers) is not None:
                    self.clocks[key] = numbers
                self.starts[key] = float(numbers[0])
                self.images[key] = [path / name for name in series.names[rows]]
                yield replace(_first_image(key, self.images[key]), name=series_name(key))


def _encoded_column(path: str, name: str, column: EncodedColumn) -> Stored:
    """The images of a camera in a column, by the first row that has one."""
    for row in range(min(len(column), _FIRST_ROWS)):
        try:
            data = column[row]
        except DataError:  # an empty cell
            continue
        if is_encoded(data):
            thing = encoded_thing(path, data, len(column))
            return replace(thing, name=next(short_names(name.replace(".", "/")), ""))
    column.close()
    return Stored(path, "other", note="binary values that are no JPEG, PNG or WebP")


def cut_columns(key: str, table: StoredTable) -> CutColumns:
    """The columns of a table that may divide its rows into episodes."""
    rows = max((values.shape[0] for values in table.columns.values()), default=0)
    named: dict[str, Array] = {}
    for name, values in table.columns.items():
        is_plain = values.ndim == 1 and not isinstance(values, EncodedColumn)
        if is_plain and may_cut(name):
            named[f"{key}/{name}"] = np.asarray(values)
    return CutColumns(named, rows)


def _fact(reference: str, value: Any) -> Stored:
    """A value of the whole episode."""
    name = reference.rpartition("@")[2]
    if _SUCCESS.fullmatch(name) and isinstance(value, bool | int | str):
        return Stored(reference, "other", role="success")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and RATE.fullmatch(name):
        return Stored(reference, "other", role="time")
    if isinstance(value, str) and value.strip():
        is_sentence = " " in value.strip()
        is_task = _TASK.fullmatch(name) is not None and is_sentence
        if is_task or is_instruction(name.rpartition(".")[2], value.strip()):
            return Stored(reference, "text", role="language")
        if is_sentence:
            return Stored(reference, "text")
    return Stored(reference, "other", note="a single value for the whole episode")


def _joined_clocks(table: StoredTable) -> dict[str, Array]:
    """Times that are stored as seconds and nanoseconds, by the name before both."""
    clocks: dict[str, Array] = {}
    for name, values in table.columns.items():
        match = _PART_OF_TIME.fullmatch(name)
        if match is None or match["part"].startswith("n"):
            continue
        for nanoseconds in ("nanosec", "nanosecs", "nsec", "nsecs"):
            other = table.columns.get(f"{match['base']}{nanoseconds}")
            if other is not None:
                clocks[f"{match['base']}stamp"] = np.asarray(values) + np.asarray(other) / 1e9
    return clocks


def _is_time(name: str, values: Array) -> bool:
    """True for a column with the name of times; one that does not ascend needs a plain name."""
    if _PART_OF_TIME.fullmatch(name):
        return True
    name = name.rpartition(".")[2]
    if values.dtype.kind not in "fiu" or TIME.fullmatch(name) is None:
        return False
    is_ascending = len(values) > 1 and bool((np.diff(values) >= 0).all())
    return is_ascending or name.lower() in _CLOCKS


def _has_word(text: str, word: str) -> bool:
    return bool(word and re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", text))


def _three_rows(values: Array) -> Array:
    """The first, middle and last row."""
    return np.stack([np.asarray(values[row]) for row in first_middle_last(values.shape[0])])


def _visible_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if not HIDDEN.search(file.name)]


def _first_image(path: str, images: Sequence[Path]) -> Stored:
    """The images of a camera, by the header of the first one."""
    head = read_byte_range(ByteRange(images[0], 0, _HEAD))
    thing = encoded_thing(path, head, len(images))
    if thing.shape[0]:
        return thing
    try:
        size = image_info(read_file(images[0])).size
    except ValueError as error:
        raise FOLDER.error("unreadable", images[0], str(error)) from error
    return replace(thing, shape=(*size, 3))


def key_of(path: str) -> str:
    """File of a path such as `data.csv/q`."""
    parts = path.split("/")
    for number, part in enumerate(parts, 1):
        if is_table(Path(part)):
            return "/".join(parts[:number])
    return path


def stem_of(key: str) -> str:
    """Name of a file without folders, ending and the name of its episode."""
    return plain(Path(key)).stem.replace(EPISODE, "").strip("_-. ")


def series_name(key: str) -> str:
    """Name of a camera with a file or pattern such as `front/*.png` or `*_color_0.jpg`."""
    whole = stem_of(key).replace("*", "").strip("_-. ").lower()
    own = re.sub(r"\d{6,}([_-]\d+)*", "", whole).strip("_-. ")  # without a date
    if whole.isdecimal() and len(whole) > 4:  # the serial number of a camera
        return whole
    for name in (own, *reversed(key.lower().split("/")[:-1])):
        if not _SAYS_NOTHING.fullmatch(name) and name != EPISODE:
            return name
    return own if re.search(r"[a-z].*\d", own) else "image"
