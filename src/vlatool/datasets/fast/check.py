"""Checks of a FAST folder: its files, the range of the tokenizer, its fit report."""

from collections.abc import Iterator
from pathlib import Path

from vlatool.datasets.fast import layout as fast_layout
from vlatool.datasets.samples.profile import NAME as PROFILE_NAME
from vlatool.datasets.samples.profile import read_profile
from vlatool.errors import DataError
from vlatool.findings import Finding, FindingCodes, error, info, warning
from vlatool.recordings.check import CheckOptions, check_record_and_files
from vlatool.transforms.action_tokenizer import ActionTokenizer

FAST = FindingCodes(
    "fast",
    broken=error(
        "A file of an action tokenizer is missing, broken or has unsupported values.",
        "copy the folder again, or fit the tokenizer again with --overwrite",
    ),
    remote_code=error(
        "The folder requires its own code to be executed.",
        "use a tokenizer of the published class",
    ),
    code=info("The folder of the tokenizer contains code, which is never executed."),
    missing_bytes=warning(
        "Some bytes have no id: a chunk with a rare coefficient cannot be encoded.",
        "fit the tokenizer with --alphabet bytes",
    ),
    broken_profile=error("profile.yaml is not a valid profile.", "copy the folder again"),
    broken_report=warning(
        "fit_report.json is broken or belongs to another tokenizer.", "copy the folder again"
    ),
)


FINDINGS = (FAST,)


def check(location: Path, options: CheckOptions) -> Iterator[Finding]:
    has_ended = yield from check_record_and_files(location, location, options)
    if not has_ended:
        return
    options.counts.add(files=sum((location / name).is_file() for name in fast_layout.NAMES))
    for name in fast_layout.ignored_code(location):
        yield FAST.at("code", location / name, "is never executed")
    try:
        tokenizer = fast_layout.read_fast(location)
    except DataError as error:
        code = "remote_code" if error.code == "data.unsafe" else "broken"
        yield FAST(code, error.message, path=error.details["path"])
        return
    yield from _check_tokenizer(location, tokenizer)
    path = location / PROFILE_NAME
    try:
        if path.is_file():
            read_profile(str(path))
    except DataError as error:
        yield FAST("broken_profile", error.message, path=str(path))


def _check_tokenizer(location: Path, tokenizer: ActionTokenizer) -> Iterator[Finding]:
    if not tokenizer.covers_all_bytes:
        path = location / fast_layout.TOKENIZER_NAME
        yield FAST.at("missing_bytes", path, "some bytes have no id")
    path = location / fast_layout.REPORT_NAME
    try:
        report = fast_layout.read_report(location) if path.is_file() else {}
    except DataError as error:
        yield FAST("broken_report", error.message, path=str(path))
        return
    if report.get("digest", tokenizer.digest) != tokenizer.digest:
        yield FAST.at("broken_report", path, "belongs to another tokenizer")
