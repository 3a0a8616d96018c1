"""Checks of a folder of windows: lines and images.

Folders that vlatool wrote have a manifest, and digests of their files: some lines are read. In
published folders, the frame and the length of the episode determine the content of each line.
Source: reference/future-vla 1.3, 1.4; formats/windows 2.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np

from vlatool.datasets.codes.layout import JSON_NAME, PACKED_NAME, is_codes
from vlatool.datasets.jsonl import layout as windows_layout
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.media.images import decoded_size
from vlatool.media.lines import lines_index_path, read_lines, unpaired_indexes
from vlatool.media.tar import read_index
from vlatool.recordings.check import CheckOptions, check_record_and_files
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
    broken_picture=error("An image cannot be decoded.", _WRITE_AGAIN),
)


_FRAME = re.compile(r"_frame_(\d{6,12})\.png$")


FINDINGS = (WINDOWS,)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of a folder of windows."""
    nested = [name for name in (JSON_NAME, PACKED_NAME) if is_codes(location / name)]
    samples = windows_layout.SAMPLES_NAME
    if (location / samples / windows_layout.MANIFEST_NAME).is_file():
        nested.append(samples)
    has_ended = yield from check_record_and_files(
        location, location, options, nested_outputs=nested
    )
    if not has_ended:
        return
    path = location / windows_layout.MANIFEST_NAME
    manifest = None
    try:
        manifest = windows_layout.read_manifest(location)
        if manifest is None:
            yield WINDOWS.at("no_manifest", path, "is missing")
    except DataError as error:
        yield WINDOWS("broken_manifest", error.message, path=str(path))
        return
    yield from _check_episodes(location, manifest, options)


def _check_episodes(
    location: Path, manifest: windows_layout.WindowManifest | None, check: CheckOptions
) -> Iterator[Finding]:
    paths = windows_layout.lines_files(location)
    lines = 0
    images = 0
    folders = {folder.name for folder in windows_layout.image_folders(location)}
    positions = count()
    with check.reporter.progress("episodes", len(paths), "episodes") as bar:
        for path in paths:
            episode = _EpisodeCheck(location, path, manifest, check, positions)
            yield from episode.findings()
            folders.discard(path.stem)
            lines += episode.lines
            images += len(episode.images)
            bar.advance(samples=lines)
    check.counts.add(episodes=len(paths), files=len(paths), samples=lines, pictures=images)
    if manifest is None:
        for index in unpaired_indexes(location / windows_layout.DATA_NAME):
            yield WINDOWS.at("index_mismatch", index, "its file of lines is missing")
    for name in sorted(folders):
        folder = location / windows_layout.images_name(name)
        yield WINDOWS.at("unused_picture", folder, "no line names its images")
    if manifest is None:
        return
    totals = {"episodes": len(paths), "pictures": images}
    if not check.is_quick:
        totals["samples"] = lines
    for unit, number in totals.items():
        if number != getattr(manifest, unit):
            manifest_path = location / windows_layout.MANIFEST_NAME
            problem = f"{unit} is {getattr(manifest, unit)}, counted {number}"
            yield WINDOWS.at("count_mismatch", manifest_path, problem)


@dataclass
class _EpisodeCheck:
    location: Path
    path: Path
    manifest: windows_layout.WindowManifest | None  # None for the published layout
    check: CheckOptions
    positions: Iterator[int]  # numbers of the lines of the folder
    lines: int = 0
    images: Sequence[FileInfo] = ()
    _chunks: dict[int, tuple[int, windows_layout.Window]] = field(
        default_factory=dict[int, tuple[int, windows_layout.Window]]
    )
    _prefix: str = ""

    @property
    def folder(self) -> str:
        """Folder of the images, relative to the location."""
        return windows_layout.images_name(self.path.stem)

    def findings(self) -> Iterator[Finding]:
        self.images = files_below(self.location / self.folder)
        if self.check.is_quick:
            return
        yield from self._check_lines()
        yield from self._check_images()
        if self.check.is_full:
            yield from self._check_pixels()

    def _check_lines(self) -> Iterator[Finding]:
        """Parses some lines; all of those that have no digest, which are compared with frames."""
        lengths: list[int] = []
        frames = 0
        for image in self.images:
            match = _FRAME.search(image.name)
            if match is not None:
                frames = max(frames, int(match[1]) + 1)
        try:
            for number, line in enumerate(read_lines(self.path), 1):
                lengths.append(len(line) + 1)
                if self.manifest is None:
                    yield from self._check_line(number, line, frames)
                elif self.check.selects(next(self.positions), self.manifest.samples):
                    self.check.counts.add(samples_read=1)
                    try:
                        windows_layout.parse_window(line)
                    except ValueError as error:
                        yield self._finding("bad_line", number, str(error))
        except (ValueError, OSError) as error:
            yield WINDOWS.at("broken_lines", self.path, error, line=len(lengths) + 1)
        self.lines = len(lengths)
        yield from self._check_index(lengths)
        if self.manifest is None:
            yield from self._check_frames(frames)

    def _check_line(self, number: int, line: bytes, frames: int) -> Iterator[Finding]:
        """Compares a line of the published layout with its frame."""
        try:
            window = windows_layout.parse_window(line)
            frame = self._frame_of(window)
        except ValueError as error:
            yield self._finding("bad_line", number, str(error))
            return
        steps = windows_layout.PUBLISHED_STEPS
        problems: list[str] = []
        if window.images != self._paths(past_frames(frame, steps)):
            problems.append("the past images are wrong")
        if window.future != self._paths(future_frames(frame, steps, frames)):
            problems.append("the future images are wrong")
        if len(window.actions) != steps:
            problems.append(f"has {len(window.actions)} actions, expected {steps}")
        _, first = self._chunks.setdefault(frame, (number, window))
        if (first.actions, first.task) != (window.actions, window.task):
            problems.append("lines of one frame have different actions or instructions")
        for problem in problems:
            yield self._finding("wrong_line", number, f"frame {frame}: {problem}")

    def _frame_of(self, window: windows_layout.Window) -> int:
        """Frame of a line: the frame of its last past image."""
        episode = re.escape(self.path.stem)
        camera = re.escape(windows_layout.PUBLISHED_CAMERAS[-1])
        last = window.images[-1] if window.images else ""
        pattern = rf"{re.escape(self.folder)}/(.+)_{camera}_{episode}_frame_(\d{{6,12}})\.png"
        match = re.fullmatch(pattern, last)
        if match is None:
            raise ValueError(f"no frame: {last!r} is not a name of an image of camera {camera}")
        self._prefix = self._prefix or match[1]
        return int(match[2])

    def _paths(self, frames: Sequence[int]) -> tuple[str, ...]:
        paths: list[str] = []
        for frame in frames:
            for camera in windows_layout.PUBLISHED_CAMERAS:
                file = windows_layout.image_file(self._prefix, camera, self.path.stem, frame)
                paths.append(f"{self.folder}/{file}")
        return tuple(paths)

    def _check_frames(self, frames: int) -> Iterator[Finding]:
        """Checks that every frame has its lines and that their actions agree with the next ones."""
        if not frames or list(self._chunks) != list(range(frames)):
            message = (
                f"{self.path}: has lines of {counted(len(self._chunks), 'frame')}, expected "
                f"{frames} in "
            )
            yield WINDOWS("wrong_line", f"{message}order", path=str(self.path))
            return
        firsts = [window.actions[0] for _, window in self._chunks.values()]
        widths = {len(row) for row in firsts}
        if len(widths) > 1:
            problem = f"the number of values of an action varies: {sorted(widths)}"
            yield WINDOWS.at("wrong_line", self.path, problem)
            return
        padded = with_padding(np.array(firsts), windows_layout.PUBLISHED_STEPS)
        for frame, (number, window) in self._chunks.items():
            expected = np.array(future_actions(padded, frame, windows_layout.PUBLISHED_STEPS))
            if not np.array_equal(np.array(window.actions), expected):
                message = f"frame {frame}: its actions do not match the actions of the next frames"
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
        names = {image.name for image in self.images}
        if self.manifest is not None:
            for name in windows_layout.missing_images(
                self.location, self.manifest, self.path.stem, names
            ):
                path = self.location / self.folder / name
                yield WINDOWS.at("missing_picture", path, "is missing")
            return
        present = {f"{self.folder}/{name}" for name in names}
        used = set(self._paths(list(self._chunks)))
        for name in sorted(used - present):
            yield WINDOWS.at("missing_picture", self.location / name, "is missing")
        if self._chunks:
            for name in sorted(present - used):
                yield WINDOWS.at("unused_picture", self.location / name, "no line names it")

    def _check_pixels(self) -> Iterator[Finding]:
        for image in self.images:
            image_path = self.location / self.folder / image.name
            try:
                decoded_size(read_file(image_path))
            except (ValueError, OSError) as error:
                yield WINDOWS.at("broken_picture", image_path, error)

    def _finding(self, code: str, line: int, message: str) -> Finding:
        return WINDOWS.at(code, self.path, message, line=line)
