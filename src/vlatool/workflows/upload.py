"""Upload of a folder to a repository of a model hub."""

import re
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from vlatool.artifacts.base import recognize
from vlatool.artifacts.lerobot.format import INFO_FILE
from vlatool.artifacts.samples.format import SamplesFolder
from vlatool.config.base import ConfigModel, check_required, execution_field, required_field
from vlatool.errors import DataError, EnvironmentProblem, StorageError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.inspection.inspect import inspect_location
from vlatool.jobs.command import DRY_RUN_HELP
from vlatool.jobs.downloads import require_input
from vlatool.jobs.record import is_being_written
from vlatool.pages.text import few_text
from vlatool.results import Result, outcome
from vlatool.storage.background import in_background
from vlatool.storage.documents import read_json
from vlatool.storage.hub_upload import RepositoryWriter, UploadFile
from vlatool.storage.remote import ObjectInfo
from vlatool.storage.tree import size_text
from vlatool.storage.uri import is_remote, local_path, location
from vlatool.workflows.upload_card import card_text
from vlatool.workflows.upload_files import CARD, check_texts, chosen_files
from vlatool.workflows.verify import CodesResult, VerifyConfig, VerifyResult, verify

_USAGE = "vlatool upload FOLDER hf://datasets/OWNER/NAME"
_REPOSITORY = re.compile(r"hf://(datasets|models)/([^/@]+)/([^/@]+)")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
# Finding codes of files that do not belong to an output.
_UNLISTED = ("output.unlisted_file", "run.unlisted_file", "run.unfinished_checkpoint")
# The hub's library says nothing while it sends up to a gigabyte.
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
    license: str | None = Field(
        default=None, description="License in the card, such as mit or cc-by-4.0; null: none."
    )
    public: bool = Field(
        default=False, description="Create a public repository; without it, it is private."
    )
    overwrite: bool = execution_field(
        default=False, description="Replace files there that differ, and remove others."
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
        return f"vlatool download {self.location} --output {shlex.quote(name)}"


def upload(config: UploadConfig, *, reporter: Reporter = NULL) -> UploadResult:
    """Uploads a folder that `verify` finds whole, with a card, to a private repository.

    An interrupted upload is continued by the same call. Records, hidden files and logs of trackers
    stay here; locations in the configuration of a run have only their last part there.

    Raises:
        UsageError: A location is no folder or no repository, the folder is being written, or other
            files are there.
        DataError: The folder is not whole, or a file holds a secret or an absolute path.
        EnvironmentProblem: There is no token, or it gives no access.
        StorageError: The hub does not respond, or rejects the upload.
    """
    check_required(config, _USAGE)
    _check_options(config)
    writer = RepositoryWriter(config.location)
    folder = _folder(config)
    _check_kind(folder)
    result = verify(VerifyConfig(location=str(folder)), reporter=reporter)
    assert not isinstance(result, CodesResult)
    files = _files(config, folder, result, reporter)
    tag = _lerobot_version(folder) if "/datasets/" in config.location else ""
    if not config.dry_run:
        writer.create(is_private=not config.public)
    there = _files_there(writer, is_planned=config.dry_run)
    missing, others = _differences(files, there)
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


def _check_options(config: UploadConfig) -> None:
    location(config.location)
    if not _REPOSITORY.fullmatch(config.location):
        raise UsageError(
            f"{config.location}: is no repository of the hub",
            hint="write hf://datasets/OWNER/NAME for data, or hf://models/OWNER/NAME",
            code="usage.bad_repository",
        )
    if config.license is not None and not _LICENSE.fullmatch(config.license):
        raise UsageError(
            f"--license {config.license}: is no license key of the hub",
            hint="write it as the hub does: mit, apache-2.0, cc-by-4.0, other",
            code="usage.bad_license",
        )


def _folder(config: UploadConfig) -> Path:
    folder = local_path(config.folder)
    require_input(str(folder))
    if not folder.is_dir():
        raise UsageError(
            f"{folder}: is no folder",
            hint="give the folder of the data, the run, the export or the tokenizer",
            code="usage.not_a_folder",
        )
    if is_being_written(folder):
        raise UsageError(
            f"{folder}: another command is writing it",
            hint="upload it when that command has ended",
            code="usage.output_in_use",
        )
    return folder


def _check_kind(folder: Path) -> None:
    """Raises UsageError for a checkpoint, which is a part of a run."""
    artifact = recognize(folder)
    if artifact is not None and artifact.kind == "checkpoint":
        raise UsageError(
            f"{folder}: is a checkpoint, a part of a run",
            hint=f"upload the run, or its weights: vlatool export {folder} --output EXPORT",
            code="usage.checkpoint",
        )


def _files(
    config: UploadConfig, folder: Path, result: VerifyResult, reporter: Reporter
) -> list[UploadFile]:
    unlisted = {
        str(finding.place.get("path")) for finding in result.findings if finding.code in _UNLISTED
    }
    files = chosen_files(folder, result.kind, unlisted)
    if not files:
        raise DataError.at(
            folder, "has no files to upload", hint="check the folder", code="data.no_files"
        )
    if unlisted:
        names = few_text(sorted(unlisted))
        reporter.warn("unlisted_files", f"not uploaded, as they are not part of it: {names}")
    check_texts(files, folder)
    cards = [file for file in files if file.name == CARD]
    if cards:
        reporter.note(f"{CARD} of the folder is the card")
        return [*(file for file in files if file.name != CARD), *cards]
    _, report = inspect_location(folder, None, None, NULL)
    sizes = [file.size for file in files]
    content = card_text(folder, report, config.location, sizes, config.license).encode()
    return [*files, UploadFile(CARD, content, len(content))]


def _warn_of_images(folder: Path, kind: str, reporter: Reporter) -> None:
    """Warns that the images of samples are beside their folder: a copy of it lacks them."""
    if kind != "samples":
        return
    place, root = folder.resolve(), SamplesFolder.open(folder).images_root
    if is_remote(root) or root.is_relative_to(place):
        return
    message = f"{folder}: its images are in {root}, and are not uploaded with it"
    if place.is_relative_to(root):
        message += (
            f"; upload that folder, too: who downloads both needs the samples as "
            f"{place.relative_to(root)} in it"
        )
    reporter.warn("images_elsewhere", message)


def _lerobot_version(folder: Path) -> str:
    """Version of a LeRobot data set, such as `v3.0`: its loader needs a tag of this name."""
    path = folder / INFO_FILE
    info = read_json(path) if path.is_file() else {}
    return str(info.get("codebase_version", "")) if isinstance(info, dict) else ""


def _files_there(writer: RepositoryWriter, *, is_planned: bool) -> Mapping[str, ObjectInfo]:
    """Files of the repository, without that of the hub; a plan may be for one that is not there."""
    try:
        files = writer.files()
    except EnvironmentProblem as error:
        if not is_planned or error.code != "environment.no_credentials":
            raise
        return {}
    return {name: info for name, info in files.items() if name != _OF_THE_HUB}


def _differences(
    files: Sequence[UploadFile], there: Mapping[str, ObjectInfo]
) -> tuple[list[UploadFile], list[str]]:
    """Files that are not there with this content, and paths there that are none of them."""
    missing = [file for file in files if not file.is_at(there.get(file.name))]
    names = {file.name for file in files}
    return missing, [name for name in there if name not in names]


def _check_others(
    config: UploadConfig,
    there: Mapping[str, ObjectInfo],
    missing: Sequence[UploadFile],
    others: Sequence[str],
) -> None:
    """Raises UsageError if the upload would change files that are there."""
    changed = [file.name for file in missing if file.name in there]
    if config.overwrite or not (changed or others):
        return
    names = few_text([*changed, *others])
    raise UsageError(
        f"{config.location}: other files are there: {names}",
        hint="choose another repository; --overwrite replaces those that differ and removes the "
        "others",
        code="usage.other_files",
        details={"changed": changed, "others": list(others)},
    )


def _send(
    writer: RepositoryWriter,
    missing: Sequence[UploadFile],
    others: Sequence[str],
    reporter: Reporter,
) -> None:
    total = sum(file.size for file in missing)
    lock, ended = threading.Lock(), threading.Event()
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
    """Raises StorageError if a file is not there: the hub leaves out what a .gitignore names."""
    there = writer.files()
    missing = [
        file.name for file in files if file.name not in there or there[file.name].size != file.size
    ]
    if missing:
        raise StorageError.at(
            config.location,
            f"the hub has not taken {counted(len(missing), 'file')}: {few_text(missing)}",
            hint="run the same command again; look for a .gitignore in the repository",
            code="storage.not_sent",
        )
