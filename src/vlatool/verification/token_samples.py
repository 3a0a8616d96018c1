"""Checks of built samples: the files of the run, every line, its pictures, and their sums."""

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

from vlatool.artifacts.lines import lines_index_path, read_lines
from vlatool.artifacts.samples_folder import MANIFEST_NAME, SamplesFolder, read_packed
from vlatool.artifacts.samples_jsonl import TokenSample, parse_sample, render_sample
from vlatool.artifacts.shard import read_index
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.storage.tree import file_names
from vlatool.storage.uri import can_list
from vlatool.verification.check import CheckOptions
from vlatool.verification.findings import SAMPLES
from vlatool.verification.output import check_record_and_files


def check_token_samples(location: Path, check: CheckOptions) -> Iterator[Finding]:
    """Everything that is wrong with built samples."""
    is_ended = yield from check_record_and_files(location, location, check)
    if not is_ended:
        return
    try:
        folder = SamplesFolder.open(location)
    except DataError as error:
        yield SAMPLES("broken_manifest", error.message, path=str(location / MANIFEST_NAME))
        return
    yield from _FolderCheck(folder, check).findings()


class _FolderCheck:
    """The checks of one folder, file by file."""

    def __init__(self, folder: SamplesFolder, check: CheckOptions) -> None:
        self._folder, self._check = folder, check
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
        """Of every file, then of their sums."""
        files = self._folder.files
        can_look = can_list(self._root) and self._root.is_dir()
        if not can_look and can_list(self._root):
            message = f"{self._folder.path}: its pictures are not in {self._root}"
            yield SAMPLES("no_pictures", message, path=str(self._root))
        if self._check.is_quick:
            self._check.counts.add(files=len(files), samples=len(self._folder))
            return
        is_whole = True
        with self._check.reporter.progress("files", len(files), "files") as bar:
            for name, count in files:
                for finding in self._file(name, count, can_look=can_look):
                    is_whole = is_whole and finding.code == "samples.missing_picture"
                    yield finding
                bar.advance(samples=self._kinds.total())
        self._check.counts.add(files=len(files), samples=self._kinds.total())
        if is_whole:
            yield from self._sums()

    def _file(self, name: str, count: int, *, can_look: bool) -> Iterator[Finding]:
        path = self._folder.path / name
        if not path.is_file():
            yield SAMPLES("missing_file", f"{path}: is missing", path=str(path))
            return
        read = self._packed if self._folder.is_packed else self._lines
        found = 0
        for at, one in enumerate(read(path), 1):
            if isinstance(one, Finding):
                yield one
                if one.code == "samples.broken_file":
                    return
            else:
                self._kinds[one.said.kind] += 1
                self._tasks[one.said.task] += 1
                yield from self._sample(f"{path}:{at}", one, can_look=can_look)
            found = at
        if found != count:
            message = f"{path}: has {found} samples, the manifest says {count}"
            yield SAMPLES("count_mismatch", message, path=str(path))
        if not self._folder.is_packed:
            yield from _check_index(path)

    def _lines(self, path: Path) -> Iterator[Finding | TokenSample]:
        number = 0
        try:
            for line in read_lines(path):
                number += 1
                yield _parsed(path, number, line)
        except (ValueError, OSError) as error:
            message = f"{path}:{number + 1}: {error}"
            yield SAMPLES("broken_file", message, path=str(path), line=number + 1)

    def _packed(self, path: Path) -> Iterator[Finding | TokenSample]:
        try:
            episode = read_packed(path)
        except DataError as error:
            yield SAMPLES("broken_file", error.message, path=str(path))
            return
        for number, line in enumerate(episode.lines(self._folder.prefix), 1):
            yield _parsed(path, number, line[:-1])

    def _sample(self, where: str, sample: TokenSample, *, can_look: bool) -> Iterator[Finding]:
        path, _, line = where.rpartition(":")
        place = {"path": path, "line": int(line)}
        said = sample.said
        if self._shape != (said.images, len(said.codes)):
            wanted = " and ".join(map(str, self._shape))
            message = f"{where}: has {said.images} and {len(said.codes)} pictures, not {wanted}"
            yield SAMPLES("other_shape", message, **place)
        if isinstance(self._ids, int) and max(said.action_ids) >= self._ids:
            message = f"{where}: action id {max(said.action_ids)}; there are {self._ids}"
            yield SAMPLES("unknown_action_id", message, **place)
        for image in sample.images if can_look else ():
            name = PurePosixPath(image.removeprefix(self._folder.prefix))
            if name.name not in self._names(name.parent) and image not in self._reported:
                self._reported.add(image)
                message = f"{where}: {self._root / name} is not there"
                yield SAMPLES("missing_picture", message, **place)

    def _names(self, folder: PurePosixPath) -> frozenset[str]:
        """What is in a folder of pictures; each is listed once."""
        if folder not in self._known:
            self._known[folder] = file_names(self._root / folder)
        return self._known[folder]

    def _sums(self) -> Iterator[Finding]:
        path = str(self._folder.path / MANIFEST_NAME)
        counted: tuple[tuple[str, Any], ...] = (
            ("samples", self._kinds.total()),
            ("kinds", dict(self._kinds)),
            ("tasks", dict(self._tasks)),
        )
        for key, found in counted:
            said = self._folder.document.get(key)
            if said != found:
                message = f"{path}: {key} is {str(said)[:200]}, found are {str(found)[:200]}"
                yield SAMPLES("count_mismatch", message, path=path)


def _parsed(path: Path, number: int, line: bytes) -> Finding | TokenSample:
    """The sample in a line, if it is written as it should be."""
    place = {"path": str(path), "line": number}
    try:
        sample = parse_sample(line)
    except ValueError as error:
        return SAMPLES("broken_line", f"{path}:{number}: {error}", **place)
    if render_sample(sample)[:-1] != line:
        message = f"{path}:{number}: is written with other spaces or escapes"
        return SAMPLES("other_spelling", message, **place)
    return sample


def _check_index(path: Path) -> Iterator[Finding]:
    """Whether the index says where the lines are."""
    beside = lines_index_path(path)
    if not beside.is_file():
        return
    index = read_index(beside)
    try:
        lengths = [len(line) + 1 for line in read_lines(path)]
    except (ValueError, OSError):
        return  # told already
    wanted = [(end - n, n) for end, n in zip(accumulate(lengths), lengths, strict=True)]
    if index is None or index.ranges() != wanted or index.shard_bytes != sum(lengths):
        message = f"{beside}: has other places of lines than {path.name}"
        yield SAMPLES("index_mismatch", message, path=str(beside))
