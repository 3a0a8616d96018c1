"""Copies recordings: whole files as they are, damaged parquet files as far as they can be read.

The lists of a LeRobot set whose recorder was killed are made anew from its rows and videos.
"""

import glob
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from vlatool.config.base import check_required, execution_field, required_field
from vlatool.datasets.samples.layout import is_inside
from vlatool.errors import DataError, UsageError
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs import command
from vlatool.jobs.files import FOLDER, FileEntry, file_entry
from vlatool.jobs.job import InputState, JobRun, JobSpec, input_state, plan_digest
from vlatool.jobs.journal import Receipt
from vlatool.jobs.ownership import require_input
from vlatool.jobs.record import OutputRecord
from vlatool.jobs.run import run_command
from vlatool.recordings.base import links_out_error
from vlatool.recordings.lerobot.layout import EPISODES_TABLES, INFO_FILE, TASKS_TABLE
from vlatool.storage.atomic import atomic_path, copy_file, remove_file
from vlatool.storage.tree import files_below, first_link_out, real_folders, size_text
from vlatool.storage.uri import is_remote, location

_COMPARED = 8  # whole files of the same kind that a damaged one is compared with


class RepairConfig(command.EngineConfig):
    """Options of `vlatool repair`."""

    source: str = required_field("", "Folder of recordings, or one file, on this machine.")
    output: str = required_field("", "Folder for the repaired copy.")
    instruction: str | None = execution_field(
        None, "Sentence of the tasks of a LeRobot set whose texts are lost."
    )


@dataclass(frozen=True, kw_only=True)
class RepairResult(command.OutputResult):
    """Result of a run; `failures` lists the files from which nothing can be saved."""

    item_name: ClassVar[str] = "file"

    files: int = 0  # in the output
    damaged: int = 0  # of them not whole in the source
    not_checked: int = 0  # of them of a kind that repair does not know; they are copied
    made_anew: int = 0  # lists of LeRobot sets of which nothing could be saved
    resumed: int = 0  # of them written by an earlier run
    cut: tuple[Mapping[str, Any], ...] = ()  # files that are there in part: file, content, lost
    bytes: int = 0

    def summary(self) -> str:
        if self.is_planned:
            return f"would write {counted(self.files, 'file')}, {self.damaged} of them damaged"
        saved = self.damaged - self.made_anew
        whole = counted(self.files - saved - self.not_checked, "whole file")
        others = f", {self.not_checked} not checked" if self.not_checked else ""
        return f"{whole} copied, {saved} damaged saved in part{others}, {size_text(self.bytes)}"

    def details(self) -> Iterable[str]:
        for row in self.cut:
            lost = f"; lost: {', '.join(row['lost'])}" if row["lost"] else ""
            yield f"{row['file']}: {row['content']}{lost}"

    @property
    def next_command(self) -> str:
        return shlex.join(["vlatool", "verify", self.output])


def repair(config: RepairConfig, *, reporter: Reporter = NULL) -> RepairResult:
    """Copies recordings, and saves what is whole in damaged parquet files.

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
        self._sets = _lerobot_sets(self.items)
        # Not the instruction: an unfinished run asks for it, and goes on with it.
        options = {"source": source.name}
        self.spec = JobSpec(
            output=output,
            record=OutputRecord("repair", options),
            item_name="file",
            plan=plan_digest(options),
            work=_Repair(output, self._sets),
            state=_state,
            owned=[*(file.name for file in self.items), *self._lists()],
            locations=(source, output),
            progress_count="damaged",
            shown={"output": config.output},
            check=_check,
        )
        self._output = output
        self._instruction = config.instruction
        self._receipts: list[Receipt] = []
        self._rebuilt: list[Mapping[str, Any]] = []

    def name(self, item: _File) -> str:
        return item.name

    def begin(self) -> None:
        """Removes the lists of sets: copied ones are copied again, and others made anew."""
        for pattern in self._lists():
            for path in self._output.glob(pattern):
                remove_file(path)

    def finish(self, receipts: Iterator[Receipt], run: JobRun) -> Sequence[FileEntry]:
        self._receipts = list(receipts)
        entries = {entry.path: entry for receipt in self._receipts for entry in receipt.files}
        for name in self._sets:
            try:
                self._rebuild(name, entries, run)
            except DataError as error:
                self._fail(f"{name}meta", error.message, error.code, run)
        return list(entries.values())

    def _fail(self, name: str, message: str, code: str, run: JobRun) -> None:
        run.fail({"file": name, "code": code, "message": message, "hint": "", "details": {}})

    def _lists(self) -> list[str]:
        """Patterns of the tables that `_rebuild` writes."""
        patterns: list[str] = []
        for name in self._sets:
            folder = glob.escape(name)
            patterns += [f"{folder}{EPISODES_TABLES}", f"{folder}{TASKS_TABLE}"]
        return patterns

    def _rebuild(self, name: str, entries: dict[str, FileEntry], run: JobRun) -> None:
        """Completes the lists of a set; replaces the entries of the files that this changes."""
        from vlatool.recordings.lerobot.rebuild import rebuild_lists

        rebuilt = rebuild_lists(self._output / name, self._instruction)
        if rebuilt is None:
            return
        content = f"{counted(rebuilt.episodes, 'episode')} added to the list, without statistics"
        self._rebuilt.append({"file": f"{name}meta", "content": content, "lost": rebuilt.left_out})
        for file in rebuilt.files:
            relative = file.relative_to(self._output).as_posix()
            entries.pop(relative, None)
            if file.is_file():
                entries[relative] = file_entry(self._output, relative)
        if rebuilt.left_out:
            self._fail(f"{name}videos", "; ".join(rebuilt.left_out), "data.incomplete", run)

    def result(self, run: JobRun) -> RepairResult:
        is_planned = run.status == "planned"
        return RepairResult(
            files=len(self.items if is_planned else self._receipts),
            damaged=run.sums.get("damaged", 0),
            not_checked=run.sums.get("not_checked", 0),
            made_anew=run.sums.get("made_anew", 0),
            cut=(*(receipt.facts for receipt in self._receipts if receipt.facts), *self._rebuilt),
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


def _lerobot_sets(files: Iterable[_File]) -> tuple[str, ...]:
    """Relative names of the LeRobot sets, with a slash at the end; empty for the source."""
    sets: list[str] = []
    for file in files:
        above = file.name.removesuffix(INFO_FILE)
        if above != file.name and (not above or above.endswith("/")):
            sets.append(above)
    return tuple(sets)


def _state(file: _File) -> InputState:
    return input_state([file.path])


def _is_parquet_whole(path: Path) -> bool:
    from vlatool.recordings.lerobot.repair import is_whole

    return is_whole(path)


def _is_mp4_whole(path: Path) -> bool:
    import av.error

    from vlatool.media.frames import open_video

    container, stream = open_video(path)
    with container:
        try:
            is_corrupt = [packet.is_corrupt for packet in container.demux(stream) if packet.size]
        except av.error.FFmpegError:
            return False
        return 0 < len(is_corrupt) >= stream.frames and not any(is_corrupt)


def _is_hdf5_whole(path: Path) -> bool:
    from vlatool.recordings.hdf5.check import opened, readable

    with opened(path) as file, readable(path):
        file.visititems(lambda _name, item: dict(item.attrs) and None)
    return True


def _is_bag_whole(path: Path) -> bool:
    from vlatool.recordings.mcap.bag import bag_at

    return not any(file.findings for file in bag_at(path).files)


class _Kind(NamedTuple):
    is_whole: Callable[[Path], bool]
    tool: str = ""  # that helps, where repair saves nothing


_PARQUET = _Kind(_is_parquet_whole)
_HDF5 = _Kind(
    _is_hdf5_whole, "`h5clear -s --increment FILE`, then `h5repack FILE NEW`, saves what is whole"
)
_KINDS = {
    ".parquet": _PARQUET,
    ".mp4": _Kind(
        _is_mp4_whole,
        "`untrunc WHOLE FILE` takes the index from a whole video of the same recorder",
    ),
    ".hdf5": _HDF5,
    ".h5": _HDF5,
    ".hdf": _HDF5,
    ".mcap": _Kind(_is_bag_whole, "`mcap recover FILE -o NEW` saves what is whole"),
    ".bag": _Kind(_is_bag_whole, "`rosbag reindex FILE` writes the index anew"),
}


def _damage(file: _File) -> _Kind | None:
    """Kind of a damaged file; None if the file is whole or of another kind."""
    kind = _KINDS.get(file.path.suffix.lower())
    try:
        return None if kind is None or kind.is_whole(file.path) else kind
    except DataError:
        return kind


def _check(file: _File) -> Receipt:
    return Receipt(file.name, counts=_counts(file, is_damaged=_damage(file) is not None))


def _counts(file: _File, *, is_damaged: bool) -> dict[str, int]:
    is_known = file.path.suffix.lower() in _KINDS
    return {"damaged": int(is_damaged), "not_checked": int(not is_known)}


@dataclass(frozen=True)
class _Repair:
    """Writes the copy of a file."""

    output: Path
    sets: tuple[str, ...]  # relative names of the LeRobot sets

    def __call__(self, file: _File) -> Receipt:
        target = self.output / file.name
        kind = _damage(file)
        if kind is None:
            copy_file(file.path, target)
            entry = file_entry(self.output, file.name)
            return Receipt(file.name, counts=_counts(file, is_damaged=False), files=(entry,))
        if kind is not _PARQUET:
            # In the message, as the list of failed files has no hints.
            reason = f"is damaged, and repair saves parquet files only: {kind.tool}"
            hint = "repair a copy with the tool, copy the file again, or leave it out"
            raise DataError.at(file.path, reason, hint=hint, code="data.broken")
        from vlatool.recordings.lerobot import repair as parquet

        whole = filter(_is_parquet_whole, file.others)
        try:
            with atomic_path(target) as partial:
                salvaged = parquet.salvage(file.path, partial, whole)
        except parquet.NothingWhole as error:
            if self._is_list(file):
                content = "is made anew from the rows and videos"
                facts = {"file": file.name, "content": content, "lost": []}
                counts = {**_counts(file, is_damaged=True), "made_anew": 1}
                return Receipt(file.name, counts=counts, facts=facts)
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

    def _is_list(self, file: _File) -> bool:
        """True for a list of a LeRobot set, which is made anew."""
        from vlatool.recordings.lerobot.rebuild import is_list

        for name in self.sets:
            if file.name.startswith(name) and is_list(file.name.removeprefix(name)):
                return True
        return False
