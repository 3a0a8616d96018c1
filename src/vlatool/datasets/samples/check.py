"""Checks of samples for a language model: the files of the run, lines, images, and totals."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vlatool.datasets.jsonl.layout import DATA_NAME
from vlatool.datasets.samples import layout as samples_layout
from vlatool.datasets.samples.episode import TokenSample, parse_sample, render_sample
from vlatool.errors import DataError
from vlatool.events import counted
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.media.lines import line_ranges, lines_index_path, read_lines, unpaired_indexes
from vlatool.media.tar import read_index
from vlatool.recordings.check import CheckOptions, check_record_and_files
from vlatool.storage.tree import file_names
from vlatool.storage.uri import can_list

_BUILD_AGAIN = "copy the samples again, or build them again with --overwrite"

SAMPLES = FindingCodes(
    "samples",
    no_manifest=info("manifest.json is missing, as in published folders."),
    broken_manifest=error("manifest.json cannot be read.", _BUILD_AGAIN),
    missing_file=error("A file of samples is missing.", _BUILD_AGAIN),
    broken_file=error("A file of samples cannot be read.", _BUILD_AGAIN),
    broken_line=error("A line is not a sample, or a number in it is out of range.", _BUILD_AGAIN),
    other_spelling=error(
        "A line holds a valid sample, but its bytes differ from the standard form.",
        _BUILD_AGAIN,
    ),
    other_shape=error("The number of images differs between samples.", _BUILD_AGAIN),
    unknown_action_id=error(
        "An action id is outside the range of the action tokenizer.", _BUILD_AGAIN
    ),
    count_mismatch=error("The number of samples differs from manifest.json.", _BUILD_AGAIN),
    index_mismatch=error("The index of a file of samples does not match the file.", _BUILD_AGAIN),
    missing_picture=error(
        "An image of a sample is missing.", "copy the images again, or write them again"
    ),
    no_pictures=error(
        "The folder of the images is missing.",
        "move it back to where it was, or build the samples again",
    ),
)


# Findings while samples are built.
BUILD = FindingCodes(
    "build",
    clamped_actions=warning(
        "Actions exceed the range of the action tokenizer and are clamped.",
        "fit a tokenizer on these data with vlatool tokenizer fit-fast",
    ),
)

FINDINGS = (SAMPLES, BUILD)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    has_ended = yield from check_record_and_files(location, location, options)
    if not has_ended:
        return
    try:
        folder = samples_layout.SamplesFolder.open(location)
    except DataError as error:
        code = "broken_manifest"
        if error.code == "data.broken" and samples_layout.is_published(location):
            code = "broken_line"
        yield SAMPLES(code, error.message, path=str(error.details["path"]))
        return
    if not folder.has_manifest:
        path = location / samples_layout.MANIFEST_NAME
        yield SAMPLES.at("no_manifest", path, "is missing")
    yield from _FolderCheck(folder, options).findings()


class _FolderCheck:
    def __init__(self, folder: samples_layout.SamplesFolder, check: CheckOptions) -> None:
        self._folder = folder
        self._check = check
        self._kinds: Counter[str] = Counter()
        self._tasks: Counter[str] = Counter()
        self._known: dict[PurePosixPath, frozenset[str]] = {}
        self._reported: set[str] = set()
        self._root = folder.images_root
        shape: Any = folder.document.get("shape") or {}
        self._shape = (shape.get("pictures"), shape.get("future"))
        fast: Any = folder.document.get("fast") or {}
        self._ids = fast.get("vocab_size")

    def findings(self) -> Iterator[Finding]:
        files = self._folder.files
        check_images = can_list(self._root) and self._root.is_dir()
        if not check_images and can_list(self._root):
            message = f"{self._folder.path}: the folder of its images, {self._root}, is missing"
            yield SAMPLES("no_pictures", message, path=str(self._root))
        if self._check.is_quick:
            self._check.counts.add(files=len(files), samples=len(self._folder))
            return
        has_no_error = True
        with self._check.reporter.progress("files", len(files), "files") as bar:
            for name, count in files:
                for finding in self._file(name, count, check_images=check_images):
                    has_no_error = has_no_error and finding.code == "samples.missing_picture"
                    yield finding
                bar.advance(samples=self._kinds.total())
        self._check.counts.add(files=len(files), samples=self._kinds.total())
        if not self._folder.has_manifest and can_list(self._folder.path):
            for index in unpaired_indexes(self._folder.path / DATA_NAME):
                yield SAMPLES.at("index_mismatch", index, "its file of lines is missing")
        if has_no_error:
            yield from self._totals()

    def _file(self, name: str, count: int, *, check_images: bool) -> Iterator[Finding]:
        path = self._folder.path / name
        if not path.is_file():
            yield SAMPLES.at("missing_file", path, "is missing")
            return
        read = self._packed if self._folder.is_packed else self._lines
        total = 0
        for number, item in enumerate(read(path), 1):
            if isinstance(item, Finding):
                yield item
                if item.code == "samples.broken_file":
                    return
            else:
                self._kinds[item.conversation.kind] += 1
                self._tasks[item.conversation.task] += 1
                yield from self._sample(path, number, item, check_images=check_images)
            total = number
        if total != count:
            problem = f"has {counted(total, 'sample')}, the manifest says {count}"
            yield SAMPLES.at("count_mismatch", path, problem)
        if not self._folder.is_packed:
            yield from _check_index(path)

    def _lines(self, path: Path) -> Iterator[Finding | TokenSample]:
        number = 0
        try:
            for line in read_lines(path):
                number += 1
                yield self._parsed(path, number, line)
        except (ValueError, OSError) as error:
            yield SAMPLES.at("broken_file", path, error, line=number + 1)

    def _packed(self, path: Path) -> Iterator[Finding | TokenSample]:
        try:
            episode = samples_layout.read_packed(path, self._folder.sizes)
        except DataError as error:
            yield SAMPLES("broken_file", error.message, path=str(path))
            return
        for number, line in enumerate(episode.lines(self._folder.prefix), 1):
            yield self._parsed(path, number, line[:-1])

    def _sample(
        self, path: Path, line: int, sample: TokenSample, *, check_images: bool
    ) -> Iterator[Finding]:
        conversation = sample.conversation
        if self._shape != (conversation.images, len(conversation.codes)):
            expected = " and ".join(map(str, self._shape))
            counts = f"{conversation.images} and {len(conversation.codes)}"
            yield SAMPLES.at(
                "other_shape",
                path,
                f"has {counts} images, expected {expected}",
                line=line,
            )
        if isinstance(self._ids, int) and max(conversation.action_ids) >= self._ids:
            largest = max(conversation.action_ids)
            problem = f"has the action id {largest}, expected at most {self._ids - 1}"
            yield SAMPLES.at("unknown_action_id", path, problem, line=line)
        for image in sample.images if check_images else ():
            name = PurePosixPath(image.removeprefix(self._folder.prefix))
            if name.name not in self._names(name.parent) and image not in self._reported:
                self._reported.add(image)
                problem = f"{self._root / name} is missing"
                yield SAMPLES.at("missing_picture", path, problem, line=line)

    def _names(self, folder: PurePosixPath) -> frozenset[str]:
        """Names of the files in a folder of images; each folder is listed once."""
        if folder not in self._known:
            self._known[folder] = file_names(self._root / folder)
        return self._known[folder]

    def _totals(self) -> Iterator[Finding]:
        path = str(self._folder.path / samples_layout.MANIFEST_NAME)
        counts: tuple[tuple[str, Any], ...] = (
            ("samples", self._kinds.total()),
            ("kinds", dict(self._kinds)),
            ("tasks", dict(self._tasks)),
        )
        for key, count in counts:
            expected = self._folder.document.get(key)
            if expected != count:
                problem = f"{key} is {str(expected)[:200]}, counted {str(count)[:200]}"
                yield SAMPLES.at("count_mismatch", path, problem)

    def _parsed(self, path: Path, number: int, line: bytes) -> Finding | TokenSample:
        """Parses a line; returns a finding if it is not a sample in its standard form."""
        try:
            sample = parse_sample(line, self._folder.sizes)
        except ValueError as error:
            return SAMPLES.at("broken_line", path, error, line=number)
        if render_sample(sample)[:-1] != line:
            problem = "spaces or escapes differ from the standard form"
            return SAMPLES.at("other_spelling", path, problem, line=number)
        return sample


def _check_index(path: Path) -> Iterator[Finding]:
    """Compares the index of a file with its lines."""
    index_path = lines_index_path(path)
    if not index_path.is_file():
        return
    index = read_index(index_path)
    try:
        ranges = line_ranges(path)
    except (ValueError, OSError):
        return  # already a finding
    size = sum(length for _, length in ranges)
    if index is None or index.ranges() != ranges or index.shard_bytes != size:
        yield SAMPLES.at("index_mismatch", index_path, f"does not match the lines of {path.name}")
