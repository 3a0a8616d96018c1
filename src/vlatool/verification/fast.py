"""Checks of a FAST folder: its files, what the tokenizer can write, what was measured of it."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.artifacts.fast import (
    NAMES,
    REPORT_NAME,
    TOKENIZER_NAME,
    ignored_code,
    read_fast,
    read_report,
)
from vlatool.artifacts.profile import NAME as PROFILE_NAME
from vlatool.artifacts.profile import read_profile
from vlatool.errors import DataError
from vlatool.findings import Finding
from vlatool.transforms.action_tokenizer import ActionTokenizer
from vlatool.verification.check import CheckOptions
from vlatool.verification.findings import FAST
from vlatool.verification.output import check_record_and_files


def check_fast(location: Path, check: CheckOptions) -> Iterator[Finding]:
    """Everything that is wrong with an action tokenizer, ours or a published one."""
    is_ended = yield from check_record_and_files(location, location, check)
    if not is_ended:
        return
    check.counts.add(files=sum((location / name).is_file() for name in NAMES))
    for name in ignored_code(location):
        yield FAST("code", f"{location / name}: is not run", path=str(location / name))
    try:
        tokenizer = read_fast(location)
    except DataError as error:
        code = "remote_code" if error.code == "data.remote_code" else "broken"
        yield FAST(code, error.message, path=error.details["path"])
        return
    yield from _check_tokenizer(location, tokenizer)
    yield from _check_profile(location)


def _check_tokenizer(location: Path, tokenizer: ActionTokenizer) -> Iterator[Finding]:
    if not tokenizer.writes_all:
        path = location / TOKENIZER_NAME
        yield FAST("missing_bytes", f"{path}: not every byte has an id", path=str(path))
    path = location / REPORT_NAME
    try:
        told = read_report(location) if path.is_file() else {}
    except DataError as error:
        yield FAST("broken_report", error.message, path=str(path))
        return
    if told.get("digest", tokenizer.digest) != tokenizer.digest:
        yield FAST("broken_report", f"{path}: is of another tokenizer", path=str(path))


def _check_profile(location: Path) -> Iterator[Finding]:
    path = location / PROFILE_NAME
    try:
        if path.is_file():
            read_profile(str(path))
    except DataError as error:
        yield FAST("broken_profile", error.message, path=str(path))
