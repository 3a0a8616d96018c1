"""Runs of `vlatool preprocess` whose inputs or outputs are in S3, and what they left there."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from vlatool.cli import app
from vlatool.storage.remote_path import RemotePath

SHARDS = ("--samples-per-shard", "10")


def upload(folder: Path, target: RemotePath) -> RemotePath:
    """Copies a local folder; returns `target`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return target


def digests(folder: Path) -> dict[str, str]:
    """Every file that must not depend on time, place or engine, and its digest."""
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(found.items())
        if not name.startswith(".vlatool/") and path.name != "processing_metadata.json"
    }


def words(source: Path, output: Path, *more: object, format: str = "spartan") -> list[str]:  # noqa: A002 - the word users know
    """A preprocess command without the program."""
    command = ["preprocess", format, str(source), "-o", str(output), *SHARDS, "-q", *more]
    return [str(word) for word in command]


def preprocess(source: Path, output: Path, *more: object, format: str = "spartan") -> int:  # noqa: A002
    """Runs the command in this process; returns its exit code."""
    return app.run(words(source, output, "--workers", 1, *more, format=format))


def command(source: Path, output: Path, *more: object) -> list[str]:
    """The command for a process of its own, with two workers."""
    return [sys.executable, "-m", "vlatool", *words(source, output, "--workers", 2, *more)]


def finished(
    command: list[str], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    variables = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=variables)
