"""Copies recordings: whole files as they are, damaged files as far as they can be read."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from vlatool.config.base import check_required, required_field
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.formats.base import links_out_error
from vlatool.formats.media.repair import NothingWhole, Salvaged
from vlatool.formats.samples.layout import is_inside
from vlatool.jobs import command
from vlatool.jobs.files import FOLDER, FileEntry, file_entry
from vlatool.jobs.job import InputState, JobRun, JobSpec, input_state, plan_digest
from vlatool.jobs.journal import Receipt
from vlatool.jobs.ownership import require_input
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_command
from vlatool.storage.atomic import atomic_path, copy_file
from vlatool.storage.tree import files_below, first_link_out, real_folders, size_text
from vlatool.storage.uri import is_remote, location

# Modules with `is_whole` and `salvage`, by suffix.
_CONTAINERS = {
    ".parquet": "lerobot.repair",
    ".mp4": "media.repair_mp4",
    ".hdf5": "hdf5.repair",
    ".h5": "hdf5.repair",
    ".hdf": "hdf5.repair",
    ".mcap": "mcap.repair",
}
_COMPARED = 8  # whole files of the same kind that a damaged one is compared with


class RepairConfig(command.EngineConfig):
    """Options of `vlatool repair`."""

    source: str = required_field("", "Folder of recordings, or one file, on this machine.")
    output: str = required_field("", "Folder for the repaired copy.")


@dataclass(frozen=True, kw_only=True)
class RepairResult(command.OutputResult):
    """Result of a run; `failures` lists the files from which nothing can be saved."""

    item_name: ClassVar[str] = "file"

    files: int = 0  # in the output
    damaged: int = 0  # of them not whole in the source
    not_checked: int = 0  # of them of a kind that repair does not know; they are copied
    resumed: int = 0  # of them written by an earlier run
    cut: tuple[Mapping[str, Any], ...] = ()  # files that are there in part: file, content, lost
    bytes: int = 0

    def summary(self) -> str:
        if self.is_planned:
            return f"would write {counted(self.files, 'file')}, {self.damaged} of them damaged"
        whole = counted(self.files - self.damaged - self.not_checked, "whole file")
        others = f", {self.not_checked} not checked" if self.not_checked else ""
        return (
            f"{whole} copied, {self.damaged} damaged saved in part{others}, {size_text(self.bytes)}"
        )

    def details(self) -> Iterable[str]:
        for row in self.cut:
            yield f"{row['file']}: {row['content']}; lost: {', '.join(row['lost'])}"

    @property
    def next_command(self) -> str:
        return shlex.join(["vlatool", "verify", self.output])


def repair(config: RepairConfig, *, reporter: Reporter = NULL) -> RepairResult:
    """Copies recordings, and saves what is whole in damaged parquet, MCAP and mp4 files.

    The source is never changed. An interrupted run is resumed by the same call.

    Raises:
        UsageError: A key is missing, or the source or the output is not on this machine.
        DataError: Nothing in the source is whole.
        PartialFailure: The copy lacks the files from which nothing can be saved.
    """
    check_required(config, "vlatool repair SOURCE --output NEW")
    executor = command.executor_of(config)
    return run_command(_RepairJob(config), RepairResult, config, executor, reporter=reporter)


class _File(NamedTuple):
    path: Path
    name: str  # below the source
    others: tuple[Path, ...]  # files of the same kind, in its folder first


class _RepairJob:
    """Job with one item per file; see `jobs.job.Job`."""

    def __init__(self, config: RepairConfig) -> None:
        source = require_input(config.source)
        output = location(config.output)
        if is_remote(source) or is_remote(output):
            raise UsageError(
                "repair reads and writes only on this machine",
                hint="download the recordings first: vlatool download SOURCE",
                code="usage.bad_value",
            )
        if is_inside(output, source):
            raise UsageError(
                f"{output}: is inside the source, which repair never changes",
                hint="choose an --output outside the source",
                code="usage.output_exists",
            )
        self.items = _files(source)
        folders = real_folders(source)
        inside: set[str] = set()
        for file in self.items:
            if source.is_dir() and first_link_out(file.path, folders, inside):
                raise links_out_error(file.path, source)
        options = {"source": source.name}
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("repair", options),
            title=f"repair {config.source}",
            item_name="file",
            plan=plan_digest(options),
            work=_Repair(output),
            state=_state,
            owned=[file.name for file in self.items],
            locations=(source, output),
            progress_count="damaged",
            shown={"output": config.output},
            check=_check,
        )
        self._receipts: list[Receipt] = []

    def name(self, item: _File) -> str:
        return item.name

    def begin(self) -> None:
        pass

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        self._receipts = list(receipts)
        return [entry for receipt in self._receipts for entry in receipt.files]

    def result(self, run: JobRun) -> RepairResult:
        is_planned = run.status == "planned"
        return RepairResult(
            files=len(self.items if is_planned else self._receipts),
            damaged=run.sums.get("damaged", 0),
            not_checked=run.sums.get("not_checked", 0),
            cut=tuple(receipt.facts for receipt in self._receipts if receipt.facts),
            bytes=run.bytes_on_disk,
        )


def _files(source: Path) -> list[_File]:
    """Files of the source, without the records of a command that wrote it."""
    files = [source / file.name if file.name else source for file in files_below(source)]
    root = source if source.is_dir() else source.parent
    names = {path.relative_to(root).as_posix(): path for path in files}
    names = {name: path for name, path in names.items() if FOLDER not in Path(name).parts}
    if not names:
        raise DataError.at(
            source, "holds no files", hint="name your recordings", code="data.no_source"
        )
    kinds: dict[str, list[Path]] = {}
    for name, path in names.items():
        kinds.setdefault(re.sub(r"\d+", "0", name), []).append(path)
    items: list[_File] = []
    for same in kinds.values():
        for position, path in enumerate(same):
            near = same[max(0, position - _COMPARED) : position + _COMPARED + 1]
            near.sort(key=lambda other, folder=path.parent: other.parent != folder)
            others = tuple(other for other in near if other != path)
            items.append(_File(path, path.relative_to(root).as_posix(), others))
    return sorted(items, key=lambda file: file.name)


def _state(file: _File) -> InputState:
    return input_state([file.path])


def _container(file: _File) -> Any:
    """Module of the kind of a damaged file; None if the file is whole or of another kind."""
    name = _CONTAINERS.get(file.path.suffix.lower())
    module = import_module(f"vlatool.formats.{name}") if name else None
    return None if module is None or module.is_whole(file.path) else module


def _check(file: _File) -> Receipt:
    return Receipt(file.name, counts=_counts(file, is_damaged=_container(file) is not None))


def _counts(file: _File, *, is_damaged: bool) -> dict[str, int]:
    is_known = file.path.suffix.lower() in _CONTAINERS
    return {"damaged": int(is_damaged), "not_checked": int(not is_known)}


@dataclass(frozen=True)
class _Repair:
    """Writes the copy of a file."""

    output: Path

    def __call__(self, file: _File) -> Receipt:
        module = _container(file)
        target = self.output / file.name
        if module is None:
            copy_file(file.path, target)
            entry = file_entry(self.output, file.name)
            return Receipt(file.name, counts=_counts(file, is_damaged=False), files=(entry,))
        whole = filter(module.is_whole, file.others)
        try:
            with atomic_path(target) as partial:
                salvaged: Salvaged = module.salvage(file.path, partial, whole)
        except NothingWhole as error:
            raise DataError.at(
                file.path,
                f"is damaged, and nothing in it can be saved: {error}",
                hint="record or copy the file again, or leave it out",
                code="data.broken",
            ) from error
        lost = [part.replace(f"{file.path}", file.name) for part in salvaged.lost]
        return Receipt(
            file.name,
            counts=_counts(file, is_damaged=True),
            files=(file_entry(self.output, file.name),),
            facts={"file": file.name, "content": salvaged.content, "lost": lost},
        )
