"""Checks of a folder of windows: every line, every image.

The frame and the length of the episode determine the content of a line. Source:
reference/future-vla 1.3, 1.4; formats/windows 2.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlatool.artifacts.check import CheckOptions, check_record_and_files
from vlatool.artifacts.codes.format import JSON_NAME, PACKED_NAME, is_codes
from vlatool.artifacts.images import decoded_size
from vlatool.artifacts.lines import lines_index_path, read_lines, unpaired_indexes
from vlatool.artifacts.tar import read_index
from vlatool.artifacts.windows.format import (
    DATA_NAME,
    MANIFEST_NAME,
    PUBLISHED_CAMERAS,
    PUBLISHED_STEPS,
    SAMPLES_NAME,
    Kind,
    Window,
    WindowManifest,
    image_file,
    image_folders,
    images_name,
    lines_files,
    parse_window,
    read_manifest,
)
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.storage.byte_ranges import read_file
from vlatool.storage.tree import FileInfo, files_below
from vlatool.transforms.action_tokenizer import (
    future_actions,
    future_frames,
    past_frames,
    with_padding,
)

_WRITE_AGAIN = "copy the output again, or write it again with --overwrite"
_WRITER = "write the data with vlatool preprocess, or fix the program that wrote them"

WINDOWS = FindingCodes(
    "windows",
    no_manifest=info(
        "manifest.json is missing: the published layout is assumed, counts are not compared."
    ),
    broken_manifest=error("manifest.json cannot be read.", _WRITE_AGAIN),
    count_mismatch=error("The number of files or lines differs from the manifest.", _WRITE_AGAIN),
    broken_lines=error("A file of lines cannot be read to its end.", _WRITE_AGAIN),
    bad_line=error("A line is not a window.", _WRITER),
    wrong_line=error("The images, actions or texts of a line do not belong to its frame.", _WRITER),
    index_mismatch=error(
        "The index of a file of lines does not match the file.",
        "write the data again or remove the index",
    ),
    missing_picture=error("An image that a line names is missing.", _WRITE_AGAIN),
    unused_picture=warning("No line names an image.", "move it away"),
    broken_picture=error("An image cannot be decoded or has a wrong size.", _WRITE_AGAIN),
)


_FRAME = re.compile(r"_frame_(\d{6,12})\.png$")
_FIXED: Mapping[str, tuple[Kind, ...]] = {"both": ("vla", "wm"), "vla": ("vla",), "wm": ("wm",)}


FINDINGS = (WINDOWS,)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    nested = [name for name in (JSON_NAME, PACKED_NAME) if is_codes(location / name)]
    nested += [name for name in (SAMPLES_NAME,) if (location / name / MANIFEST_NAME).is_file()]
    has_ended = yield from check_record_and_files(
        location, location, options, nested_outputs=nested
    )
    if not has_ended:
        return
    path = location / MANIFEST_NAME
    manifest = None
    try:
        manifest = read_manifest(location)
        if manifest is None:
            yield WINDOWS.at("no_manifest", path, "is missing")
    except DataError as error:
        yield WINDOWS("broken_manifest", error.message, path=str(path))
    yield from _check_episodes(location, manifest, options)


def _check_episodes(
    location: Path, manifest: WindowManifest | None, check: CheckOptions
) -> Iterator[Finding]:
    paths = lines_files(location)
    lines = 0
    images = 0
    folders = {folder.name for folder in image_folders(location)}
    with check.reporter.progress("episodes", len(paths), "episodes") as bar:
        for path in paths:
            episode = _EpisodeCheck(location, path, _Rules.of(manifest), check)
            yield from episode.findings()
            folders.discard(path.stem)
            lines = lines + episode.lines
            images = images + len(episode.images)
            bar.advance(samples=lines)
    check.counts.add(episodes=len(paths), files=len(paths), samples=lines, pictures=images)
    for index in unpaired_indexes(location / DATA_NAME) if manifest is None else ():
        yield WINDOWS.at("index_mismatch", index, "its file of lines is missing")
    for name in sorted(folders):
        yield WINDOWS.at("unused_picture", location / images_name(name), "no line names its images")
    if manifest is None:
        return
    totals = {"episodes": len(paths), "pictures": images}
    totals |= {} if check.is_quick else {"samples": lines}
    for unit, count in totals.items():
        if count != getattr(manifest, unit):
            manifest_path = location / MANIFEST_NAME
            problem = f"{unit} is {getattr(manifest, unit)}, counted {count}"
            yield WINDOWS.at("count_mismatch", manifest_path, problem)


@dataclass(frozen=True)
class _Rules:
    """Properties that all windows of a folder share."""

    cameras: Sequence[str]  # cameras in order
    past: int  # number of past steps
    future: int  # number of future steps
    kinds: tuple[Kind, ...] = ()  # kinds of the lines of each frame; empty if they vary
    alternates: bool = False  # True if frames have a `vla` and a `wm` line alternately
    # number of values of an action; None for any number that is equal in all lines
    width: int | None = None
    size: tuple[int, int] | None = None  # (width, height) of the images; None if not fixed
    # indices of the values of an action that are relative to the pose at the anchor
    relative: Sequence[int] = ()

    @classmethod
    def of(cls, manifest: WindowManifest | None) -> "_Rules":
        """Creates the rules of a manifest, or of the published layout if there is none."""
        if manifest is None:
            return cls(PUBLISHED_CAMERAS, PUBLISHED_STEPS, PUBLISHED_STEPS)
        return cls(
            manifest.cameras,
            manifest.past_steps,
            manifest.future_steps,
            _FIXED.get(manifest.qa_mode, ()),
            manifest.qa_mode == "alternate",
            manifest.action_width,
            manifest.image_size,
            manifest.relative_dimensions,
        )

    def kinds_at(self, frame: int) -> tuple[Kind, ...]:
        """Kinds of the lines of a frame, in order; empty for any."""
        if self.alternates:
            return ("wm",) if frame % 2 else ("vla",)
        return self.kinds


@dataclass
class _EpisodeCheck:
    location: Path
    path: Path
    rules: _Rules
    check: CheckOptions
    lines: int = 0
    images: Sequence[FileInfo] = ()
    _chunks: dict[int, tuple[int, Window]] = field(default_factory=dict[int, tuple[int, Window]])
    _kinds: dict[int, list[Kind]] = field(default_factory=dict[int, list[Kind]])
    _prefix: str = ""

    @property
    def folder(self) -> str:
        """Folder of the images, relative to the location."""
        return images_name(self.path.stem)

    def findings(self) -> Iterator[Finding]:
        self.images = files_below(self.location / self.folder)
        if self.check.is_quick:
            return
        yield from self._check_lines()
        yield from self._check_images()
        if self.check.is_full:
            yield from self._check_pixels()

    def _check_lines(self) -> Iterator[Finding]:
        lengths: list[int] = []
        matches = (_FRAME.search(image.name) for image in self.images)
        frames = max((int(match[1]) for match in matches if match), default=-1) + 1
        try:
            for number, line in enumerate(read_lines(self.path), 1):
                lengths.append(len(line) + 1)
                yield from self._check_line(number, line, frames)
        except (ValueError, OSError) as error:
            yield WINDOWS.at("broken_lines", self.path, error, line=len(lengths) + 1)
        self.lines = len(lengths)
        yield from self._check_index(lengths)
        yield from self._check_frames(frames)

    def _check_line(self, number: int, line: bytes, frames: int) -> Iterator[Finding]:
        try:
            window = parse_window(line)
            frame = self._frame_of(window)
        except ValueError as error:
            yield self._finding("bad_line", number, str(error))
            return
        for problem in self._problems(window, frame, frames):
            yield self._finding("wrong_line", number, f"frame {frame}: {problem}")
        first = self._chunks.setdefault(frame, (number, window))[1]
        if (first.actions, first.task) != (window.actions, window.task):
            problem = "lines of one frame have different actions or instructions"
            yield self._finding("wrong_line", number, f"frame {frame}: {problem}")
        self._kinds.setdefault(frame, []).append(window.kind)

    def _problems(self, window: Window, frame: int, frames: int) -> Iterator[str]:
        if window.images != self._paths(past_frames(frame, self.rules.past)):
            yield "the past images are wrong"
        if window.future != self._paths(future_frames(frame, self.rules.future, frames)):
            yield "the future images are wrong"
        if len(window.actions) != self.rules.future:
            yield f"has {len(window.actions)} actions, expected {self.rules.future}"

    def _frame_of(self, window: Window) -> int:
        """Frame of a line: that of its last past image."""
        episode = re.escape(self.path.stem)
        camera = re.escape(self.rules.cameras[-1])
        last = window.images[-1] if window.images else ""
        pattern = rf"{re.escape(self.folder)}/(.+)_{camera}_{episode}_frame_(\d{{6,12}})\.png"
        match = re.fullmatch(pattern, last)
        if match is None:
            raise ValueError(f"no frame: {last!r} is not a name of an image of camera {camera}")
        self._prefix = self._prefix or match[1]
        return int(match[2])

    def _paths(self, frames: Sequence[int]) -> tuple[str, ...]:
        return tuple(
            f"{self.folder}/{image_file(self._prefix, camera, self.path.stem, frame)}"
            for frame in frames
            for camera in self.rules.cameras
        )

    def _check_frames(self, frames: int) -> Iterator[Finding]:
        """Checks that every frame has its lines and that their actions agree with the next ones."""
        if not frames or list(self._kinds) != list(range(frames)):
            message = (
                f"{self.path}: has lines of {counted(len(self._kinds), 'frame')}, expected "
                f"{frames} in "
            )
            yield WINDOWS("wrong_line", f"{message}order", path=str(self.path))
            return
        firsts = [window.actions[0] for _, window in self._chunks.values()]
        widths = {len(row) for row in firsts} | {self.rules.width or len(firsts[0])}
        if len(widths) > 1:
            problem = f"the number of values of an action varies: {sorted(widths)}"
            yield WINDOWS.at("wrong_line", self.path, problem)
            return
        relative = list(self.rules.relative)
        padded = with_padding(np.array(firsts), self.rules.future, is_held=bool(relative))
        for frame, (number, window) in self._chunks.items():
            actions = np.array(window.actions)
            expected = np.array(future_actions(padded, frame, self.rules.future))
            if relative and actions.shape == expected.shape:
                # Each window has its own reference: its last real pose is held until its end.
                last = min(frames - 1 - frame, len(actions) - 1)
                expected[: last + 1, relative] = actions[: last + 1, relative]
                expected[last:, relative] = actions[last, relative]
            if not np.array_equal(actions, expected):
                message = f"frame {frame}: the actions do not match those of the next frames"
                yield self._finding("wrong_line", number, message)
            kinds = self.rules.kinds_at(frame)
            if kinds and tuple(self._kinds[frame]) != kinds:
                message = f"frame {frame}: has lines {self._kinds[frame]}, expected {list(kinds)}"
                yield self._finding("wrong_line", number, message)

    def _check_index(self, lengths: Sequence[int]) -> Iterator[Finding]:
        index_path = lines_index_path(self.path)
        if not index_path.is_file():
            return
        index = read_index(index_path)
        if index is None or index.lengths.tolist() != list(lengths):
            problem = f"does not match the lines of {self.path.name}"
            yield WINDOWS.at("index_mismatch", index_path, problem)

    def _check_images(self) -> Iterator[Finding]:
        present = {f"{self.folder}/{image.name}" for image in self.images}
        used = set(self._paths(list(self._kinds)))
        for name in sorted(used - present):
            yield WINDOWS.at("missing_picture", self.location / name, "is missing")
        for name in sorted(present - used) if self._kinds else ():
            yield WINDOWS.at("unused_picture", self.location / name, "no line names it")

    def _check_pixels(self) -> Iterator[Finding]:
        for image in self.images:
            image_path = self.location / self.folder / image.name
            try:
                size = decoded_size(read_file(image_path))
            except (ValueError, OSError) as error:
                yield WINDOWS.at("broken_picture", image_path, error)
                continue
            if self.rules.size not in (None, size):
                problem = f"has {size[0]}x{size[1]} pixels, not the configured size"
                yield WINDOWS.at("broken_picture", image_path, problem)

    def _finding(self, code: str, line: int, message: str) -> Finding:
        return WINDOWS.at(code, self.path, message, line=line)
