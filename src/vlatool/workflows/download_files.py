"""Files of a remote location: their list, the job that downloads them, and the next command."""

import hashlib
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from vlatool.datasets.lbm.layout import (
    CONFIG_NAME,
    EPISODES_NAME,
    MANIFEST_NAME,
    METADATA_NAME,
    SHARDS_NAME,
    read_manifest,
)
from vlatool.datasets.stats.layout import DIGESTS_NAME, STATS_NAME
from vlatool.errors import DataError, StorageError
from vlatool.events import Reporter, counted
from vlatool.jobs.command import JobConfig, OutputResult
from vlatool.jobs.executor import ThreadExecutor
from vlatool.jobs.files import FOLDER, NAME, FileEntry, read_file_list
from vlatool.jobs.job import InputState, JobRun, JobSpec, digest_of
from vlatool.jobs.journal import Journal, Receipt
from vlatool.jobs.ownership import pending_commands, versions_of
from vlatool.jobs.record import OutputRecord, partial_folder, read_record
from vlatool.jobs.run import run_command
from vlatool.recordings.lerobot.layout import INFO_FILE
from vlatool.results import OPTIONAL
from vlatool.storage.atomic import remove_tree
from vlatool.storage.background import in_parallel
from vlatool.storage.listing import tree
from vlatool.storage.remote import Address, ObjectInfo, find_object, is_listable
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.transfer import TransferPool, partial_bytes
from vlatool.storage.transfer import download as download_object
from vlatool.storage.tree import size_text
from vlatool.storage.uri import is_inside, local_path

_MAX_HEADS = 16
# Files next to a manifest, and whether training needs them.
_COMPANIONS = {STATS_NAME: True, CONFIG_NAME: True, METADATA_NAME: False, DIGESTS_NAME: False}


@dataclass(frozen=True)
class RemoteObject:
    name: str  # Path in the output
    address: Address
    info: ObjectInfo  # its size and version

    @property
    def path(self) -> str:
        return str(self.address)


def remote_files(source: RemotePath) -> list[RemoteObject]:
    """Files at a location, by their path below it."""
    address = source.address
    if not is_listable(address):
        return _named(source)
    info = find_object(address) if address.key else ObjectInfo(is_dir=True)
    if info is not None and not info.is_dir:
        return [RemoteObject(source.name, address, info)]
    return [
        RemoteObject(name, address.joined(name), info)
        for name, info in tree(address)
        if not info.is_dir
    ]


def _named(source: RemotePath) -> list[RemoteObject]:
    """Files on a web server: the files that a manifest names, or the file at this address."""
    if source.name == MANIFEST_NAME and source.is_file():
        return _infos(source.parent, _manifest_names(source))
    if not PurePosixPath(source.name).suffix:
        if (entries := read_file_list(source)) is not None:
            return list(_of_file_list(source, entries))
        for folder in ("", SHARDS_NAME, EPISODES_NAME):
            manifest = source / folder / MANIFEST_NAME
            if manifest.is_file():
                prefix = f"{folder}/" if folder else ""
                names = [(f"{prefix}{name}", needed) for name, needed in _manifest_names(manifest)]
                return _infos(source, names)
        if (source / INFO_FILE).is_file():
            from vlatool.recordings.lerobot.folder import named_files

            return _infos(source, named_files(source))
    info = find_object(source.address)
    if info is not None:
        return [RemoteObject(source.name, source.address, info)]
    raise DataError.at(
        source,
        f"there is no file here, and no folder with {MANIFEST_NAME}, {INFO_FILE} or {NAME}",
        hint="folders of a web server cannot be listed: give a file or a manifest",
        code="data.no_source",
    )


def _of_file_list(source: RemotePath, entries: Sequence[FileEntry]) -> Iterator[RemoteObject]:
    """Files of an output of vlatool, with the digests in its file list."""
    for entry in entries:
        if entry.count is None:
            info = ObjectInfo(entry.bytes, digest=f"sha256:{entry.sha256}")
            yield RemoteObject(entry.path, source.address.joined(entry.path), info)


def _manifest_names(manifest: RemotePath) -> list[tuple[str, bool]]:
    """Names next to a manifest, and whether they must exist."""
    table = read_manifest(manifest)
    shards = [(f"{name}{table.suffix}", True) for name in table.names]
    return [(MANIFEST_NAME, True), *shards, *((name, False) for name in _COMPANIONS)]


def task_files(task: RemotePath, view: str) -> tuple[list[RemoteObject], list[str]]:
    """Files of a view (`shards` or `episodes`) of a published task.

    Returns the files, with names below the folder of the task, and the names of the files that were
    taken from the other view.

    Files that training needs and the view lacks are taken from there.
    """
    folder = task / view
    try:
        names = _manifest_names(folder / MANIFEST_NAME)
    except DataError as error:
        if error.code != "data.no_manifest":
            raise
        raise DataError.at(
            folder,
            "is not there",
            hint="check --version and --registry; `vlatool download --list` shows the tasks",
            code="data.no_source",
        ) from None
    files = {file.name: file for file in _infos(folder, names)}
    other = task / (EPISODES_NAME if view == SHARDS_NAME else SHARDS_NAME)
    missing = [(name, needed) for name, needed in _COMPANIONS.items() if name not in files]
    borrowed = _infos(other, [(name, needed) for name, needed in missing if needed])
    every = [*files.values(), *borrowed]
    view_files = [RemoteObject(f"{view}/{file.name}", file.address, file.info) for file in every]
    return view_files, [f"{view}/{file.name}" for file in borrowed]


def doubled_error(where: object) -> DataError:
    """Error for a file that occurs twice in a list."""
    return DataError.at(
        where, "is listed twice", hint="the published list is wrong", code="data.broken"
    )


def _infos(folder: Path, names: Sequence[tuple[str, bool]]) -> list[RemoteObject]:
    """Files with their sizes; raises DataError for a missing or doubled one."""
    assert isinstance(folder, RemotePath)
    addresses = [folder.address.joined(name) for name, _ in names]
    infos = in_parallel(find_object, addresses, _MAX_HEADS)
    files: dict[str, RemoteObject] = {}
    for (name, is_needed), address, info in zip(names, addresses, infos, strict=True):
        if name in files:
            raise doubled_error(address)
        if info is not None:
            files[name] = RemoteObject(name, address, info)
        elif is_needed:
            raise DataError.at(
                address,
                "is named in the manifest, but there is no such file",
                hint="the published data are incomplete: tell whoever published them",
                code="data.missing",
            )
    return list(files.values())


def next_command(output: str) -> str:
    """Command for the next step after a download; the same download if it is incomplete."""
    folder = local_path(output)
    record = read_record(folder)
    if record is not None and record.pending_downloads:
        return pending_commands(record, folder)[0]
    return f"vlatool verify {shlex.quote(output)}"


def raw_command(outputs: Sequence[str], annotations: str, name: str) -> str:
    """Command for the next step after raw tasks; `annotations` may be empty; `name` is for the
    shards.
    """
    words = ["vlatool", "preprocess", "spartan", *outputs]
    if annotations:
        words += ["--language-annotations-path", annotations]
    return shlex.join([*words, "--preset", "lbm-1past-14future", "--output", f"{name}-shards"])


def shards_command(outputs: Sequence[str]) -> str:
    """Command for the next step after the shards of tasks."""
    # Published shards name no action fields; the second preset has those of the public tasks.
    words = ["vlatool", "train", "--preset", "policy-tiny", "--preset", "lbm-data-params"]
    for output in outputs:
        words += ["--data", output]
    name = local_path(outputs[0]).name
    return shlex.join([*words, "--output", f"runs/{name}"])


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

    def summary(self) -> str:
        verb = "would download " if self.is_planned else ""
        return f"{verb}{counted(self.files, 'file')}, {size_text(self.bytes)}"


def download_files(
    source: RemotePath,
    files: Sequence["RemoteObject"],
    output: str,
    options: TransferOptions,
    reporter: Reporter,
) -> DownloadResult:
    """Downloads files to an output; files that an earlier call finished are kept."""
    names: set[str] = set()
    for file in files:
        if FOLDER in file.name.split("/") or not is_inside(file.name):
            raise DataError.at(
                file.path,
                f"{file.name!r} cannot be the name of a file in the output",
                hint="leave it out with --leave-out, or rename it there",
                code="data.bad_name",
            )
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
        files: Sequence[RemoteObject],
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
            record=OutputRecord(
                "download", recorded_source(source), pending_downloads=(options.request,)
            ),
            item_name="file",
            plan=_PLAN,
            work=self._download,
            state=object_state,
            owned=("*",),
            locations=(output,),
            replaced="never",
            shown={"output": output_text},
        )

    def name(self, item: RemoteObject) -> str:
        return item.name

    def begin(self) -> None:
        """Checks the space on the disk and starts the progress bar."""
        missing = sum(file.info.size - self._bytes_there(file) for file in self.items)
        check_space(self._output, missing, "; --include downloads a part")
        bar = self._reporter.progress("download", missing, "bytes")
        self.pool.bar = self._stack.enter_context(bar)

    def _bytes_there(self, file: RemoteObject) -> int:
        try:
            return min((self._output / file.name).stat().st_size, file.info.size)
        except OSError:
            return min(partial_bytes(self._partial(file)), file.info.size)

    def _partial(self, file: RemoteObject) -> Path:
        return self._partials / hashlib.sha256(file.name.encode()).hexdigest()[:24]

    def _download(self, file: RemoteObject) -> Receipt:
        target = self._output / file.name
        if target.is_dir():
            raise DataError.at(
                file.path,
                f"is a file there, and {target} is a folder",
                hint="leave it out with --leave-out, or use another --output",
                code="data.bad_name",
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
        """Entries of all files, also of the files that an earlier call downloaded."""
        entries = {entry.path: entry for receipt in receipts for entry in receipt.files}
        failed = {failure["file"] for failure in run.failures}
        for entry in self._earlier_entries():
            if entry.path not in failed and (self._output / entry.path).is_file():
                entries.setdefault(entry.path, entry)
        if not run.failures:
            remove_tree(self._partials)
        return list(entries.values())

    def _earlier_entries(self) -> Iterator[FileEntry]:
        """Newest entry of each file that earlier calls downloaded, also calls that were killed."""
        receipts = Journal(self._output).logged().values()
        yield from (entry for receipt in receipts for entry in receipt.files)
        yield from read_file_list(self._output) or ()

    def result(self, run: JobRun) -> DownloadResult:
        is_planned = run.status == "planned"
        return DownloadResult(
            source=str(self._source),
            bytes=self._total if is_planned else run.sums.get("bytes", 0),
            downloaded_bytes=run.new_counts.get("bytes", 0),
        )


def recorded_source(source: RemotePath) -> dict[str, Any]:
    """Options of the record of a download: the location without its version, and the version."""
    plain = str(source).replace(f"@{source.version}", "", 1)
    return {"source": plain, **versions_of([source])}


def check_space(output: Path, missing: int, hint: str = "") -> None:
    """Checks that the disk of an output has space for bytes that are not there yet."""
    folder = next(path for path in (output, *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise StorageError.at(
            output,
            f"{size_text(missing)} are missing, but only {size_text(free)} are free on this disk",
            hint=f"free space there, or choose an --output on another disk{hint}",
            code="storage.no_space",
        )


def object_state(file: RemoteObject) -> InputState:
    """Size and digest that tell whether a remote file has changed, in any version of vlatool."""
    info = file.info
    sizes = digest_of([info.etag or info.digest, info.size])
    return InputState(digest_of([file.path, sizes]), sizes, int(info.modified * 1e9))
