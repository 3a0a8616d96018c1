"""manifest.jsonl: the shards of a folder and their numbers of samples.

Source: formats/lbm 3.1.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vlatool.artifacts.manifest import parse_values
from vlatool.errors import DataError
from vlatool.storage.atomic import write_text
from vlatool.storage.documents import DocumentError, parse_json, read_document
from vlatool.storage.uri import is_file_name

NAME = "manifest.jsonl"
# Limit per shard, checked before the numbers are used.
MAX_SAMPLES = 10_000_000

_HINT = "preprocess or copy the data again"
_SHOWN = 100


@dataclass(frozen=True)
class Shard:
    """Tar file of a manifest.

    Attributes:
        path: The file.
        num_sequences: Number of samples.
    """

    path: Path
    num_sequences: int


@dataclass(frozen=True)
class _Row:
    """Line of the manifest."""

    shard: str
    num_sequences: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)]


def read_manifest(path: Path) -> list[Shard]:
    """Shards of a manifest; names are relative to its folder.

    Accepts blank lines, absolute names (only their stem is used) and a trailing `.tar`.

    Raises:
        DataError: The file is missing, broken or empty; names the line.
    """
    try:
        lines = read_document(path).split("\n")
    except OSError as error:
        raise DataError.at(
            path,
            f"no manifest here ({error.strerror})",
            hint="give a folder that `vlatool preprocess` wrote",
            code="data.no_manifest",
        ) from None
    except DocumentError as error:
        raise _manifest_error(path, error.reason) from None
    shards = [_shard(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not shards:
        raise DataError.at(
            path, "the manifest lists no shard", hint=_HINT, code="data.empty_manifest"
        )
    return shards


def write_manifest(path: Path, shards: Sequence[tuple[str, int]]) -> None:
    """Writes (stem, samples) pairs; without a final newline, like the published writer."""
    rows = (json.dumps({"shard": stem, "num_sequences": count}) for stem, count in shards)
    write_text(path, "\n".join(rows))


def check_shards(path: Path, shards: Sequence[Shard]) -> None:
    """Checks that every shard of the manifest at `path` exists and is not truncated.

    Raises:
        DataError: A shard is missing or truncated; names it.
    """
    for shard in shards:
        if not shard.path.is_file():
            raise _shard_error(path, shard, "is missing", "data.missing_shard")
        size = shard.path.stat().st_size
        if size < 1024 or size % 512:
            raise _shard_error(path, shard, f"is truncated ({size} bytes)", "data.short_shard")
        with shard.path.open("rb") as file:
            file.seek(-1024, 2)
            if any(file.read(1024)):
                raise _shard_error(path, shard, "is truncated: no end marker", "data.short_shard")


def _shard(path: Path, number: int, line: str) -> Shard:
    try:
        row = parse_values(_Row, parse_json(line))
    except ValueError as error:
        raise _manifest_error(path, error, number) from None
    stem = row.shard.removesuffix(".tar")
    if stem.startswith("/"):
        stem = stem.rsplit("/", 1)[1]
    parts = Path(f"{stem}.tar").parts
    if ".." in parts or not all(map(is_file_name, parts)):
        problem = f"{row.shard[:_SHOWN]!r} is not the name of a shard in the folder"
        raise _manifest_error(path, problem, number)
    return Shard(path.parent / f"{stem}.tar", row.num_sequences)


def _manifest_error(path: Path, reason: object, line: int = 0) -> DataError:
    return DataError.at(path, reason, line=line, hint=_HINT, code="data.broken_manifest")


def _shard_error(path: Path, shard: Shard, problem: str, code: str) -> DataError:
    return DataError(
        f"{shard.path}: {problem}; {path} lists it with {shard.num_sequences} samples",
        hint=_HINT,
        code=code,
        details={"shard": str(shard.path), "manifest": str(path)},
    )
