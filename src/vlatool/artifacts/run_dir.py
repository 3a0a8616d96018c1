"""A run folder: configuration, metrics, checkpoints, and what evaluation needs beside them."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlatool.artifacts import provenance, stats
from vlatool.artifacts.checkpoint import (
    MANIFEST,
    CheckpointManifest,
    checkpoint_name,
    checkpoint_step,
    damaged_checkpoint,
    is_checkpoint,
)
from vlatool.errors import DataError
from vlatool.jobs.files import FileEntry, read_file_list, write_file_list
from vlatool.jobs.inputs import digest_of
from vlatool.jobs.record import read_record
from vlatool.storage.atomic import (
    remove_atomically,
    remove_file,
    remove_tree,
    write_json,
    write_text,
)
from vlatool.storage.cache import FileCache
from vlatool.storage.documents import parse_json, read_json, read_yaml
from vlatool.storage.tree import file_names, sha256_of
from vlatool.storage.uri import can_list, is_remote

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
LATEST = "latest.json"
CHECKPOINTS = "checkpoints"
IMAGES = "images"


@dataclass(frozen=True)
class Retention:
    """Which planned checkpoints stay.

    Attributes:
        latest: The newest so many; None for all.
        every: Those of a multiple of so many steps, besides; None for none.
    """

    latest: int | None = None
    every: int | None = None


class RunDir:
    """Paths in a run folder, and what its small files say.

    Attributes:
        root: The folder.
        config: The resolved, derived configuration.
        metrics: One JSON object per line.
        stats: Statistics of the fields that are used.
        options: How the first data set was preprocessed.
        latest_file: Names the newest checkpoint.
        checkpoints_folder: A folder per checkpoint.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / CONFIG
        self.metrics = root / METRICS
        self.stats = root / stats.NAME
        self.options = root / provenance.CONFIG_NAME
        self.latest_file = root / LATEST
        self.checkpoints_folder = root / CHECKPOINTS

    def checkpoint(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.checkpoints_folder / checkpoint_name(step)

    def image(self, step: int, name: str) -> Path:
        """A sheet of pictures that was made at a step."""
        return self.root / IMAGES / f"{checkpoint_name(step)}_{name}.png"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every complete checkpoint, ascending."""
        whole = (one for one in self.checkpoint_folders() if (one / MANIFEST).is_file())
        steps = ((checkpoint_step(folder.name), folder) for folder in whole)
        return sorted((step, folder) for step, folder in steps if step is not None)

    def checkpoint_folders(self) -> list[Path]:
        """Folders of checkpoints, whole or not, by name; hidden ones are being written.

        Where nothing can be listed, the one that latest.json names.
        """
        if not can_list(self.root):
            named = str(self.read_latest().get("checkpoint", "")).rpartition("/")[2]
            return [self.checkpoints_folder / named] if checkpoint_step(named) is not None else []
        found = self.checkpoints_folder.iterdir() if self.checkpoints_folder.is_dir() else ()
        return sorted(one for one in found if one.is_dir() and not one.name.startswith("."))

    def latest(self) -> tuple[int, Path] | None:
        """The newest checkpoint.

        Raises:
            DataError: It has lost its manifest: checkpoints appear with theirs.
        """
        newest = self.newest_folder()
        if newest is None:
            return None
        if not (newest[1] / MANIFEST).is_file():
            raise damaged_checkpoint(newest[1] / MANIFEST, "is missing")
        return newest

    def newest_folder(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest checkpoint, whole or not."""
        steps = ((checkpoint_step(one.name), one) for one in self.checkpoint_folders())
        return max(((step, one) for step, one in steps if step is not None), default=None)

    def prune(self, kept: Retention) -> None:
        """Removes the planned checkpoints that are not kept, and what a stop left before them.

        A checkpoint at which the run stopped is only there to go on from: it never costs a planned
        one its place.
        """
        whole = self.checkpoints()
        stops = [folder for _, folder in whole if _is_stop(folder)]
        planned = [one for one in whole if one[1] not in stops]
        older = [] if kept.latest is None else planned[: -kept.latest]
        surplus = [one for step, one in older if kept.every is None or step % kept.every]
        for folder in (*surplus, *(one for one in stops if one != whole[-1][1])):
            remove_atomically(folder)

    def write_latest(self, step: int) -> None:
        """Names the newest checkpoint in latest.json."""
        write_json(self.latest_file, self._pointer(step))

    def _pointer(self, step: int) -> dict[str, Any]:
        return {"checkpoint": str(self.checkpoint(step).relative_to(self.root)), "step": step}

    def read_latest(self) -> dict[str, Any]:
        """What latest.json says; empty where there is none.

        Raises:
            DataError: It is broken.
        """
        if not self.latest_file.exists():
            return {}
        try:
            content = read_json(self.latest_file)
        except (OSError, ValueError) as error:
            raise _broken(self.latest_file, "data.broken_json", error) from None
        if not isinstance(content, dict):
            raise _broken(self.latest_file, "data.broken_json", "no JSON object")
        return content

    def write_config(self, tree: Mapping[str, Any]) -> None:
        """Writes config.yaml."""
        write_text(self.config, yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True))

    def repair_latest(self) -> bool:
        """Lets latest.json name the newest checkpoint; whether it did not."""
        newest = self.latest()
        told: dict[str, Any] = {}
        with suppress(DataError):
            told = self.read_latest()
        if newest is None or told == self._pointer(newest[0]):
            return False
        self.write_latest(newest[0])
        return True

    def forget_progress(self) -> None:
        """Removes checkpoints and metrics of a run that is replaced.

        Raises:
            StorageError: Something cannot be removed.
        """
        for path in (self.config, self.latest_file, self.metrics):
            remove_file(path)
        for folder in (self.checkpoints_folder, self.root / IMAGES):
            remove_tree(folder)

    def read_config(self) -> dict[str, Any] | None:
        """The tree of config.yaml; None where there is none."""
        with suppress(DataError):
            return self.config_tree()
        return None

    def statistics(self) -> stats.Statistics:
        """Statistics of the fields that are used.

        Raises:
            DataError: They are missing, broken, or others than the run was trained with.
        """
        found = stats.read_stats(self.stats)
        record = read_record(self.root)
        digest = None if record is None else record.options.get("statistics")
        if digest is not None and digest != digest_of(found):
            raise DataError(
                f"{self.stats}: has other values than the run was trained with",
                hint="copy it again; the same `vlatool train` once more writes it again",
                code="data.broken_statistics",
                details={"path": str(self.stats)},
            )
        return found

    def kept_files(self) -> list[FileEntry]:
        """What the files beside checkpoints and metrics were when they were written.

        Empty for runs of earlier versions.

        Raises:
            DataError: The list is broken.
        """
        return read_file_list(self.root) or []

    def check_assets(self, listed: Iterable[FileEntry]) -> None:
        """Makes sure that the machine's files beside the weights are as they were written.

        Args:
            listed: `kept_files` of the run, or of the one that this is a copy of.

        Raises:
            DataError: A file is missing or has other bytes.
        """
        for entry in listed:
            path = self.root / entry.path
            # YAML is for people too, who may describe their cameras anew.
            is_same = path.is_file() and sha256_of(path) == entry.sha256
            if path.suffix != self.config.suffix and not is_same:
                raise DataError(
                    f"{path}: is missing, or has other bytes than when it was written",
                    hint="copy the run again, or give the command that trained it once more",
                    code="data.broken_run",
                    details={"path": str(path)},
                )

    def record_assets(self, names: Iterable[str], *, anew: bool = False) -> None:
        """Enters files as they are now; other entries stay as they are, or go (`anew`)."""
        listed = {} if anew else {entry.path: entry for entry in self.kept_files()}
        files = [self.root / name for name in names]
        now = {one.name: FileEntry(one.name, one.stat().st_size, sha256_of(one)) for one in files}
        write_file_list(self.root, [*{**listed, **now}.values()])

    def config_tree(self) -> dict[str, Any]:
        """The tree of config.yaml.

        Raises:
            DataError: It is missing or broken.
        """
        try:
            content = read_yaml(self.config)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise _broken(self.config, "data.broken_config", reason) from None
        if not isinstance(content, dict):
            raise _broken(self.config, "data.broken_config", "no mapping")
        return content

    def truncate_metrics(self, last_step: int) -> None:
        """Forgets lines of steps after `last_step`, which are about to be done again.

        Raises:
            DataError: Something else has the file's name.
        """
        if not self.metrics.exists():
            return
        if not self.metrics.is_file():
            raise _broken(self.metrics, "data.broken_json", "is no file")
        kept = [row for row in read_metrics(self.metrics) if row["step"] <= last_step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))


def _broken(path: Path, code: str, reason: object) -> DataError:
    return DataError(
        f"{path}: {reason}",
        hint="copy the run again; `vlatool verify` lists what else is wrong with it",
        code=code,
        details={"path": str(path)},
    )


def _is_stop(checkpoint: Path) -> bool:
    with suppress(DataError):  # whoever uses it says what is wrong
        return CheckpointManifest.read(checkpoint).stopped
    return False


def is_run(location: Path) -> bool:
    """Whether a folder looks like a training run, however unfinished."""
    has_traces = any((location / name).exists() for name in (LATEST, METRICS, CHECKPOINTS))
    return has_traces and ((location / CONFIG).is_file() or (location / LATEST).is_file())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; what is none, as a line that was cut off, is left out."""
    return [row for row in scan_metrics(path) if row is not None and type(row.get("step")) is int]


def scan_metrics(path: Path) -> Iterator[dict[str, Any] | None]:
    """Each row of a metrics file, None for a line that is no JSON object."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            yield row if isinstance(row, dict) else None


def local_run(run: RunDir, checkpoint: Path, cache: FileCache) -> tuple[RunDir, Path]:
    """A run and one of its checkpoints on the local disk, where libraries can open them.

    Copied is what a policy needs: what lies in the run folder but its metrics, and of the
    checkpoint all but what training goes on from.

    Raises:
        DataError: A file is missing.
        StorageError: The storage or the cache fails.
    """
    if not is_remote(run.root):
        return run, checkpoint
    small = [CONFIG, stats.NAME, provenance.CONFIG_NAME]
    if can_list(run.root):
        small = sorted(file_names(run.root) - {METRICS})
    else:
        small = sorted({*small, *(entry.path for entry in run.kept_files())})
    weights = [MANIFEST, *(name for name in CheckpointManifest.read(checkpoint).acting())]
    folder = checkpoint.relative_to(run.root)
    try:
        copy = cache.local_copy(run.root, [*small, *(f"{folder}/{name}" for name in weights)])
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename}: is missing",
            hint="copy the run again",
            code="data.no_checkpoint",
            details={"path": str(error.filename)},
        ) from None
    return RunDir(copy), copy / folder


def find_checkpoint(location: Path) -> tuple[RunDir, Path]:
    """The run and the checkpoint folder behind a run folder or a checkpoint folder.

    Raises:
        DataError: There is no checkpoint.
    """
    if is_checkpoint(location) or (location / MANIFEST).is_file():
        return RunDir(location.parent.parent), location
    latest = RunDir(location).latest()
    if latest is None:
        raise DataError(
            f"{location}: no complete checkpoint here",
            hint="give a run folder of `vlatool train`, or one of its checkpoints/step_*",
            code="data.no_checkpoint",
            details={"path": str(location)},
        )
    return RunDir(location), latest[1]
