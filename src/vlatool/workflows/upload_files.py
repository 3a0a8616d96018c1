"""Files of a folder that an upload sends: without records, secrets and folders of this machine."""

import codecs
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from vlatool.artifacts.run.format import CONFIG, ORIGINS, TRACKERS
from vlatool.artifacts.shards.format import CONFIG_NAME as OPTIONS_NAME
from vlatool.credentials import credentials_pattern
from vlatool.errors import DataError, name_error
from vlatool.jobs.downloads import data_files
from vlatool.storage.hub_upload import UploadFile

CARD = "README.md"
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
# Files that hold locations, are read as documents, and have no digest in others: by kind.
_WITH_LOCATIONS: Mapping[str, Sequence[str]] = {
    "run": (CONFIG, ORIGINS, OPTIONS_NAME),
    "export": ("*.json", "*.yaml"),
    "experiment": ("*.json", "*.yaml"),
}
_TEXT_SUFFIXES = frozenset(
    {"", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".md", ".csv", ".toml", ".ini", ".cfg"}
    | {".xml", ".html", ".log", ".py", ".sh"}
)
# Files whose content has no text: all others are searched for credentials.
_BINARY_SUFFIXES = frozenset(
    {".arrow", ".bin", ".gz", ".jpeg", ".jpg", ".mp4", ".npy", ".npz", ".parquet", ".png", ".pt"}
    | {".safetensors", ".tar", ".webp", ".zip", ".zst"}
)
_BLOCK_BYTES = 4 * 2**20
_MAX_SHOWN = 5
# First folders of absolute paths: those with data of users, besides those of this machine.
_USER_FOLDERS = {"Users", "Volumes", "data", "home", "media", "mnt", "root", "scratch", "workspace"}
# Folders of the system say nothing on a user; robots have topics such as /sys or /dev/video0.
_SYSTEM_FOLDERS = {
    *("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin"),
    *("sys", "usr"),
}


class Problem(NamedTuple):
    """Place of a text that must not be uploaded."""

    path: str
    line: int
    text: str


def chosen_files(folder: Path, kind: str, unlisted: Collection[str]) -> list[UploadFile]:
    """Files to upload, sorted by path; locations in configurations have only their last part.

    `unlisted`: Paths of files that do not belong to it, relative to it; a license stays.

    Records (`.vlatool/`), hidden files, outputs inside this one and logs of trackers are left out.
    """
    files: list[UploadFile] = []
    for info in data_files(folder):
        parts = PurePosixPath(info.name).parts
        is_log = kind == "run" and parts[0] in TRACKERS
        is_foreign = info.name in unlisted and info.name not in (CARD, *_LICENSES)
        if is_log or is_foreign:
            continue
        _check_name(info.name)
        path = folder / info.name
        if any(fnmatch(info.name, pattern) for pattern in _WITH_LOCATIONS.get(kind, ())):
            content = _without_locations(path)
            files.append(UploadFile(info.name, content, len(content)))
        else:
            files.append(UploadFile(info.name, path, info.bytes))
    return sorted(files, key=lambda file: file.name)


def _check_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise name_error(error) from None


def check_texts(files: Sequence[UploadFile], folder: Path) -> None:
    """Raises an error if a text holds a secret, or a text file an absolute path of a machine.

    The content of shards, tables, images and weights is not read.
    """
    for code, pattern, advice in (
        ("data.secret", credentials_pattern(), "a secret (a token, a key, or a signed address)"),
        ("data.absolute_path", _path_pattern(), "an absolute path of a machine"),
    ):
        texts = [file for file in files if _is_text(file, code)]
        problems = [problem for file in texts for problem in _matches(file, pattern)]
        if not problems:
            continue
        first = problems[0]
        shown = "" if code == "data.secret" else f": {first.text}"
        more = f"; {len(problems) - 1} more lines hold one" if len(problems) > 1 else ""
        raise DataError.at(
            folder / first.path,
            f"holds {advice}{shown}{more}",
            line=first.line,
            hint=_HINTS[code],
            code=code,
            places=[{"path": place.path, "line": place.line} for place in problems[:_MAX_SHOWN]],
        )


_HINTS = {
    "data.secret": "remove it from the file, and make it invalid where it was issued",
    "data.absolute_path": "write the folder again with relative locations (samples without "
    "--absolute), or change the file",
}


def _is_text(file: UploadFile, code: str) -> bool:
    suffix = PurePosixPath(file.name).suffix.lower()
    return suffix not in _BINARY_SUFFIXES if code == "data.secret" else suffix in _TEXT_SUFFIXES


def _matches(file: UploadFile, pattern: re.Pattern[bytes]) -> Iterator[Problem]:
    """Yields the lines of a text file that match, each once."""
    number, last = 1, 0
    for block in _text_blocks(file):
        start = 0
        for match in pattern.finditer(block):
            number += block.count(b"\n", start, match.start())
            start = match.start()
            if number != last:
                last = number
                yield Problem(file.name, number, match[0].decode(errors="replace"))
        number += block.count(b"\n", start)


def _text_blocks(file: UploadFile) -> Iterator[bytes]:
    """Yields the content in blocks that end with a line; nothing for a file that is no text."""
    if isinstance(file.content, bytes):
        yield file.content
        return
    with file.content.open("rb") as opened:
        start, rest = opened.read(2), b""
        is_utf16 = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in start
        opened.seek(0)
        while block := opened.read(_BLOCK_BYTES):
            if is_utf16:  # what a pattern can match is ASCII
                block = block.replace(b"\0", b"")
            if b"\0" in block:
                return
            head, end, tail = (rest + block).rpartition(b"\n")
            rest = tail
            if end:
                yield head + end
        yield rest


@cache
def _path_pattern() -> re.Pattern[bytes]:
    """Absolute path with a first folder of this machine, or of users of others."""
    own = {entry.name for entry in os.scandir("/") if entry.is_dir()} - _SYSTEM_FOLDERS
    names = "|".join(re.escape(name) for name in sorted(own | _USER_FOLDERS))
    unix = rf"(?<![\w.@~+%/-])(?:file://)?/(?:{names})/[^\s\"'<>,;:)\]}}]+"
    return re.compile(rf"{unix}|\b[A-Z]:\\+Users\\+[^\s\"']+".encode())


def without_locations(text: str) -> str:
    """Text in which absolute paths have only their last part."""
    return _path_pattern().sub(_last_part, text.encode()).decode()


def _last_part(match: re.Match[bytes]) -> bytes:
    return re.split(rb"[/\\]", match[0].rstrip(rb"/\\"))[-1]


def _without_locations(path: Path) -> bytes:
    """Content of a YAML or JSON file in which absolute paths have only their last part."""
    content = path.read_bytes()
    if not _path_pattern().search(content):
        return content
    load: Callable[[bytes], Any] = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        tree = _shortened(load(content))
    except (ValueError, yaml.YAMLError):  # `verify` has read it
        return without_locations(content.decode(errors="replace")).encode()
    if path.suffix == ".json":
        return (json.dumps(tree, indent=2, ensure_ascii=False) + "\n").encode()
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()


def _shortened(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_shortened(key): _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if not isinstance(value, str):
        return value
    match = _path_pattern().match(value.encode())
    is_location = match is not None and "\n" not in value
    return PurePosixPath(value).name if is_location else without_locations(value)
