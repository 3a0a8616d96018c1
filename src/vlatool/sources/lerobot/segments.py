"""Consistency of the segments that the list of episodes of v3.0 states.

Rows are taken by their `episode_index`, so wrong row numbers are reported only. Only the list says
which frames of a video belong to an episode, so clips that overlap are errors of their episodes.
Source: formats/lerobot 5.1
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from vlatool.artifacts.lerobot.format import EpisodeLine, Span
from vlatool.errors import DataError

_LONGEST_VIDEO = 1e9  # seconds; times in ticks of a stream have 64 bits

Problem = tuple[str, str, int | None]  # code, problem, episode


def first_rows(lines: Sequence[EpisodeLine]) -> dict[int, int]:
    """Map from episode to its first row in its file, for episodes with stated rows."""
    starts: dict[tuple[int, int], float] = {}
    for line in lines:
        if line.rows is not None:
            key = (line.rows.chunk, line.rows.file)
            starts[key] = min(line.rows.start, starts.get(key, math.inf))
    return {
        line.number: int(line.rows.start - starts[line.rows.chunk, line.rows.file])
        for line in lines
        if line.rows is not None
    }


def clip_defects(lines: Sequence[EpisodeLine], fps: float) -> Mapping[int, Mapping[str, DataError]]:
    """Errors of clips by episode and camera: impossible times, and clips that share frames."""
    defects: defaultdict[int, dict[str, DataError]] = defaultdict(dict)
    files: defaultdict[tuple[str, int, int], list[tuple[float, float, int]]] = defaultdict(list)
    for line in lines:
        for camera, clip in line.clips.items():
            if not 0 <= clip.start < clip.stop <= _LONGEST_VIDEO:
                problem = f"its clip is {clip.start:g} s to {clip.stop:g} s"
                defects[line.number][camera] = _defect(line.number, camera, problem, "clip_outside")
                continue
            stop = clip.stop if line.length is None else clip.start + line.length / fps
            files[camera, clip.chunk, clip.file].append((clip.start, stop, line.number))
    for (camera, _, _), clips in files.items():
        for first, second in _overlaps(clips, 0.5 / fps):
            for number, other in ((first, second), (second, first)):
                problem = f"its clip has frames of episode {other}"
                defects[number][camera] = _defect(number, camera, problem, "clips_overlap")
    return dict(defects)


def _overlaps(
    clips: Sequence[tuple[float, float, int]], tolerance: float
) -> Iterator[tuple[int, int]]:
    """Pairs of episodes whose (start, stop, episode) overlap by more than the tolerance."""
    last: tuple[float, int] | None = None
    for start, stop, number in sorted(clips):
        if last is not None and start < last[0] - tolerance:
            yield last[1], number
        if last is None or stop > last[0]:
            last = (stop, number)


def _defect(number: int, camera: str, problem: str, code: str) -> DataError:
    return DataError(
        f"episode {number}, camera {camera}: {problem}, says the list of episodes",
        hint="the list is of another version, or was merged wrongly; download meta/ again, or "
        "exclude the episode with `preprocess --exclude`",
        code=f"data.{code}",
        details={"episode": number, "camera": camera},
    )


def list_problems(lines: Sequence[EpisodeLine], chunks_size: int, fps: float) -> Iterator[Problem]:
    """(code, problem, episode) of numbers, rows and clips of the list that do not fit together."""
    numbers = [line.number for line in lines]
    missing = next((n for n, number in enumerate(numbers) if n != number), None)
    if missing is not None:
        problem = f"episode_index {missing} is missing; readers that count rows of the list mix up"
        yield "list_gap", f"{problem} the episodes after it", missing
    yield from _row_problems(lines)
    yield from _gaps(lines, fps)
    spans = [(line.number, span) for line in lines for span in _spans(line)]
    beyond = next((pair for pair in spans if pair[1].file >= chunks_size), None)
    if beyond is not None:
        number, span = beyond
        problem = f"file {span.file} of chunk {span.chunk} exceeds chunks_size {chunks_size}"
        yield "chunks", problem, number


def _spans(line: EpisodeLine) -> Iterator[Span]:
    if line.rows is not None:
        yield line.rows
    yield from line.clips.values()


def _row_problems(lines: Sequence[EpisodeLine]) -> Iterator[Problem]:
    expected = 0
    for line in lines:
        rows = line.rows
        if rows is None:
            continue
        start, stop = int(rows.start), int(rows.stop)
        if line.length is not None and stop - start != line.length:
            problem = f"dataset_from_index {start} and dataset_to_index {stop} are not"
            yield "row_offsets", f"{problem} {line.length} rows apart", line.number
        if start != expected:
            kind = "overlaps the rows before" if start < expected else "leaves a gap"
            problem = f"dataset_from_index is {start}, expected {expected}: it {kind}"
            yield "row_offsets", problem, line.number
        expected = max(stop, start)


def _gaps(lines: Sequence[EpisodeLine], fps: float) -> Iterator[Problem]:
    """Stretches of videos between two clips that belong to no episode."""
    files: defaultdict[tuple[str, int, int], list[tuple[float, float, int]]] = defaultdict(list)
    for line in lines:
        for camera, clip in line.clips.items():
            if 0 <= clip.start < clip.stop <= _LONGEST_VIDEO:
                key = (camera, clip.chunk, clip.file)
                files[key].append((clip.start, clip.stop, line.number))
    for (camera, _, _), clips in files.items():
        end = 0.0
        for start, stop, number in sorted(clips):
            if start > end + 0.5 / fps:
                problem = f"{camera}: {end:g} s to {start:g} s before its clip belong to no episode"
                yield "clip_gap", problem, number
            end = max(end, stop)
