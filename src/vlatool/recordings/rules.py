"""What `verify` checks in sources of every format."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.conventions.contradiction import contradictions
from vlatool.conventions.measure import measure_some
from vlatool.episode import EpisodeRef, FieldSpec, FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes, error, finding_of_error, info, warning
from vlatool.jobs.command import make_executor
from vlatool.plugins import is_class_in_file
from vlatool.recordings.base import (
    FormatReader,
    camera_name_problem,
    field_mismatch,
    no_episodes,
)
from vlatool.recordings.check import CheckOptions
from vlatool.recordings.choice import select
from vlatool.recordings.detect import DetectedSource

_RENAMED = re.compile(r"^(?P<id>.+)-\d+$")
# Half a second at the usual 10 frames per second; noise of a real sensor never repeats so long.
_LONG_REPETITION = 5
# Starting a process takes as long as checking this many short episodes.
_EPISODES_PER_WORKER = 8

_CORRECT = "correct the annotations"
SOURCE = FindingCodes(
    "source",
    language_fallback=warning("An episode has no instruction; the name of its task is used."),
    no_language=warning(
        "An episode has neither instruction nor task name.",
        "add --instruction, or --task for Spartan episodes",
    ),
    spans_overlap=warning(
        "Several texts of one kind apply to the same frame; the frame gets all of them.", _CORRECT
    ),
    span_outside=warning("A text applies to frames that do not exist.", _CORRECT),
    empty_span=warning("An annotation of frames has no text.", _CORRECT),
    silent_frames=warning("Some frames of an episode have a text and others have none.", _CORRECT),
    given_twice=warning("You named a source twice; it is read once."),
    episode_missing_camera=warning("An episode was left out because it lacks a camera."),
    upper_case_camera=warning(
        "A camera name has upper-case letters; frames and shards have it in lower case."
    ),
    duplicate_id=warning(
        "Two episodes have the same name; the second is renamed to NAME-2.",
        "rename one of them, or leave out one source",
    ),
    dimensions_left_out=warning(
        "You renamed a part of a field; the other dimensions of the field are left out.",
        "name the other dimensions with --rename, too, if you need them",
    ),
    divided=info("A recording holds several episodes."),
    mixed_episodes=error(
        "The column that names the episodes comes back to an earlier one.",
        "sort the rows by episode, or give each episode a name of its own",
    ),
    times_backwards=error(
        "Times run backwards, so the rows may be several episodes.",
        "add a column such as episode that names the episode of each row, write each episode to a "
        "file of its own, or leave the times out with a mapping: vlatool inspect SOURCE --propose "
        "mapping.yaml",
    ),
    shared_video=error(
        "Several episodes would use the same video.",
        "write {stem} or {episode} for what differs in the name of the video, or name the rows of "
        "each episode: rows: {index: PATH}",
    ),
    videos_beside=warning(
        "Videos beside your recordings are not used.",
        "name them in a mapping: vlatool inspect SOURCE --propose mapping.yaml",
    ),
    frames_cut=warning("Frames at the end without an action or an image are left out."),
    no_fields=error("The reader finds no field.", "name the fields in the options of the format"),
)

IMAGES = FindingCodes(
    "pictures",
    unreadable=error(
        "A frame cannot be decoded.",
        "copy the episode again, or leave it out with `preprocess --exclude`",
    ),
    black=warning(
        "Frames are completely black.",
        "check the camera; leave the episode out with `preprocess --exclude`",
    ),
    constant=warning(
        "Frames have a single color other than black.",
        "check the camera; leave the episode out with `preprocess --exclude`",
    ),
    repeated=warning(
        f"The same image is repeated in {_LONG_REPETITION} or more frames in a row.",
        "check whether the camera froze; leave the episode out with `preprocess --exclude`",
    ),
)


def check_episode(reader: FormatReader, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
    """Checks for episodes of all formats: the error or the warnings of reading. With `deep`, every
    frame of every camera is decoded.
    """
    try:
        episode = reader.read(ref)
    except DataError as error:
        yield finding_of_error(error, episode=ref.id)
        return
    for error in episode.missing_cameras.values():
        yield finding_of_error(error, episode=ref.id)
    for finding in episode.findings:
        yield replace(finding, place={"episode": ref.id, **finding.place})
    if not episode.lowdim:
        yield SOURCE("no_fields", f"{ref.id}: the reader finds no field", episode=ref.id)
    if deep:
        yield from check_cameras(ref.id, episode.cameras)


def check_cameras(episode: str, cameras: Mapping[str, FrameSource]) -> Iterator[Finding]:
    """Yields findings on the images of an episode; decodes every frame of every camera."""
    for name, frames in cameras.items():
        label = f"{episode}, camera {name}"
        for code, message, location in _image_problems(frames):
            text = message if code == "unreadable" else f"{label}: {message}"
            yield IMAGES(code, text, episode=episode, camera=name, **location)


def distinct_recordings(
    sources: Sequence[Path],
    find: Callable[[Path], Sequence[Path]],  # files or folders of recordings at a source, in order
    searched: str,
    findings: list[Finding],  # gets a finding for each recording that is named twice
) -> list[tuple[Path, Path]]:
    """Returns (path, source) of the recordings of all sources, each recording once.

    Raises:
        DataError: A source has no recordings.
    """
    recordings: dict[Path, tuple[Path, Path]] = {}
    for source in sources:
        paths = find(source)
        if not paths:
            raise no_episodes(source, searched)
        for path in paths:
            if path.resolve() in recordings:
                message = f"you named {path} twice; it is read once"
                findings.append(SOURCE("given_twice", message, path=str(path)))
            recordings.setdefault(path.resolve(), (path, source))
    return list(recordings.values())


def no_instruction(ref: EpisodeRef) -> Finding:
    """Returns the finding for an episode without text, if its format has `--instruction`."""
    message = f"{ref.id}: has no instruction; give one with --instruction"
    return SOURCE("no_language", message, episode=ref.id)


def duplicate_ids(refs: Sequence[EpisodeRef]) -> Iterator[Finding]:
    """Yields a finding for each episode that was renamed because its name was taken."""
    ids = {ref.id for ref in refs}
    for ref in refs:
        match = _RENAMED.match(ref.id)
        if match and match["id"] in ids:
            message = f"{ref.path}: another episode has the name {match['id']}; this is {ref.id}"
            yield SOURCE("duplicate_id", message, episode=ref.id, path=str(ref.path))


def _image_problems(frames: FrameSource) -> Iterator[tuple[str, str, dict[str, int]]]:
    """(code, problem, place) of the images of a camera; decodes every frame once, in order."""
    uniform: dict[str, list[int]] = {"black": [], "constant": []}
    previous: UInt8Array | None = None
    start = 0  # first of the equal frames up to this one
    longest = 0  # number of equal frames in the longest run, and its first
    longest_start = 0
    for frame in range(len(frames)):
        try:
            image = frames.read([frame])[0]
        except DataError as error:
            yield "unreadable", error.message, {"frame": frame}
            break
        if image.size and np.ptp(image.reshape(-1, image.shape[-1]), axis=0).max() == 0:
            uniform["constant" if image.any() else "black"].append(frame)
        if previous is None or not np.array_equal(previous, image):
            start = frame
        if frame + 1 - start > longest:
            longest = frame + 1 - start
            longest_start = start
        previous = image
    for code, numbers in uniform.items():
        if numbers:
            count = counted(len(numbers), "frame is", "frames are")
            problem = f"{count} {code}, the first is frame {numbers[0]}"
            yield code, problem, {"frame": numbers[0], "count": len(numbers)}
    if longest >= _LONG_REPETITION:
        problem = f"frames {longest_start} to {longest_start + longest - 1} are the same image"
        yield "repeated", problem, {"frame": longest_start, "count": longest}


def check_source(
    location: Path,
    source: DetectedSource,  # its format, reader and episodes
    episodes: str | None,  # episodes to check; None for all. Checks of the whole data set read all
    check: CheckOptions,  # options of the verification; a full one decodes every frame
) -> Iterator[Finding]:
    reader = source.reader
    yield from reader.source_findings
    yield from duplicate_ids(source.refs)
    refs = select(source.refs, episodes)
    yield from _guarded(reader.check_source([location]))
    expected: Mapping[str, FieldSpec] = {}
    with suppress(DataError):
        survey = reader.survey(refs)
        for problem in filter(None, map(camera_name_problem, survey.cameras)):
            yield finding_of_error(problem)
        measured = measure_some(reader.read, refs) if survey.declared else None
        if measured is not None:
            yield from (finding for finding, _ in contradictions(measured))
        expected = survey.fields
    errors = 0
    work = partial(_check_ref, reader, expected, deep=check.is_full)
    module = source.format if is_class_in_file(source.format) else type(reader).__module__
    workers = max(1, min(check.workers, len(refs) // _EPISODES_PER_WORKER))
    with (
        make_executor(workers, preload=[module]) as executor,
        check.reporter.progress("episodes", len(refs), "episodes") as bar,
    ):
        for outcome in executor.map(work, refs):
            if outcome.error is not None:
                raise outcome.error
            assert outcome.value is not None, "an outcome is a value or an error"
            findings = outcome.value
            yield from findings
            errors += sum(finding.severity == "error" for finding in findings)
            check.counts.add(episodes=1)
            bar.advance(errors=errors)
    sizes = {file: file.stat().st_size for file in _files(refs)}
    check.counts.add(files=len(sizes), bytes=sum(sizes.values()))


def _check_ref(
    reader: FormatReader, expected: Mapping[str, FieldSpec], ref: EpisodeRef, *, deep: bool
) -> list[Finding]:
    """Findings on an episode."""
    findings: list[Finding] = []
    with suppress(DataError):
        problem = field_mismatch(ref.id, reader.survey([ref]).fields, expected)
        if problem is not None and expected:
            findings.append(finding_of_error(problem, episode=ref.id))
    own = reader.check(ref, deep=deep)
    if own is None:
        findings += check_episode(reader, ref, deep=deep)
    else:
        findings += _guarded(own, episode=ref.id)
    return findings


def _files(refs: Sequence[EpisodeRef]) -> Iterator[Path]:
    """Files of episodes; what several of them share is listed once."""
    paths: dict[Path, None] = {}
    for ref in refs:
        paths.update(dict.fromkeys((ref.path, *ref.files)))
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else (path,):
            if file.is_file():
                yield file


def _guarded(findings: Iterator[Finding], **location: Any) -> Iterator[Finding]:
    """Yields `findings`; a DataError that they raise becomes the last one."""
    try:
        yield from findings
    except DataError as error:
        yield finding_of_error(error, **location)
