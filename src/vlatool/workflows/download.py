"""Download of the files at a remote location."""

import fnmatch
import hashlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import Field, field_validator

from vlatool.artifacts.shards.format import (
    CONFIG_NAME,
    EPISODES_NAME,
    MANIFEST_NAME,
    METADATA_NAME,
    SHARDS_NAME,
    read_manifest,
)
from vlatool.artifacts.stats.format import DIGESTS_NAME, STATS_NAME
from vlatool.config.base import ConfigModel, check_required, execution_field, required_field
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.events import NULL, Reporter
from vlatool.jobs.command import JobConfig, JobResult
from vlatool.jobs.executor import ThreadExecutor
from vlatool.jobs.files import FOLDER, NAME, FileEntry, read_file_list
from vlatool.jobs.inputs import InputState, digest_of
from vlatool.jobs.job import JobRun, JobSpec
from vlatool.jobs.journal import Receipt
from vlatool.jobs.record import OutputRecord, partial_folder, versions_of
from vlatool.jobs.run import run_command
from vlatool.storage.atomic import remove_tree
from vlatool.storage.background import in_parallel
from vlatool.storage.listing import tree
from vlatool.storage.remote import Address, ObjectInfo, find_object, is_listable
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.transfer import TransferPool, partial_bytes
from vlatool.storage.transfer import download as download_object
from vlatool.storage.tree import size_text
from vlatool.storage.uri import is_file_name, local_path, pinned

_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kMG]?)B?(?:/s)?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_MAX_HEADS = 16
_SHOWN = 10
# Part of the journal: raise it when the same object would give another file, not with a release.
_PLAN = "download 1"
# Files next to a manifest, of which a web server may lack some.
_COMPANIONS = (STATS_NAME, DIGESTS_NAME, CONFIG_NAME, METADATA_NAME)


class DownloadConfig(ConfigModel):
    """Options of `vlatool download`."""

    source: str = required_field("", "Location of a folder or a file: hf://, s3:// or https://.")
    output: str = required_field("", "Folder for the files.")
    include: list[str] = Field(
        default=[], description="Only files whose path matches a pattern, such as 'meta/*'."
    )
    leave_out: list[str] = Field(
        default=[], description="No files whose path matches a pattern, such as '*.mp4'."
    )
    workers: int = execution_field(8, "Number of requests at the same time.", ge=1, le=256)
    limit_rate: str | None = execution_field(
        None, "Bytes per second at most, such as 500k, 20M or 1G; null: no limit."
    )
    dry_run: bool = execution_field(
        default=False, description="Report what would be downloaded and write nothing."
    )

    @field_validator("limit_rate")
    @classmethod
    def _is_rate(cls, value: str | None) -> str | None:
        if value is not None and not _bytes_per_s(value):
            raise ValueError("is no rate: write a number above 0 with k, M or G, such as 20M")
        return value


def _bytes_per_s(text: str | None) -> float | None:
    """Number of bytes per second; None without a limit."""
    match = _RATE.fullmatch(text.strip()) if text is not None else None
    return float(match[1]) * _UNITS[match[2]] if match is not None else None


@dataclass(frozen=True, kw_only=True)
class DownloadResult(JobResult):
    """Result of a download; `failures` lists the files that are not in the output.

    Attributes:
        source: Location with its version, if its storage has versions.
        bytes: Size of the files.
        downloaded_bytes: Size of the files that this call downloaded.
    """

    source: str
    bytes: int
    downloaded_bytes: int

    def document(self) -> dict[str, Any]:
        """The result as a JSON-serializable mapping."""
        values = super().document()
        return {"output": self.output, "files": values.pop("episodes"), **values}

    @classmethod
    def of_record(cls, recorded: Mapping[str, Any] | None, shown: Mapping[str, Any]) -> Self:
        """Result of a complete run, from its record."""
        values = dict(recorded or {})
        return super().of_record({"episodes": values.pop("files", 0), **values}, shown)

    def text(self) -> str:
        """The result as text."""
        size = size_text(self.bytes)
        lines = [f"{self.output}: {_files(self.episodes)}, {size}"]
        if self.status == "planned":
            rest = f", {self.resumed} are there" if self.resumed else ""
            lines = [f"{self.output}: would download {_files(self.episodes)}, {size}{rest}"]
            lines[0] += "; nothing was written"
        elif self.status == "already complete":
            lines[0] += "; already complete, nothing to do"
        elif self.resumed:
            lines.append(f"{_files(self.resumed)} from an earlier run")
        failed = [f"failed {row['file']}: {row['message']}" for row in self.failures[:_SHOWN]]
        rest = len(self.failures) - len(failed)
        return "\n".join([*lines, *failed, *([f"and {rest} more failed"] if rest else [])])


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def download(config: DownloadConfig, *, reporter: Reporter = NULL) -> DownloadResult:
    """Downloads the files at a location to a folder.

    The same call resumes an interrupted run, inside large files too, and downloads files that
    changed since. Files of an earlier call with other patterns stay.

    Raises:
        UsageError: A required key is missing, or the output belongs to something else.
        DataError: There is nothing at the location, or names cannot be used here.
        StorageError: Only the storage failed: of a listing, or of some files.
        PartialFailure: Some files are not in the output.
    """
    check_required(config, "vlatool download hf://datasets/OWNER/NAME --output DIR")
    source = pinned(config.source)
    if not isinstance(source, RemotePath):
        raise UsageError(
            f"{config.source}: is a local path",
            hint="give a location such as hf://datasets/OWNER/NAME or s3://BUCKET/FOLDER",
            code="usage.local_source",
        )
    files = _selected(config, source, _listed(source))
    options = JobConfig(dry_run=config.dry_run)
    with ExitStack() as stack:
        job = DownloadJob(config, source, files, reporter, stack)
        executor = ThreadExecutor(config.workers, job.pool.cancel)
        return run_command(job, DownloadResult, options, executor, reporter=reporter)


@dataclass(frozen=True)
class RemoteFile:
    """File of a remote location.

    Attributes:
        name: Path in the output.
        address: The object.
        info: Its size and version.
    """

    name: str
    address: Address
    info: ObjectInfo

    @property
    def path(self) -> str:
        """Location, for messages."""
        return str(self.address)


class DownloadJob:
    """Job whose items are files; see `jobs.job.Job`."""

    def __init__(
        self,
        config: DownloadConfig,
        source: RemotePath,
        files: Sequence[RemoteFile],
        reporter: Reporter,
        stack: ExitStack,
    ) -> None:
        self._output = output = local_path(config.output)
        self._source = source
        self._partials = partial_folder(output)
        self.items = files
        self._reporter, self._stack = reporter, stack
        self._total = sum(file.info.size for file in files)
        rate = _bytes_per_s(config.limit_rate)
        self.pool = TransferPool(config.workers, rate, on_note=reporter.note)
        plain = str(source).replace(f"@{source.version}", "", 1)
        options = {"source": plain, **versions_of([source])}
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("download", options),
            title=f"download {config.source}",
            item_name="file",
            plan=_PLAN,
            work=self._download,
            state=_state,
            owned=("*",),
            locations=(output,),
            grows=True,
            can_overwrite=False,
            skips_storage_errors=True,
            has_own_progress=True,
            shown={"output": config.output},
        )

    def name(self, item: RemoteFile) -> str:
        """Path in the output."""
        return item.name

    def begin(self) -> None:
        """Checks the space on the disk and starts the progress bar.

        Raises:
            StorageError: The remaining files do not fit.
        """
        missing = sum(file.info.size - self._bytes_there(file) for file in self.items)
        folder = next(path for path in (self._output, *self._output.parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise StorageError.at(
                self._output,
                f"{size_text(missing)} are missing and {size_text(free)} are free on this disk",
                hint="free space there, or choose an --output on another disk; --include downloads"
                " a part",
                code="storage.no_space",
            )
        bar = self._stack.enter_context(self._reporter.progress("download", missing, "bytes"))
        self.pool.on_bytes = bar.advance

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
        done = download_object(file.address, file.info, target, self._partial(file), self.pool)
        modified_ns = target.stat().st_mtime_ns if done.is_synced else None
        entry = FileEntry(file.name, done.size, done.sha256, modified_ns=modified_ns)
        return Receipt("", counts={"bytes": done.size}, files=(entry,))

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        """Entries of all files, with those that an earlier call downloaded."""
        entries = {entry.path: entry for receipt in receipts for entry in receipt.files}
        failed = {failure["file"] for failure in run.failures}
        for entry in read_file_list(self._output) or ():
            if entry.path not in failed and (self._output / entry.path).is_file():
                entries.setdefault(entry.path, entry)
        if not run.failures:
            remove_tree(self._partials)
        return list(entries.values())

    def result(self, run: JobRun) -> DownloadResult:
        """Result of the command."""
        is_planned = run.status == "planned"
        return DownloadResult(
            source=str(self._source),
            bytes=self._total if is_planned else run.sums.get("bytes", 0),
            downloaded_bytes=run.new_counts.get("bytes", 0),
        )


def _state(file: RemoteFile) -> InputState:
    info = file.info
    sizes = digest_of([info.etag or info.digest, info.size])
    return InputState(digest_of([file.path, sizes]), sizes, int(info.modified * 1e9))


def _selected(
    config: DownloadConfig, source: RemotePath, files: Sequence[RemoteFile]
) -> list[RemoteFile]:
    """Files that the patterns select, sorted by name.

    Raises:
        DataError: There are no files, or a name cannot be used.
        UsageError: The patterns select none.
    """
    if not files:
        raise DataError.at(
            source, "contains no files", hint="check the location", code="data.no_files"
        )
    selected = [
        file
        for file in files
        if (not config.include or _matches(file.name, config.include))
        and not _matches(file.name, config.leave_out)
    ]
    if not selected:
        raise UsageError(
            f"{source}: the patterns select none of {_files(len(files))}",
            hint=f"names there are, for example, {', '.join(file.name for file in files[:3])}",
            code="usage.nothing_selected",
        )
    for file in selected:
        _check_name(file)
    return sorted(selected, key=lambda file: file.name)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_name(file: RemoteFile) -> None:
    """Checks that a name stays in the output.

    Raises:
        DataError: It does not, or it cannot be a file name here.
    """
    parts = file.name.split("/")
    is_outside = file.name.startswith("/") or any(part in ("", ".", "..") for part in parts)
    if is_outside or FOLDER in parts or not all(map(is_file_name, parts)):
        raise DataError.at(
            file.path,
            f"{file.name!r} cannot be the name of a file in the output",
            hint="leave it out with --leave-out, or rename it there",
            code="data.bad_name",
        )


def _listed(source: RemotePath) -> list[RemoteFile]:
    """Files at a location."""
    address = source.address
    if not is_listable(address):
        return _named(source)
    info = find_object(address) if address.key else ObjectInfo(is_dir=True)
    if info is not None and not info.is_dir:
        return [RemoteFile(source.name, address, info)]
    return [
        RemoteFile(name, address.joined(name), info)
        for name, info in tree(address)
        if not info.is_dir
    ]


def _named(source: RemotePath) -> list[RemoteFile]:
    """Files of a web server: what a manifest names, or the file itself."""
    if source.name == MANIFEST_NAME:
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
    info = find_object(source.address)
    if info is not None:
        return [RemoteFile(source.name, source.address, info)]
    raise DataError.at(
        source,
        f"no file, and no folder with {MANIFEST_NAME} or {NAME}",
        hint="web servers cannot list folders: name a file or a manifest",
        code="data.no_source",
    )


def _of_file_list(source: RemotePath, entries: Sequence[FileEntry]) -> Iterator[RemoteFile]:
    """Files of an output of vlatool, with the digests in its file list."""
    for entry in entries:
        if entry.count is None:
            info = ObjectInfo(entry.bytes, digest=f"sha256:{entry.sha256}")
            yield RemoteFile(entry.path, source.address.joined(entry.path), info)


def _manifest_names(manifest: Path) -> list[tuple[str, bool]]:
    """Names next to a manifest, and whether they must exist."""
    shards = [
        (shard.path.relative_to(manifest.parent).as_posix(), True)
        for shard in read_manifest(manifest)
    ]
    return [(MANIFEST_NAME, True), *shards, *((name, False) for name in _COMPANIONS)]


def _infos(folder: Path, names: Sequence[tuple[str, bool]]) -> list[RemoteFile]:
    """Files with their sizes; raises DataError for a missing or doubled one."""
    assert isinstance(folder, RemotePath)
    addresses = [folder.address.joined(name) for name, _ in names]
    infos = in_parallel(find_object, addresses, _MAX_HEADS)
    files: dict[str, RemoteFile] = {}
    for (name, is_needed), address, info in zip(names, addresses, infos, strict=True):
        if name in files:
            raise DataError.at(
                address, "is listed twice", hint="the manifest is wrong", code="data.doubled_name"
            )
        if info is not None:
            files[name] = RemoteFile(name, address, info)
        elif is_needed:
            raise DataError.at(
                address,
                "is listed in the manifest, and is missing",
                hint="the data there is not complete",
                code="data.missing_shard",
            )
    return list(files.values())
