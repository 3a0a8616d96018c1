"""Record of an output, `.vlatool/run.json`: the command, its options, and if it is complete.

A job is resumed by its record; an output that is written in one go starts from scratch each time.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlatool import __version__
from vlatool.config.base import ConfigModel
from vlatool.errors import DataError, StorageError
from vlatool.jobs.files import (
    FOLDER,
)
from vlatool.storage.documents import DocumentError, read_checksummed, write_checksummed
from vlatool.storage.lock import Lock, held_lock, is_held
from vlatool.storage.uri import location

# Of records and journals: raise it when an unfinished output cannot be continued. Outputs with
# another number are read, and no more written.
FORMAT = 1
_LEVELS_UP = 2


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
    format: int = FORMAT  # format number of the record and the journal; 0 before there was one
    # options of the downloads into this output that are not complete: this run's first.
    # `jobs.ownership.pending_commands` has their commands
    pending_downloads: tuple[Mapping[str, Any], ...] = ()
    # names of options for messages, where the key says too little; not saved
    words: Mapping[str, str] = field(default_factory=dict[str, str])

    def no_manifest_error(self, folder: Path) -> DataError:
        """Error for an output in which the manifest, written last, is missing."""
        return DataError.at(
            folder,
            f"`vlatool {self.command}` has not written a manifest here yet",
            hint="wait until it ends; if it was interrupted, run the same command again",
            code="data.incomplete",
            options=dict(self.options),
        )

    def save(self, folder: Path) -> None:
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
        if self.pending_downloads:
            document["requests"] = [dict(request) for request in self.pending_downloads]
        write_checksummed(record_file(folder), document)

    def after(self, before: "OutputRecord | None") -> "OutputRecord":
        """Record of a run that resumes the one of `before`, or starts from scratch."""
        if before is None:
            return replace(self, run_id=secrets.token_hex(4))
        own = [request.items() for request in self.pending_downloads]
        # Each option narrows a request: one with all options of this run is a part of it.
        others = [
            request
            for request in before.pending_downloads
            if not any(items <= request.items() for items in own)
        ]
        return replace(
            self, run_id=before.run_id, pending_downloads=(*self.pending_downloads, *others)
        )

    def finished(
        self, inputs: Mapping[str, Any], result: Mapping[str, Any], *, has_failures: bool
    ) -> "OutputRecord":
        """Record of this run at its end."""
        requests = self.pending_downloads if has_failures else self.pending_downloads[1:]
        is_complete = not (has_failures or requests)
        return replace(
            self, inputs=inputs, result=result, pending_downloads=requests, complete=is_complete
        )

    @property
    def is_download(self) -> bool:
        """True if the files come from another output, or from another program."""
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
        document = read_checksummed(path)
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
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError.at(
            path,
            f"cannot be read: {error.strerror or error}",
            hint="grant read permission: this file records which command owns the output",
            code="storage.unreadable",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.reason if isinstance(error, DocumentError) else "not a record of an output"
        raise DataError.at(
            path,
            reason,
            hint="copy the output again, or write it again with --overwrite or to another folder",
            code="data.broken",
        ) from None


def parent_of(folder: Path) -> str:
    """Fingerprint of the output that contains a folder; empty without one."""
    for parent in list(folder.absolute().parents)[:_LEVELS_UP]:
        try:
            record = read_record(parent) if parent.name else None
        except StorageError as error:
            if error.code != "storage.forbidden":  # credentials may be for the output alone
                raise
            return ""
        if record is not None:
            return record.fingerprint
    return ""


def output_lock(folder: Path, command: str) -> AbstractContextManager[Lock]:
    """Locks an output for this process; see `storage.lock`."""
    return held_lock(_lock_file(folder), command)


def is_being_written(folder: Path) -> bool:
    """True if a live process holds the lock of an output."""
    return is_held(_lock_file(folder))


def _lock_file(folder: Path) -> Path:
    return folder / FOLDER / "lock"


def journal_folder(folder: Path) -> Path:
    return folder / FOLDER / "journal"


def partial_folder(folder: Path) -> Path:
    """Folder of the unfinished downloads of an output."""
    return folder / FOLDER / "partial"


def recorded_options(section: ConfigModel, named: ConfigModel) -> dict[str, Any]:
    """Values of a section for a record; of the files in `named`, the names without folders."""
    values = section.recorded()
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
    return folder / FOLDER / "run.json"
