"""Checks of the episodes of a LeRobot data set, on top of what its reader refuses or warns about.

Legend of shapes: F frames, C channels. Source: lerobot-format 11, 12.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vlatool.episode import Array, EpisodeRef
from vlatool.errors import DataError
from vlatool.findings import Finding, finding_of_error
from vlatool.sources.base import refuse_missing_or_pointer
from vlatool.sources.checks import check_cameras, findings_of_warnings
from vlatool.sources.lerobot.codes import LEROBOT
from vlatool.sources.lerobot.dataset import Recording
from vlatool.sources.lerobot.meta import Feature
from vlatool.sources.lerobot.rows import FRAME_INDEX, Rows, read_rows
from vlatool.sources.lerobot.statistics import contradictions, episode_statistics
from vlatool.sources.video import probe_video

_BOOKKEEPING = ("index", "timestamp", "episode_index", "task_index")


def check_lerobot_episode(reader: Any, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
    """Everything that is wrong with an episode, not only the first.

    Args:
        reader: The `LeRobotReader`.
        ref: The episode.
        deep: Also decode every frame of every camera.
    """
    severe = False
    for finding in _check(ref):
        severe = severe or finding.severity == "error"
        yield finding
    if not severe:  # else the reader would tell one of the errors again
        yield from _read(reader, ref, deep=deep)


def _read(reader: Any, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
    try:
        episode = reader.read(ref)
    except DataError as error:
        yield refusal(error, episode=ref.id)
        return
    yield from findings_of_warnings(episode.warnings, LEROBOT, episode=ref.id)
    if deep:
        yield from check_cameras(episode)


def refusal(error: DataError, **place: Any) -> Finding:
    """A refusal of the reader as a finding of this family, where it has such a code."""
    told = finding_of_error(error, **place)
    name = error.code.removeprefix("data.")
    if name not in LEROBOT.kinds:
        return told
    return LEROBOT(name, error.message, **told.place)


def _check(ref: EpisodeRef) -> Iterator[Finding]:
    recording: Recording = ref.extras["recording"]
    features = [f for f in recording.dataset.info.features.values() if not f.is_camera]
    wanted = [*(feature.name for feature in features), *_BOOKKEEPING]
    try:
        rows = read_rows(recording.data_file, f"episode {recording.line.number}", wanted)
    except DataError as error:
        yield refusal(error, episode=ref.id)
        rows = None
    if rows is not None:
        yield from _check_counting(ref, recording, rows)
        vectors = dict[str, Array]()
        yield from _read_vectors(ref, recording, rows, vectors)
        yield from _check_vectors(ref, recording, vectors)
    yield from _check_videos(ref, recording, None if rows is None else len(rows))


def _check_counting(ref: EpisodeRef, recording: Recording, rows: Rows) -> Iterator[Finding]:
    """Whether rows, frames and indices are all there, once each."""
    place = {"episode": ref.id, "path": str(rows.path)}
    length = recording.line.length
    if length is not None and length != len(rows):
        message = f"{rows.path}: has {len(rows)} rows, meta/episodes.jsonl says {length}"
        yield LEROBOT("length_mismatch", message, **place)
    if not np.array_equal(rows.order, np.arange(len(rows))):
        message = f"{rows.path}: rows are not in the order of frame_index"
        yield LEROBOT("rows_unsorted", message, **place, field=FRAME_INDEX)
    expected = np.arange(len(rows))
    for name, code, start in (
        (FRAME_INDEX, "frame_index_gap", 0),
        ("index", "index_gap", _first(rows, "index")),
    ):
        if name not in rows.columns:
            continue
        values = rows.values(name)
        wrong = [row for row, value in enumerate(values) if value != expected[row] + start]
        if wrong:
            frame = wrong[0]
            message = f"{rows.path}: {name} is {values[frame]} at row {frame}"
            yield LEROBOT(
                code, f"{message}, expected {frame + start}", **place, field=name, frame=frame
            )


def _first(rows: Rows, name: str) -> int:
    value = rows.values(name)[0] if name in rows.columns else 0
    return value if isinstance(value, int) else 0


def _read_vectors(
    ref: EpisodeRef, recording: Recording, rows: Rows, vectors: dict[str, Array]
) -> Iterator[Finding]:
    """Reads every numeric feature as [F, C]; each one that cannot be read is told."""
    dataset = recording.dataset
    used = {*dataset.observation_keys, *dataset.action_keys}
    for name, feature in dataset.info.features.items():
        if not _is_vector(feature) or (name not in rows.columns and name not in used):
            continue
        try:
            vectors[name] = rows.finite_vectors(name, feature.width)
        except DataError as error:
            yield refusal(error, episode=ref.id)
    for name in rows.columns:
        if name not in dataset.info.features:
            message = f"{rows.path}: the column {name!r} is no feature in meta/info.json"
            yield LEROBOT(
                "undeclared_column", message, episode=ref.id, path=str(rows.path), field=name
            )


def _is_vector(feature: Feature) -> bool:
    return feature.width is not None and (feature.is_number or feature.dtype == "bool")


def _check_vectors(
    ref: EpisodeRef, recording: Recording, vectors: Mapping[str, Array]
) -> Iterator[Finding]:
    dataset = recording.dataset
    names = dict.fromkeys([*dataset.observation_keys, *dataset.action_keys])
    used = [vectors[name] for name in names if name in vectors]
    if used and len(used[0]) > 1 and not any(np.ptp(one, axis=0).any() for one in used):
        message = f"{recording.data_file}: no observation and no action ever changes"
        yield LEROBOT("no_motion", message, episode=ref.id, path=str(recording.data_file))
    stated = episode_statistics(dataset.root).get(recording.line.number, {})
    for name, problem in contradictions(stated, vectors):
        message = f"meta/episodes_stats.jsonl, episode {recording.line.number}: {name} {problem}"
        yield LEROBOT("stats_contradict", message, episode=ref.id, field=name)


def _check_videos(ref: EpisodeRef, recording: Recording, num_rows: int | None) -> Iterator[Finding]:
    for camera, path in recording.videos.items():
        place = {"episode": ref.id, "camera": camera, "path": str(path)}
        where = f"episode {recording.line.number}, camera {camera}"
        if not path.exists():
            yield LEROBOT("missing_video", f"{where}: {path} is missing", **place)
            continue
        try:
            refuse_missing_or_pointer(path, where)
            num_frames = probe_video(path).num_frames
        except DataError as error:
            yield refusal(error, **place)
            continue
        if num_rows is not None and num_frames < num_rows:
            message = f"{where}: {path} has {num_frames} frames for {num_rows} rows"
            yield LEROBOT("video_too_short", message, **place)
