"""Job that downloads files to an output."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from vlatool.errors import DataError, StorageError
from vlatool.events import Reporter, counted
from vlatool.jobs.command import JobConfig, OutputResult
from vlatool.jobs.executor import ThreadExecutor
from vlatool.jobs.files import FOLDER, FileEntry, read_file_list
from vlatool.jobs.inputs import InputState, digest_of
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Journal, Receipt
from vlatool.jobs.record import OutputRecord, partial_folder
from vlatool.jobs.run import run_command
from vlatool.jobs.versions import versions_of
from vlatool.results import OPTIONAL
from vlatool.storage.atomic import remove_tree
from vlatool.storage.partial_file import partial_bytes
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.transfer import TransferPool
from vlatool.storage.transfer import download as download_object
from vlatool.storage.tree import size_text
from vlatool.storage.uri import is_inside, local_path
from vlatool.workflows.download_next import next_command
from vlatool.workflows.remote_files import RemoteFile, doubled_error

# Part of the journal: raise it when the same object would give another file, not with a release.
_PLAN = "download 1"


@dataclass(frozen=True)
class TransferOptions:
    """Limits of a download."""

    workers: int = 8  # number of requests at the same time
    bytes_per_s: float | None = None  # limit of the rate; None for no limit
    dry_run: bool = False  # report what would be downloaded and write nothing
    # Options of the command that select the files, for the record: they complete the download.
    # `output` is relative to the output of the files.
    request: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class DownloadResult(OutputResult):
    """Result of a download; `failures` lists the files that are not in the output."""

    item_name: ClassVar[str] = "file"

    files: int = 0  # in the output
    source: str  # location with its version, if its storage has versions
    bytes: int  # of the files
    downloaded_bytes: int  # of the files that this call downloaded
    next: str = field(default="", metadata=OPTIONAL)  # empty after a dry run
    resumed: int = 0  # files that an earlier call downloaded

    @property
    def num_resumed(self) -> int:
        return self.resumed

    def summary(self) -> str:
        verb = "would download " if self.is_planned else ""
        return f"{verb}{counted(self.files, 'file')}, {size_text(self.bytes)}"

    @property
    def next_command(self) -> str:
        return self.next


def download_files(
    source: RemotePath,
    files: Sequence["RemoteFile"],
    output: str,
    options: TransferOptions,
    reporter: Reporter,
) -> DownloadResult:
    """Downloads files to an output; what an earlier call finished stays."""
    names: set[str] = set()
    for file in files:
        _check_name(file)
        if file.name in names:
            raise doubled_error(file.path)
        names.add(file.name)
    with ExitStack() as stack:
        job = DownloadJob(source, files, output, options, (reporter, stack))
        executor = ThreadExecutor(options.workers, job.pool.cancel)
        job_options = JobConfig(dry_run=options.dry_run)
        result = run_command(job, DownloadResult, job_options, executor, reporter=reporter)
    is_planned = result.status == "planned"
    return result if is_planned else replace(result, next=next_command(output))


class DownloadJob:
    """Job whose items are files; see `jobs.job.Job`."""

    def __init__(
        self,
        source: RemotePath,
        files: Sequence[RemoteFile],
        output_text: str,
        options: TransferOptions,
        display: tuple[Reporter, ExitStack],
    ) -> None:
        self._output = output = local_path(output_text)
        self._source = source
        self._partials = partial_folder(output)
        self.items = sorted(files, key=lambda file: file.name)
        self._reporter, self._stack = display
        self._total = sum(file.info.size for file in files)
        self.pool = TransferPool(options.workers, options.bytes_per_s, on_note=self._reporter.note)
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("download", recorded_source(source), requests=(options.request,)),
            title=f"download {source}",
            item_name="file",
            plan=_PLAN,
            work=self._download,
            state=object_state,
            owned=("*",),
            locations=(output,),
            grows=True,
            can_overwrite=False,
            skips_storage_errors=True,
            has_own_progress=True,
            shown={"output": output_text},
        )

    def name(self, item: RemoteFile) -> str:
        """Path in the output."""
        return item.name

    def begin(self) -> None:
        """Checks the space on the disk and starts the progress bar."""
        missing = sum(file.info.size - self._bytes_there(file) for file in self.items)
        check_space(self._output, missing, "; --include downloads a part")
        bar = self._reporter.progress("download", missing, "bytes")
        self.pool.bar = self._stack.enter_context(bar)

    def _bytes_there(self, file: RemoteFile) -> int:
        """Bytes of a file that need no more space."""
        try:
            return min((self._output / file.name).stat().st_size, file.info.size)
        except OSError:
            return min(partial_bytes(self._partial(file)), file.info.size)

    def _partial(self, file: RemoteFile) -> Path:
        return self._partials / hashlib.sha256(file.name.encode()).hexdigest()[:24]

    def _download(self, file: RemoteFile) -> Receipt:
        target = self._output / file.name
        if target.is_dir():
            raise DataError.at(
                file.path,
                f"is a file there, and {target} is a folder",
                hint="leave it out with --leave-out, or use another --output",
                code="data.name_conflict",
            )
        if not file.info.has_known_size:
            self._reporter.warn(
                "unknown_size", f"{file.path}: the server sends no size, so the file may be cut"
            )
        with self.pool.file(file.name):
            done = download_object(file.address, file.info, target, self._partial(file), self.pool)
        modified_ns = target.stat().st_mtime_ns if done.is_synced else None
        entry = FileEntry(file.name, done.size, done.sha256, modified_ns=modified_ns)
        return Receipt("", counts={"bytes": done.size}, files=(entry,))

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Entries of all files, with those that an earlier call downloaded."""
        entries = {entry.path: entry for receipt in receipts for entry in receipt.files}
        failed = {failure["file"] for failure in run.failures}
        for entry in self._earlier_entries():
            if entry.path not in failed and (self._output / entry.path).is_file():
                entries.setdefault(entry.path, entry)
        if not run.failures:
            remove_tree(self._partials)
        return list(entries.values())

    def _earlier_entries(self) -> Iterator[FileEntry]:
        """Newest entries of the files of earlier calls, also of those that were killed."""
        receipts = Journal(self._output).logged().values()
        yield from (entry for receipt in receipts for entry in receipt.files)
        yield from read_file_list(self._output) or ()

    def result(self, run: JobRun) -> DownloadResult:
        """Result of the command."""
        is_planned = run.status == "planned"
        return DownloadResult(
            source=str(self._source),
            bytes=self._total if is_planned else run.sums.get("bytes", 0),
            downloaded_bytes=run.new_counts.get("bytes", 0),
        )


def recorded_source(source: RemotePath) -> dict[str, Any]:
    """Options of the record of a download: the location, and its version on its own."""
    plain = str(source).replace(f"@{source.version}", "", 1)
    return {"source": plain, **versions_of([source])}


def check_space(output: Path, missing: int, hint: str = "") -> None:
    """Checks that the disk of an output has space for bytes that are not there yet."""
    folder = next(path for path in (output, *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise StorageError.at(
            output,
            f"{size_text(missing)} are missing and {size_text(free)} are free on this disk",
            hint=f"free space there, or choose an --output on another disk{hint}",
            code="storage.no_space",
        )


def object_state(file: RemoteFile) -> InputState:
    """State of a remote file; it does not depend on the version of vlatool."""
    info = file.info
    sizes = digest_of([info.etag or info.digest, info.size])
    return InputState(digest_of([file.path, sizes]), sizes, int(info.modified * 1e9))


def _check_name(file: RemoteFile) -> None:
    if FOLDER in file.name.split("/") or not is_inside(file.name):
        raise DataError.at(
            file.path,
            f"{file.name!r} cannot be the name of a file in the output",
            hint="leave it out with --leave-out, or rename it there",
            code="data.bad_name",
        )
