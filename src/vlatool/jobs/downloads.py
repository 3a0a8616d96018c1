"""Downloads as inputs of other commands, which read complete ones only."""

import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlatool.errors import DataError, StorageError
from vlatool.jobs.files import nested_outputs, output_files
from vlatool.jobs.record import OutputRecord, read_record, record_file
from vlatool.storage.tree import FileInfo, files_below
from vlatool.storage.uri import is_remote, require_existing

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
                code="data.incomplete_download",
                commands=open_requests(record, folder),
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
    commands = " and ".join(open_requests(record, folder))
    return f"complete it with: {commands}" if commands else "run the same command again"


def open_requests(record: OutputRecord, folder: Path) -> list[str]:
    """Commands that complete the downloads of an output."""
    if is_remote(folder):  # a copy
        return []
    return [_command(request, _shown(folder)) for request in record.requests]


def _command(request: Mapping[str, Any], folder: Path) -> str:
    options = {key: value for key, value in request.items() if key not in (_SOURCE, OUTPUT)}
    options[OUTPUT] = os.path.normpath(folder / str(request.get(OUTPUT, "")))
    words = ["vlatool", "download", *([str(request[_SOURCE])] if _SOURCE in request else [])]
    for key, value in options.items():
        option = f"--{key.replace('_', '-')}"
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [option] if value is True else []
        words += [word for item in values for word in (option, str(item))]
    return shlex.join(words)


def _shown(folder: Path) -> Path:
    """Path relative to the current folder, if it is below it."""
    current, folder = Path.cwd(), folder.absolute()
    return folder.relative_to(current) if folder.is_relative_to(current) else folder


def data_files(folder: Path) -> list[FileInfo]:
    """Files that belong to the data in a folder, or the file itself, sorted by name.

    Downloads inside the folder belong to it, as tasks of raw episodes do; other outputs, hidden
    files and hidden folders, such as `.git`, do not.
    """
    if not is_remote(folder) and folder.is_file():
        return files_below(folder)
    files = output_files(folder)
    for name in nested_outputs(folder):
        record = read_record(folder / name)
        if record is not None and record.is_download:
            below = data_files(folder / name)
            files += [replace(file, name=f"{name}{file.name}") for file in below]
    shown = [file for file in files if not f"/{file.name}".count("/.")]
    return sorted(shown, key=lambda file: file.name)


def contents_record(folder: Path) -> OutputRecord | None:
    """Record of the command that made the contents of an output; None without one."""
    record = read_record(folder)
    return None if record is None or record.is_download else record
