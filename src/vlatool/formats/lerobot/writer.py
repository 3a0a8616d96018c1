"""The `lerobot` sink: episodes of any source as a LeRobot data set, v3.0 or v2.1.

Workers write the parts of an episode below its id. Numbers and places are given at the end, to the
episodes that are good; a final file is then made as one, by any worker, and the journal has those
of an earlier run. Source: formats/lerobot 4.3, 9; formats/lerobot-writing 1, 2, 3.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.episode import Array
from vlatool.errors import DataError, StorageError
from vlatool.findings import FindingCodes
from vlatool.formats.lerobot import layout as lerobot_layout
from vlatool.formats.lerobot import output as lerobot_output
from vlatool.formats.lerobot.episodes import (
    LEROBOT_SINK,
    TASK_INDEX,
    LerobotEpisodeWriter,
    LeRobotSinkConfig,
    SetLayout,
    copied_sets,
    set_layout,
)
from vlatool.formats.lerobot.folder import EpisodeFiles, known_texts, split_names
from vlatool.formats.lerobot.meta import text_kind
from vlatool.formats.lerobot.tables import is_annotations
from vlatool.formats.media.video import join_clips
from vlatool.formats.writing import Estimate, Sink, SinkConfig, SinkSetup, SinkSummary, Work
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Journal, Receipt, intact_receipt
from vlatool.report.text import few_text
from vlatool.storage.atomic import as_storage_error, open_atomic, remove_file, write_json
from vlatool.storage.documents import DocumentError, read_json
from vlatool.storage.uri import as_native_file, is_remote
from vlatool.transforms.relative import stored_from
from vlatool.transforms.statistics import StatisticsAccumulator, from_arrays

_HINT = "run the same command again with --overwrite"


@dataclass(frozen=True)
class SetPart:
    """Part of an episode in a final file."""

    path: str  # its file, relative to the output
    sha256: str  # digest of the file
    number: int = 0  # number of the episode
    first_row: int = 0  # number of its first row in the whole set
    # task index in the part to task index in the set; empty: they are equal
    tasks: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class FilePlan:
    """A final file."""

    path: str  # its path, relative to the output
    kind: Literal["rows", "video"]
    parts: tuple[SetPart, ...]  # its parts, in order
    delay: int = 0  # largest delay of the clips of a video

    @property
    def id(self) -> str:
        """Name in the journal, which is a valid file name."""
        return hashlib.sha256(self.path.encode()).hexdigest()[:32]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class FileWriter:
    """Writes a final file; picklable."""

    output: Path  # the output folder
    rate: Fraction  # frames per second
    columns: tuple[str, ...]  # names of all columns, in order
    annotations: tuple[str, ...] = ()  # columns besides `task_index` that hold task indices

    def __call__(self, plan: FilePlan) -> Receipt:
        journal = Journal(self.output, "files")
        previous = intact_receipt(self.output, journal.find(plan.id, plan.digest))
        if previous is not None:
            return previous
        path = self.output / plan.path
        try:
            with _seekable(path) as file:
                if plan.kind == "rows":
                    self._write_rows(plan, file)
                else:
                    paths = [self.output / part.path for part in plan.parts]
                    join_clips(paths, self.rate, file, plan.delay)
        except (av.error.FFmpegError, pa.ArrowException, FileNotFoundError) as error:
            raise StorageError.at(
                path,
                f"cannot be made of the parts of its episodes: {error}",
                hint=_HINT,
                code="storage.unreadable",
            ) from error
        entry = file_entry(self.output, plan.path)
        samples = len(plan.parts) if plan.kind == "video" else None
        entry = FileEntry(entry.path, entry.bytes, entry.sha256, samples)
        receipt = Receipt(plan.id, plan.digest, files=(entry,))
        journal.store(receipt)
        return receipt

    def _write_rows(self, plan: FilePlan, file: IO[bytes]) -> None:
        writer: pq.ParquetWriter | None = None
        for part in plan.parts:
            with pq.ParquetFile(as_native_file(self.output / part.path)) as source:
                start = 0
                for group in range(source.num_row_groups):
                    table = self._numbered(source.read_row_group(group), part, start)
                    start += len(table)
                    writer = writer or pq.ParquetWriter(file, self._schema(plan, table.schema))
                    writer.write_table(_typed(table, writer.schema), row_group_size=len(table))
        assert writer is not None, "a file has rows"
        writer.close()

    def _schema(self, plan: FilePlan, first: pa.Schema) -> pa.Schema:
        """Columns of a file; annotations have the type that holds those of all its parts."""
        names = [field.name for field in first if is_annotations(field.type)]
        paths = [as_native_file(self.output / part.path) for part in plan.parts if names]
        parts = [pa.schema([pq.read_schema(path).field(name) for name in names]) for path in paths]
        return pa.unify_schemas([first, *parts], promote_options="permissive")

    def _numbered(self, table: pa.Table, part: SetPart, start: int) -> pa.Table:
        """Rows with the numbers of the set; `start` is the number of the first one."""
        frames = start + np.arange(len(table))
        columns: dict[str, Any] = {name: table.column(name) for name in table.column_names}
        columns |= lerobot_layout.automatic_columns(
            frames, float(self.rate), part.number, part.first_row
        )
        columns["task_index"] = table.column("task_index")
        for name in ("task_index", *self.annotations) if part.tasks else ():
            column = columns[name]
            numbers = dict(part.tasks)
            values = [numbers.get(value, value) for value in column.to_pylist()]
            columns[name] = pa.array(values, column.type)
        return pa.table({name: columns[name] for name in self.columns})


def _typed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with columns of other types rebuilt: a cast loses the length of null children."""
    for index, field in enumerate(schema):
        if table.schema.field(index).type != field.type:
            column = pa.array(table.column(index).to_pylist(), field.type)
            table = table.set_column(index, field, column)
    return table


def write_files(
    writer: FileWriter, plans: Sequence[FilePlan], executor: Any, reporter: Any
) -> Iterator[FileEntry]:
    """Writes all final files; yields their entries in order."""
    with reporter.progress("files", len(plans), "files") as bar:
        for outcome in executor.map(writer, plans):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None
            yield from outcome.value.files
            bar.advance(1)


@contextmanager
def _seekable(path: Path) -> Generator[IO[bytes]]:
    """A file that can be written at any position, and appears as `path` when it is complete."""
    if not is_remote(path):
        with open_atomic(path) as file:
            yield file
        return
    with tempfile.TemporaryFile() as local:
        with as_storage_error(Path(tempfile.gettempdir())):
            yield local
            local.seek(0)
        with open_atomic(path) as file:
            shutil.copyfileobj(local, file, 1 << 20)


@dataclass
class Rolling:
    """Numbers of chunk and file, of files that are filled one after the other. Source:
    formats/lerobot-writing 2.
    """

    limit: int
    chunks_size: int
    size: int = 0
    position: int = 0
    kind: Any = None
    is_started: bool = False

    def place(self, size: int, kind: Any = None) -> tuple[int, int, bool]:
        """Chunk and file of the next part, and True if it is the first one in the file."""
        is_full = self.size + size >= self.limit or kind != self.kind
        if self.is_started and is_full:
            self.position = self.position + 1
            self.size = 0
        is_first = not self.is_started or self.size == 0
        self.size = self.size + size
        self.kind = kind
        self.is_started = True
        chunk, number = divmod(self.position, self.chunks_size)
        return chunk, number, is_first


_SIZE = ("height", "width")
# Sections of a camera that describe its video; v2.0 has the second name.
_VIDEO_KEYS = ("info", "video_info")


class Numbering:
    """Collects the receipts of the episodes, in order, and plans the final files."""

    def __init__(
        self,
        config: LeRobotSinkConfig,
        layout: SetLayout,
        task_tables: Sequence[Mapping[int, str]],
        *,
        has_own_files: bool = False,
    ) -> None:
        """`has_own_files`: no two episodes are in one file."""
        self.episodes = 0
        self.frames = 0  # number of rows of all episodes
        self._config = config
        self._layout = layout
        tasks: dict[str, int] = {}
        for table in task_tables:
            for _, text in sorted(table.items()):
                tasks.setdefault(text, len(tasks))
        self._tasks = tasks
        self._columns = StatisticsAccumulator()
        self._automatic = StatisticsAccumulator()
        self._images: dict[str, list[Array]] = {}
        self._cameras: dict[str, tuple[str, dict[str, Any]]] = {}
        self._rows: dict[str, list[SetPart]] = {}
        self._videos: dict[str, list[SetPart]] = {}
        self._delays: dict[str, int] = {}
        chunks = config.chunks_size
        unit = 0 if has_own_files else lerobot_output.MEGABYTE
        self._data_files = Rolling(config.data_files_size_in_mb * unit, chunks)
        self._video_files: dict[str, Rolling] = {}
        for camera in layout.camera_features:
            self._video_files[camera] = Rolling(config.video_files_size_in_mb * unit, chunks)
        self._frames_in_file: dict[str, int] = {}

    @property
    def tasks(self) -> list[str]:
        """Sentences by task index."""
        return [*self._tasks]

    @property
    def table_columns(self) -> tuple[str, ...]:
        """Names of all columns of the data files, in order."""
        return tuple(name for name in self._layout.features if name not in self._layout.videos)

    def add(self, receipt: Receipt) -> lerobot_output.WrittenEpisode | None:
        """The episode with its number; None for an episode that was dropped."""
        if not receipt.files:
            return None
        number = self.episodes
        first_row = self.frames
        length = receipt.facts["rows"]
        self.episodes = number + 1
        self.frames = first_row + length
        tasks = {int(index): text for index, text in receipt.facts["tasks"].items()}
        numbers = {index: self._task_number(text) for index, text in tasks.items()}
        is_same = all(index == number for index, number in numbers.items())
        table, *videos = receipt.files
        data = self._add_rows(table, number, first_row, () if is_same else tuple(numbers.items()))
        clips = self._add_videos(receipt, videos, number, length)
        rows = np.array([numbers[index] for index in receipt.arrays[TASK_INDEX].tolist()])
        distinct = dict.fromkeys(tasks[index] for index in receipt.arrays[TASK_INDEX].tolist())
        return lerobot_output.WrittenEpisode(
            number,
            receipt.facts["listed"] or [*distinct],
            length,
            first_row,
            self._statistics(receipt, number, first_row, rows),
            data,
            clips,
        )

    def plans(self) -> list[FilePlan]:
        """All final files: data, then videos."""
        rows = [FilePlan(path, "rows", tuple(parts)) for path, parts in self._rows.items()]
        videos = [
            FilePlan(path, "video", tuple(parts), self._delays[path])
            for path, parts in self._videos.items()
        ]
        return [*rows, *videos]

    def features(self) -> dict[str, Any]:
        """Declarations for `meta/info.json`, with what is known of the cameras."""
        features = {name: dict(declared) for name, declared in self._layout.features.items()}
        for camera, (_, facts) in self._cameras.items():
            declared = features[camera].items()
            others = {key: value for key, value in declared if key not in _VIDEO_KEYS}
            features[camera] = others | self._camera_feature(camera, facts)
        return features

    def set_statistics(self) -> dict[str, lerobot_output.Stats]:
        """Statistics of the whole set by feature: columns from all rows, cameras merged."""
        stats: dict[str, lerobot_output.Stats] = {}
        columns = self._columns.total()
        automatic = self._automatic.total()
        if columns is not None:
            stats |= lerobot_output.column_entries(columns, self._layout.widths)
        stats |= {
            camera: lerobot_output.merged_images(parts) for camera, parts in self._images.items()
        }
        if automatic is not None:
            stats |= lerobot_output.column_entries(
                automatic, dict.fromkeys(lerobot_layout.AUTOMATIC, 1)
            )
        return stats

    def _task_number(self, text: str) -> int:
        return self._tasks.setdefault(text, len(self._tasks))

    def _add_rows(
        self, table: FileEntry, number: int, first_row: int, tasks: tuple[tuple[int, int], ...]
    ) -> tuple[int, int]:
        version = self._config.layout_version
        chunk, position, _ = self._data_files.place(table.bytes)
        path = lerobot_output.data_path(version, self._template(number, chunk, position))
        part = SetPart(table.path, table.sha256, number, first_row, tasks)
        self._rows.setdefault(path, []).append(part)
        return chunk, position

    def _add_videos(
        self, receipt: Receipt, videos: Sequence[FileEntry], number: int, length: int
    ) -> dict[str, tuple[int, int, int]]:
        """(chunk, file, first frame) of the clip of each camera."""
        clips: dict[str, tuple[int, int, int]] = {}
        remaining = iter(videos)
        for camera, facts in receipt.facts["cameras"].items():
            self._check_camera(camera, receipt.item, facts["kind"])
            if camera not in self._layout.videos:
                continue
            entry = next(remaining)
            chunk, position, is_first = self._video_files[camera].place(entry.bytes, facts["kind"])
            values = self._template(number, chunk, position)
            path = lerobot_output.video_path(self._config.layout_version, camera, values)
            start = 0 if is_first else self._frames_in_file[camera]
            self._frames_in_file[camera] = start + length
            self._videos.setdefault(path, []).append(SetPart(entry.path, entry.sha256))
            self._delays[path] = max(self._delays.get(path, 0), facts["delay"])
            clips[camera] = chunk, position, start
        return clips

    def _template(self, number: int, chunk: int, position: int) -> dict[str, int]:
        if self._config.layout_version == "v3.0":
            return {"chunk_index": chunk, "file_index": position}
        return {"episode_chunk": number // self._config.chunks_size, "episode_index": number}

    def _check_camera(self, camera: str, item: str, kind: Mapping[str, Any]) -> None:
        first, facts = self._cameras.setdefault(camera, (item, dict(kind)))
        if any(facts[key] != kind[key] for key in _SIZE):
            sizes = [f"{value['width']}x{value['height']}" for value in (kind, facts)]
            raise DataError(
                f"camera {camera!r} is {sizes[0]} in {item}, {sizes[1]} in {first}; a data set has "
                "one size per camera",
                hint="write them to separate outputs, or leave the camera out with --camera-names",
                code="data.mismatch",
                details={"camera": camera, "episode": item},
            )

    def _camera_feature(self, camera: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        declared = self._layout.features[camera]
        height = facts["height"]
        width = facts["width"]
        known = next(
            (declared[key] for key in _VIDEO_KEYS if isinstance(declared.get(key), Mapping)),
            {},
        )
        is_depth = camera in self._layout.depth
        channels = 1 if is_depth else 3
        shape = {"shape": [height, width, channels], "names": ["height", "width", "channels"]}
        if camera not in self._layout.videos:
            return {"dtype": "image", **shape}
        info = {
            **known,
            "video.fps": float(self._layout.rate),
            "video.height": height,
            "video.width": width,
            "video.channels": channels,
            "video.codec": facts["codec"],
            "video.pix_fmt": facts["pixel_format"],
            "video.is_depth_map": is_depth,
            "has_audio": False,
        }
        return {"dtype": "video", **shape, "info": info}

    def _statistics(
        self, receipt: Receipt, number: int, first_row: int, tasks: Any
    ) -> dict[str, lerobot_output.Stats]:
        """Statistics of an episode; adds them to those of the set."""
        stats: dict[str, lerobot_output.Stats] = {}
        if self._layout.widths:
            part = from_arrays(receipt.arrays)
            self._columns.add(part)
            stats |= lerobot_output.column_entries(part, self._layout.widths)
        for camera, entry in receipt.facts["stats"].items():
            self._images.setdefault(camera, []).append(lerobot_output.entry_values(entry))
            stats[camera] = entry
        frames = np.arange(len(tasks))
        times = (frames / float(self._layout.rate)).astype(np.float32)
        numbers = np.full(len(tasks), number)
        automatic = lerobot_output.rows_statistics(
            [times, frames, numbers, first_row + frames, tasks]
        )
        self._automatic.add(automatic)
        return stats | dict(
            lerobot_output.column_entries(automatic, dict.fromkeys(lerobot_layout.AUTOMATIC, 1))
        )


_CAMERAS = "observation.images."


def modality_of(
    layout: SetLayout, sets: Sequence[EpisodeFiles], fields: Mapping[str, Sequence[str]]
) -> Mapping[str, Any]:
    """Content of the file: that of the sources if they agree, else one of `fields`, if any;
    `fields`: fields of the sections `state` and `action`; empty if no file is requested.
    """
    stored = [_stored(recording.root) for recording in sets]
    if stored and stored[0] and all(tree == stored[0] for tree in stored):
        return stored[0]
    return _made(layout, fields) if fields else {}


def _stored(root: Path) -> Mapping[str, Any]:
    path = root / lerobot_layout.MODALITY_FILE
    try:
        tree = read_json(path) if path.exists() else {}
    except (DocumentError, OSError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _made(layout: SetLayout, fields: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    tree: dict[str, Any] = {section: {} for section in fields}
    for section, names in fields.items():
        for name in names:
            column, start = layout.position(name)
            width = layout.field_widths[name]
            if width:
                span = {"start": start, "end": start + width, "original_key": column}
                tree[section][name.replace(".", "_")] = span
    tree["video"] = {
        feature.removeprefix(_CAMERAS): {"original_key": feature}
        for feature in layout.cameras.values()
    }
    tree["annotation"] = {"human.task_description": {"original_key": "task_index"}}
    return tree


class LeRobotSink(Sink):
    """Writes LeRobot data sets."""

    Config: ClassVar[type[SinkConfig]] = LeRobotSinkConfig
    findings: ClassVar[FindingCodes | None] = LEROBOT_SINK
    owned: ClassVar[Sequence[str]] = (*lerobot_output.WRITTEN_FILES, *lerobot_output.PART_FILES)
    temporary: Sequence[str] = lerobot_output.PART_FILES
    next_step: ClassVar[str] = "vlatool verify {output}"
    has_own_files: ClassVar[bool] = False  # True: no two episodes are in one file

    def __init__(self, config: LeRobotSinkConfig, setup: SinkSetup) -> None:
        self._config = config
        self._setup = setup
        survey = setup.survey
        self._sets = copied_sets(setup)
        self.fields: Mapping[str, int] = {name: spec.width for name, spec in survey.fields.items()}
        # Poses are stored as recorded, not relative to a window.
        actions = dict.fromkeys(stored_from(name, self.fields) for name in survey.action_fields)
        self.action_fields: tuple[str, ...] = setup.policy_actions(self.fields, (*actions,))
        self.proprioception_fields: tuple[str, ...] = survey.proprioception_fields
        self._splits: dict[str, list[int]] = {}
        self._layout = set_layout(config, setup, self.action_fields, self._sets)
        copied = {"depth": self._layout.depth, "labels": self._layout.labels}
        roles = [role for role, features in copied.items() if features]
        self.stored_roles: Collection[str] = ("camera", "field", "language", *roles)
        self.work: Work = LerobotEpisodeWriter(setup.output, config, self._layout)

    def begin(self) -> None:
        for name in lerobot_output.CLOSING_FILES:
            remove_file(self._setup.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Numbers the episodes, writes tables and videos and, last, `meta/info.json`."""
        output = self._setup.output
        config = self._config
        layout = self._layout
        tables = [*map(known_texts, self._sets)]
        numbering = Numbering(config, layout, tables, has_own_files=self.has_own_files)
        parts: list[FileEntry] = []
        splits = {
            ref.id: split_names(recording)
            for ref in self._setup.refs
            if isinstance(recording := ref.extras.get("recording"), EpisodeFiles)
        }
        self._splits.clear()
        for recording in self._sets:
            spans = lerobot_layout.split_spans(recording.document)
            if unknown := [name for name, ranges in spans.items() if ranges is None]:
                text = (
                    f"{recording.root}: the splits {few_text(unknown)} have no ranges of episodes"
                )
                run.reporter.warn("splits_left_out", f"{text} and are left out")

        def episodes() -> Iterator[lerobot_output.WrittenEpisode]:
            for receipt in receipts:
                parts.extend(receipt.files)
                episode = numbering.add(receipt)
                if episode is not None:
                    for name in splits.get(receipt.item, ("train",)):
                        self._splits.setdefault(name, []).append(episode.number)
                    yield episode
            if not numbering.episodes:
                raise DataError(
                    "no episode was written",
                    hint="select more episodes",
                    code="data.no_samples",
                    details={"dropped": dict(run.dropped)},
                )

        # Written while the episodes arrive: memory does not grow with their statistics.
        limit = config.data_files_size_in_mb << 20
        lists = lerobot_output.write_episodes(
            output, config.layout_version, episodes(), float(layout.rate), limit
        )
        annotations = tuple(name for name in layout.columns if name.startswith("annotation."))
        writer = FileWriter(output, layout.rate, numbering.table_columns, annotations)
        files = [*write_files(writer, numbering.plans(), run.executor, run.reporter)]
        size = sum(entry.bytes for entry in files)
        names = self._write_meta(numbering, lists)
        listed = parts if run.failures else []
        meta = [file_entry(output, name) for name in names]
        counts = {
            "episodes": numbering.episodes,
            "tasks": len(numbering.tasks),
            "copied_clips": run.sums.get("copied_clips", 0),
        }
        return SinkSummary(numbering.frames, size, (*files, *listed, *meta), counts)

    def estimate(self) -> Estimate:
        return Estimate(self._setup.survey.frames, {"episodes": self._setup.survey.episodes})

    def _write_meta(self, numbering: Numbering, lists: Sequence[str]) -> list[str]:
        """Writes the meta files besides the lists of episodes; returns the names of all."""
        output = self._setup.output
        config = self._config
        layout = self._layout
        version = config.layout_version
        fps = float(layout.rate)
        names = [lerobot_output.write_statistics(output, numbering.set_statistics())]
        tables = {"task": dict(enumerate(numbering.tasks))}
        tables |= {text_kind(column): texts for column, texts in layout.texts.items()}
        names += [
            lerobot_output.write_texts(output, version, name, texts)
            for name, texts in tables.items()
        ]
        names += lists
        fields = {"state": self.proprioception_fields, "action": self.action_fields}
        modality = modality_of(layout, self._sets, fields if config.modality else {})
        if modality:
            write_json(output / lerobot_layout.MODALITY_FILE, dict(modality), indent=4)
            names.append(lerobot_layout.MODALITY_FILE)
        source: Mapping[str, Any] = self._sets[0].document if self._sets else {}
        dataset = lerobot_output.WrittenSet(
            version=version,
            fps=self._setup.survey.fps or fps,
            robot_type=config.robot_type or source.get("robot_type"),
            features=numbering.features(),
            chunks_size=config.chunks_size,
            data_mb=config.data_files_size_in_mb,
            video_mb=config.video_files_size_in_mb,
            splits=self._splits,
            extra=source if len(self._sets) == 1 else {},
        )
        totals = (numbering.episodes, numbering.frames, len(numbering.tasks))
        lerobot_output.write_info(output, dataset, *totals)
        return [*names, lerobot_layout.INFO_FILE]
