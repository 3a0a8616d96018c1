"""Download of a raw archive of a task, which is extracted meanwhile; it resumes inside members.

After each chunk, the log gets a row with the files that the chunk completed, the digest of the
chunk and the position. A killed run continues after the last row, and files that were removed or
damaged since are fetched again, without the rest of the archive.
"""

import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

from vlatool.artifacts.archive import ArchiveReader, Member, Piece
from vlatool.errors import DataError, StorageError
from vlatool.events import Reporter, counted
from vlatool.jobs.command import JobConfig, OutputResult
from vlatool.jobs.executor import ThreadExecutor
from vlatool.jobs.files import FileEntry, entry_of, is_intact, row_of
from vlatool.jobs.job import InputState, JobRun, JobSpec
from vlatool.jobs.journal import Journal, Receipt
from vlatool.jobs.record import OutputRecord, partial_folder
from vlatool.jobs.run import run_command
from vlatool.results import OPTIONAL
from vlatool.storage import atomic, transfer
from vlatool.storage.append_log import AppendLog, read_log
from vlatool.storage.background import in_background
from vlatool.storage.crash_points import crash_point
from vlatool.storage.reader import changed_error
from vlatool.storage.remote import ObjectInfo, call
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.transfer import ChunkStream, Consumer, TransferPool, partial_bytes
from vlatool.storage.tree import size_text
from vlatool.storage.uri import local_path
from vlatool.workflows import download_files as downloads

_SYNC_S = 2.0

# Hands the chunks with these numbers to a consumer, in order.
ReadChunks = Callable[[Sequence[int], Consumer], None]


@dataclass(frozen=True)
class Archive:
    """Version of an archive."""

    location: str
    etag: str  # ETag or time of the last change; empty if the server sends neither
    size: int  # size in bytes
    prefix: str  # folder of the archive that is extracted; nothing else may be in it

    @property
    def identity(self) -> dict[str, Any]:
        """Values by which an interrupted extraction is recognized."""
        return {"location": self.location, "etag": self.etag, "size": self.size}


@dataclass(frozen=True)
class _File:
    """File that was extracted: its entry in the file list, and where its content starts."""

    entry: FileEntry
    start: int

    @property
    def member(self) -> Member:
        return Member(self.entry.path, self.start, self.entry.bytes)

    def row(self) -> dict[str, Any]:
        return {**row_of(self.entry), "start": self.start}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "_File":
        """File of a JSON object; raises ValueError if it names none of the output."""
        return cls(entry_of(row), int(row["start"]))


@dataclass
class _State:
    """State of an extraction, from its log."""

    files: dict[str, _File] = field(default_factory=dict[str, _File])
    folders: set[str] = field(default_factory=set[str])  # names of folders that are members
    # SHA-256 of each chunk by number.
    chunks: dict[int, str] = field(default_factory=dict[int, str])
    # Names of the files that a power cut may have damaged.
    unsynced: set[str] = field(default_factory=set[str])
    # State of the reader; empty at the start.
    reader: Mapping[str, Any] = field(default_factory=dict[str, Any])
    opened: str = ""  # SHA-256 of the content so far of the member in which the position is
    archive: FileEntry | None = None  # the archive itself, if it is part of the output

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> "_State":
        """State after the rows of a log; rows that do not fit are skipped."""
        state = cls()
        for row in rows:
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                state.add(row)
        return state

    def add(self, row: Mapping[str, Any]) -> None:
        number = row.get("chunk")
        if number is not None and number > len(self.chunks):
            raise ValueError(f"no row of the chunk before {number}")
        files = [_File.of(values) for values in row.get("files", ())]
        if number is not None:
            ArchiveReader("", "", 0).restore(row["reader"])
            self.reader = row["reader"]
            self.opened = str(row["opened"])
            self.chunks[number] = str(row["sha256"])
        self.files.update({file.entry.path: file for file in files})
        self.unsynced.update(file.entry.path for file in files)
        self.folders.update(row.get("folders", ()))
        if "archive" in row:
            self.archive = entry_of(row["archive"])
        if "synced" in row:
            self.unsynced.clear()


@dataclass
class _Open:
    """File that is being written."""

    member: Member
    file: IO[bytes]
    digest: Any


class Extraction:
    """Extraction of one archive to an output; used by one thread."""

    def __init__(
        self, archive: Archive, output: Path, partials: Path, log: Path, chunk_bytes: int
    ) -> None:
        self.archive = archive
        self._output = output
        self._partials = partials
        self._log_path = log
        self._open: _Open | None = None
        self._new: list[_File] = []
        self._new_folders: list[str] = []
        self._to_sync: list[Path] = []
        self._synced_at = time.monotonic()
        rows = list(read_log(log))
        before = rows[0] if rows else {}
        # Size of a chunk; an extraction that is continued has that of its start.
        self.chunk_bytes = before.get("chunk_bytes", chunk_bytes)
        # Without a version, what is there may be of another archive of the same size.
        is_known = bool(archive.etag)
        self._is_same = is_known and before == {**archive.identity, "chunk_bytes": self.chunk_bytes}
        self._before = _State.of(rows[1:])
        self._state = self._before if self._is_same else _State()
        state = self._state
        damaged: list[_File] = []
        for name, file in state.files.items():
            # A power cut may have taken content, but not the time: then the digest is compared.
            entry = replace(file.entry, modified_ns=None) if name in state.unsynced else file.entry
            damaged += [] if is_intact(self._output, entry) else [file]
        self._damaged = sorted(damaged, key=lambda file: file.start)
        self._reader = ArchiveReader(archive.location, archive.prefix, archive.size)
        self._restore_reader()

    @property
    def missing_bytes(self) -> int:
        """Bytes of the chunks that are read from now on."""
        numbers = [*self._chunks_of(file.member for file in self._damaged), *self._rest()]
        size = self.chunk_bytes
        return sum(min(size, self.archive.size - number * size) for number in numbers)

    @property
    def replaces_other(self) -> bool:
        """True if the output holds files of another version of the archive."""
        return not self._is_same and bool(self._before.files)

    @property
    def chunk_digests(self) -> list[str]:
        """SHA-256 of each chunk, in order."""
        return [digest for _, digest in sorted(self._state.chunks.items())]

    @property
    def folders(self) -> int:
        """Number of folders, also of those that only occur in names of files."""
        return len(self._reader.folders)

    def entries(self) -> list[FileEntry]:
        return [file.entry for file in self._state.files.values()]

    @property
    def archive_entry(self) -> FileEntry | None:
        """Entry of the archive, if it is a file of the output and unchanged."""
        entry = self._state.archive
        return entry if entry and is_intact(self._output, entry) else None

    def begin(self) -> None:
        """Starts the log, after the files of another version of the archive are removed."""
        if self._is_same:
            return
        for name in self._before.files:
            atomic.remove_file(self._output / name)
        atomic.remove_tree(self._partials)
        atomic.remove_file(self._log_path)
        for folder in {name.partition("/")[0] for name in self._before.files if "/" in name}:
            atomic.remove_empty(self._output / folder)
        with self._logging():
            self._log.append({**self.archive.identity, "chunk_bytes": self.chunk_bytes})
        self._is_same = True

    def add_archive(self, entry: FileEntry) -> None:
        with self._logging():
            self._append({"archive": row_of(entry)})

    def run(self, read: ReadChunks) -> None:
        """Extracts the missing files; after `begin`."""
        with self._logging():
            try:
                self._repair(read)
                self._reopen()
                read(self._rest(), self._consume)
                self._reader.finish()
                self._sync()
            finally:
                if self._open is not None:
                    self._open.file.close()

    @contextmanager
    def _logging(self) -> Generator[None]:
        with (
            atomic.as_storage_error(self._log_path, below=self._output),
            AppendLog(self._log_path, sync_s=math.inf) as self._log,
        ):
            yield

    def _restore_reader(self) -> None:
        """Moves the reader to the position of the log; to the start of a file that is damaged."""
        state = self._state
        reader = self._reader
        if not state.reader:
            return
        reader.restore(state.reader)
        reader.files = set(state.files)
        reader.folders = {parent for name in state.files for parent in _parents(name)}
        reader.folders |= state.folders
        if reader.member is not None:
            reader.files.add(reader.member.name)
            reader.folders |= set(_parents(reader.member.name))
            if not self._recover_open(reader.member, reader.position - reader.member.start):
                reader.position = reader.member.start

    def _recover_open(self, member: Member, size: int) -> bool:
        """True if the first bytes of an unfinished file are those that the log names."""
        for path in (self._partial(member), self._output / member.name):
            with atomic.as_storage_error(path):
                if path.is_file() and _sha256_of_first(path, size) == self._state.opened:
                    return True
        return False

    def _reopen(self) -> None:
        """Opens the unfinished file again, also one that got its name after the last row."""
        member = self._reader.member
        if member is None or self._reader.position == member.start:
            return
        partial_file = self._partial(member)
        target = self._output / member.name
        with atomic.as_storage_error(target):
            if not partial_file.is_file():
                partial_file.parent.mkdir(parents=True, exist_ok=True)
                with crash_point("rename", partial_file):
                    target.replace(partial_file)
            file = partial_file.open("r+b", buffering=0)
            size = self._reader.position - member.start
            file.truncate(size)
            self._open = _Open(member, file, hashlib.file_digest(file, "sha256"))

    def _repair(self, read: ReadChunks) -> None:
        """Fetches damaged files again, by their positions in the archive."""
        expected = {file.entry.path: file.entry.sha256 for file in self._damaged}
        members = deque(file.member for file in self._damaged if file.entry.bytes)
        for file in self._damaged:
            if not file.entry.bytes:
                self._write(Piece(file.member, memoryview(b""), is_last=True))

        def consume(number: int, data: bytes | bytearray) -> None:
            base = number * self.chunk_bytes
            while members and members[0].start < base + len(data):
                member = members[0]
                first = max(member.start, base)
                stop = min(member.stop, base + len(data))
                is_last = stop == member.stop
                self._write(Piece(member, memoryview(data)[first - base : stop - base], is_last))
                if not is_last:
                    return
                members.popleft()

        read(self._chunks_of(members), consume)
        for file in self._new:
            if file.entry.sha256 != expected[file.entry.path]:
                raise DataError.at(
                    self.archive.location,
                    f"{file.entry.path} does not have the content that it had before",
                    hint="run the same command again; if it fails again, remove the output",
                    code="data.wrong_digest",
                )
        if self._new:
            self._append({})

    def _rest(self) -> range:
        count = -(-self.archive.size // self.chunk_bytes)
        return range(self._reader.position // self.chunk_bytes, count)

    def _chunks_of(self, members: Iterable[Member]) -> list[int]:
        size = self.chunk_bytes
        numbers = (range(m.start // size, (m.stop - 1) // size + 1) for m in members)
        return sorted({number for span in numbers for number in span})

    def _consume(self, number: int, data: bytes | bytearray) -> None:
        digest = in_background(lambda: hashlib.sha256(data).hexdigest())
        skipped = self._reader.position - number * self.chunk_bytes
        for piece in self._reader.feed(memoryview(data)[skipped:]):
            self._write(piece)
        opened = ""
        if self._open is not None:
            opened = self._open.digest.hexdigest()
        chunk = {"chunk": number, "sha256": digest.result(), "opened": opened}
        self._append({**chunk, "reader": self._reader.state()})
        if time.monotonic() - self._synced_at >= _SYNC_S:
            self._sync()

    def _append(self, row: Mapping[str, Any]) -> None:
        """Logs a row with the files and folders since the last one."""
        files = {"files": [file.row() for file in self._new]} if self._new else {}
        folders = {"folders": self._new_folders} if self._new_folders else {}
        row = {**row, **files, **folders}
        with atomic.as_storage_error(self._log_path):
            self._log.append(row)
        self._state.add(row)
        self._new = []
        self._new_folders = []

    def _sync(self) -> None:
        """Syncs all files so far, then the log says so."""
        with atomic.as_storage_error(self._output), crash_point("sync", self._output):
            if self._open is not None:
                os.fsync(self._open.file.fileno())
            for path in self._to_sync:
                atomic.sync_path(path)
        for folder in sorted({path.parent for path in self._to_sync}):
            atomic.sync_folder(folder)
        self._append({"synced": True})
        self._log.sync()
        self._to_sync = []
        self._synced_at = time.monotonic()

    def _write(self, piece: Piece) -> None:
        """Writes bytes of a member; a complete file gets its name."""
        member = piece.member
        target = self._output / member.name
        if member.is_folder:
            with atomic.as_storage_error(target):
                target.mkdir(parents=True, exist_ok=True)
            self._new_folders.append(member.name)
            return
        with atomic.as_storage_error(target):
            if self._open is None:
                path = self._partial(member)
                with crash_point("create", path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._open = _Open(member, path.open("wb", buffering=0), hashlib.sha256())
            self._write_bytes(self._open, piece.data)
            if piece.is_last:
                self._open.file.close()
                self._name(self._open)
                self._open = None

    def _write_bytes(self, opened: _Open, data: memoryview) -> None:
        half = partial(opened.file.write, data[: len(data) // 2])
        with crash_point("write", self._output / opened.member.name, half):
            opened.digest.update(data)
            while data:
                data = data[opened.file.write(data) :]

    def _name(self, opened: _Open) -> None:
        member = opened.member
        target = self._output / opened.member.name
        if target.is_dir():
            raise DataError.at(
                self.archive.location,
                f"{member.name} is a file there, and {target} is a folder",
                hint="use another --output",
                code="data.name_conflict",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with crash_point("rename", target):
            self._partial(member).replace(target)
        digest = opened.digest.hexdigest()
        modified_ns = target.stat().st_mtime_ns
        entry = FileEntry(member.name, member.size, digest, modified_ns=modified_ns)
        self._new.append(_File(entry, member.start))
        self._to_sync.append(target)

    def _partial(self, member: Member) -> Path:
        return self._partials / hashlib.sha256(member.name.encode()).hexdigest()[:24]


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _sha256_of_first(path: Path, size: int) -> str:
    """SHA-256 of the first bytes of a file; empty if it has fewer."""
    if path.stat().st_size < size:
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size and (data := file.read(min(size, 2**20))):
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()


_PLAN = "extract 1"  # as in `download_files`
_RESTARTS = 2  # of an archive that changes
_LOG = "members"
_ARCHIVE = "archive"  # the unfinished archive, if it is kept


@dataclass(frozen=True)
class RawTask:
    """Raw archive of a task."""

    name: str
    source: RemotePath  # location of the archive
    info: ObjectInfo  # its size and version
    output: str  # folder of the output, which is the folder of the task in the archive
    keep_archive: bool = False  # keep the archive in the output
    # File with the language annotations, for the next command; empty for none.
    annotations: str = ""


@dataclass(frozen=True, kw_only=True)
class RawResult(OutputResult):
    """Result of the download of a raw archive."""

    item_name: ClassVar[str] = "archive"

    source: str  # location of the archive
    bytes: int  # of the archive
    downloaded_bytes: int = 0  # that this call read
    files: int = 0  # that were extracted
    folders: int = 0
    extracted_bytes: int = 0
    chunk_bytes: int = 0  # size of the chunks of the archive that have a digest
    chunks_sha256: str = ""  # of the concatenated hexadecimal SHA-256 of all chunks
    # Of the whole archive; None unless it is kept, as chunks are digested one by one.
    archive_sha256: str | None = None
    next: str = field(default="", metadata=OPTIONAL)  # empty after a dry run

    def summary(self) -> str:
        name = self.source.rpartition("/")[2]
        if self.is_planned:
            return f"would extract {name}, {size_text(self.bytes)}"
        return f"{counted(self.files, 'file')} of {name}, {size_text(self.extracted_bytes)}"


def download_raw(
    task: RawTask, options: downloads.TransferOptions, reporter: Reporter
) -> RawResult:
    """Extracts the archive of a task while it is downloaded; resumes inside members."""
    with ExitStack() as stack:
        job = RawJob(task, options, (reporter, stack))
        executor = ThreadExecutor(1, job.pool.cancel)
        job_options = JobConfig(dry_run=options.dry_run)
        result = run_command(job, RawResult, job_options, executor, reporter=reporter)
    if result.status == "planned":
        return result
    return replace(result, next=downloads.raw_task_command(task.output, task.annotations))


class RawJob:
    """Job whose only item is an archive; see `jobs.job.Job`."""

    def __init__(
        self, task: RawTask, options: downloads.TransferOptions, display: tuple[Reporter, ExitStack]
    ) -> None:
        self._task = task
        self._output = output = local_path(task.output)
        self._partials = partial_folder(output)
        self._reporter, self._stack = display
        self._extraction: Extraction | None = None
        self._facts: Mapping[str, Any] = {}
        self._file = downloads.RemoteObject(task.source.name, task.source.address, task.info)
        self.items = [self._file]
        self.pool = TransferPool(options.workers, options.bytes_per_s, on_note=self._reporter.note)
        self.spec = JobSpec(
            output=output,
            record=OutputRecord(
                "download",
                downloads.recorded_source(task.source),
                pending_downloads=(options.request,),
            ),
            title=f"download {task.source}",
            item_name="archive",
            plan=_PLAN,
            work=self._extract,
            state=self._state,
            owned=("*",),
            locations=(output,),
            grows=True,
            can_overwrite=False,
            skips_storage_errors=True,
            has_own_progress=True,
            shown={"output": task.output},
        )

    def name(self, item: downloads.RemoteObject) -> str:
        return item.name

    def _state(self, item: downloads.RemoteObject) -> InputState:
        """State of the archive; another one if it becomes a file of the output."""
        state = downloads.object_state(item)
        if not (self._task.keep_archive or (self._output / item.name).is_file()):
            return state
        return replace(state, digest=f"{state.digest} archive", sizes=f"{state.sizes} archive")

    def begin(self) -> None:
        """Checks the space on the disk and starts the progress bar."""
        self._extraction = extraction = self._opened(self._task.info)
        missing = extraction.missing_bytes
        if self._needs_archive(extraction):
            archive = max(0, self._task.info.size - partial_bytes(self._partials / _ARCHIVE))
            downloads.check_space(self._output, missing + archive)
            total = archive
        else:
            downloads.check_space(self._output, missing)
            total = missing
        bar = self._reporter.progress("download", total, "bytes")
        self.pool.bar = self._stack.enter_context(bar)

    def _opened(self, info: ObjectInfo) -> Extraction:
        """Extraction of a version of the archive, at the position that its log names."""
        prefix = f"tasks/{self._task.name}"
        archive = Archive(self._file.path, info.etag or info.digest, info.size, prefix)
        log = Journal(self._output, _LOG).log()
        return Extraction(archive, self._output, self._partials, log, transfer.CHUNK)

    def _needs_archive(self, extraction: Extraction) -> bool:
        return self._task.keep_archive and extraction.archive_entry is None

    def _extract(self, file: downloads.RemoteObject) -> Receipt:
        """Extracts the archive, from the start again if it changes meanwhile."""
        info = file.info
        for attempt in range(_RESTARTS + 1):
            extraction = self._extraction or self._opened(info)
            self._extraction = None
            try:
                with self.pool.file(file.name):
                    self._extract_version(extraction, info)
                entries = extraction.entries()
                digests = extraction.chunk_digests
                archive = extraction.archive_entry
                facts = {
                    "files": len(entries),
                    "folders": extraction.folders,
                    "chunk_bytes": extraction.chunk_bytes,
                    "chunks_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
                    "archive_sha256": archive.sha256 if archive else None,
                }
                counts = {"bytes": sum(entry.bytes for entry in entries)}
                files = (*entries, *([archive] if archive else []))
                return Receipt("", counts=counts, files=files, facts=facts)
            except StorageError as error:
                if error.code != "storage.changed" or attempt == _RESTARTS:
                    raise
                info = call(file.address, lambda remote: remote.head(file.address.key))
        raise AssertionError

    def _extract_version(self, extraction: Extraction, info: ObjectInfo) -> None:
        file = self._file
        if extraction.replaces_other:
            reason = "has changed" if extraction.archive.etag else "has no version on the server"
            self._reporter.warn(
                "archive_changed", f"{file.path} {reason}: it is extracted from the start again"
            )
        extraction.begin()
        if self._needs_archive(extraction):
            self._download_archive(extraction, info)
        stream = ChunkStream(file.address, info, extraction.chunk_bytes, self.pool)
        local = self._output / file.name
        is_here = extraction.archive_entry is not None
        extraction.run(
            partial(_read_local, local, extraction.chunk_bytes) if is_here else stream.read
        )

    def _download_archive(self, extraction: Extraction, info: ObjectInfo) -> None:
        file = self._file
        target = self._output / file.name
        done = transfer.download(file.address, info, target, self._partials / _ARCHIVE, self.pool)
        if done.size != info.size:
            raise changed_error(file.path)
        modified_ns = target.stat().st_mtime_ns if done.is_synced else None
        entry = FileEntry(file.name, done.size, done.sha256, modified_ns=modified_ns)
        extraction.add_archive(entry)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        entries: list[FileEntry] = []
        for receipt in receipts:
            entries += receipt.files
            self._facts = receipt.facts
        if not run.failures:
            atomic.remove_tree(self._partials)
        return entries

    def result(self, run: JobRun) -> RawResult:
        return RawResult(
            source=str(self._task.source),
            bytes=self._task.info.size,
            downloaded_bytes=self.pool.received,
            extracted_bytes=run.sums.get("bytes", 0),
            **self._facts,
        )


def _read_local(path: Path, chunk_bytes: int, numbers: Sequence[int], consume: Consumer) -> None:
    with path.open("rb") as file:
        for number in numbers:
            file.seek(number * chunk_bytes)
            consume(number, file.read(chunk_bytes))
