"""Runs of `vlatool preprocess` with inputs or outputs in S3."""

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
    """Digests of all files that do not depend on time, location or engine."""
    files = (path for path in folder.rglob("*") if path.is_file())
    paths = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(paths.items())
        if not name.startswith(".vlatool/") and path.name != "processing_metadata.json"
    }


def words(source: Path, output: Path, *more: object, format: str = "spartan") -> list[str]:  # noqa: A002 - the name of the argument
    """Arguments of a preprocess command."""
    command = ["preprocess", format, str(source), "-o", str(output), *SHARDS, "-q", *more]
    return [str(word) for word in command]


def preprocess(source: Path, output: Path, *more: object, format: str = "spartan") -> int:  # noqa: A002
    """Runs the command in this process; returns its exit code."""
    return app.run(words(source, output, "--workers", 1, *more, format=format))


def command(source: Path, output: Path, *more: object) -> list[str]:
    """Command line for a separate process, with two workers."""
    return [sys.executable, "-m", "vlatool", *words(source, output, "--workers", 2, *more)]


def finished(
    command: list[str], env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command until it ends."""
    variables = {**os.environ, **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=250, env=variables)
