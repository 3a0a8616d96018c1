"""Rules of a source that hold for every format.

A reader may add two methods and a table of its codes; without them only these rules are checked:

    findings: ClassVar[Family]
    def check(self, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]
    def check_source(self, sources: Sequence[Path]) -> Iterator[Finding]
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from vlatool.episode import EpisodeRef, FrameSource, UInt8Array
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCode, FindingCodes, finding_of_error
from vlatool.sources.base import FormatReader, camera_name_problem, field_mismatch

_RENAMED = re.compile(r"^(?P<id>.+)-\d+$")
# Half a second at the usual 10 frames per second: noise of a real sensor never repeats so long.
_LONG_REPETITION = 5

SOURCE = FindingCodes(
    "source",
    {
        "language_fallback": FindingCode(
            "warning", "An episode has no instruction; its task's name in words is used."
        ),
        "no_language": FindingCode(
            "warning", "An episode has no instruction, and its task has no name.", "name the task"
        ),
        "given_twice": FindingCode("warning", "A source was given twice; it is read once."),
        "episode_missing_camera": FindingCode(
            "warning", "An episode was dropped: it lacks a camera."
        ),
        "upper_case_camera": FindingCode("warning", "The name of a camera has capitals."),
        "duplicate_id": FindingCode(
            "warning",
            "Two episodes have one name; the second is called NAME-2.",
            "rename one of them, or leave one source out",
        ),
        "no_fields": FindingCode(
            "error",
            "The reader finds no field that a policy could predict.",
            "name the fields with the keys of the format",
        ),
    },
)

IMAGES = FindingCodes(
    "pictures",
    {
        "unreadable": FindingCode(
            "error", "A frame cannot be decoded.", "download or record the episode again"
        ),
        "black": FindingCode(
            "warning", "Frames are black all over.", "check the camera; leave the episode out"
        ),
        "constant": FindingCode(
            "warning",
            "Frames have one colour all over, other than black.",
            "check the camera; leave the episode out",
        ),
        "repeated": FindingCode(
            "warning",
            f"A picture is repeated over {_LONG_REPETITION} frames or more.",
            "check whether the camera froze; leave the episode out",
        ),
    },
)


def check_episode(reader: FormatReader, ref: EpisodeRef, *, deep: bool) -> Iterator[Finding]:
    """What every reader can say: whether it reads the episode, and what it warns about.

    With `deep`, every frame of every camera is decoded.
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
        yield SOURCE("no_fields", f"{ref.id}: has no field", episode=ref.id)
    if deep:
        yield from check_cameras(ref.id, episode.cameras)


def check_cameras(episode: str, cameras: Mapping[str, FrameSource]) -> Iterator[Finding]:
    """Decodes every frame of every camera of an episode."""
    for name, frames in cameras.items():
        label = f"{episode}, camera {name}"
        for code, message, location in _image_problems(frames):
            text = message if code == "unreadable" else f"{label}: {message}"
            yield IMAGES(code, text, episode=episode, camera=name, **location)


def check_consistency(reader: FormatReader, refs: Sequence[EpisodeRef]) -> Iterator[Finding]:
    """Cameras and fields that keep episodes from one output; broken episodes are passed over."""
    try:
        survey = reader.survey(refs)
    except DataError:
        return
    for problem in filter(None, map(camera_name_problem, survey.cameras)):
        yield finding_of_error(problem)
    for ref in refs:
        with suppress(DataError):
            problem = field_mismatch(ref.id, reader.survey([ref]).fields, survey.fields)
            if problem is not None:
                yield finding_of_error(problem, episode=ref.id)


def duplicate_ids(refs: Sequence[EpisodeRef]) -> Iterator[Finding]:
    """Episodes that got a number behind their name because it was taken."""
    ids = {ref.id for ref in refs}
    for ref in refs:
        match = _RENAMED.match(ref.id)
        if match and match["id"] in ids:
            message = f"{ref.path}: a second episode called {match['id']}; it is called {ref.id}"
            yield SOURCE("duplicate_id", message, episode=ref.id, path=str(ref.path))


def _image_problems(frames: FrameSource) -> Iterator[tuple[str, str, dict[str, int]]]:
    """(code, problem, place) of the pictures of a camera; decodes every frame once, in order."""
    uniform: dict[str, list[int]] = {"black": [], "constant": []}
    previous: UInt8Array | None = None
    longest = run = (0, 0)  # the first of equal frames, and how many there are
    for frame in range(len(frames)):
        try:
            image = frames.read([frame])[0]
        except DataError as error:
            yield "unreadable", error.message, {"frame": frame}
            break
        if image.size and np.ptp(image.reshape(-1, image.shape[-1]), axis=0).max() == 0:
            uniform["constant" if image.any() else "black"].append(frame)
        is_repeated = previous is not None and np.array_equal(previous, image)
        run = (run[0], run[1] + 1) if is_repeated else (frame, 1)
        longest = max(longest, run, key=lambda frame_run: frame_run[1])
        previous = image
    for code, numbers in uniform.items():
        if numbers:
            problem = f"{len(numbers)} frames are {code}, the first is {numbers[0]}"
            yield code, problem, {"frame": numbers[0], "count": len(numbers)}
    start, length = longest
    if length >= _LONG_REPETITION:
        problem = f"frames {start} to {start + length - 1} are the same picture"
        yield "repeated", problem, {"frame": start, "count": length}
