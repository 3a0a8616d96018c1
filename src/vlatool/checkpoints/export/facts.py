"""Report of exported or composed weights."""

from pathlib import Path

from vlatool.checkpoints.export.layout import COMPOSE
from vlatool.jobs.files import read_file_list
from vlatool.jobs.record import read_record
from vlatool.report.facts import Problems, Report, Table
from vlatool.storage.tree import size_text


def inspect(location: Path) -> Report:
    """Reads the record and the file list.

    Its facts: `command` and `checkpoint` are those that wrote it, `is_complete` is False if it has
    not finished, and `files` has the size of each file in bytes.
    """
    findings = Problems()
    record = read_record(location)
    assert record is not None, "recognize has read it"
    sizes: dict[str, int] = {}
    rows: list[tuple[str, str]] = []
    for entry in findings.read(read_file_list, location) or ():
        sizes[entry.path] = entry.bytes
        rows.append((entry.path, size_text(entry.bytes)))
    checkpoint = str(record.options.get("checkpoint") or "")
    summary = {"written by": f"vlatool {record.command}"}
    if checkpoint:
        summary["checkpoint"] = checkpoint
    title = "composed weights" if record.command == COMPOSE else f"export of {checkpoint}"
    return Report(
        kind="export",
        headline=f"{title}, {size_text(sum(sizes.values()))}",
        facts={
            "command": record.command,
            "checkpoint": checkpoint,
            "is_complete": record.complete,
            "files": sizes,
        },
        summary=summary,
        tables=[Table(("name", "size"), rows, "Files")],
        findings=findings,
    )
