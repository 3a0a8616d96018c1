"""Checks of a LeRobot episode.

`walk_episode` reads an episode as far as possible: `read` stops at its first error, `verify`
collects all. `check_values` makes checks for `verify` alone, which read data that nothing else
needs. Shapes: F frames, C dimensions. Source: formats/lerobot 6, 7, 8, 9, 11, 12.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vlatool.episode import Array, FrameSource, StoredPart
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Collector
from vlatool.media.frames import SingleImages
from vlatool.recordings.base import id_part
from vlatool.recordings.field_summary import dimension_label
from vlatool.recordings.language import Language
from vlatool.recordings.lerobot.dataset import LeRobotConfig
from vlatool.recordings.lerobot.findings import LEROBOT
from vlatool.recordings.lerobot.folder import EpisodeFiles
from vlatool.recordings.lerobot.images import (
    first_frame,
    missing_images,
    open_cameras,
    open_values,
)
from vlatool.recordings.lerobot.language import (
    ANNOTATION,
    EVENTS,
    LABELS,
    PERSISTENT,
    FrameTexts,
    annotated,
    column_texts,
    joined_language,
    text_columns,
)
from vlatool.recordings.lerobot.layout import AUTOMATIC, EPISODES_FILE, FRAME_INDEX
from vlatool.recordings.lerobot.parts import (
    SUCCESS,
    TASK_INDEX,
    language_parts,
    listed_parts,
    listed_success,
    listed_texts,
    stored_parts,
    text_part,
)
from vlatool.recordings.lerobot.tables import Rows, read_rows, timestamp_problem
from vlatool.recordings.rules import SOURCE

_TASK_DESCRIPTION = "task_description"


@dataclass(frozen=True)
class EpisodeContents:
    """Readable content of an episode."""

    rows: Rows | None  # its rows; None if they cannot be read
    cameras: Mapping[str, FrameSource]  # map from camera to its images
    missing: Mapping[str, DataError]  # map from declared camera without images to the error
    language: Language = ({}, ())  # its instruction and annotations
    # map from bookkeeping column to one value per frame
    metadata: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    # map from field to its values [F, C]
    fields: Mapping[str, Array] = field(default_factory=dict[str, Array])
    # map from camera to its depth in millimeters
    depth: Mapping[str, FrameSource] = field(default_factory=dict[str, FrameSource])
    # map from camera to its segmentation labels
    labels: Mapping[str, FrameSource] = field(default_factory=dict[str, FrameSource])
    success: bool | None = None  # True if a row, or the list, says that the task was completed
    parts: tuple[StoredPart, ...] = ()  # all that the episode stores


def walk_episode(files: EpisodeFiles, config: LeRobotConfig, report: Collector) -> EpisodeContents:
    """Content of an episode as far as it can be read; images stay on disk."""
    dataset = files.dataset
    further_texts: list[str] = []
    for name, feature in dataset.info.features.items():
        if name.startswith(ANNOTATION) or feature.dtype == "string":
            further_texts.append(name)
    columns = [*dataset.field_names, *further_texts, *text_columns(dataset), *SUCCESS]
    if config.task_column:
        columns.append(config.task_column)
    rows, metadata = open_rows(files, columns, report)
    missing: dict[str, DataError] = {}
    for camera in dataset.cameras:
        error = missing_images(files, camera, rows.columns if rows else None)
        if error is not None:
            missing[camera.name] = error
    if rows is None:
        return EpisodeContents(None, open_cameras(files, None, missing, report), missing)

    for column in config.needed_columns:
        report.attempt(partial(rows.require, column))
    frame_texts = column_texts(files, rows, report)
    texts = report.attempt(partial(_instructions, files, rows, config, frame_texts, report)) or ()
    further = listed_texts(files)
    if any({*listed} == {*texts} for _, listed in further.values()):
        # One is the instruction, or repeats it: the others are alternatives.
        for path, (kind, listed) in further.items():
            frame_texts[path] = (kind, [*listed] * len(rows))
    annotations = annotated(rows, metadata, dataset.info.fps, report)
    language, kinds = joined_language(texts, frame_texts, annotations)

    cameras = open_cameras(files, rows, missing, report)
    fields: dict[str, Array] = {}
    for name in dataset.field_names:
        width = dataset.info.features[name].width
        values = report.attempt(partial(rows.vectors, name, width))
        if values is not None:
            fields[name] = values
    depth, labels, lost = open_values(files, rows)

    kinds[config.task_column or TASK_INDEX] = "original"
    known = language_parts(kinds)
    for column in further_texts:
        if column in rows.columns and column not in kinds:
            known[column] = text_part(files, rows, column, texts, report)
    success = _success(rows)
    is_listed = success is None
    if is_listed:
        success = listed_success(files)
    parts = stored_parts(files, rows.columns, known, lost)
    parts += tuple(listed_parts(files, kinds, is_success=is_listed))
    return EpisodeContents(
        rows, cameras, missing, language, metadata, fields, depth, labels, success, parts
    )


def open_rows(
    files: EpisodeFiles, columns: Sequence[str], report: Collector
) -> tuple[Rows | None, Mapping[str, Sequence[Any]]]:
    """Rows of an episode with some columns, and its bookkeeping columns; None if they are broken.

    Checks that the rows belong to the episode, are in order and complete.
    """
    name = f"episode {files.number}"
    path = files.rows.path
    if not files.is_listed:
        problem = f"belongs to an episode that {EPISODES_FILE} does not list"
        report.add_error(LEROBOT.error("unlisted_episode", path, problem, episode=files.number))
    segment = report.attempt(files.segment)
    if segment is None:
        return None, {}
    if segment.path != path:
        message = f"{name}: its rows are in {segment.path}, but the list of episodes says {path}"
        report.note("rows_elsewhere", message, path=str(path))
    elif files.rows.count is not None and segment.first != files.rows.first:
        message = (
            f"{name}: its rows start at row {segment.first} of {path}, but the list of episodes "
            f"says {files.rows.first}; they are found by episode_index"
        )
        report.note("row_offsets", message, path=str(path), row=segment.first)
    needed = [*columns, *AUTOMATIC, PERSISTENT, EVENTS]
    rows = report.attempt(partial(read_rows, segment, name, needed))
    if rows is None:
        return None, {}
    length = files.line.length
    if length is not None and length != len(rows):
        problem = f"has {counted(len(rows), 'row')}, but the list of episodes says {length}"
        report.add_error(LEROBOT.error("length_mismatch", rows.path, problem, rows=len(rows)))
    metadata: dict[str, Sequence[Any]] = {}
    for column in AUTOMATIC:
        if column in rows.columns:
            values = report.attempt(partial(rows.numbers, column))
            if values is not None:
                metadata[column] = values
    _check_bookkeeping(files, rows, metadata, report)
    return rows, metadata


def _success(rows: Rows) -> bool | None:
    """True if a row says that the task was completed; None if no column says it."""
    for name in SUCCESS:
        if name in rows.columns:
            with suppress(DataError):
                return bool(rows.vectors(name, None).any())
    return None


def _check_bookkeeping(
    files: EpisodeFiles, rows: Rows, metadata: Mapping[str, Sequence[Any]], report: Collector
) -> None:
    first = 0
    with suppress(DataError):  # broken columns are reported where they are read
        first = first_frame(rows, files.dataset.info.fps)
    if first:
        message = f"{rows.episode}: its rows start at frame {first}; earlier ones were deleted"
        report.note("rows_deleted", message, path=str(rows.path), field=FRAME_INDEX)
    elif "timestamp" in metadata:
        problem = timestamp_problem(metadata["timestamp"], files.dataset.info.fps)
        if problem:
            message = f"{rows.episode}: {problem}; row N is paired with image N all the same"
            report.note("timestamps", message, path=str(rows.path), field="timestamp")
    # Reports missing or repeated frames, because rows pair with images by number
    for row, number in enumerate(metadata.get(FRAME_INDEX, ())):
        if number != row + first:
            problem = f"frame_index is {number} at row {row}: rows are missing or repeated"
            error = LEROBOT.error(
                "frame_index_gap", rows.path, rows.episode, problem, field=FRAME_INDEX, frame=row
            )
            report.add_error(error)
            break
    others = set(metadata.get("episode_index", ())) - {files.number}
    if others:
        problem = f"has rows of episode_index {sorted(others, key=str)}"
        error = LEROBOT.error(
            "episode_index", rows.path, rows.episode, problem, field="episode_index"
        )
        report.add_error(error)


# Instruction


def _instructions(
    files: EpisodeFiles,
    rows: Rows,
    config: LeRobotConfig,
    others: Mapping[str, FrameTexts],  # texts of further columns
    report: Collector,
) -> Sequence[str]:
    """Instruction of each frame by the rows, else one from the list, else the folder name."""
    table: Mapping[int, str] = {}
    try:
        table = files.texts_by_number()
    except DataError as error:
        report.note("tasks_unreadable", error.message, path=error.details.get("path"))
    texts: list[str] = []
    if not (config.is_list_first and any(files.line.tasks)):
        texts = _instructions_of_rows(rows, config, table, report)
    if not texts:
        texts = [_instruction_of_list(rows, files.line.tasks, table, config.task_join)]
    if any(text.strip() for text in texts):
        return texts
    for kind, recorded in others.values():
        if kind == "original" and any(recorded):
            return recorded
    for _, listed in listed_texts(files).values():
        return listed
    if config.needs_instruction:
        raise DataError.at(
            rows.path,
            f"{rows.episode}: has no instruction, neither in the list of episodes nor in its rows",
            hint="add its task to the list, or leave the episode out with `preprocess --exclude`",
            code="data.missing",
            finding="no_instruction",
        )
    sentence = name_to_sentence(files.dataset.name)
    message = f"{rows.episode}: has no instruction; the name of the data set is used: {sentence!r}"
    report.add(SOURCE, "language_fallback", message)
    return [sentence]


def _instructions_of_rows(
    rows: Rows, config: LeRobotConfig, table: Mapping[int, str], report: Collector
) -> list[str]:
    """Task of each frame by a column of numbers or sentences; empty if there is none."""
    column = config.task_column
    if column is not None:
        rows.require(column)
    elif TASK_INDEX in rows.columns:
        column = TASK_INDEX
    else:
        for name in rows.table.column_names:
            if name.endswith(_TASK_DESCRIPTION):
                column = name
                break
    if column is None:
        return []
    values = rows.labels(column)
    if not table and not isinstance(values[0], str):
        return []
    texts: list[str] = []
    for value in values:
        if isinstance(value, str):
            texts.append(value)
        elif value in table:
            texts.append(table[value])
        else:
            span = f"{min(table)}..{max(table)}" if table else "it is empty"
            problem = f"{column} {value!r} is not in the list of tasks ({span})"
            raise LEROBOT.error("unknown_task", rows.path, rows.episode, problem, field=column)
    count = len({*texts})
    if count > 1:
        message = f"{rows.episode}: its rows name {counted(count, 'task')}"
        report.note("several_tasks", message, path=str(rows.path), field=column)
    return texts


def without_labels(tasks: Sequence[str]) -> tuple[str, ...]:
    """Distinct sentences among the tasks of an episode, without quality labels."""
    distinct = tuple(dict.fromkeys(text for text in tasks if text.strip()))
    return tuple(text for text in distinct if text not in LABELS) or distinct


def name_to_sentence(name: str) -> str:
    """Folder name of a data set as a sentence."""
    return " ".join(id_part(name).replace("-", "_").split("_"))


def _instruction_of_list(
    rows: Rows, listed: Sequence[str], table: Mapping[int, str], join: str | None
) -> str:
    """The only listed sentence of the episode, or all joined; labels are skipped."""
    labels: set[str | None] = set()
    for column in rows.table.column_names:
        if column.startswith(ANNOTATION) and not column.endswith(_TASK_DESCRIPTION):
            labels.update(table.get(value) for value in rows.labels(column))
    sentences = without_labels([text for text in listed if text not in labels] or listed)
    if not sentences:
        return ""
    if len(sentences) == 1:
        return sentences[0]
    if join is not None:
        return join.join(sentences)
    names = ", ".join(f'"{text}"' for text in sentences)
    raise DataError(
        f"{rows.episode} lists {counted(len(sentences), 'task')} ({names}), and its rows do not "
        "say which one applies",
        hint="join them with --task-join ' / ', or name the column that does: --task-column NAME",
        code="data.unknown_field",
        details={"episode": rows.episode, "tasks": list(sentences)},
    )


def check_values(files: EpisodeFiles, contents: EpisodeContents, report: Collector) -> None:
    """Checks the order of rows, finite values and motion."""
    rows = contents.rows
    if rows is None:
        return
    _check_counting(rows, contents, report)
    for name, values in contents.fields.items():
        names = files.dataset.info.features[name].dimension_names
        report.attempt(partial(check_finite, rows, name, values, names))
    _check_others(files, rows, report)
    fields = list(contents.fields.values())
    is_moving = any(np.ptp(values, axis=0).any() for values in fields)
    if fields and len(fields[0]) > 1 and not is_moving:
        message = f"{rows.path}: no observation or action ever changes"
        report.note("no_motion", message, path=str(rows.path))
    for name, frames in contents.cameras.items():
        if isinstance(frames, SingleImages):
            report.attempt(partial(frames.read, [0]), camera=name)


def _check_counting(rows: Rows, contents: EpisodeContents, report: Collector) -> None:
    """Checks that rows are in order and that `index` is continuous."""
    path = str(rows.path)
    if (np.diff(rows.order) != 1).any():
        message = f"{path}: rows are not in the order of frame_index"
        report.note("rows_unsorted", message, path=path, field=FRAME_INDEX)
    values = contents.metadata.get("index", ())
    start = values[0] if values and isinstance(values[0], int) else 0
    for row, value in enumerate(values):
        if value != row + start:
            message = f"{path}: index is {value} at row {row}, expected {row + start}"
            report.note("index_gap", message, path=path, field="index", frame=row)
            break


def check_finite(rows: Rows, name: str, values: Array, dimensions: Sequence[str] = ()) -> None:
    """Raises DataError if a value of a column [F, C] is NaN or infinite."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0].tolist()
        value = "NaN" if np.isnan(values[row, column]) else "an infinite value"
        problem = f"has {value} at row {row}"
        label = dimension_label(name, column, values.shape[1], {name: dimensions})
        dimension = label.removeprefix(name).removeprefix(": ")
        if dimension:
            problem += f", {dimension}"
        raise rows.error(name, problem, "non_finite", row)


def _check_others(files: EpisodeFiles, rows: Rows, report: Collector) -> None:
    """Checks numeric columns that are not fields of the episode; defects are warnings."""
    used = files.dataset.field_names
    features = files.dataset.info.features
    others: list[str] = []
    for name, feature in features.items():
        is_vector = feature.width is not None and feature.is_readable_number
        if is_vector and name in rows.columns and name not in used:
            others.append(name)
    columns: Rows | None = None
    with suppress(DataError):  # at least one column is broken: each is read alone below
        columns = read_rows(rows.segment, rows.episode, others)
    for name in others:
        try:
            column = columns
            if column is None:
                column = read_rows(rows.segment, rows.episode, [name])
            check_finite(column, name, column.vectors(name, features[name].width))
        except DataError as error:
            report.note("unused_column", error.message, path=str(rows.path), field=name)
