"""Outputs that are written in one go: every run starts from scratch."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vlatool.jobs.files import file_entry, remove_partial_files, write_file_list
from vlatool.jobs.record import OutputRecord, output_lock, resumable_record, resume_output


def check_output_owner(folder: Path, record: OutputRecord) -> None:
    """Raises an error unless a folder is empty, absent, or an output of the same command.

    Raises:
        UsageError: The folder belongs to something else.
    """
    resumable_record(folder, record, overwrite=True, hint="choose another --output")


@contextmanager
def single_output(folder: Path, record: OutputRecord, files: Sequence[str]) -> Generator[None]:
    """Locks an output while the block writes it, then marks its record as complete.

    Args:
        folder: The output.
        record: Record of the command.
        files: Files that the block writes, relative to the folder; it may omit some of them.

    Raises:
        UsageError: The folder belongs to something else, or another run is writing it.
    """
    check_output_owner(folder, record)
    with output_lock(folder, f"vlatool {record.command}"):
        record = replace(record, owned=tuple(files))
        resume_output(folder, record)
        remove_partial_files(folder)
        yield
        written = [name for name in files if (folder / name).is_file()]
        write_file_list(folder, [file_entry(folder, name) for name in written])
        replace(record, result={}, complete=True).save(folder)
