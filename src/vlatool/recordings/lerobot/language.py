"""Columns of texts besides the task, and the annotations of LeRobot. Source: formats/lerobot 8."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from vlatool.episode import Array, LanguageSpan
from vlatool.errors import DataError
from vlatool.findings import Collector
from vlatool.recordings.language import Language, kind_of_name, language_of
from vlatool.recordings.lerobot import lists
from vlatool.recordings.lerobot.folder import Dataset, EpisodeFiles
from vlatool.recordings.lerobot.layout import PERSISTENT, PERSISTENT_STYLES
from vlatool.recordings.lerobot.tables import Rows, is_annotations

EVENTS = "language_events"
ANNOTATION = "annotation."
# Quality labels that GR00T-style data sets list among the tasks. Source: formats/lerobot 8
LABELS = frozenset({"valid", "invalid"})
FrameTexts = tuple[str, Sequence[str]]  # kind of annotation, and the text of each frame
_TOLERANCE = 1e-4  # seconds; the library accepts as much between a text and its frame
_REPHRASED = "task_aug"  # sentences for the whole episode, whatever their time


def text_columns(dataset: Dataset) -> dict[str, str]:
    """Map from column besides the task to the kind of its texts: columns of numbers with a table of
    their texts, and columns of text whose name says what they are.
    """
    kinds = {column: lists.text_kind(column) for column in dataset.text_tables}
    for name, feature in dataset.info.features.items():
        if feature.dtype == "string" and not name.startswith(ANNOTATION):
            kind = kind_of_name(name.rpartition(".")[2])
            if kind:
                kinds[name] = kind
    return kinds


def frame_texts(files: EpisodeFiles, rows: Rows, column: str, report: Collector) -> list[str]:
    """Text of each frame of a column of texts, or of numbers that stand for texts.

    Empty where a number has no text: reported, unless it is negative. Raises DataError if the
    column has neither, or the table cannot be read.
    """
    rows.require(column)
    values = rows.labels(column)
    numbers = {value for value in values if isinstance(value, int)}
    table = files.texts_by_number(column) if numbers else {}
    unknown = [number for number in numbers if number >= 0 and number not in table]
    if unknown:
        place = files.dataset.text_tables.get(column, "the list of tasks")
        message = f"{rows.episode}: {column} {min(unknown)} is not in {place}"
        report.note("bad_language", message, field=column)
    return [value if isinstance(value, str) else table.get(value, "") for value in values]


def column_texts(files: EpisodeFiles, rows: Rows, report: Collector) -> dict[str, FrameTexts]:
    """Texts of the frames by column besides the task; a column with a defect is left out."""
    found: dict[str, FrameTexts] = {}
    for column, kind in text_columns(files.dataset).items():
        if column in rows.columns:
            try:
                found[column] = kind, frame_texts(files, rows, column, report)
            except DataError as error:
                report.note("bad_language", error.message, field=column)
    return found


def joined_language(
    instructions: Sequence[str], others: Mapping[str, FrameTexts], annotations: Language
) -> tuple[Language, dict[str, str]]:
    """Language of an episode, and the kind of the texts of each column.

    Instructions of a column that differ from the instructions of the task are alternatives.
    """
    pairs = [("original", instructions)]
    spans: list[LanguageSpan] = []
    kinds: dict[str, str] = {}
    for column, (kind, texts) in others.items():
        if kind == "original" and not are_equal(texts, instructions):
            kind = "alternative"
        kinds[column] = kind
        if len({*texts}) == 1:
            pairs.append((kind, texts))
            continue
        first = 0
        for text, run in groupby(texts):
            stop = first + len(list(run))
            if text.strip() and kind != "original":
                spans.append(LanguageSpan(kind, text, first, stop - 1))
            first = stop
    whole, instruction_spans = language_of(pairs)
    annotated_whole, annotated_spans = annotations
    language = ({**whole, **annotated_whole}, [*instruction_spans, *spans, *annotated_spans])
    return language, kinds


def are_equal(texts: Sequence[str], instructions: Sequence[str]) -> bool:
    """True if texts of frames are the instruction of each frame, or the only one."""
    if len(instructions) == 1:
        return all(text == instructions[0] for text in texts)
    return list(texts) == list(instructions)


def annotated(
    rows: Rows, metadata: Mapping[str, Sequence[Any]], fps: float, report: Collector
) -> Language:
    """Sentences and spans of both columns; `metadata` has the times of the frames.

    A text of `language_persistent` holds until the next one of its style, which has no content
    where nothing follows; an event holds at its frame.
    """
    times = np.array(metadata.get("timestamp", ()), np.float64)
    if not len(times) or not np.isfinite(times).all():
        times = np.arange(len(rows)) / fps
    rephrased: list[str] = []
    spans: list[LanguageSpan] = []
    left_out: Counter[str] = Counter()
    texts_by_style: dict[str, list[tuple[float, str | None]]] = {}
    column = _column(rows, PERSISTENT, report)
    if len(column):  # entries of the first row, which all rows repeat
        if not column.slice(1).equals(column.slice(0, len(column) - 1)):
            problem = f"{PERSISTENT} differs from row to row; the first row is used"
            report.note("bad_language", f"{rows.episode}: {problem}", field=PERSISTENT)
        for entry in _sentences(column[0].as_py() or (), left_out):
            text = entry["content"]
            time = entry.get("timestamp")
            if entry["style"] == _REPHRASED:
                rephrased.append(text)
            elif isinstance(time, int | float) and np.isfinite(time):
                texts_by_style.setdefault(entry["style"], []).append((time, text))
            else:
                message = f"{rows.episode}: {text!r} has no time"
                report.note("bad_language", message, field=PERSISTENT)
    for style, texts in texts_by_style.items():
        texts.sort(key=lambda pair: pair[0])
        spans += _until_next(style, texts, times)
    for frame, entries in enumerate(_column(rows, EVENTS, report).to_pylist()):
        for entry in _sentences(entries or (), left_out):
            spans.append(LanguageSpan(entry["style"], entry["content"], frame, frame))
    if left_out:
        listed = ", ".join(f"{count} {name}" for name, count in left_out.items())
        report.note("language_left_out", f"{rows.episode}: left out: {listed}")
    return {_REPHRASED: rephrased} if rephrased else {}, spans


def _sentences(
    entries: Sequence[Mapping[str, Any] | None], left_out: Counter[str]
) -> Iterator[Mapping[str, Any]]:
    """Entries but for calls of tools and what is about an image, which are counted by style."""
    for entry in entries:
        if not entry:
            continue
        style = entry.get("style")
        text = entry.get("content")
        is_end = text is None and style in PERSISTENT_STYLES and "timestamp" in entry
        is_text = isinstance(text, str) or is_end
        if style and isinstance(style, str) and is_text and not entry.get("camera"):
            yield entry
        else:
            left_out[str(style or "without a style")] += 1


def _until_next(
    style: str, texts: Sequence[tuple[float, str | None]], times: Array
) -> Iterator[LanguageSpan]:
    """Spans of the texts of a style, ascending by time; None ends the text before."""
    starts: list[int] = []
    for time, _ in texts:
        is_before = time < times[0] - _TOLERANCE
        starts.append(-1 if is_before else int(np.searchsorted(times, time - _TOLERANCE)))
    for start, (_, text) in zip(starts, texts, strict=True):
        if text is None:
            continue
        stop = len(times)
        for later in starts:
            if later > start:
                stop = min(later, len(times))
                break
        yield LanguageSpan(style, text, start, max(start, stop - 1))


def _column(rows: Rows, name: str, report: Collector) -> pa.ChunkedArray:
    """A column of annotations; an empty one if it is missing or of another type."""
    if name not in rows.columns:
        return pa.chunked_array([], pa.null())
    column = rows.table.column(name)
    if len(column) and not is_annotations(column.type):
        problem = f"{name} holds {column.type}, expected lists of annotations"
        report.note("bad_language", f"{rows.episode}: {problem}", field=name)
        return column.slice(0, 0)
    return column
