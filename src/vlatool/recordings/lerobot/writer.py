"""The `lerobot` sink: episodes of any source as a LeRobot data set, v3.0 or v2.1.

Workers write the parts of an episode below its id (`episodes.py`). Numbers and places are given at
the end, to the episodes that are good (`numbering.py`); a final file is then made as one, by any
worker, and the journal lists the files of an earlier run. Source: formats/lerobot 4.3, 9;
formats/lerobot-writing 1, 2, 3.
"""

import shutil
import tempfile
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, ClassVar

import av.error
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlatool.errors import DataError, StorageError
from vlatool.findings import FindingCodes
from vlatool.jobs.files import FileEntry, file_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Journal, Receipt, intact_receipt
from vlatool.media.video import join_clips
from vlatool.recordings.lerobot import layout as lerobot_layout
from vlatool.recordings.lerobot import output as lerobot_output
from vlatool.recordings.lerobot.episodes import LEROBOT_SINK, TASK_INDEX, LerobotEpisodeWriter
from vlatool.recordings.lerobot.folder import EpisodeFiles, known_texts, split_names
from vlatool.recordings.lerobot.lists import text_kind
from vlatool.recordings.lerobot.numbering import FilePlan, Numbering, SetPart
from vlatool.recordings.lerobot.output import EpisodeTables
from vlatool.recordings.lerobot.set_layout import (
    CAMERAS,
    LeRobotSinkConfig,
    SetLayout,
    copied_sets,
    set_layout,
)
from vlatool.recordings.lerobot.tables import is_annotations
from vlatool.recordings.writing import Estimate, Sink, SinkConfig, SinkSetup, SinkSummary, Work
from vlatool.report.text import few_text
from vlatool.storage.atomic import as_storage_error, open_atomic, remove_file, write_json
from vlatool.storage.documents import DocumentError, read_json
from vlatool.storage.uri import as_native_file, is_remote
from vlatool.transforms.relative import stored_from

_HINT = "run the same command again with --overwrite"


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
        self._layout = set_layout(config, setup, self.action_fields, self._sets)
        stored_roles = ["camera", "field", "language"]
        if self._layout.depth:
            stored_roles.append("depth")
        if self._layout.labels:
            stored_roles.append("labels")
        self.stored_roles: Collection[str] = stored_roles
        self.work: Work = LerobotEpisodeWriter(setup.output, config, self._layout)
        # What `finish` has written.
        self._numbering: Numbering | None = None
        limit = config.data_files_size_in_mb << 20
        self._tables = EpisodeTables(setup.output, float(self._layout.rate), limit)
        self._files: list[FileEntry] = []
        self._splits: dict[str, list[int]] = {}

    def estimate(self) -> Estimate:
        return Estimate(self._setup.survey.frames, {"episodes": self._setup.survey.episodes})

    def begin(self) -> None:
        for name in lerobot_output.CLOSING_FILES:
            remove_file(self._setup.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> SinkSummary:
        """Numbers the episodes, writes tables and videos and, last, `meta/info.json`.

        If each episode has its own files, it may be called again with the receipts that came since.
        """
        output = self._setup.output
        config = self._config
        layout = self._layout
        if self._numbering is None:
            tables = [known_texts(recording) for recording in self._sets]
            self._numbering = Numbering(config, layout, tables, has_own_files=self.has_own_files)
        numbering = self._numbering
        parts: list[FileEntry] = []
        splits_by_id = self._splits_by_id(run)

        def episodes() -> Iterator[lerobot_output.WrittenEpisode]:
            for receipt in receipts:
                parts.extend(receipt.files)
                episode = numbering.add(receipt)
                if episode is not None:
                    for name in splits_by_id.get(receipt.item, ("train",)):
                        self._splits.setdefault(name, []).append(episode.number)
                    yield episode
            if not numbering.episodes:
                raise DataError(
                    "no episode was written: all of them were left out",
                    hint="select other episodes, or drop the options that leave them out",
                    code="data.no_samples",
                    details={"dropped": dict(run.dropped)},
                )

        # Written while the episodes arrive: memory does not grow with their statistics.
        if config.layout_version == "v2.1":
            lists = lerobot_output.write_episode_lines(output, episodes())
        else:
            lists = self._tables.write(episodes())
        annotations = tuple(name for name in layout.columns if name.startswith("annotation."))
        writer = FileWriter(output, layout.rate, numbering.table_columns, annotations)
        self._files += _write_files(writer, numbering.take_plans(), run)
        size = sum(entry.bytes for entry in self._files)
        meta = [file_entry(output, name) for name in self._write_meta(numbering, lists)]
        counts = {
            "episodes": numbering.episodes,
            "tasks": len(numbering.tasks),
            "copied_clips": run.sums.get("copied_clips", 0),
        }
        listed = parts if run.failures else []
        return SinkSummary(numbering.frames, size, (*self._files, *listed, *meta), counts)

    def _splits_by_id(self, run: JobRun) -> dict[str, tuple[str, ...]]:
        """Returns the splits of each episode of a LeRobot set; warns if one cannot be read."""
        for recording in self._sets:
            spans = lerobot_layout.split_spans(recording.document)
            unknown = [name for name, ranges in spans.items() if ranges is None]
            if unknown:
                problem = f"the splits {few_text(unknown)} are not ranges of episodes"
                message = f"{recording.root}: {problem}, so they are left out"
                run.reporter.warn("splits_left_out", message)
        splits: dict[str, tuple[str, ...]] = {}
        for ref in self._setup.refs:
            recording = ref.extras.get("recording")
            if isinstance(recording, EpisodeFiles):
                splits[ref.id] = split_names(recording)
        return splits

    def _write_meta(self, numbering: Numbering, lists: Sequence[str]) -> list[str]:
        """Writes the meta files besides the lists of episodes; returns the names of all."""
        output = self._setup.output
        config = self._config
        version = config.layout_version
        names = [lerobot_output.write_statistics(output, numbering.set_statistics())]
        texts_by_kind: dict[str, Mapping[int, str]] = {"task": dict(enumerate(numbering.tasks))}
        for column, texts in self._layout.texts.items():  # columns may share a table
            texts_by_kind[text_kind(column)] = texts
        for kind, texts in texts_by_kind.items():
            names.append(lerobot_output.write_texts(output, version, kind, texts))
        names += lists
        modality = self._modality()
        if modality:
            write_json(output / lerobot_layout.MODALITY_FILE, dict(modality), indent=4)
            names.append(lerobot_layout.MODALITY_FILE)
        source: Mapping[str, Any] = self._sets[0].document if self._sets else {}
        dataset = lerobot_output.WrittenSet(
            version=version,
            fps=self._setup.survey.fps or float(self._layout.rate),
            robot_type=config.robot_type or source.get("robot_type"),
            features=numbering.features(),
            chunks_size=config.chunks_size,
            data_mb=config.data_files_size_in_mb,
            video_mb=config.video_files_size_in_mb,
            splits=self._splits,
            extra=source if len(self._sets) == 1 else {},
        )
        lerobot_output.write_info(
            output, dataset, numbering.episodes, numbering.frames, len(numbering.tasks)
        )
        return [*names, lerobot_layout.INFO_FILE]

    def _modality(self) -> Mapping[str, Any]:
        """Returns the content of `meta/modality.json`; empty if no file is written.

        It is copied if all sources have the same, else made if the option `modality` is set.
        """
        if self._sets:
            trees = [_stored_modality(recording.root) for recording in self._sets]
            if trees[0] and all(tree == trees[0] for tree in trees):
                return trees[0]
        if not self._config.modality:
            return {}
        places = _field_places(self._layout, self.fields)
        tree: dict[str, dict[str, Any]] = {"state": {}, "action": {}}
        sections = {"state": self.proprioception_fields, "action": self.action_fields}
        for section, names in sections.items():
            for name in names:
                width = self.fields[name]
                if width:
                    column, start = places.get(name, (name, 0))
                    place = {"start": start, "end": start + width, "original_key": column}
                    tree[section][name.replace(".", "_")] = place
        tree["video"] = {}
        for feature in self._layout.cameras.values():
            tree["video"][feature.removeprefix(CAMERAS)] = {"original_key": feature}
        tree["annotation"] = {"human.task_description": {"original_key": TASK_INDEX}}
        return tree


def _field_places(layout: SetLayout, widths: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """Map from joined field to its column and its first dimension there."""
    places: dict[str, tuple[str, int]] = {}
    for column, fields in layout.sources.items():
        start = 0
        for name in fields:
            places.setdefault(name, (column, start))
            start += widths[name]
    return places


def _stored_modality(root: Path) -> Mapping[str, Any]:
    path = root / lerobot_layout.MODALITY_FILE
    try:
        tree = read_json(path) if path.exists() else {}
    except (DocumentError, OSError):
        return {}
    return tree if isinstance(tree, dict) else {}


# Final files


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
        if plan.kind == "video":
            entry = replace(entry, samples=len(plan.parts))
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
                    if writer is None:
                        writer = pq.ParquetWriter(file, self._schema(plan, table.schema))
                    writer.write_table(_typed(table, writer.schema), row_group_size=len(table))
        assert writer is not None, "a file has rows"
        writer.close()

    def _schema(self, plan: FilePlan, first: pa.Schema) -> pa.Schema:
        """Returns the columns of a file; annotations get a type that fits all parts of the file."""
        schemas = [first]
        names = [field.name for field in first if is_annotations(field.type)]
        if names:
            for part in plan.parts:
                schema = pq.read_schema(as_native_file(self.output / part.path))
                schemas.append(pa.schema([schema.field(name) for name in names]))
        return pa.unify_schemas(schemas, promote_options="permissive")

    def _numbered(self, table: pa.Table, part: SetPart, start: int) -> pa.Table:
        """Rows with the numbers of the set; `start` is the number of the first one."""
        frames = start + np.arange(len(table))
        columns: dict[str, Any] = {name: table.column(name) for name in table.column_names}
        columns |= lerobot_layout.automatic_columns(
            frames, float(self.rate), part.number, part.first_row
        )
        columns[TASK_INDEX] = table.column(TASK_INDEX)
        if part.tasks:
            numbers = dict(part.tasks)
            for name in (TASK_INDEX, *self.annotations):
                values = [numbers.get(value, value) for value in columns[name].to_pylist()]
                columns[name] = pa.array(values, columns[name].type)
        return pa.table({name: columns[name] for name in self.columns})


def _typed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with columns of other types rebuilt: a cast loses the length of null children."""
    for index, field in enumerate(schema):
        if table.schema.field(index).type != field.type:
            column = pa.array(table.column(index).to_pylist(), field.type)
            table = table.set_column(index, field, column)
    return table


def _write_files(writer: FileWriter, plans: Sequence[FilePlan], run: JobRun) -> list[FileEntry]:
    """Writes all final files; returns their entries in order."""
    files: list[FileEntry] = []
    with run.reporter.progress("files", len(plans), "files") as bar:
        for outcome in run.executor.map(writer, plans):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None
            files += outcome.value.files
            bar.advance(1)
    return files


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
