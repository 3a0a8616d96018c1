"""The windows of one episode become samples: codes are looked up, actions encoded.

Legend: W windows, H actions of a window, D values of an action. Source: reference/future-vla 5.1.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from vlatool.artifacts.codes_folder import CodesFolder
from vlatool.artifacts.episode_samples import EpisodeSamples, assemble, distinct_windows
from vlatool.artifacts.fast import read_fast
from vlatool.artifacts.lines import read_lines, write_lines
from vlatool.artifacts.profile import NormalizationProfile
from vlatool.artifacts.samples_folder import packed_name
from vlatool.artifacts.samples_jsonl import parse_sample, question
from vlatool.artifacts.windows import (
    EPISODE_PREFIX,
    IMAGES_NAME,
    Kind,
    Window,
    image_folder,
    lines_name,
    parse_windows,
)
from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes
from vlatool.findings import FindingCode as FindingKind
from vlatool.jobs.files import FileEntry
from vlatool.jobs.inputs import InputState, input_state
from vlatool.jobs.journal import Receipt
from vlatool.storage.atomic import write_bytes
from vlatool.transforms.action_tokenizer import ActionTokenizer

SamplesLayout = Literal["jsonl", "packed"]

BUILD = FindingCodes(
    "build",
    {
        "clamped_actions": FindingKind(
            "warning",
            "Actions exceed the range of the action tokenizer and are clamped.",
            "fit a tokenizer on these data with vlatool tokenizer fit-fast",
        ),
    },
)

_AGAIN = "write the windows again with `vlatool preprocess`, or copy them again"


class WindowFile(NamedTuple):
    """The windows of one episode.

    Attributes:
        episode: Its name: that of the file without suffix.
        path: The file.
    """

    episode: str
    path: Path


class WindowShape(NamedTuple):
    """What all windows have in common."""

    pictures: int
    future: int
    steps: int
    width: int


@dataclass(frozen=True)
class EpisodeBuilder:
    """Writes the samples of an episode; picklable.

    Attributes:
        output: The output folder.
        codes: Where the codes of pictures are.
        fast: Folder of the action tokenizer.
        fast_digest: What it has to be.
        profile: How actions are normalised before.
        kinds: Which samples are taken.
        layout: How they are written.
        prefix: What stands before the path of each picture in a line.
    """

    output: Path
    codes: CodesFolder
    fast: Path
    fast_digest: str
    profile: NormalizationProfile
    kinds: tuple[Kind, ...]
    layout: SamplesLayout
    prefix: str

    def __call__(self, item: WindowFile) -> Receipt:
        """Writes the file and its index, or the packed form.

        Raises:
            DataError: A line is no window, a picture has no codes, an action cannot be encoded.
        """
        windows = [
            _strip_instruction(one) for one in read_windows(item.path) if one.kind in self.kinds
        ]
        if not windows:
            return Receipt(item.episode, counts={"samples": 0})
        shape = common_shape(item.path, windows)
        kept, _ = distinct_windows(windows)
        _check_no_repeats(item, windows)
        _check_own_episode(item, kept)
        ids, findings = self._action_ids(item, kept)
        samples = assemble(windows, ids, self._codes(kept))
        kinds = Counter(one.kind for one in windows)
        return Receipt(
            item.episode,
            counts={"samples": len(windows), "windows": len(kept), **kinds},
            files=self._write(item, samples),
            findings=findings,
            facts={
                "shape": list(shape),
                "ids": sorted(Counter(map(len, ids)).items()),
                "tasks": dict(Counter(one.task for one in windows)),
            },
        )

    def state(self, item: WindowFile) -> InputState:
        """The windows and their codes as they are now."""
        return input_state([item.path, self.codes.place(item.episode)])

    def _write(self, item: WindowFile, samples: EpisodeSamples) -> tuple[FileEntry, ...]:
        if self.layout == "jsonl":
            return write_lines(self.output, lines_name(item.episode), samples.lines(self.prefix))
        return (write_packed(self.output, item.episode, samples),)

    def _action_ids(
        self, item: WindowFile, windows: Sequence[Window]
    ) -> tuple[list[list[int]], tuple[Finding, ...]]:
        """The ids of each window's actions, and what there is to say about them."""
        try:
            with np.errstate(over="ignore"):  # infinity is refused
                chunks = self.profile.normalize(np.array([one.actions for one in windows]))
            found = action_tokenizer(self.fast, self.fast_digest).encode_counted(chunks)
        except ValueError as error:
            raise _refused(item.path, str(error), "data.action_width") from None
        except DataError as error:
            raise _refused(item.path, f"windows without repeats, {error}", error.code) from None
        clamped = int(np.count_nonzero(found.clamped))
        message = f"{item.path}: {clamped} of {len(windows)} windows have actions that are cut"
        told = BUILD("clamped_actions", message, episode=item.episode)
        return found.ids, (told,) if clamped else ()

    def _codes(self, windows: Sequence[Window]) -> Mapping[str, Array]:
        """Codes by the path of each picture to come."""
        wanted: dict[str, dict[str, str]] = {}
        for path in dict.fromkeys(path for one in windows for path in one.future):
            folder, _, name = path.removeprefix(f"{IMAGES_NAME}/").rpartition("/")
            wanted.setdefault(folder, {})[path] = name.rpartition(".")[0]
        found: dict[str, Array] = {}
        for folder, stems in wanted.items():
            read = self.codes.read(folder, stems.values())
            found |= {path: read.codes[read.places[stem]] for path, stem in stems.items()}
        return found


def write_packed(output: Path, episode: str, samples: EpisodeSamples) -> FileEntry:
    """Writes the packed samples of an episode; returns their entry."""
    content, name = samples.content(), packed_name(episode)
    write_bytes(output / name, content)
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest(), len(samples))


@lru_cache(maxsize=1)
def action_tokenizer(folder: Path, digest: str) -> ActionTokenizer:
    """The action tokenizer in a folder, read once per process.

    Raises:
        DataError: It is not the one with this digest any more.
    """
    found = read_fast(folder)
    if found.digest != digest:
        raise _refused(folder, "has changed since the run began", "data.fast_changed")
    return found


def read_windows(path: Path) -> Iterator[Window]:
    """The windows in a file of lines.

    Raises:
        DataError: The file is cut off, or a line is none; names the line.
    """
    number = 0

    def numbered() -> Iterator[bytes]:
        nonlocal number
        for line in read_lines(path):
            number += 1
            if line.strip():
                yield line

    try:
        yield from parse_windows(numbered())
    except (ValueError, OSError) as error:
        if number and _is_built(path, number):
            raise _refused(
                path,
                "holds built samples: the actions and pictures to come are codes already",
                "data.already_built",
                hint="give the folder that `vlatool preprocess` wrote, not what was built of it",
            ) from None
        where = f"line {number}: " if number else ""
        raise _refused(path, f"{where}{error}", "data.broken_window", line=number) from None


def _is_built(path: Path, number: int) -> bool:
    for at, line in enumerate(read_lines(path), 1):
        if at == number:
            try:
                return bool(parse_sample(line))
            except ValueError:
                return False
    return False


def common_shape(path: Path, windows: Sequence[Window]) -> WindowShape:
    """What all windows have in common; DataError where they differ or cannot be rendered."""
    shapes = {
        WindowShape(len(one.images), len(one.future), len(one.actions), len(one.actions[0])): one
        for one in windows
    }
    if len(shapes) > 1:
        found = " and ".join(str(list(shape)) for shape in shapes)
        raise _refused(path, f"windows of different shapes: {found}", "data.mixed_windows")
    shape = next(iter(shapes))
    if not shape.future:
        raise _refused(path, "windows without pictures to come", "data.mixed_windows")
    for task in {one.task for one in windows}:
        try:
            question("vla", task, shape.pictures, "")
        except ValueError as error:
            raise _refused(path, str(error), "data.bad_instruction") from None
    return shape


def _strip_instruction(window: Window) -> Window:
    """The window with its instruction as samples have it, without space at the end."""
    task = window.task.rstrip()
    return window if task == window.task else replace(window, task=task)


def _check_no_repeats(item: WindowFile, windows: Sequence[Window]) -> None:
    """DataError where a window stands there twice."""
    seen: set[tuple[object, ...]] = set()
    for one in windows:
        key = (one.kind, one.task, *one.images[-1:])
        if key in seen:
            reason = f"two {one.kind} windows up to {one.images[-1]} are the same"
            raise _refused(item.path, reason, "data.duplicate_window")
        seen.add(key)


def _check_own_episode(item: WindowFile, windows: Sequence[Window]) -> None:
    """DataError where a window names a picture of elsewhere."""
    for path in {path for one in windows for path in (*one.images, *one.future)}:
        if (folder := image_folder(path)) is None:
            reason = f"{path[:200]!r} is no path such as {IMAGES_NAME}/EPISODE/NAME.png"
            raise _refused(item.path, reason, "data.foreign_picture")
        if item.episode.startswith(EPISODE_PREFIX) and folder != item.episode:
            raise _refused(item.path, f"{path} is of another episode", "data.foreign_picture")


def _refused(
    path: Path, reason: str, code: str, *, hint: str = _AGAIN, line: int | None = None
) -> DataError:
    details = {"path": str(path)} | ({"line": line} if line else {})
    return DataError(f"{path}: {reason}", hint=hint, code=code, details=details)
