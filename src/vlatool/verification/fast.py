"""Checks of a FAST folder: its files, the range of the tokenizer, its fit report."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.artifacts.check import CheckOptions
from vlatool.artifacts.fast.format import (
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
from vlatool.verification.findings import FAST
from vlatool.verification.output import check_record_and_files


def check_fast(location: Path, check: CheckOptions) -> Iterator[Finding]:
    """Yields the findings of the folder of an action tokenizer, ours or a published one."""
    has_ended = yield from check_record_and_files(location, location, check)
    if not has_ended:
        return
    check.counts.add(files=sum((location / name).is_file() for name in NAMES))
    for name in ignored_code(location):
        yield FAST("code", f"{location / name}: is never executed", path=str(location / name))
    try:
        tokenizer = read_fast(location)
    except DataError as error:
        code = "remote_code" if error.code == "data.remote_code" else "broken"
        yield FAST(code, error.message, path=error.details["path"])
        return
    yield from _check_tokenizer(location, tokenizer)
    yield from _check_profile(location)


def _check_tokenizer(location: Path, tokenizer: ActionTokenizer) -> Iterator[Finding]:
    if not tokenizer.covers_all_bytes:
        path = location / TOKENIZER_NAME
        yield FAST("missing_bytes", f"{path}: some bytes have no id", path=str(path))
    path = location / REPORT_NAME
    try:
        report = read_report(location) if path.is_file() else {}
    except DataError as error:
        yield FAST("broken_report", error.message, path=str(path))
        return
    if report.get("digest", tokenizer.digest) != tokenizer.digest:
        yield FAST("broken_report", f"{path}: belongs to another tokenizer", path=str(path))


def _check_profile(location: Path) -> Iterator[Finding]:
    path = location / PROFILE_NAME
    try:
        if path.is_file():
            read_profile(str(path))
    except DataError as error:
        yield FAST("broken_profile", error.message, path=str(path))
