"""Shared types of the recorders of raw layouts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from vlatool.jobs.files import FileEntry, digests_below, file_entry, folder_entry
from vlatool.jobs.job import JobRun
from vlatool.jobs.journal import Receipt
from vlatool.storage.atomic import remove_file
from vlatool.world.episodes import WorldEpisode
from vlatool.world.render import View


@dataclass(frozen=True)
class RecordingSetup:
    """Location and content of recordings."""

    output: Path  # folder of the recordings
    views: tuple[View, ...]  # cameras with their image sizes, in order
    depth: bool = False  # True to record depth and label maps


@dataclass(frozen=True)
class RecordedEpisode:
    """Result of a worker for one episode."""

    index: int  # number of the episode
    frames: int  # number of frames
    instruction: str
    success: bool  # True if the expert succeeded
    # Statistics for the meta files of the layout.
    stats: dict[str, Any] = field(default_factory=dict[str, Any])
    files: Sequence[str] = ()  # files or the folder of the episode, relative to the output


class RecordableEpisode(Protocol):
    """Episode of any world."""

    @property
    def index(self) -> int:
        """Number of the episode."""
        ...

    @property
    def instruction(self) -> str: ...

    @property
    def success(self) -> bool:
        """True if the expert succeeded."""
        ...

    def __len__(self) -> int: ...


class LayoutWriter(Protocol):
    """Writer of one raw layout; picklable, so that several processes can write episodes."""

    owned: ClassVar[Sequence[str]]  # patterns of all files it writes
    closing: ClassVar[Sequence[str]]  # files for the whole data set, written last

    @property
    def setup(self) -> RecordingSetup:
        """Location and content."""
        ...

    def write(self, episode: WorldEpisode, first_row: int) -> RecordedEpisode:
        """Writes the files of one episode; `first_row` is the number of frames before it."""
        ...

    def finish(self, episodes: list[RecordedEpisode]) -> None:
        """Writes the files for the whole data set, last."""
        ...


class Recorder(Protocol):
    """Recorder of the episodes of a data set."""

    owned: Sequence[str]  # patterns of all files it writes
    temporary: Sequence[str]  # those of them that are removed once the data set is complete
    # Writes an episode, given the number of frames before it; picklable. `recorded_of` gives the
    # episode of the receipt.
    write: Callable[[Any, int], Receipt]

    def begin(self) -> None:
        """Removes the files that describe the whole data set."""
        ...

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes the files that describe the whole data set; returns the entries of all files."""
        ...


@dataclass(frozen=True)
class _EpisodeFiles:
    """Writes an episode of a layout; picklable."""

    writer: LayoutWriter

    def __call__(self, episode: WorldEpisode, first_row: int) -> Receipt:
        recorded = self.writer.write(episode, first_row)
        files = tuple(map(self._entry, recorded.files))
        facts = asdict(recorded)
        return Receipt("", counts={"frames": recorded.frames}, files=files, facts=facts)

    def _entry(self, name: str) -> FileEntry:
        output = self.writer.setup.output
        if (output / name).is_dir():
            return folder_entry(name, digests_below(output / name))
        return file_entry(output, name)


class LayoutRecorder:
    """Recorder of a layout whose episodes have files of their own."""

    def __init__(self, writer: LayoutWriter) -> None:
        self._writer = writer
        self.owned: Sequence[str] = writer.owned
        self.temporary: Sequence[str] = ()
        self.write: Callable[[Any, int], Receipt] = _EpisodeFiles(writer)

    def begin(self) -> None:
        """Removes the closing files."""
        for name in self._writer.closing:
            remove_file(self._writer.setup.output / name)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Writes the closing files."""
        del run
        files: list[FileEntry] = []
        recorded: list[RecordedEpisode] = []
        for receipt in receipts:
            files += receipt.files
            recorded.append(recorded_of(receipt))
        self._writer.finish(recorded)
        output = self._writer.setup.output
        closing = (name for name in self._writer.closing if (output / name).is_file())
        return [*files, *(file_entry(output, name) for name in closing)]


def recorded_of(receipt: Receipt) -> RecordedEpisode:
    """The recorded episode of a receipt; other facts of it are left out."""
    return RecordedEpisode(**{field.name: receipt.facts[field.name] for field in _FIELDS})


def with_recorded(receipt: Receipt, recorded: RecordedEpisode) -> Receipt:
    """The receipt of a sink as one of a recorder."""
    facts = {key: value for key, value in asdict(recorded).items() if key not in receipt.facts}
    return replace(receipt, item="", facts={**receipt.facts, **facts})


_FIELDS = fields(RecordedEpisode)


def recorded_episode(
    episode: RecordableEpisode, files: Sequence[str], stats: dict[str, Any] | None = None
) -> RecordedEpisode:
    summary = (episode.index, len(episode), episode.instruction, episode.success)
    return RecordedEpisode(*summary, stats or {}, files)
