"""Raw archive of a task, which is extracted while it is downloaded; it resumes at a member.

After each member, the log gets a row with its file and the position behind it. A killed run
continues there, or at the first file that was removed or damaged since.
"""

import hashlib
import io
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry, entry_of, is_intact, row_of
from vlatool.media.archive import ArchiveReader, Member, Stream
from vlatool.storage import atomic
from vlatool.storage.append_log import AppendLog, read_log
from vlatool.storage.crash_points import crash_point

_SYNC_S = 2.0

# The archive from a position on.
OpenArchive = Callable[[int], Stream]


@dataclass(frozen=True)
class Archive:
    """Version of an archive."""

    location: str
    etag: str  # ETag or time of the last change; empty if the server sends neither
    size: int  # size in bytes
    prefix: str  # folder of the archive that is extracted; nothing else may be in it

    @property
    def identity(self) -> dict[str, Any]:
        """Values that identify an interrupted extraction."""
        return {"location": self.location, "etag": self.etag, "size": self.size}


@dataclass
class _Done:
    """Member that was extracted."""

    start: int  # position in the archive
    next: int  # position behind it
    folder: str = ""  # its name; empty for a file
    entry: FileEntry | None = None  # the file; None for a folder
    is_synced: bool = False  # False if a power cut may have damaged the file

    def is_intact(self, output: Path) -> bool:
        if self.entry is None:
            return True
        # A power cut may have taken content, but not the time: then the digest is compared.
        entry = self.entry if self.is_synced else replace(self.entry, modified_ns=None)
        return is_intact(output, entry)

    def row(self) -> dict[str, Any]:
        row: dict[str, Any] = {"start": self.start, "next": self.next}
        if self.entry is None:
            return {**row, "folder": self.folder}
        return {**row, "file": row_of(self.entry)}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "_Done":
        """Member of a row; raises ValueError, KeyError or TypeError if it names none."""
        start = int(row["start"])
        after = int(row["next"])
        if "folder" in row:
            return cls(start, after, folder=str(row["folder"]))
        return cls(start, after, entry=entry_of(row["file"]))


class _State:
    """State of an extraction, from its log."""

    def __init__(self) -> None:
        self.members: list[_Done] = []  # in order, each where the one before it ends
        self.archive: FileEntry | None = None  # the archive itself, if it is part of the output

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> "_State":
        """State after the rows of a log; rows that do not fit are skipped."""
        state = cls()
        for row in rows:
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                state.add(row)
        return state

    @property
    def position(self) -> int:
        """Position in the archive behind the last member."""
        return self.members[-1].next if self.members else 0

    @property
    def entries(self) -> list[FileEntry]:
        return [member.entry for member in self.members if member.entry is not None]

    def add(self, row: Mapping[str, Any]) -> None:
        if "archive" in row:
            self.archive = entry_of(row["archive"])
        elif "synced" in row:
            for member in self.members:
                member.is_synced = True
        else:
            member = _Done.of(row)
            # A run that found a damaged file has continued at its start.
            while self.members and self.members[-1].start >= member.start:
                self.members.pop()
            if member.start == self.position:
                self.members.append(member)

    def keep_intact(self, output: Path) -> None:
        """Forgets the first member that is removed or damaged, and all after it."""
        for count, member in enumerate(self.members):
            if not member.is_intact(output):
                del self.members[count:]
                return


class Extraction:
    """Extraction of one archive to an output; used by one thread."""

    def __init__(self, archive: Archive, output: Path, partials: Path, log: Path) -> None:
        self.archive = archive
        self._output = output
        self._partials = partials
        self._log_path = log
        self._to_sync: list[Path] = []
        self._synced_at = time.monotonic()
        rows = list(read_log(log))
        # Without a version, what is there may be of another archive of the same size.
        self._is_same = bool(archive.etag) and rows[:1] == [archive.identity]
        self._before = _State.of(rows[1:])
        self._state = self._before if self._is_same else _State()
        self._state.keep_intact(output)
        self._reader = ArchiveReader(archive.location, archive.prefix, archive.size)
        for member in self._state.members:
            if member.entry is None:
                self._reader.add(member.folder, is_folder=True)
            else:
                self._reader.add(member.entry.path, is_folder=False)

    @property
    def missing_bytes(self) -> int:
        """Bytes of the archive that are read from now on."""
        return self.archive.size - self._state.position

    @property
    def replaces_other(self) -> bool:
        """True if the output holds files of another version of the archive."""
        return not self._is_same and bool(self._before.entries)

    @property
    def folders(self) -> int:
        """Number of folders, also of those that only occur in names of files."""
        return len(self._reader.folders)

    def entries(self) -> list[FileEntry]:
        return self._state.entries

    @property
    def archive_entry(self) -> FileEntry | None:
        """Entry of the archive, if it is a file of the output and unchanged."""
        entry = self._state.archive
        return entry if entry and is_intact(self._output, entry) else None

    def begin(self) -> None:
        """Starts the log, after the files of another version of the archive are removed."""
        if self._is_same:
            return
        names = [entry.path for entry in self._before.entries]
        for name in names:
            atomic.remove_file(self._output / name)
        atomic.remove_tree(self._partials)
        atomic.remove_file(self._log_path)
        for folder in {name.partition("/")[0] for name in names if "/" in name}:
            atomic.remove_empty(self._output / folder)
        with self._logging():
            self._log.append(self.archive.identity)
        self._is_same = True

    def add_archive(self, entry: FileEntry) -> None:
        with self._logging():
            self._append({"archive": row_of(entry)})

    def run(self, open_archive: OpenArchive) -> None:
        """Extracts the missing members; after `begin`."""
        position = self._state.position
        with self._logging(), open_archive(position) as file:
            for member, content in self._reader.members(file, position):
                done = _Done(self._state.position, member.next)
                if member.is_folder:
                    with atomic.as_storage_error(self._output / member.name):
                        (self._output / member.name).mkdir(parents=True, exist_ok=True)
                    done.folder = member.name
                else:
                    done.entry = self._write(member, content)
                self._append(done.row())
                if time.monotonic() - self._synced_at >= _SYNC_S:
                    self._sync()
            self._sync()

    @contextmanager
    def _logging(self) -> Generator[None]:
        with (
            atomic.as_storage_error(self._log_path, below=self._output),
            AppendLog(self._log_path, sync_s=math.inf) as self._log,
        ):
            yield

    def _append(self, row: Mapping[str, Any]) -> None:
        with atomic.as_storage_error(self._log_path):
            self._log.append(row)
        self._state.add(row)

    def _sync(self) -> None:
        """Syncs all files so far, then the log says so."""
        with atomic.as_storage_error(self._output), crash_point("sync", self._output):
            for path in self._to_sync:
                atomic.sync_path(path)
        for folder in sorted({path.parent for path in self._to_sync}):
            atomic.sync_folder(folder)
        self._append({"synced": True})
        self._log.sync()
        self._to_sync = []
        self._synced_at = time.monotonic()

    def _write(self, member: Member, content: Iterable[bytes]) -> FileEntry:
        """Writes a file, which gets its name when it is complete."""
        target = self._output / member.name
        partial_file = self._partials / "member"
        digest = hashlib.sha256()
        with atomic.as_storage_error(target):
            with crash_point("create", target):
                partial_file.parent.mkdir(parents=True, exist_ok=True)
                file = partial_file.open("wb", buffering=0)
            with file:
                for block in content:
                    digest.update(block)
                    half = partial(file.write, block[: len(block) // 2])
                    with crash_point("write", target, half):
                        rest = memoryview(block)
                        while rest:
                            rest = rest[file.write(rest) :]
            self._check_no_folder(member, target)
            target.parent.mkdir(parents=True, exist_ok=True)
            with crash_point("rename", target):
                partial_file.replace(target)
            modified_ns = target.stat().st_mtime_ns
        self._to_sync.append(target)
        sha256 = digest.hexdigest()
        return FileEntry(member.name, member.size, sha256, modified_ns=modified_ns)

    def _check_no_folder(self, member: Member, target: Path) -> None:
        if target.is_dir():
            raise DataError.at(
                self.archive.location,
                f"{member.name} is a file in the archive, but {target} is a folder",
                hint="download into another --output",
                code="data.bad_name",
            )


class ChunkStream(io.RawIOBase):
    """File over chunks that come in order."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Copies bytes of one chunk to the buffer; returns their number, 0 at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
