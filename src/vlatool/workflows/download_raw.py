"""Download of the raw archive of a task; it resumes at a member."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar

from vlatool.errors import StorageError
from vlatool.events import Reporter, counted
from vlatool.jobs.command import JobConfig, OutputResult
from vlatool.jobs.executor import ThreadExecutor
from vlatool.jobs.files import FileEntry
from vlatool.jobs.job import InputState, JobRun, JobSpec
from vlatool.jobs.journal import Journal, Receipt
from vlatool.jobs.record import OutputRecord, partial_folder
from vlatool.jobs.run import run_command
from vlatool.recordings.spartan.archive import Archive, ChunkStream, Extraction
from vlatool.results import OPTIONAL
from vlatool.storage import atomic, transfer
from vlatool.storage.reader import changed_error
from vlatool.storage.remote import ObjectInfo, call
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.transfer import ChunkReader, TransferPool, partial_bytes
from vlatool.storage.tree import size_text
from vlatool.storage.uri import local_path
from vlatool.workflows import download_files as downloads

_PLAN = "extract 1"  # as in `download_files`
_RESTARTS = 2  # of an archive that changes
_LOG = "members"
_ARCHIVE = "archive"  # the unfinished archive, if it is kept


@dataclass(frozen=True)
class RawTask:
    """The raw archive of a task, and where it goes."""

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
    # Of the whole archive; None unless it is kept.
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
    """Extracts the archive of a task while it is downloaded; resumes at a member."""
    with ExitStack() as stack:
        job = RawJob(task, options, (reporter, stack))
        executor = ThreadExecutor(1, job.pool.cancel)
        job_options = JobConfig(dry_run=options.dry_run)
        result = run_command(job, RawResult, job_options, executor, reporter=reporter)
    if result.status == "planned":
        return result
    command = downloads.raw_command([task.output], task.annotations, task.name)
    return replace(result, next=command)


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
            item_name="archive",
            plan=_PLAN,
            work=self._extract,
            state=self._state,
            owned=("*",),
            locations=(output,),
            replaced="never",
            shown={"output": task.output},
        )

    def name(self, item: downloads.RemoteObject) -> str:
        return item.name

    def _state(self, item: downloads.RemoteObject) -> InputState:
        """State of the archive; it differs if the archive itself is kept in the output."""
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
        log = Journal(self._output, _LOG).log
        return Extraction(archive, self._output, self._partials, log)

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
                archive = extraction.archive_entry
                facts = {
                    "files": len(entries),
                    "folders": extraction.folders,
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
        if extraction.archive_entry is not None:
            extraction.run(partial(_open_at, self._output / file.name))
            return
        stream = ChunkReader(file.address, info, transfer.CHUNK, self.pool)
        extraction.run(lambda position: ChunkStream(stream.read(position)))

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


def _open_at(path: Path, position: int) -> IO[bytes]:
    file = path.open("rb")
    file.seek(position)
    return file
