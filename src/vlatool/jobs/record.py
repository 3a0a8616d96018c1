"""Record of an output, `.vlatool/run.json`: the command, its options, and if it is complete.

A job is resumed by its record; an output that is written in one go starts from scratch each time.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vlatool import __version__
from vlatool.config.base import ConfigModel
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.jobs.differences import check_no_differences, input_differences, option_differences
from vlatool.jobs.files import (
    FOLDER,
    NAME,
    contains_only,
    file_entry,
    is_occupied,
    read_file_list,
    remove_owned,
    remove_partial_files,
    write_file_list,
)
from vlatool.jobs.versions import changed_versions, check_versions, without_versions
from vlatool.storage.atomic import remove_file, remove_tree
from vlatool.storage.checksummed import read_checksummed, write_checksummed
from vlatool.storage.documents import DocumentError
from vlatool.storage.lock import Lock, held_lock, is_held
from vlatool.storage.uri import location

# Format of records and journals: raise it when an unfinished output cannot be continued. Outputs
# with another number are read, and no more written.
_FORMAT = 1
_LEVELS_UP = 2
_OTHER_OUTPUT = "choose another --output, or replace it with --overwrite"


@dataclass(frozen=True)
class OutputRecord:
    """The command and the options that produced an output, and its result."""

    command: str  # subcommand that wrote the output
    options: Mapping[str, Any]  # options that affect the output
    # number, fingerprint and time of the inputs, as far as they are known
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    # result of the command; None while a run is in progress
    result: Mapping[str, Any] | None = None
    complete: bool = False  # True if nothing is left to do. A run with failed items is not complete
    version: str = __version__  # version of vlatool
    owned: tuple[str, ...] = ()  # patterns of the files of the output
    # patterns of `owned` for files that hold times. The file list leaves them out
    volatile: tuple[str, ...] = ()
    parent: str = ""  # fingerprint of the output that contains this one; empty without one
    run_id: str = ""  # random id; a new one each time that the output is started from scratch
    format: int = _FORMAT  # format number of the record and the journal; 0 before there was one
    # options of the downloads into this output that are not complete: that of this run first.
    # `jobs.downloads` has the commands for them
    requests: tuple[Mapping[str, Any], ...] = ()
    # names of options for messages, where the key says too little; not saved
    words: Mapping[str, str] = field(default_factory=dict[str, str])

    def no_manifest_error(self, folder: Path) -> DataError:
        """Error for an output in which the manifest, written last, is missing."""
        return DataError.at(
            folder,
            f"`vlatool {self.command}` has not written a manifest here yet",
            hint="wait until it ends; if it was interrupted, run the same command again",
            code="data.incomplete_output",
            options=dict(self.options),
        )

    def save(self, folder: Path) -> None:
        """Writes the record atomically."""
        document = {
            "format": self.format,
            "command": self.command,
            "version": self.version,
            "options": dict(self.options),
            "inputs": dict(self.inputs),
            "complete": self.complete,
            "result": None if self.result is None else dict(self.result),
            "owned": list(self.owned),
            "unlisted": list(self.volatile),
            "parent": self.parent,
            "made": self.run_id,
        }
        if self.requests:
            document["requests"] = [dict(request) for request in self.requests]
        write_checksummed(record_file(folder), document)

    def after(self, before: "OutputRecord | None") -> "OutputRecord":
        """Record of a run that resumes the one of `before`, or starts from scratch."""
        if before is None:
            return replace(self, run_id=secrets.token_hex(4))
        own = [request.items() for request in self.requests]
        # Each option narrows a request: one with all options of this run is a part of it.
        others = [
            request
            for request in before.requests
            if not any(items <= request.items() for items in own)
        ]
        return replace(self, run_id=before.run_id, requests=(*self.requests, *others))

    def finished(
        self, inputs: Mapping[str, Any], result: Mapping[str, Any], *, has_failures: bool
    ) -> "OutputRecord":
        """Record of this run at its end."""
        requests = self.requests if has_failures else self.requests[1:]
        is_complete = not (has_failures or requests)
        return replace(self, inputs=inputs, result=result, requests=requests, complete=is_complete)

    @property
    def is_download(self) -> bool:
        """True if the files are those of another output, or of another program."""
        return self.command == "download"

    @property
    def fingerprint(self) -> str:
        """Digest of command, options and run id; the same while the output grows."""
        identity = [self.command, dict(self.options), self.run_id]
        text = json.dumps(identity, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_record(folder: Path) -> OutputRecord | None:
    """Record of an output; None if there is none or if it is damaged."""
    with suppress(DataError):
        return read_valid_record(folder)
    return None


def read_valid_record(folder: Path) -> OutputRecord | None:
    """Record of an output; None if there is none."""
    path = record_file(folder)
    try:
        return _record_of(read_checksummed(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError.at(
            path,
            f"cannot be read: {error.strerror or error}",
            hint="grant read permission: this file records which command owns the output",
            code="storage.read",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.reason if isinstance(error, DocumentError) else "not a record of an output"
        raise DataError.at(
            path,
            reason,
            hint="copy the output again, or write it again with --overwrite or to another folder",
            code="data.broken_record",
        ) from None


def _record_of(document: Mapping[str, Any]) -> OutputRecord:
    return OutputRecord(
        document["command"],
        dict(document["options"]),
        dict(document.get("inputs", {})),
        document["result"],
        bool(document["complete"]),
        str(document.get("version", "")),
        tuple(map(str, document.get("owned", ()))),
        tuple(map(str, document.get("unlisted", ()))),
        str(document.get("parent", "")),
        str(document.get("made", "")),
        int(document.get("format", 0)),
        tuple(dict(request) for request in document.get("requests", ())),
    )


def parent_of(folder: Path) -> str:
    """Fingerprint of the output that contains a folder; empty without one."""
    for parent in list(folder.absolute().parents)[:_LEVELS_UP]:
        record = read_record(parent) if parent.name else None
        if record is not None:
            return record.fingerprint
    return ""


@contextmanager
def output_lock(folder: Path, command: str) -> Generator[Lock]:
    """Locks an output for this process; see `storage.lock`."""
    with held_lock(_lock_file(folder), command) as lock:
        yield lock


def is_being_written(folder: Path) -> bool:
    """True if a live process holds the lock of an output."""
    return is_held(_lock_file(folder))


def _lock_file(folder: Path) -> Path:
    return folder / FOLDER / "lock"


def resumable_record(
    folder: Path,
    record: OutputRecord,  # record of the run that is about to start
    # returns the inputs of that run; called only where they matter. None if changed inputs are
    # allowed
    inputs: Callable[[], Mapping[str, Any]] | None = None,
    *,
    overwrite: bool,  # replace an output that is complete or was made with other options
    # patterns of the files of the command. With `overwrite`, a folder that holds only such files is
    # replaced even without a record
    owned: Sequence[str] = (),
    hint: str = _OTHER_OUTPUT,  # hint of the error about other options or inputs
) -> OutputRecord | None:
    """Record of an equal run that can be resumed or is complete; None to start from scratch.

    Nothing is written.
    """
    before = read_record(folder) if overwrite else read_valid_record(folder)
    if before is None:
        is_listed = overwrite and (folder / NAME).is_file()
        is_replaceable = is_listed or (overwrite and contains_only(folder, owned))
        check_owner(folder, record.command, before, is_replaceable=is_replaceable)
        return None
    check_owner(folder, record.command, before)
    if not overwrite and is_occupied(folder):
        check_format(folder, before, hint)
    if before.format != _FORMAT:
        return None
    differences = _differences(before, record)
    # The journal alone may hold finished work. An emptied folder is free for any other run.
    is_resumable = before.command == record.command and not (before.complete or differences)
    if not is_resumable and not is_occupied(folder):
        return None
    changed = changed_versions(before.options, record.options)
    if overwrite and (before.complete or differences or changed):
        return None
    check_versions(before.options, record.options, hint)
    check_no_differences(folder, "with other options", differences, hint)
    if before.complete and inputs is not None:
        changed_inputs = input_differences(before.inputs, inputs())
        check_no_differences(folder, "from other input", changed_inputs, hint)
    return before


def check_format(folder: Path, before: OutputRecord, hint: str = _OTHER_OUTPUT) -> None:
    """Raises UsageError for an output whose record has another format."""
    if before.format != _FORMAT:
        version = f"vlatool {before.version}" if before.version else "an unknown version of vlatool"
        raise UsageError(
            f"{folder}: was written by {version} in format {before.format}; vlatool {__version__} "
            f"continues outputs of format {_FORMAT}",
            hint=hint,
            code="usage.output_format",
            details={"format": before.format, "version": before.version},
        )


def check_owner(
    folder: Path, command: str, before: OutputRecord | None, *, is_replaceable: bool = False
) -> None:
    """Raises an error unless a folder is free, or the output of a command."""
    records = (record_file(parent.parent) for parent in folder.parents if parent.name == FOLDER)
    if any(record.is_file() for record in records):
        raise _foreign_output_error(folder, command, before)
    is_own = is_replaceable if before is None else before.command == command
    if not is_own and is_occupied(folder):
        raise _foreign_output_error(folder, command, before)


def claim_output(folder: Path, record: OutputRecord, owned: Sequence[str]) -> None:
    """Removes the files of an earlier run from `folder` and writes the record of the new run."""
    stale = _stale_patterns(folder, record)
    # The journal is removed before the record changes, the data after it: a run killed in between
    # must neither look complete nor trust files made with other options. While the data are
    # removed, the record lists the patterns of both runs.
    remove_tree(journal_folder(folder))
    replace(record, owned=(*record.owned, *stale)).save(folder)
    remove_owned(folder, [*owned, *stale])
    record.save(folder)


def resume_output(folder: Path, record: OutputRecord) -> None:
    """Writes the record of a resumed run; completes a `claim_output` that was killed."""
    remove_owned(folder, _stale_patterns(folder, record))
    record.save(folder)


def _stale_patterns(folder: Path, record: OutputRecord) -> list[str]:
    """Patterns of files of a run with another sink; file names if its version wrote no patterns."""
    before = read_record(folder)
    patterns: Sequence[str] = () if before is None else before.owned
    if before is not None and not patterns:
        with suppress(DataError):
            patterns = [entry.path for entry in read_file_list(folder) or ()]
    owned = record.owned
    return [
        pattern for pattern in patterns if not any(fnmatch(pattern, current) for current in owned)
    ]


def journal_folder(folder: Path) -> Path:
    """Folder of the journal of an incomplete output."""
    return folder / FOLDER / "journal"


def partial_folder(folder: Path) -> Path:
    """Folder of the unfinished downloads of an output."""
    return folder / FOLDER / "partial"


def _foreign_output_error(folder: Path, command: str, before: OutputRecord | None) -> UsageError:
    is_lost = before is None and (folder / NAME).is_file()
    hint = "its record .vlatool/run.json is missing: use --overwrite to replace it"
    owner = "" if before is None else f", but by vlatool {before.command}"
    return UsageError(
        f"{folder}: exists and was not made by vlatool {command}{owner}",
        hint=hint if is_lost else "choose another --output",
        code="usage.output_exists",
    )


def _differences(before: OutputRecord, now: OutputRecord) -> list[str]:
    differences = option_differences(
        without_versions(before.options), without_versions(now.options), now.words
    )
    if before.parent and now.parent and before.parent != now.parent:
        differences.append("the output that contains it was written again since")
    return differences


def recorded_options(section: ConfigModel, named: ConfigModel) -> dict[str, Any]:
    """Values of a section for a record; of the files in `named`, the names without folders."""
    values = section.model_dump(mode="json")
    for key in named.location_keys:
        path = getattr(named, key)
        values[key] = None if path is None else location(path).name
    return values


def side_files(section: ConfigModel) -> dict[str, str]:
    """Digests of the files that a section names, such as annotations, as `KEY content`."""
    files = {key: _file_digest(getattr(section, key)) for key in sorted(section.location_keys)}
    return {f"{key} content": digest for key, digest in files.items() if digest}


def _file_digest(path: str | None) -> str:
    """Digest of a file; empty if there is none or if it cannot be read."""
    try:
        return "" if path is None else hashlib.sha256(location(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""  # the reader reports it


def record_file(folder: Path) -> Path:
    """Path of the record of an output."""
    return folder / FOLDER / "run.json"


def check_output_owner(folder: Path, record: OutputRecord) -> None:
    """Raises an error unless a folder is empty, absent, or an output of the same command."""
    resumable_record(folder, record, overwrite=True, hint="choose another --output")


@contextmanager
def single_output(folder: Path, record: OutputRecord, files: Sequence[str]) -> Generator[None]:
    """Locks an output while the block writes it, then marks its record as complete; `files`: files
    that the block writes, relative to the folder; it may omit some of them.
    """
    check_output_owner(folder, record)
    with output_lock(folder, f"vlatool {record.command}"):
        record = replace(record, owned=tuple(files))
        resume_output(folder, record)
        remove_partial_files(folder)
        remove_file(folder / NAME)  # the block may open what it writes over
        yield
        write_file_list(folder, [file_entry(folder, n) for n in files if (folder / n).is_file()])
        replace(record, result={}, complete=True).save(folder)
