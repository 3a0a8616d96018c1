"""What the files of an episode hold, each thing as `Stored`: read from headers and tables."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Array, Clip, Role
from vlatool.findings import Finding
from vlatool.formats.folder.clocks import seconds_of
from vlatool.formats.folder.layout import (
    EPISODE,
    HIDDEN,
    IMAGES,
    TEXTS,
    VIDEOS,
    FilesOfEpisode,
    image_series,
)
from vlatool.formats.folder.tables import FOLDER, SUFFIXES, TIME, StoredTable, flattened, read_table
from vlatool.formats.inventory import Stored, encoded_thing
from vlatool.formats.language import kind_of_name
from vlatool.formats.media.frames import probe_video
from vlatool.formats.media.images import image_info
from vlatool.storage.byte_ranges import ByteRange, read_byte_range, read_file
from vlatool.storage.documents import DocumentError, read_yaml

RATE = re.compile(r"(.*[._])?(fps|hz|rate|frequency|freq|control_freq)", re.I)
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
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")
_NOT_READ = "the format folder does not read such files"
_PICKLED = "pickled objects, which can run code; write the episodes with vlatool.record"


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
        notes: Findings.
    """

    def __init__(self, files: FilesOfEpisode, episode: str) -> None:
        """`episode`: its id, for findings."""
        self.files = files
        self.tables: dict[str, StoredTable] = {}
        self.facts: dict[str, Any] = {}
        self.images: dict[str, list[Path]] = {}
        self.clocks: dict[str, Array] = {}
        self.shared_clocks: list[Array] = []  # of files that have nothing else
        self.starts: dict[str, float] = {}
        self.moved: dict[str, str] = {}
        self.notes: list[Finding] = []
        self._episode = episode

    def note(self, code: str, text: str) -> None:
        self.notes.append(FOLDER(code, f"{self._episode}: {text}", episode=self._episode))

    def things(self) -> list[Stored]:
        """All that the files hold, by their names and headers; tables are read."""
        things: list[Stored] = []
        for key, path in self.files.files.items():
            suffix = path.suffix.lower()
            if suffix in VIDEOS:
                info = probe_video(Clip(path))
                shape = (*info.size, 3)
                name = self._camera_name(key)
                things.append(Stored(key, "video", shape, "uint8", info.num_frames, name))
            elif suffix in SUFFIXES:
                self.tables[key] = table = read_table(path)
                if table.doubt:
                    self.note("cut_row", f"{path}: {table.doubt}")
                self._add_facts(key, table.facts)
            elif suffix in (".yaml", ".yml"):
                try:
                    self._add_facts(key, flattened(read_yaml(path)))
                except (DocumentError, OSError) as error:
                    things.append(Stored(key, "other", note=str(error), role="left_out"))
            elif suffix in TEXTS:
                is_task = _TASK.fullmatch(stem_of(key)) is not None or not stem_of(key)
                things.append(Stored(key, "text", role="language" if is_task else None))
            else:
                is_pickle = suffix in _PICKLES
                note = _PICKLED if is_pickle else f"a file {suffix}; {_NOT_READ}"
                role: Role | None = "left_out" if is_pickle else None
                things.append(Stored(key, "other", note=note, role=role))
        used: set[Path] = set()
        for key, table in self.tables.items():
            things += self._columns(key, table, used)
        things += self._series(used)
        for key, value in self.facts.items():
            things.append(self._fact(key, value))
        return things

    def _add_facts(self, key: str, values: Mapping[str, Any]) -> None:
        self.facts |= {f"{key}@{name}": value for name, value in values.items()}

    def _camera_name(self, key: str) -> str:
        """Name of a video: what its file says, with its ending if another one says the same."""
        path = Path(key)
        same = 0
        for other in map(Path, self.files.files):
            same += other.suffix.lower() in VIDEOS and other.with_suffix("") == path.with_suffix("")
        return series_name(key) if same == 1 else f"{series_name(key)}_{path.suffix[1:]}".lower()

    def _fact(self, reference: str, value: Any) -> Stored:
        """A value of the whole episode."""
        name = reference.rpartition("@")[2]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if _SUCCESS.fullmatch(name) and isinstance(value, bool | int | str):
            return Stored(reference, "other", role="success")
        if is_number and RATE.fullmatch(name):
            return Stored(reference, "other", role="time")
        if isinstance(value, str) and value.strip():
            is_task = kind_of_name(name) or (_TASK.fullmatch(name) and " " in value.strip())
            if is_task:
                return Stored(reference, "text", role="language")
            if " " in value.strip():
                return Stored(reference, "text")
        return Stored(reference, "other", note="a value of the whole episode")

    def _columns(self, key: str, table: StoredTable, used: set[Path]) -> Iterator[Stored]:
        """Columns of a table; those with names of image files are cameras."""
        clocks = _joined_clocks(table)
        for name, times in clocks.items():
            self._add_clock(key, name, times)
        for name, values in table.columns.items():
            path = f"{key}/{name}" if name else key
            last = name.rpartition("/")[2]
            rows = values.shape[0]
            if values.dtype.kind not in "fiubU":
                yield Stored(path, "other", note=f"values of {values.dtype}")
            elif values.dtype.kind == "U":
                images = self._paths_of(values)
                if images is None:
                    yield Stored(path, "text", rows=rows)
                    continue
                used.update(images)
                self.images[path] = images
                yield replace(self._first_image(path, images), name=name.rpartition(".")[2])
            elif values.ndim == 1 and self._is_time(last or stem_of(key), np.asarray(values)):
                if not clocks:
                    self._add_clock(key, last, np.asarray(values))
                yield Stored(path, "array", (), values.dtype.name, rows, role="time")
            elif values.ndim == 1 and self._counts_rows(key, last, np.asarray(values)):
                yield Stored(path, "array", (), values.dtype.name, rows, role="time")
            elif values.ndim == 1 and _SUCCESS.fullmatch(last):
                yield Stored(path, "array", (), values.dtype.name, rows, role="success")
            else:
                names = table.names.get(name, ())

                def look(values: Array = values, rows: int = rows) -> Array:
                    sampled = sorted({0, rows // 2, rows - 1})
                    return np.stack([np.asarray(values[row]) for row in sampled])

                shape = tuple(values.shape[1:])
                yield Stored(
                    path,
                    "array",
                    shape,
                    values.dtype.name,
                    rows,
                    last or series_name(key),
                    names=names,
                    look=look,
                )
        for name, reason in table.left_out.items():
            yield Stored(f"{key}/{name}".rstrip("/"), "other", note=reason)

    def _is_time(self, name: str, values: Array) -> bool:
        """True for a column with the name of times; one that does not ascend needs a plain name."""
        if _PART_OF_TIME.fullmatch(name):
            return True
        name = name.rpartition(".")[2]
        if values.dtype.kind not in "fiu" or TIME.fullmatch(name) is None:
            return False
        is_ascending = len(values) > 1 and bool((np.diff(values) >= 0).all())
        return is_ascending or name.lower() in _CLOCKS

    def _add_clock(self, key: str, column: str, times: Array) -> None:
        """Adds times of a table, or of the video beside it whose name they have."""
        if unit := re.search(r"_(ms|us|ns)$", column.lower()):
            times = times / {"ms": 1e3, "us": 1e6, "ns": 1e9}[unit[1]]
        folder = key.rpartition("/")[0]
        name = f"{stem_of(key)}_{column}".lower()
        for place in self.files.images:
            last = place.rpartition("/")[2].lower()
            is_alone = place == folder and len(self.tables[key].columns) == 1
            is_named = last and re.search(rf"(?<![a-z0-9]){re.escape(last)}(?![a-z0-9])", name)
            if is_alone or (is_named and place.rpartition("/")[0] == folder):
                self.clocks[f"{place}/"] = times
                return
        longest = ""
        for video in self.files.files:
            stem = stem_of(video).lower()
            is_beside = video.rpartition("/")[0] in (folder, key)
            is_video = Path(video).suffix.lower() in VIDEOS and is_beside and stem != ""
            is_named = re.search(rf"(?<![a-z0-9]){re.escape(stem)}(?![a-z0-9])", name)
            if is_video and is_named and len(stem) > len(stem_of(longest)):
                longest = video
        of_table = not longest
        key = longest or key
        is_plain = column.lower() in _CLOCKS
        if key not in self.clocks or is_plain:
            self.clocks[key] = times
        if of_table and len(self.tables[key].columns) == 1:
            self.shared_clocks.append(times)

    def clock_of(self, key: str, rows: int) -> Array | None:
        """Stored times of a table, a video or a series: its own, or those of a file of times."""
        own = self.clocks.get(key)
        if own is not None:
            return own if len(own) == rows else None
        is_table = key.lower().endswith(SUFFIXES)
        fitting = [times for times in self.shared_clocks if len(times) == rows and is_table]
        return fitting[0] if len(fitting) == 1 else None

    def _counts_rows(self, key: str, name: str, values: Array) -> bool:
        """True for the numbers of rows."""
        if not _COUNTER.fullmatch(name) or values.dtype.kind not in "iuf" or len(values) < 2:
            return False
        steps = np.diff(values)
        if (steps == steps[0]).all() and steps[0] > 0:
            self.starts[key] = float(values[0])
            return True
        if name.lower() in _COUNTERS and len(set(values.tolist())) == len(values):
            row = int((steps != 1).argmax()) + 1
            self.moved[key] = f"{name} is {values[row]:g} after {values[row - 1]:g}"
        return False

    def _paths_of(self, values: Array) -> list[Path] | None:
        """Image files that a column names; None if it names none."""
        texts = values.tolist()
        if not texts or not all(text.lower().endswith(IMAGES) for text in texts):
            return None
        known = self._image_files
        paths: list[Path] = []
        for text in texts:
            parts = text.replace("\\", "/").split("/")
            ends = ["/".join(parts[start:]) for start in range(len(parts))]
            path = next((known[end] for end in ends if end in known), None)
            if path is None:
                reason = f"names the image {text}, which is not here"
                raise FOLDER.error("missing_file", self.files.root, reason)
            paths.append(path)
        return paths

    @property
    def _has_video(self) -> bool:
        return any(Path(name).suffix.lower() in VIDEOS for name in self.files.files)

    @cached_property
    def _image_files(self) -> dict[str, Path]:
        """Image files by their path below the root, and by their name where it is the only one."""
        files: dict[str, Path] = {}
        names: Counter[str] = Counter()
        for folder, path in self.files.images.items():
            at = folder.replace(EPISODE, self.files.name)
            for file in sorted(path.iterdir()):
                if file.suffix.lower() in IMAGES and not HIDDEN.search(file.name):
                    files[f"{at}/{file.name}".lstrip("/")] = file
                    names[file.name] += 1
        for file in list(files.values()):
            if names[file.name] == 1:
                files.setdefault(file.name, file)
        return files

    def _series(self, used: set[Path]) -> Iterator[Stored]:
        """Image files that no table names, by folder and by what their names have in common."""
        for folder, path in self.files.images.items():
            by_name: dict[str, Path] = {}
            for file in sorted(path.iterdir()):
                if file not in used and not HIDDEN.search(file.name):
                    by_name[file.name] = file
            for pattern, frames in image_series([*by_name]):
                key = f"{folder}/{pattern}".lstrip("/")
                if len(frames) == 1 and (self.tables or self._has_video):
                    yield Stored(key, "other", note="a single image", role="left_out")
                    continue
                numbers = np.array([number for number, _ in frames])
                times = seconds_of(numbers) if len(frames) > 1 else None
                steps = np.diff(numbers)
                is_counted = not (steps % max(np.median(steps), 1)).any() if len(steps) else True
                if is_counted and len(steps) and steps.max() > np.median(steps):
                    first = int(numbers[int(steps.argmax())] + np.median(steps))
                    raise FOLDER.error(
                        "missing_frames", path / pattern, f"number {first} is missing"
                    )
                stored = self.clocks.get(f"{folder}/")
                if stored is not None and len(stored) == len(frames):
                    self.clocks[key] = stored
                elif times is not None and not is_counted:
                    self.clocks[key] = numbers
                self.starts[key] = float(numbers[0])
                self.images[key] = [by_name[name] for _, name in frames]
                yield replace(self._first_image(key, self.images[key]), name=series_name(key))

    def _first_image(self, path: str, images: Sequence[Path]) -> Stored:
        head = read_byte_range(ByteRange(images[0], 0, _HEAD))
        thing = encoded_thing(path, head, len(images))
        if thing.shape[0]:
            return thing
        try:
            size = image_info(read_file(images[0])).size
        except ValueError as error:
            raise FOLDER.error("unreadable", images[0], str(error)) from error
        return replace(thing, shape=(*size, 3))


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


def key_of(path: str) -> str:
    """File of a path such as `data.csv/q`."""
    parts = path.split("/")
    for number, part in enumerate(parts, 1):
        if part.lower().endswith(SUFFIXES):
            return "/".join(parts[:number])
    return path


def stem_of(key: str) -> str:
    """Name of a file without folders, ending and the name of its episode."""
    return Path(key).stem.replace(EPISODE, "").strip("_-. ")


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
