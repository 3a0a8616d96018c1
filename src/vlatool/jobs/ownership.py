"""Ownership of an output: what is in a folder, and may this command write, resume or replace it.

Jobs, commands that write in one go, runs, their remote copies and downloads ask here. Nothing is
written before the answer.
"""

import json
import os
import re
import shlex
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vlatool import __version__
from vlatool.config.coerce import value_text
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.events import Reporter
from vlatool.jobs import files as job_files
from vlatool.jobs.record import (
    FORMAT,
    OutputRecord,
    journal_folder,
    output_lock,
    read_record,
    read_valid_record,
    record_file,
)
from vlatool.storage.atomic import remove_file, remove_tree
from vlatool.storage.tree import FileInfo, files_below
from vlatool.storage.uri import is_remote, require_existing, version_of

OTHER_OUTPUT = "choose another --output, or replace it with --overwrite"


def owner_of(
    folder: Path,
    command: str,
    *,
    overwrite: bool = False,
    # True if the files are known to be of the command even if the record is lost
    is_own: Callable[[], bool] = lambda: False,
    hint: str = OTHER_OUTPUT,
) -> OutputRecord | None:
    """Record of the run of a command that owns a folder; None if the folder is free.

    With `overwrite` an own folder without a record, or with one of another format, is free too.
    """
    before = read_record(folder) if overwrite else read_valid_record(folder)
    records = (
        record_file(parent.parent) for parent in folder.parents if parent.name == job_files.FOLDER
    )
    is_lost = before is None and is_own()
    is_foreign = not is_lost and (before is None or before.command != command)
    if any(record.is_file() for record in records) or (
        is_foreign and job_files.is_occupied(folder)
    ):
        raise _foreign_output_error(folder, command, before)
    if is_lost and not overwrite:
        raise UsageError.at(
            folder,
            "has no readable record, so the run cannot be resumed",
            hint="evaluate it, choose another --output, or replace it with --overwrite",
            code="usage.unsupported",
        )
    if before is None or is_foreign:
        return None
    if before.format == FORMAT:
        return before
    if overwrite or not job_files.is_occupied(folder):
        return None
    version = f"vlatool {before.version}" if before.version else "an unknown version of vlatool"
    raise UsageError(
        f"{folder}: was written by {version} in format {before.format}; vlatool {__version__} "
        f"continues outputs of format {FORMAT}",
        hint=hint,
        code="usage.unsupported",
        details={"format": before.format, "version": before.version},
    )


def plan_output(
    folder: Path,
    record: OutputRecord,  # of the run that is about to start
    inputs: Callable[[], Mapping[str, Any]] | None = None,  # of that run; None: they may change
    *,
    overwrite: bool,  # replace an output that is complete or was made with other options
    # patterns of the files of the command: with `overwrite`, a folder with such files alone is
    # replaced even without a record
    owned: Sequence[str] = (),
    hint: str = OTHER_OUTPUT,
) -> OutputRecord | None:
    """Record of an equal run that is complete or to resume; None to start from scratch.

    Nothing is written.
    """
    before = owner_of(
        folder,
        record.command,
        overwrite=overwrite,
        is_own=lambda: (
            overwrite
            and ((folder / job_files.NAME).is_file() or job_files.contains_only(folder, owned))
        ),
        hint=hint,
    )
    if before is None:
        return None
    differences = option_differences(
        without_versions(before.options), without_versions(record.options), record.words
    )
    if before.parent and record.parent and before.parent != record.parent:
        differences.append("the output that contains it was written again since")
    # The journal alone may hold finished work. An emptied folder is free for any other run.
    if (before.complete or differences) and not job_files.is_occupied(folder):
        return None
    changed = changed_versions(before.options, record.options)
    if overwrite and (before.complete or differences or changed):
        return None
    check_versions(before.options, record.options, hint)
    check_no_differences(folder, "with other options", differences, hint)
    if before.complete and inputs is not None:
        changed_inputs = _input_differences(_as_json(before.inputs), _as_json(inputs()))
        check_no_differences(folder, "from other input", changed_inputs, hint)
    return before


def _input_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Numbers of items that differ; if none does, what else differs."""
    counts: list[str] = []
    others: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        if key in _INPUT_WORDS:
            others.append(_INPUT_WORDS[key](old.get(key), new.get(key)))
        else:
            counts.append(f"{old.get(key, 0)} {key} (now {new.get(key, 0)})")
    return counts or others


def is_whole(folder: Path, before: OutputRecord | None, reporter: Reporter) -> bool:
    """True if a complete output has its files as they were; warns if it is to be written again."""
    if before is None or not before.complete:
        return False
    damaged = job_files.changed_files(folder)
    if damaged:
        message = f"{folder}: {damaged[0]} is missing or was changed; it is written again"
        reporter.warn("output_damaged", message)
    return not damaged


def check_owner(folder: Path, record: OutputRecord) -> None:
    """Raises UsageError unless a folder is empty, absent, or an output of the same command."""
    plan_output(folder, record, overwrite=True, hint="choose another --output")


def claim_output(folder: Path, record: OutputRecord, owned: Sequence[str]) -> None:
    """Removes the files of an earlier run from `folder` and writes the record of the new run."""
    stale = _stale_patterns(folder, record)
    # The journal is removed before the record changes, the data after it: a run killed in between
    # must neither look complete nor trust files made with other options. While the data are
    # removed, the record lists the patterns of both runs.
    remove_tree(journal_folder(folder))
    replace(record, owned=(*record.owned, *stale)).save(folder)
    job_files.remove_owned(folder, [*owned, *stale])
    record.save(folder)


def resume_output(folder: Path, record: OutputRecord) -> None:
    """Writes the record of a resumed run; completes a `claim_output` that was killed."""
    job_files.remove_owned(folder, _stale_patterns(folder, record))
    record.save(folder)


def _stale_patterns(folder: Path, record: OutputRecord) -> list[str]:
    """Patterns of files of a run with another sink; file names if its version wrote no patterns."""
    before = read_record(folder)
    if before is None:
        return []
    patterns: Sequence[str] = before.owned
    if not patterns:
        with suppress(DataError):
            patterns = [entry.path for entry in job_files.read_file_list(folder) or ()]
    stale: list[str] = []
    for pattern in patterns:
        if not any(fnmatch(pattern, current) for current in record.owned):
            stale.append(pattern)
    return stale


def _foreign_output_error(folder: Path, command: str, before: OutputRecord | None) -> UsageError:
    is_lost = before is None and (folder / job_files.NAME).is_file()
    hint = "its record .vlatool/run.json is missing: use --overwrite to replace it"
    owner = "" if before is None else f", but by vlatool {before.command}"
    return UsageError(
        f"{folder}: exists already, and was not made by vlatool {command}{owner}",
        hint=hint if is_lost else "choose another --output",
        code="usage.output_exists",
    )


@contextmanager
def single_output(folder: Path, record: OutputRecord, files: Sequence[str]) -> Generator[None]:
    """Locks an output while the block writes it, then completes its record; `files`: files
    that the block writes, relative to the folder; it may omit some of them.
    """
    check_owner(folder, record)
    with output_lock(folder, f"vlatool {record.command}"):
        record = replace(record, owned=tuple(files))
        resume_output(folder, record)
        job_files.remove_partial_files(folder)
        remove_file(folder / job_files.NAME)  # the block may open what it writes over
        yield
        job_files.write_file_list(
            folder, [job_files.file_entry(folder, n) for n in files if (folder / n).is_file()]
        )
        replace(record, result={}, complete=True).save(folder)


_SHOWN = 6
# Text of a digest, which messages shorten.
_DIGEST = re.compile(r"\b(?=[0-9]*[a-f])[0-9a-f]{16,128}\b")
_DIGEST_SHOWN = 12
# Words for the keys of inputs that are no counts, from the recorded and the current value.
_INPUT_WORDS: Mapping[str, Callable[[Any, Any], str]] = {
    "changed_at": lambda old, new: f"its last change was at {_time(old)}, now {_time(new)}",
    "digest": lambda old, new: "its content differs",
    "fingerprint": lambda old, new: "names or sizes of its files differ",
}


def check_no_differences(folder: Path, cause: str, differences: Sequence[str], hint: str) -> None:
    """Raises UsageError with the first differences; `cause` is such as `with other options`."""
    if differences:
        raise UsageError(
            f"{folder}: was made {cause}: {differences_text(differences)}",
            hint=hint,
            code="usage.output_differs",
            details={"differences": _short(differences)},
        )


def differences_text(differences: Sequence[str]) -> str:
    """The first differences, and the number of the others."""
    texts = _short(differences[:_SHOWN])
    if len(differences) > _SHOWN:
        texts.append(f"and {len(differences) - _SHOWN} more")
    return "; ".join(texts)


def _short(differences: Sequence[str]) -> list[str]:
    return [_DIGEST.sub(lambda match: match[0][:_DIGEST_SHOWN], text) for text in differences]


def option_differences(
    before: Mapping[str, Any],  # recorded options
    now: Mapping[str, Any],  # options of the run that is about to start
    words: Mapping[str, str] | None = None,  # names for keys that say too little; None for none
) -> list[str]:
    """Dotted keys with old and new value, where these are not equal as JSON.

    A KEY for which both have a `KEY digest` is compared by that digest, not by its value.
    """
    words = words or {}
    texts: list[str] = []
    for key, old, new in differing_keys(*_compared(_as_json(before), _as_json(now))):
        name = words.get(key.rpartition(".")[2], key)
        texts.append(f"{name} {value_text(old)} (now {value_text(new)})")
    return texts


def differing_keys(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Yields dotted key, old and new value where two trees of JSON values differ."""
    # Common keys come first: the others are the keys of another reader or sink.
    common = old.keys() & new.keys()
    for key in (*sorted(common), *sorted((old.keys() | new.keys()) - common)):
        before = old.get(key)
        now = new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differing_keys(before, now, f"{prefix}{key}.")
        elif before != now and not (key not in old and _is_unset(now)):
            yield f"{prefix}{key}", before, now


def _is_unset(value: object) -> bool:
    """True for the value of an option that is newer than a record and has no effect."""
    if isinstance(value, dict):
        return all(map(_is_unset, value.values()))
    return value is None or value is False or value == []  # 0 equals False


def _compared(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options without values of equal digest, and without digests that only one of both has."""
    ignored: set[str] = set()
    for key in old.keys() & new.keys():
        old_digest = old.get(f"{key} digest")
        new_digest = new.get(f"{key} digest")
        if not (old_digest and new_digest):
            ignored.add(f"{key} digest")
        elif old_digest == new_digest:
            ignored.add(key)
    for key in ignored:
        old.pop(key, None)
        new.pop(key, None)
    return old, new


def _time(recorded: object) -> str:
    return str(recorded).replace("T", " ").replace("+00:00", " UTC")


def _as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value)))


# Option that maps a location to the version that was read, where its storage names versions.
_VERSIONS = "versions"


def versions_of(paths: Iterable[Path]) -> dict[str, Any]:
    """The option `versions` of a record; empty if storage names no versions."""
    versions: dict[str, str] = {}
    for path in paths:
        version = version_of(path)
        if version:
            versions[str(path).replace(f"@{version}", "", 1)] = version
    return {_VERSIONS: versions} if versions else {}


def without_versions(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a record without `versions`."""
    return {key: value for key, value in options.items() if key != _VERSIONS}


def changed_versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Locations whose version differs between two records, sorted."""
    old = before.get(_VERSIONS) or {}
    new = now.get(_VERSIONS) or {}
    return sorted(path for path in old.keys() & new.keys() if old[path] != new[path])


def check_versions(
    before: Mapping[str, Any],  # options of the run that is resumed
    now: Mapping[str, Any],  # options of this run
    hint: str = "start from scratch with --overwrite",  # what else can be done
) -> None:
    """Raises an error if a source has another version than when the run started."""
    for path in changed_versions(before, now):
        old = before[_VERSIONS][path]
        raise UsageError(
            f"{path}: has changed since the run started, which read {old}",
            hint=f"resume with owner/name@{old}, or {hint}",
            code="usage.missing_file",
            details={"place": path, "before": old, "now": now[_VERSIONS][path]},
        )


# Key of a request: the --output of its command, relative to the output that holds the record.
OUTPUT = "output"
# Folder of raw tasks below the --output of their command.
TASKS_FOLDER = "tasks"
_SOURCE = "source"


def require_input(text: str) -> Path:
    """Path of an existing location that is not part of an unfinished download."""
    path = require_existing(text)
    check_downloaded(path)
    return path


def check_downloaded(path: Path) -> None:
    """Raises an error if a location is in, or contains, a download that is not complete."""
    if is_remote(path):
        return
    for folder in _outputs_at(path.absolute()):
        record = None
        with suppress(StorageError):  # of another user above the location
            record = read_record(folder)
        if record is not None and record.is_download and not record.complete:
            raise DataError.at(
                _shown(folder),
                "this download is not complete",
                hint=completion_hint(record, folder),
                code="data.incomplete",
                commands=pending_commands(record, folder),
            )


def _outputs_at(path: Path) -> Iterator[Path]:
    """The output that contains a location; without one, those in the location."""
    for folder in (path, *path.parents):
        if os.path.exists(record_file(folder)):
            yield folder
            return
    for folder in (path, path / TASKS_FOLDER):
        with suppress(OSError), os.scandir(folder) as entries:  # such as a file
            folders = (Path(entry.path) for entry in entries if entry.is_dir())
            yield from sorted(below for below in folders if os.path.exists(record_file(below)))


def completion_hint(record: OutputRecord, folder: Path) -> str:
    """Hint on a download that is not complete."""
    commands = " and ".join(pending_commands(record, folder))
    return f"complete it with: {commands}" if commands else "run the same command again"


def pending_commands(record: OutputRecord, folder: Path) -> list[str]:
    """Commands that complete the downloads of an output."""
    if is_remote(folder):  # a copy
        return []
    return [_command(request, _shown(folder)) for request in record.pending_downloads]


def _command(request: Mapping[str, Any], folder: Path) -> str:
    words = ["vlatool", "download"]
    if _SOURCE in request:
        words.append(str(request[_SOURCE]))
    options = {key: value for key, value in request.items() if key not in (_SOURCE, OUTPUT)}
    options[OUTPUT] = os.path.normpath(folder / str(request.get(OUTPUT, "")))
    for key, value in options.items():
        option = f"--{key.replace('_', '-')}"
        if value is True:
            words.append(option)
            continue
        for item in value if isinstance(value, list) else [value]:
            words += [option, str(item)]
    return shlex.join(words)


def _shown(folder: Path) -> Path:
    """Path relative to the current folder, if it is below it."""
    current = Path.cwd()
    folder = folder.absolute()
    return folder.relative_to(current) if folder.is_relative_to(current) else folder


def data_files(folder: Path) -> list[FileInfo]:
    """Files that belong to the data in a folder, or the file itself, sorted by name.

    Downloads inside the folder belong to it, as tasks of raw episodes do; other outputs, hidden
    files and hidden folders, such as `.git`, do not.
    """
    if not is_remote(folder) and folder.is_file():
        return files_below(folder)
    files = job_files.output_files(folder)
    for name in job_files.nested_outputs(folder):
        record = read_record(folder / name)
        if record is not None and record.is_download:
            below = data_files(folder / name)
            files += [replace(file, name=f"{name}{file.name}") for file in below]
    not_hidden = [file for file in files if "/." not in f"/{file.name}"]
    return sorted(not_hidden, key=lambda file: file.name)


def contents_record(folder: Path) -> OutputRecord | None:
    """Record of the command that made the contents of an output; None without one."""
    record = read_record(folder)
    return None if record is None or record.is_download else record
