"""`.vlatool/run.json`: what made an output, with which options, and whether it is whole."""

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vlatool import __version__
from vlatool.config.base import ConfigModel
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.jobs.files import (
    FOLDER,
    NAME,
    contains_only,
    is_occupied,
    read_file_list,
    remove_owned,
)
from vlatool.storage.atomic import remove_tree
from vlatool.storage.checksummed import read_checksummed, write_checksummed
from vlatool.storage.documents import DocumentError
from vlatool.storage.lock import Lock, held_lock
from vlatool.storage.uri import location, version_of

# What an output that is not complete keeps in `.vlatool/`; another number cannot be gone on with.
_JOURNAL = 2
_LEVELS_UP = 2
_SHOWN = 6
# What was read, with the version that it had where its storage names versions.
_VERSIONS = "versions"


@dataclass(frozen=True)
class OutputRecord:
    """What made an output.

    Attributes:
        command: Subcommand that wrote it.
        options: Options that shape it.
        inputs: What it was made from, as far as it is known.
        result: What came of it; None while a run is under way.
        complete: Whether nothing is left to do; a run whose items failed in part is not complete.
        version: Version of vlatool.
        owned: Patterns of its files.
        unlisted: Patterns of those that hold times and stand in no list.
        parent: Fingerprint of the output that this one lies in; empty where it lies in none.
        made: Another one each time that the output is begun anew.
        journal: Number of the form of its journal.
    """

    command: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    result: Mapping[str, Any] | None = None
    complete: bool = False
    version: str = __version__
    owned: tuple[str, ...] = ()
    volatile: tuple[str, ...] = ()
    parent: str = ""
    run_id: str = ""
    journal: int = _JOURNAL

    def save(self, folder: Path) -> None:
        """Writes the record atomically."""
        document = {
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
            "journal": self.journal,
        }
        write_checksummed(_path(folder), document)

    @property
    def fingerprint(self) -> str:
        """Changes with how the output is made; the same while it grows and when it is complete."""
        made = [self.command, dict(self.options), self.run_id]
        text = json.dumps(made, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_record(folder: Path) -> OutputRecord | None:
    """The record of an output; None where there is none, or a damaged one.

    Raises:
        StorageError: It may not be read.
    """
    with suppress(DataError):
        return read_valid_record(folder)
    return None


def read_valid_record(folder: Path) -> OutputRecord | None:
    """The record of an output; None where there is none.

    Raises:
        DataError: It is damaged.
        StorageError: It may not be read.
    """
    path = _path(folder)
    try:
        return _record_of(read_checksummed(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be read: {error.strerror or error}",
            hint="make it readable; it says whose the output is",
            code="storage.read",
            details={"path": str(path)},
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.reason if isinstance(error, DocumentError) else "no record of an output"
        raise DataError(
            f"{path}: {reason}",
            hint="copy the output again, or make it again with --overwrite or in another place",
            code="data.broken_record",
            details={"path": str(path)},
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
        int(document.get("journal", 1)),
    )


def parent_of(folder: Path) -> str:
    """Fingerprint of the output that a folder lies in; empty where it lies in none."""
    for above in list(folder.absolute().parents)[:_LEVELS_UP]:
        record = read_record(above) if above.name else None
        if record is not None:
            return record.fingerprint
    return ""


@contextmanager
def output_lock(folder: Path, command: str) -> Generator[Lock]:
    """Holds an output for this process; see `storage.lock`."""
    with held_lock(folder / FOLDER / "lock", command) as lock:
        yield lock


def resumable_record(
    folder: Path,
    record: OutputRecord,
    inputs: Callable[[], Mapping[str, Any]] | None = None,
    *,
    overwrite: bool,
    owned: Sequence[str] = (),
    hint: str = "choose another --output, or replace it with --overwrite",
) -> OutputRecord | None:
    """The record of an equal run that may go on, or is complete; None to start afresh.

    Nothing is written.

    Args:
        folder: The output.
        record: What is about to run.
        inputs: Finds out what it is made from; asked only where that decides something. None
            where other inputs are no reason to refuse.
        overwrite: Replace what a complete run or one with other options left.
        owned: Patterns of the files of the command: to be replaced without a record, if that is
            all there is.
        hint: What to do about an output that was made in another way.

    Raises:
        UsageError: The folder holds something else, or was made with other options or inputs.
        DataError: Its record is damaged, and it is not to be replaced.
    """
    before = read_record(folder) if overwrite else read_valid_record(folder)
    if any(above.name == FOLDER and _path(above.parent).is_file() for above in folder.parents):
        raise _foreign_output_error(folder, record, before)
    differences = [] if before is None else _differences(before, record)
    # All that is done may be in the journal; other leftovers of an emptied folder bind nobody.
    is_under_way = before is not None and not before.complete and not differences
    if not is_under_way and not is_occupied(folder):
        return None
    if before is not None and before.command != record.command:
        raise _foreign_output_error(folder, record, before)
    if before is None:
        if not (overwrite and ((folder / NAME).is_file() or contains_only(folder, owned))):
            raise _foreign_output_error(folder, record, before)
        return None
    moved = changed_versions(before.options, record.options)
    if overwrite and (before.complete or differences or moved):
        return None
    check_versions(before.options, record.options)
    check_no_differences(folder, "with other options", differences, hint)
    if before.complete and inputs is not None:
        changed = option_differences(before.inputs, inputs())
        check_no_differences(folder, "from other input", changed, hint)
    return before


def claim_output(folder: Path, record: OutputRecord, owned: Sequence[str]) -> None:
    """Removes what an earlier run left in `folder` and enters the run that begins.

    Args:
        folder: The output.
        record: What is about to run.
        owned: Patterns of the files that shall not stay until they are replaced.
    """
    stale = _stale_patterns(folder, record)
    # The journal goes before the record changes, the data after it: a run killed in between must
    # neither look complete nor trust what was made with other options. While the data go, the
    # record says whose they were.
    remove_tree(journal_folder(folder))
    replace(record, owned=(*record.owned, *stale)).save(folder)
    remove_owned(folder, [*owned, *stale])
    record.save(folder)


def resume_output(folder: Path, record: OutputRecord) -> None:
    """Enters a run that goes on; ends what a killed `claim_output` began."""
    remove_owned(folder, _stale_patterns(folder, record))
    record.save(folder)


def _stale_patterns(folder: Path, record: OutputRecord) -> list[str]:
    """Patterns of what a run with another sink left; names, where the version recorded none."""
    before = read_record(folder)
    patterns: Sequence[str] = () if before is None else before.owned
    if before is not None and not patterns:
        with suppress(DataError):
            patterns = [entry.path for entry in read_file_list(folder) or ()]
    own = record.owned
    return [one for one in patterns if not any(fnmatch(one, pattern) for pattern in own)]


def journal_folder(folder: Path) -> Path:
    """Where an output that is not complete keeps what is done."""
    return folder / FOLDER / "journal"


def check_no_differences(folder: Path, how: str, differences: Sequence[str], hint: str) -> None:
    """Refuses an output that was made in another way.

    Raises:
        UsageError: There are differences; tells the first of them.
    """
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    if differences:
        raise UsageError(
            f"{folder}: was made {how}: {'; '.join(differences[:_SHOWN])}{more}",
            hint=hint,
            code="usage.output_differs",
            details={"differences": list(differences)},
        )


def _foreign_output_error(
    folder: Path, record: OutputRecord, before: OutputRecord | None
) -> UsageError:
    is_lost = before is None and (folder / NAME).is_file()
    hint = "its record .vlatool/run.json is lost: replace it with --overwrite" if is_lost else ""
    maker = "" if before is None else f", but by vlatool {before.command}"
    return UsageError(
        f"{folder}: exists and was not made by vlatool {record.command}{maker}",
        hint=hint or "choose another --output",
        code="usage.output_exists",
    )


def _differences(before: OutputRecord, now: OutputRecord) -> list[str]:
    options = option_differences(*(without_versions(one.options) for one in (before, now)))
    if before.parent and now.parent and before.parent != now.parent:
        options.append("in another output, which was made anew since")
    if options or before.complete:
        return options
    if before.journal != now.journal:
        earlier = f"vlatool {before.version}" if before.version else "an earlier vlatool"
        return [f"begun by {earlier}, whose journal has another format"]
    return []


def versions_of(paths: Iterable[Path]) -> dict[str, Any]:
    """What a record says of the versions that were read; nothing where storage names none."""
    known = {
        str(path).replace(f"@{version}", "", 1): version
        for path in paths
        if (version := version_of(path))
    }
    return {_VERSIONS: known} if known else {}


def without_versions(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a record that say what is done, not with which version."""
    return {key: value for key, value in options.items() if key != _VERSIONS}


def changed_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Places of which a run read another version before."""
    was, has = before.get(_VERSIONS) or {}, now.get(_VERSIONS) or {}
    return sorted(place for place in was.keys() & has.keys() if was[place] != has[place])


def check_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to mix two versions of what is read.

    Raises:
        UsageError: A branch or tag names another commit than when the run began.
    """
    for place in changed_versions(before, now):
        was = before[_VERSIONS][place]
        raise UsageError(
            f"{place}: has changed since the run began, which read {was}",
            hint=f"go on with owner/name@{was}, or begin anew with --overwrite",
            code="usage.source_moved",
            details={"place": place, "before": was, "now": now[_VERSIONS][place]},
        )


def option_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted keys with their values before and now, where they are not equal as JSON."""
    return _differing_keys(_as_json(before), _as_json(now), "")


def _differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
    found: list[str] = []
    # What both have comes first: the others are the keys of another reader or sink.
    common = old.keys() & new.keys()
    for key in (*sorted(common), *sorted((old.keys() | new.keys()) - common)):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += _differing_keys(was, now, f"{prefix}{key}.")
        elif was != now:
            found.append(f"{prefix}{key} {was!r} (now {now!r})")
    return found


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value)))


def recorded_options(section: ConfigModel, named: ConfigModel) -> dict[str, Any]:
    """Keys of a section; those that hold a file, as `named` has them, without its folders."""
    values = section.model_dump(mode="json")
    for key in named.location_keys:
        path = getattr(named, key)
        values[key] = None if path is None else location(path).name
    return values


def side_files(section: ConfigModel) -> dict[str, str]:
    """Digests of the files that a section names, such as annotations, under `KEY content`."""
    files = {key: _file_digest(getattr(section, key)) for key in sorted(section.location_keys)}
    return {f"{key} content": digest for key, digest in files.items() if digest}


def _file_digest(path: str | None) -> str:
    """Empty without a file that can be read."""
    try:
        return "" if path is None else hashlib.sha256(location(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""  # the reader tells


def _path(folder: Path) -> Path:
    return folder / FOLDER / "run.json"
