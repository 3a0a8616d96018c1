"""Uploads a folder to a repository of a model hub, with a card made from its records."""

import json
import os
import re
import shlex
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import yaml

from vlatool.checkpoints.layout import CONFIG, ORIGINS, TRACKERS
from vlatool.config.base import ConfigModel, check_required, execution_field, option, required_field
from vlatool.credentials import hide_environment, without_credentials
from vlatool.datasets.lbm.layout import CONFIG_NAME as OPTIONS_NAME
from vlatool.datasets.samples.layout import SamplesFolder
from vlatool.errors import DataError, EnvironmentProblem, StorageError, UsageError, name_error
from vlatool.events import NULL, Reporter, counted
from vlatool.inspection import inspect_location
from vlatool.jobs.command import DRY_RUN_HELP
from vlatool.jobs.ownership import contents_record, data_files, require_input
from vlatool.jobs.record import OutputRecord, is_being_written
from vlatool.recordings.artifact import contents_text, recognize
from vlatool.recordings.base import links_out_error
from vlatool.recordings.detect import SourceKeys
from vlatool.recordings.lerobot.layout import INFO_FILE
from vlatool.report import text as report_text
from vlatool.report.facts import Report
from vlatool.report.text import few_text
from vlatool.results import Result, outcome, printable
from vlatool.storage.background import in_background
from vlatool.storage.documents import read_json
from vlatool.storage.hub import RepositoryWriter, UploadFile
from vlatool.storage.remote import ObjectInfo
from vlatool.storage.tree import first_link_out, real_folders, size_text
from vlatool.storage.uri import is_remote, local_path, location
from vlatool.workflows.verify import CodesResult, VerifyConfig, VerifyResult, verify

CARD = "README.md"
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
# Files that hold locations, are read as documents, and have no digest in others: by kind.
_WITH_LOCATIONS: Mapping[str, Sequence[str]] = {
    "run": (CONFIG, ORIGINS, OPTIONS_NAME),
    "export": ("*.json", "*.yaml"),
    "experiment": ("*.json", "*.yaml"),
}
# First folders of absolute paths: folders with data of users, besides folders of this machine.
_USER_FOLDERS = {"Users", "Volumes", "data", "home", "media", "mnt", "root", "scratch", "workspace"}
# Folders of the system say nothing on a user; robots have topics such as /sys or /dev/video0.
_SYSTEM_FOLDERS = {
    *("bin", "boot", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin"),
    *("sys", "usr"),
}


def chosen_files(folder: Path, kind: str, unlisted: Collection[str]) -> list[UploadFile]:
    """Files to upload, sorted by path; of paths in configurations only the last part is kept.

    `unlisted`: Relative paths of files that do not belong to the folder; a license is kept.

    Leaves out records (`.vlatool/`), hidden files, other outputs inside, and logs of trackers.
    """
    files: list[UploadFile] = []
    for info in data_files(folder):
        parts = PurePosixPath(info.name).parts
        is_log = kind == "run" and parts[0] in TRACKERS
        is_foreign = info.name in unlisted and info.name not in (CARD, *_LICENSES)
        if is_log or is_foreign:
            continue
        try:
            info.name.encode()
        except UnicodeEncodeError as error:
            raise name_error(error) from None
        path = folder / info.name
        if any(fnmatch(info.name, pattern) for pattern in _WITH_LOCATIONS.get(kind, ())):
            content = _without_locations(path)
            files.append(UploadFile(info.name, content, len(content)))
        else:
            files.append(UploadFile(info.name, path, info.bytes))
    return sorted(files, key=lambda file: file.name)


@cache
def _path_pattern() -> re.Pattern[str]:
    """Pattern of absolute paths that begin like a folder of this machine, or a home folder."""
    own = {entry.name for entry in os.scandir("/") if entry.is_dir()} - _SYSTEM_FOLDERS
    names = "|".join(re.escape(name) for name in sorted(own | _USER_FOLDERS))
    unix = rf"(?<![\w.@~+%/-])(?:file://)?/(?:{names})/[^\s\"'<>,;:)\]}}]+"
    return re.compile(rf"{unix}|\b[A-Z]:\\+Users\\+[^\s\"']+")


def without_locations(text: str) -> str:
    """Text in which absolute paths have only their last part."""
    return _path_pattern().sub(_last_part, text)


def _last_part(match: re.Match[str]) -> str:
    return re.split(r"[/\\]", match[0].rstrip("/\\"))[-1]


def _without_locations(path: Path) -> bytes:
    """Content of a YAML or JSON file in which absolute paths have only their last part."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if not _path_pattern().search(text):
        return path.read_bytes()
    load: Callable[[str], Any] = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        tree = _shortened(load(text))
    except (ValueError, yaml.YAMLError):  # `verify` has read it
        return without_locations(text).encode()
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
    match = _path_pattern().match(value)
    is_location = match is not None and "\n" not in value
    return PurePosixPath(value).name if is_location else without_locations(value)


# Options of training are in config.yaml; those of a download say nothing on the files.
_WITHOUT_OPTIONS = frozenset({"train", "finetune", "tokenizer train"})
_LEROBOT_TABLES = "data/*/*.parquet"


def card_text(
    folder: Path, report: Report, location: str, sizes: Sequence[int], license_key: str | None
) -> str:
    """Text of the card of a folder; equal records, files and arguments give equal text.

    `sizes`: sizes of the files in bytes; `license_key`: license as the hub writes it, such as
    `mit`; None: the card names none.
    """
    record = contents_record(folder)
    _, _, kind, _, name = location.split("/")
    content = contents_text(report.kind) or report.kind
    blocks = [
        _metadata(folder, str(report.facts.get("format") or report.kind), kind, license_key),
        f"# {name}",
        f"{content[0].upper()}{content[1:]}: {report.headline}.",
        "## Contents",
    ]
    for block in report_text.blocks(report):
        if block.strip():
            blocks.append(f"```text\n{block.rstrip()}\n```")
    blocks.append(f"{counted(len(sizes), 'file')}, {size_text(sum(sizes))}.")
    if record is not None:
        blocks += _origin(record)
    blocks += [
        "## Use",
        f"```bash\nvlatool download {location} --output {name}\nvlatool verify {name}\n```",
    ]
    text = "\n\n".join(blocks) + "\n"
    # A report may name the folder itself, or locations that it was made from.
    hide_environment()
    text = printable(without_credentials(text))
    return without_locations(text.replace(f"{folder.absolute()}/", "").replace(f"{folder}/", ""))


def _metadata(folder: Path, content: str, kind: str, license_key: str | None) -> str:
    is_lerobot = (folder / INFO_FILE).is_file()
    tags = ["vlatool", content]
    if is_lerobot:
        tags.append("LeRobot")
    values: dict[str, Any] = {}
    if license_key is not None:
        values["license"] = license_key
    if kind == "models":
        values |= {"library_name": "vlatool", "pipeline_tag": "robotics"}
    else:
        values |= {"task_categories": ["robotics"]}
    values["tags"] = tags
    if is_lerobot:
        values["configs"] = [{"config_name": "default", "data_files": _LEROBOT_TABLES}]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _origin(record: OutputRecord) -> list[str]:
    """Blocks of the card about the command that made the files."""
    made_by = f"Made by `vlatool {record.command}` of vlatool {record.version}"
    if record.command in _WITHOUT_OPTIONS:
        return ["## Origin", f"{made_by}; its options are in `config.yaml`."]
    options = _set_options(record.options)
    if not options:
        return ["## Origin", made_by]
    text = yaml.safe_dump(options, sort_keys=False, allow_unicode=True)
    return ["## Origin", f"{made_by}, with the options", f"```yaml\n{text.rstrip()}\n```"]


def _set_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without empty values, also inside sections."""
    values: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping):
            value = _set_options(value)
        if value not in (None, {}, []):
            values[key] = value
    return values


_USAGE = "vlatool upload FOLDER hf://datasets/OWNER/NAME"
_REPOSITORY = re.compile(r"hf://(datasets|models)/([^/@]+)/([^/@]+)")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
# Finding codes of files that do not belong to an output.
_UNLISTED = ("output.unlisted_file", "run.unlisted_file", "run.unfinished_checkpoint")
# The hub's library says nothing while it sends a commit.
_SHOWN_EVERY_S = 5.0
# The hub writes it into every repository.
_OF_THE_HUB = ".gitattributes"


class UploadConfig(ConfigModel):
    """Options of `vlatool upload`."""

    help_groups: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Repository": ("license", "public", "overwrite", "dry_run")
    }

    folder: str = required_field("", "Folder to upload: data, a run, an export, a tokenizer.")
    location: str = required_field(
        "", "Repository: hf://datasets/OWNER/NAME or hf://models/OWNER/NAME."
    )
    license: str | None = option(None, "License in the card, such as mit or cc-by-4.0; null: none.")
    public: bool = option(False, "Create a public repository, instead of a private one.")
    overwrite: bool = execution_field(
        default=False, description="Replace files that differ there, and remove all others."
    )
    dry_run: bool = execution_field(default=False, description=DRY_RUN_HELP)


@dataclass(frozen=True, kw_only=True)
class UploadResult(Result):
    folder: str  # as it was given
    location: str  # repository
    url: str  # its web page
    kind: str  # of the content, as in `inspect`
    files: int  # of the folder that are there, or would be; the card is one
    bytes: int  # their size
    sent_files: int  # that this call sent, or would send
    sent_bytes: int  # their size
    removed_files: int = 0  # that this call removed there, or would remove
    tag: str = ""  # of the newest commit, which LeRobot needs; empty for other data
    status: str = "written"  # or `already complete`, `planned`

    def lines(self) -> list[str]:
        total = f"{counted(self.files, 'file')}, {size_text(self.bytes)}"
        sent = f"{counted(self.sent_files, 'file')}, {size_text(self.sent_bytes)}"
        removed = f", remove {counted(self.removed_files, 'file')}" if self.removed_files else ""
        by_this = f", of these {sent} sent by this call" if self.status == "written" else ""
        plan = f"would send {sent} of {total}{removed}"
        return [outcome(self.url, self.status, f"{total}{by_this}", plan)]

    @property
    def next_command(self) -> str:
        if self.status == "already complete":
            return ""
        name = self.location.rpartition("/")[2]
        return f"vlatool download {shlex.quote(self.location)} --output {shlex.quote(name)}"


def upload(config: UploadConfig, *, reporter: Reporter = NULL) -> UploadResult:
    """Uploads a folder, with a card, to a private repository, if `verify` finds the folder whole.

    An interrupted upload is continued by the same call. Records, hidden files and logs of trackers
    stay here; of paths in the configuration of a run only the last part is uploaded.

    Raises:
        UsageError: A location is no folder or no repository, the folder is being written, or the
            repository holds other files.
        DataError: The folder is not whole.
        EnvironmentProblem: There is no token, or it gives no access.
        StorageError: The hub does not respond, or rejects the upload.
    """
    check_required(config, _USAGE)
    location(config.location)
    if not _REPOSITORY.fullmatch(config.location):
        raise UsageError(
            f"{config.location}: is not a repository of the hub",
            hint="write hf://datasets/OWNER/NAME for data, or hf://models/OWNER/NAME for a model",
            code="usage.bad_value",
        )
    if config.license is not None and not _LICENSE.fullmatch(config.license):
        raise UsageError(
            f"--license {config.license}: the hub does not know this license",
            hint="write it as the hub does, such as mit, apache-2.0, cc-by-4.0 or other",
            code="usage.bad_value",
        )
    writer = RepositoryWriter(config.location)
    folder = _folder(config)
    artifact = recognize(folder)
    if artifact is not None and artifact.kind == "checkpoint":
        raise UsageError(
            f"{folder}: is a checkpoint, which is only a part of a run",
            hint=f"upload the run, or its weights: vlatool export {folder} --output EXPORT",
            code="usage.unsupported",
        )
    result = verify(VerifyConfig(location=str(folder)), reporter=reporter)
    assert not isinstance(result, CodesResult)
    if not result.whole:
        raise DataError.at(
            folder,
            f"verification found {counted(result.counts['error'], 'error')}",
            hint=f"vlatool verify {folder} lists them",
            code="data.incomplete",
            codes=dict(result.codes),
        )
    files = _files(config, folder, result, reporter)
    tag = _lerobot_version(folder) if "/datasets/" in config.location else ""
    if not config.dry_run:
        writer.create(is_private=not config.public)
    there = _files_there(writer, is_planned=config.dry_run)
    missing = [file for file in files if not file.is_at(there.get(file.name))]
    names = {file.name for file in files}
    others = [name for name in there if name not in names]
    _check_others(config, there, missing, others)
    _warn_of_images(folder, result.kind, reporter)
    outcome = UploadResult(
        folder=config.folder,
        location=config.location,
        url=writer.url,
        kind=result.kind,
        files=len(files),
        bytes=sum(file.size for file in files),
        sent_files=len(missing),
        sent_bytes=sum(file.size for file in missing),
        removed_files=len(others),
        tag=tag,
        status="planned" if config.dry_run else "written",
    )
    if config.dry_run:
        return outcome
    if missing or others:
        _send(writer, missing, others, reporter)
        _check_complete(config, writer, files)
    if tag:
        writer.move_tag(tag)
    return outcome if missing or others else replace(outcome, status="already complete")


def _folder(config: UploadConfig) -> Path:
    folder = local_path(config.folder)
    require_input(str(folder))
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: is not a folder",
            hint="give the folder of the data, the run, the export or the tokenizer",
            code="usage.missing_file",
        )
    if is_being_written(folder):
        raise UsageError(
            f"{folder}: another command is writing it",
            hint="upload it when that command has ended",
            code="usage.output_in_use",
        )
    return folder


def _files(
    config: UploadConfig, folder: Path, result: VerifyResult, reporter: Reporter
) -> list[UploadFile]:
    unlisted: set[str] = set()
    for finding in result.findings:
        if finding.code in _UNLISTED:
            unlisted.add(str(finding.place.get("path")))
    files = chosen_files(folder, result.kind, unlisted)
    if not files:
        raise DataError.at(
            folder,
            "holds no files to upload",
            hint="give the folder of the data, the run, the export or the tokenizer",
            code="data.no_source",
        )
    _check_files(folder, files)
    if unlisted:
        names = few_text(sorted(unlisted))
        reporter.warn("unlisted_files", f"not uploaded, as not part of the folder: {names}")
    cards = [file for file in files if file.name == CARD]
    if cards:
        reporter.note(f"the folder has its own {CARD}, which becomes the card")
        return [*(file for file in files if file.name != CARD), *cards]
    _, report = inspect_location(folder, SourceKeys(), None, NULL)
    sizes = [file.size for file in files]
    content = card_text(folder, report, config.location, sizes, config.license).encode()
    return [*files, UploadFile(CARD, content, len(content))]


def _check_files(folder: Path, files: Sequence[UploadFile]) -> None:
    """Raises DataError for a file from outside the folder, or a name that the hub would reject."""
    folders = real_folders(folder)
    inside: set[str] = set()
    for file in files:
        link = first_link_out(folder / file.name, folders, inside)
        if link is not None:
            raise links_out_error(link, folder)
        if not file.name.isprintable():
            raise DataError.at(
                folder,
                f"the name of a file has characters that cannot be printed: {file.name!r}",
                hint="rename the file",
                code="data.unsafe",
            )
        if file.name == CARD and isinstance(file.content, Path):
            _check_card(file.content)


def _check_card(path: Path) -> None:
    """Raises DataError for a card that is not text."""
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError.at(
            path,
            f"would be the card, but it is not UTF-8: byte {error.start:,} cannot be read",
            hint="save it as UTF-8, or move it away: vlatool then writes a card",
            code="data.broken",
        ) from None


def _warn_of_images(folder: Path, kind: str, reporter: Reporter) -> None:
    """Warns if the images of samples are outside their folder: the upload lacks them."""
    if kind != "samples":
        return
    place = folder.resolve()
    root = SamplesFolder.open(folder).images_root
    if is_remote(root) or root.is_relative_to(place):
        return
    message = f"{folder}: the images of these samples are in {root}, and are not uploaded"
    if place.is_relative_to(root):
        message += (
            "; upload that folder, too. After downloading both, put the samples into it as "
            f"{place.relative_to(root)}"
        )
    reporter.warn("images_elsewhere", message)


def _lerobot_version(folder: Path) -> str:
    """Version of a LeRobot data set, such as `v3.0`: its loader needs a tag of this name."""
    path = folder / INFO_FILE
    info = read_json(path) if path.is_file() else {}
    return str(info.get("codebase_version", "")) if isinstance(info, dict) else ""


def _files_there(writer: RepositoryWriter, *, is_planned: bool) -> Mapping[str, ObjectInfo]:
    """Files of the repository, except the hub's own; empty if a dry run has no credentials."""
    try:
        files = writer.files()
    except EnvironmentProblem as error:
        if not is_planned or error.code != "environment.credentials":
            raise
        return {}
    return {name: info for name, info in files.items() if name != _OF_THE_HUB}


def _check_others(
    config: UploadConfig,
    there: Mapping[str, ObjectInfo],
    missing: Sequence[UploadFile],
    others: Sequence[str],
) -> None:
    """Raises UsageError if the upload would change files that are already in the repository."""
    changed = [file.name for file in missing if file.name in there]
    if config.overwrite or not (changed or others):
        return
    names = few_text([*changed, *others])
    raise UsageError(
        f"{config.location}: the repository already holds other files: {names}",
        hint="choose another repository; --overwrite replaces files that differ and removes "
        "all others",
        code="usage.output_exists",
        details={"changed": changed, "others": list(others)},
    )


def _send(
    writer: RepositoryWriter,
    missing: Sequence[UploadFile],
    others: Sequence[str],
    reporter: Reporter,
) -> None:
    total = sum(file.size for file in missing)
    lock = threading.Lock()
    ended = threading.Event()
    with reporter.progress("upload", total, "bytes") as bar:

        def advance(sent: int) -> None:
            with lock:
                bar.advance(sent)

        def show_time() -> None:
            while not ended.wait(_SHOWN_EVERY_S):
                advance(0)

        in_background(show_time)
        try:
            writer.send(missing, others, "Upload with vlatool", advance)
        finally:
            ended.set()


def _check_complete(
    config: UploadConfig, writer: RepositoryWriter, files: Sequence[UploadFile]
) -> None:
    """Raises StorageError if a file did not arrive: the hub ignores what a .gitignore names."""
    remote_files = writer.files()
    missing: list[str] = []
    for file in files:
        remote_file = remote_files.get(file.name)
        if remote_file is None or remote_file.size != file.size:
            missing.append(file.name)
    if missing:
        raise StorageError.at(
            config.location,
            f"the hub has not stored {counted(len(missing), 'file')}: {few_text(missing)}",
            hint="run the same command again; a .gitignore in the repository may name them",
            code="storage.write",
        )
