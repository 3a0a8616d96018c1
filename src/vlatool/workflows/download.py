"""Download of remote files, and of the public tasks of the LBM data."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from vlatool.config.base import (
    ConfigModel,
    Ignored,
    Names,
    check_required,
    execution_field,
    option,
    required_field,
)
from vlatool.datasets.task_table import TaskTable, task_table
from vlatool.errors import DataError, PartialFailure, StorageError, UsageError, VlatoolError
from vlatool.events import NULL, Reporter
from vlatool.jobs.files import FOLDER
from vlatool.results import OPTIONAL, Result, columns, outcome
from vlatool.storage.atomic import remove_partials_of, write_bytes
from vlatool.storage.remote import find_object
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.transfer import is_outage, not_requested_error
from vlatool.storage.tree import parse_size, sha256_of, size_text
from vlatool.storage.uri import local_path, location, pinned
from vlatool.workflows import download_files as downloads
from vlatool.workflows.download_raw import RawResult, RawTask, download_raw

_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class AnnotationsResult(Result):
    """Result of the download of the annotations."""

    output: str  # the file
    source: str  # its location
    bytes: int
    status: str  # `written`, `already complete` or `planned`

    def lines(self) -> list[str]:
        size = size_text(self.bytes)
        return [outcome(self.output, self.status, size, f"would download {size}")]


def download_annotations(
    table: TaskTable, registry: str | None, target: Path, *, dry_run: bool = False
) -> AnnotationsResult:
    """Downloads the annotations of a table to a file, unless they are there already.

    `table` has the location and the digest of the annotations. `registry` replaces the folder of
    that location; None keeps it.
    """
    address = table.annotations_location(registry)
    if target.is_dir():
        raise UsageError(
            f"{target}: is a folder",
            hint=f"name the file: --output {target / Path(address).name}",
            code="usage.output_exists",
        )
    digest = table.annotations_sha256
    here = sha256_of(target) if target.exists() else ""
    if here and here == digest:
        return AnnotationsResult(str(target), address, target.stat().st_size, "already complete")
    data = _content(address, digest)
    if here and here != hashlib.sha256(data).hexdigest():
        raise UsageError(
            f"{target}: exists, and its content differs from {address}",
            hint="remove it, or choose another --output",
            code="usage.output_exists",
        )
    if not (here or dry_run):
        remove_partials_of(target)
        write_bytes(target, data)
    status = "already complete" if here else "planned" if dry_run else "written"
    return AnnotationsResult(str(target), address, len(data), status)


def _content(address: str, sha256: str) -> bytes:
    """Content of the annotations; it must match the digest of the table, if there is one."""
    source = location(address)
    size = 0
    if isinstance(source, RemotePath):
        info = find_object(source.address)
        if info is None or info.is_dir:
            raise FileNotFoundError(address)
        size = info.size
    if size <= _MAX_BYTES:
        data = source.read_bytes()
        if sha256 in ("", hashlib.sha256(data).hexdigest()):
            return data
    raise DataError.at(
        address,
        "is not the file that the table of tasks names: its SHA-256 differs",
        hint="check --registry; another table can name another file and digest: --task-table",
        code="data.wrong_digest",
    )


REGISTRY_VARIABLE = "VLATOOL_REGISTRY"


class DownloadConfig(ConfigModel):
    """Options of `vlatool download`."""

    NAMES: ClassVar[Names] = {
        "to": "output",
        "local_path": "output",
        "s3_path": "source",
        "num_workers": "workers",
        "episodes": "view=episodes",
        "force": Ignored(
            "files that differ are downloaded again; remove others yourself", is_switch=True
        ),
    }

    source: str = option("", "Location of a folder or a file: hf://, s3://, gs:// or https://.")
    output: str = required_field("", "Folder for the files.")
    task: list[str] = option([], "Public LBM tasks; `--list` shows their names.")
    all: bool = option(False, "All public LBM tasks.")
    view: Literal["shards", "episodes"] = option(
        "shards", "shards: shuffled samples; episodes: one tar per episode."
    )
    raw: bool = option(
        False, "Download the raw episodes of the tasks, and the language annotations."
    )
    keep_archive: bool = option(False, "With --raw: keep TASK.tar, too, next to the episodes.")
    annotations: bool = option(
        False, "Download only the language annotations; --output names the file."
    )
    version: str | None = option(None, "Version of the public tasks; null: the published one.")
    registry: str | None = option(
        None, "Location with VERSION/TASK or TASK.tar; null: VLATOOL_REGISTRY, or the public one."
    )
    task_table: str | None = option(
        None, "YAML file with more tasks, in the form of the built-in table."
    )
    include: list[str] = option(
        [], "Download only files whose path matches a pattern, such as 'meta/*'."
    )
    leave_out: list[str] = option(
        [], "Leave out files whose path matches a pattern, such as '*.mp4'."
    )
    workers: int = execution_field(8, "Number of requests at the same time.", ge=1, le=256)
    limit_rate: str | None = execution_field(
        None, "Bytes per second at most, such as 500k, 20M or 1G; null: no limit."
    )
    dry_run: bool = execution_field(
        default=False, description="Report what would be downloaded and write nothing."
    )

    # Last, because it hides the type in this class.
    list: bool = option(False, "List the public LBM tasks and exit.")

    @field_validator("limit_rate")
    @classmethod
    def _is_rate(cls, value: str | None) -> str | None:
        try:
            _bytes_per_s(value)
        except ValueError:
            message = "is no rate: write a number above 0 with k, M or G, such as 20M"
            raise ValueError(message) from None
        return value


def _bytes_per_s(text: str | None) -> float | None:
    """Number of bytes per second; None without a limit."""
    return None if text is None else parse_size(text.strip().removesuffix("/s"))


@dataclass(frozen=True)
class TaskList(Result):
    """Public tasks, and what can be downloaded for each."""

    rows_key: ClassVar[str] = "tasks"

    version: str
    tasks: Sequence[Mapping[str, Any]]

    def lines(self) -> list[str]:
        rows = [("task", "station", "published", "raw size")]
        for row in self.tasks:
            size = f"{row['raw_gb']} GiB" if row["raw_gb"] else ""
            rows.append((row["task"], row["station"], "+".join(row["has"]), size))
        return [columns(rows)]


@dataclass(frozen=True)
class TasksResult(Result):
    """Results of several tasks."""

    output: str  # location as it was given
    tasks: Mapping[str, downloads.DownloadResult | RawResult]
    bytes: int
    failures: Sequence[Mapping[str, Any]]  # tasks that failed, with code, message and hint
    # Language annotations of raw tasks; empty without them.
    annotations: str = field(default="", metadata=OPTIONAL)
    # Command with all tasks; empty after a dry run or a failure.
    next: str = field(default="", metadata=OPTIONAL)

    def lines(self) -> Iterator[str]:
        for result in self.tasks.values():
            yield from result.lines()
        for row in self.failures:
            yield f"failed {row['task']}: {row['message']}"
        if len(self.tasks) > 1:
            yield f"{len(self.tasks)} tasks, {size_text(self.bytes)}"


def download(
    config: DownloadConfig, *, reporter: Reporter = NULL
) -> downloads.DownloadResult | TasksResult | TaskList | AnnotationsResult:
    """Downloads the files at a location, or public tasks, to a folder.

    The same call resumes an interrupted run, inside large files too, and downloads files that
    changed since. Files of an earlier call with other patterns stay.

    Raises:
        UsageError: A required key is missing, or the output belongs to something else.
        DataError: There is nothing at the location, or names cannot be used here.
        StorageError: The storage failed for the listing, or for some files and nothing else did.
        PartialFailure: Some files are not in the output.
    """
    if config.list:
        table = task_table(config.task_table)
        tasks = sorted(table.tasks.items())
        return TaskList(table.version, [{"task": name, **asdict(task)} for name, task in tasks])
    _check_keys(config)
    check_required(config, "vlatool download hf://datasets/OWNER/NAME --output DIR")
    if config.annotations:
        table = task_table(config.task_table)
        registry = _registry(config)
        target = local_path(config.output)
        try:
            return download_annotations(table, registry, target, dry_run=config.dry_run)
        except FileNotFoundError:
            raise DataError.at(
                table.annotations_location(registry),
                "does not exist",
                hint="check --registry",
                code="data.no_source",
            ) from None
    if config.task or config.all:
        return _download_tasks(config, reporter)
    source = pinned(config.source)
    if not isinstance(source, RemotePath):
        raise UsageError(
            f"{config.source}: is a local path",
            hint="give a location such as hf://datasets/OWNER/NAME or s3://BUCKET/FOLDER",
            code="usage.bad_value",
        )
    files = _selected(config, source, downloads.remote_files(source))
    options = _options(config, {"source": str(source)})
    return downloads.download_files(source, files, config.output, options, reporter)


def _check_keys(config: DownloadConfig) -> None:
    sources = (config.source, config.task, config.all, config.annotations)
    if sum(map(bool, sources)) > 1:
        raise _conflict("a location, --task, --all and --annotations exclude each other")
    if not any(sources) and not config.raw:
        raise UsageError(
            "download needs a location or --task",
            hint="run vlatool download hf://datasets/OWNER/NAME --output DIR, or vlatool download"
            " --task NAME --output DIR; --list shows the tasks",
            code="usage.missing_key",
        )
    if config.raw and not (config.task or config.all):
        raise _conflict("--raw needs --task or --all", "add --task NAME; --list shows the tasks")
    if config.keep_archive and not config.raw:
        raise _conflict("--keep-archive needs --raw", "add --raw, or omit --keep-archive")
    if config.raw and (
        config.view != "shards" or config.version or config.include or config.leave_out
    ):
        raise _conflict(
            "--raw downloads one archive as it is published: it has no views, versions or patterns",
            "omit --view, --version, --include and --leave-out",
        )


def _conflict(message: str, hint: str = "give one of them") -> UsageError:
    return UsageError(message, hint=hint, code="usage.conflict")


def _options(config: DownloadConfig, request: Mapping[str, Any]) -> downloads.TransferOptions:
    """Limits, and the request with the patterns of the command."""
    patterns = {"include": config.include, "leave_out": config.leave_out}
    request = {**request, **{key: value for key, value in patterns.items() if value}}
    rate = _bytes_per_s(config.limit_rate)
    return downloads.TransferOptions(config.workers, rate, config.dry_run, request)


def _download_tasks(config: DownloadConfig, reporter: Reporter) -> TasksResult:
    table = task_table(config.task_table)
    part = "raw" if config.raw else "shards"
    names = config.task or [name for name, task in table.tasks.items() if part in task.has]
    for name in names:
        if part not in table.find(name).has:
            raise UsageError(
                f"{name}: is published {'without raw data' if config.raw else 'as raw data only'}",
                hint="`vlatool download --list` shows what each task has",
                code="usage.unknown_name",
            )
    results: dict[str, downloads.DownloadResult | RawResult] = {}
    errors: dict[str, VlatoolError] = {}
    annotations, not_annotated = _annotations_beside(config, table, reporter)
    is_dead = False
    for name in dict.fromkeys(names):
        if is_dead:
            errors[name] = not_requested_error(name)
            continue
        try:
            if config.raw:
                results[name] = _download_raw(config, table, name, (annotations, reporter))
            else:
                results[name] = _download_task(config, table, name, reporter)
        except (DataError, StorageError, PartialFailure) as error:
            if len(names) == 1:
                raise
            reporter.warn("task_failed", f"{name}: {error.message}")
            errors[name] = error
            is_dead = is_outage(error)
    failures = [
        {"task": name, "code": error.code, "message": error.message, "hint": error.hint}
        for name, error in errors.items()
    ]
    outputs = [result.output for result in results.values()]
    is_done = not errors and not config.dry_run
    result = TasksResult(
        config.output,
        results,
        sum(result.bytes for result in results.values()),
        failures,
        annotations,
        _tasks_command(config, outputs, annotations) if is_done else "",
    )
    if not errors:
        return _unless(not_annotated, result)
    is_storage = all(isinstance(error, StorageError) for error in errors.values())
    problem = (StorageError if is_storage else PartialFailure)(
        f"{len(errors)} of {len(errors) + len(results)} tasks failed: {', '.join(errors)}",
        hint="run the same command again for the rest",
        code="storage.failed" if is_storage else "partial.failed",
        details={"failures": failures},
    )
    problem.result = result
    raise problem


def _tasks_command(config: DownloadConfig, outputs: Sequence[str], annotations: str) -> str:
    """Command for the next step after all tasks."""
    if config.raw:
        folders = outputs if len(outputs) == 1 else [config.output]
        name = local_path(folders[0]).name or "tasks"
        return downloads.raw_command(outputs, annotations, name)
    if config.view == "shards":
        return downloads.shards_command(outputs)
    return downloads.next_command(outputs[0])


def _unless(error: VlatoolError | None, result: TasksResult) -> TasksResult:
    """The result; if the annotations failed, raises their error with the result in it."""
    if error is None:
        return result
    error.result = result
    raise error


def _registry(config: DownloadConfig) -> str | None:
    """Location that replaces the public ones; None without one."""
    return config.registry or os.environ.get(REGISTRY_VARIABLE) or None


def _annotations_beside(
    config: DownloadConfig, table: TaskTable, reporter: Reporter
) -> tuple[str, VlatoolError | None]:
    """Downloads the annotations next to raw tasks. Returns their path, empty without them, and the
    error with which the command ends after the tasks.
    """
    if not config.raw:
        return "", None
    name = table.annotations.rpartition("/")[2]
    target = local_path(config.output) / name
    try:
        download_annotations(table, _registry(config), target, dry_run=config.dry_run)
    except FileNotFoundError as error:
        reporter.warn("no_annotations", f"{error}: there are no language annotations")
        return "", None
    except (DataError, StorageError) as error:
        reporter.warn("no_annotations", error.message)
        return "", error
    except UsageError as error:  # of an earlier version, or edited: they are used as they are
        reporter.warn("other_annotations", f"{error.message}; it stays")
    return str(target), None


def _download_task(
    config: DownloadConfig, table: TaskTable, name: str, reporter: Reporter
) -> downloads.DownloadResult:
    base = _registry(config) or table.preprocessed
    source = _remote(f"{base.rstrip('/')}/{config.version or table.version}/{name}")
    files, borrowed = downloads.task_files(source, config.view)
    if borrowed:
        reporter.note(
            f"{name}: not in {config.view}/, taken from the other view: {', '.join(borrowed)}"
        )
    files = _selected(config, source, files)
    output = str(local_path(config.output) / name)
    options = _options(config, _task_request(config, name))
    return downloads.download_files(source, files, output, options, reporter)


def _download_raw(
    config: DownloadConfig, table: TaskTable, name: str, beside: tuple[str, Reporter]
) -> RawResult:
    annotations, reporter = beside
    base = _registry(config) or table.raw
    source = _remote(f"{base.rstrip('/')}/{name}.tar")
    info = find_object(source.address)
    if info is None or info.is_dir:
        raise DataError.at(
            source,
            "does not exist",
            hint="check --registry; `vlatool download --list` shows the tasks with raw data",
            code="data.no_source",
        )
    output = str(local_path(config.output) / "tasks" / name)
    task = RawTask(name, source, info, output, config.keep_archive, annotations)
    return download_raw(task, _options(config, _task_request(config, name)), reporter)


def _remote(location: str) -> RemotePath:
    """Path of a location in a registry, at its current version."""
    source = pinned(location)
    if not isinstance(source, RemotePath):
        raise UsageError(
            f"{location}: is a local path",
            hint="give --registry as https://, s3://, gs:// or hf://",
            code="usage.bad_value",
        )
    return source


def _task_request(config: DownloadConfig, name: str) -> dict[str, Any]:
    """Options that select the files of a task; its output is inside the output of the command."""
    optional = {
        "version": config.version,
        "registry": _registry(config),
        "task_table": config.task_table,
    }
    options = {key: value for key, value in optional.items() if value}
    if config.raw:
        archive = {"keep_archive": True} if config.keep_archive else {}
        return {"task": name, "raw": True, **archive, **options, "output": "../.."}
    return {"task": name, "view": config.view, **options, "output": ".."}


def _selected(
    config: DownloadConfig, source: RemotePath, files: Sequence[downloads.RemoteObject]
) -> list[downloads.RemoteObject]:
    """Files that the patterns select, without the records in `.vlatool`."""
    files = [file for file in files if FOLDER not in file.name.split("/")]
    if not files:
        raise DataError.at(
            source,
            "holds no files",
            hint="give a folder with files, or a file",
            code="data.no_source",
        )
    selected: list[downloads.RemoteObject] = []
    for file in files:
        is_included = not config.include or _matches(file.name, config.include)
        if is_included and not _matches(file.name, config.leave_out):
            selected.append(file)
    if not selected:
        raise UsageError(
            f"{source}: --include and --leave-out select none of the {len(files)} files",
            hint=f"files there are, for example, {', '.join(file.name for file in files[:3])}",
            code="usage.missing_file",
        )
    return selected


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
