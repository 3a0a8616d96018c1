"""Commands that follow a download, by the kind of its files."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from vlatool.artifacts.base import recognize
from vlatool.artifacts.shards.format import ShardFolder
from vlatool.errors import VlatoolError
from vlatool.jobs.downloads import open_requests
from vlatool.jobs.record import read_record
from vlatool.sources.detection import detect_source
from vlatool.storage.uri import local_path

# Formats that a download may hold, and the rest of the command that reads them.
_FORMATS = {
    "libero": "--preset future-vla --output {output}-windows",
    "lerobot": "--output {output}-shards",
    "spartan": "--output {output}-shards",
}
# Published shards name no action fields; this preset has those of the public tasks.
_PUBLISHED_FIELDS = "--preset lbm-data-params"
_RAW_TASK = "--preset lbm-1past-14future --output {name}-shards"


def next_command(output: str) -> str:
    """Command for the next step after a download to `output`: its own, if it is not complete."""
    folder = local_path(output)
    record = read_record(folder)
    if record is not None and record.requests:
        return open_requests(record, folder)[0]
    with suppress(VlatoolError):  # files of any other kind
        return _next_command(folder).format(output=shlex.quote(output.rstrip("/")))
    return f"vlatool verify {shlex.quote(output)}"


def raw_task_command(output: str, annotations: str) -> str:
    """Command for the next step after a raw task; `annotations`: language annotations; empty
    without them.
    """
    command = next_command(output)
    if not command.startswith("vlatool preprocess spartan "):
        return command
    path = f" --language-annotations-path {shlex.quote(annotations)}" if annotations else ""
    rest = _RAW_TASK.format(name=shlex.quote(local_path(output).name))
    return f"vlatool preprocess spartan {shlex.quote(output)}{path} {rest}"


def tasks_command(commands: Mapping[str, str], output: str) -> str:
    """Command that continues with several tasks; one of them if their commands differ."""
    first, *others = commands
    command = commands[first]
    if not others or not command:
        return command
    for option in ("--data ", ""):
        start, separator, rest = command.partition(f" {option}{shlex.quote(first)} ")
        if separator:
            folders = " ".join(f"{option}{shlex.quote(folder)}" for folder in commands)
            name = local_path(first).name
            shards = local_path(output).name or "tasks"
            rest = rest.replace(f"{name}-shards", f"{shards}-shards")
            return f"{start} {folders} {rest}"
    return command


def _next_command(folder: Path) -> str:
    artifact = recognize(folder)
    if artifact is None:
        return _preprocess(folder)
    if artifact.kind != "output":
        return "vlatool inspect {output}"
    options = ShardFolder.open(folder).options()
    fields = "" if options.get("action_fields") else f" {_PUBLISHED_FIELDS}"
    return f"vlatool train --preset diffusion-policy-tiny{fields} --data {{output}} --num-epochs 20"


def _preprocess(folder: Path) -> str:
    """Command that reads raw episodes; raises VlatoolError if there are none."""
    for name, rest in _FORMATS.items():
        with suppress(VlatoolError):
            findings = getattr(detect_source(folder, name).reader, "source_findings", ())
            is_lost = any(finding.code == "lerobot.no_videos" for finding in findings)
            chosen = " --camera-names '[]'" if is_lost else ""
            return f"vlatool preprocess {name} {{output}} {rest}{chosen}"
    return "vlatool verify {output}"
