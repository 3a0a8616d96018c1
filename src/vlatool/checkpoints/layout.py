"""Run folder of `train`: configuration, metrics, checkpoints and assets."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from vlatool.checkpoints.checkpoint import (
    MANIFEST,
    CheckpointManifest,
    checkpoint_error,
    checkpoint_name,
    checkpoint_step,
    is_checkpoint,
)
from vlatool.checkpoints.experiment.layout import is_experiment
from vlatool.datasets.lbm.layout import CONFIG_NAME as OPTIONS_NAME
from vlatool.datasets.stats.layout import STATS_NAME, Statistics, read_stats
from vlatool.errors import DataError, StorageError
from vlatool.jobs.files import FileEntry, read_file_list, write_file_list
from vlatool.jobs.job import digest_of
from vlatool.jobs.record import read_record
from vlatool.report.text import number_text
from vlatool.storage import atomic
from vlatool.storage.background import in_parallel
from vlatool.storage.documents import parse_json, read_json, read_yaml
from vlatool.storage.manifest import Count, Number, parse_values
from vlatool.storage.tree import sha256_of
from vlatool.storage.uri import can_list, is_remote

BEST = "best.json"
# Last part of the location of the best checkpoint of a run, `RUN/best`.
BEST_NAME = "best"
# Prefixes of the metrics of a validation, and of rollouts.
VALIDATION = "val/"
EVALUATION = "eval/"
SUCCESS = f"{EVALUATION}success_rate"
# Losses of a validation, the best one for inference first.
VALIDATION_LOSSES = (f"{VALIDATION}ema/loss", f"{VALIDATION}loss")


@dataclass(frozen=True)
class BestCheckpoint:
    """Values of best.json."""

    step: Count
    metric: str  # name of the metric in metrics.jsonl that it is the best by
    value: Number  # value of the metric at this step

    def text(self) -> str:
        """Step and value, as text."""
        if self.metric == SUCCESS:
            return f"step {self.step}, success {100 * self.value:.0f} %"
        return f"step {self.step}, {self.metric} {number_text(self.value)}"


def choose_best(rows: Iterable[Mapping[str, Any]], steps: Collection[int]) -> BestCheckpoint | None:
    """The best of some checkpoints; None if nothing was measured at any of them.

    By success where one of them has it, else by the validation loss, of averaged weights if there
    are any. Of equal ones it is the latest.
    """
    signs = {SUCCESS: 1, **dict.fromkeys(VALIDATION_LOSSES, -1)}
    measured: dict[str, dict[int, float]] = {metric: {} for metric in signs}
    for row in rows:
        if row["step"] not in steps:
            continue
        for metric in signs:
            value = row.get(metric)
            if isinstance(value, int | float) and math.isfinite(value):
                measured[metric][row["step"]] = float(value)
    for metric, values in measured.items():
        if values:
            step = max(values, key=lambda step: (signs[metric] * values[step], step))
            return BestCheckpoint(step, metric, values[step])
    return None


CONFIG = "config.yaml"
# Origin of each key of the configuration that was not a default.
ORIGINS = "origins.json"
METRICS = "metrics.jsonl"
DROPS = "dropped.jsonl"
LATEST = "latest.json"
CHECKPOINTS = "checkpoints"
IMAGES = "images"
# Limits of a row of metrics: numbers of steps that are equal as floats, characters of a line.
_MAX_STEP = 2**53
_LONGEST_LINE = 2**20
# Number of manifests that are read at once.
_READ_AT_ONCE = 8
# Folders of trackers: event files of TensorBoard, and what W&B has on disk.
WANDB = "wandb"
TRACKERS = ("tensorboard", WANDB)
# Results of evaluations; rollouts during the training have a folder for each checkpoint.
EVALUATIONS = "eval"


@dataclass(frozen=True)
class Retention:
    """Rule for the planned checkpoints that are kept."""

    latest: int | None = None  # number of newest checkpoints to keep; None keeps all
    # also keep checkpoints at multiples of this step; None keeps no others
    every: int | None = None


class RunDir:
    """Paths in a run folder, and content of its small files."""

    def __init__(self, root: Path) -> None:
        self.root = root  # the folder
        self.config = root / CONFIG  # file with the resolved, derived configuration
        self.metrics = root / METRICS  # file with one JSON object per line
        # the same for the dropped samples, each at its first step; absent if there are none
        self.drops = root / DROPS
        self.stats = root / STATS_NAME  # statistics of the used fields
        self.options = root / OPTIONS_NAME  # preprocessing options of the first data set
        self.latest_file = root / LATEST  # file that names the newest checkpoint
        # file that names the best checkpoint; absent if nothing says which it is
        self.best_file = root / BEST
        self.checkpoints_folder = root / CHECKPOINTS

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints_folder / checkpoint_name(step)

    def image(self, step: int, name: str) -> Path:
        """Path of an image grid that was saved at a step."""
        return self.root / IMAGES / f"{checkpoint_name(step)}_{name}.png"

    def rollouts(self, step: int) -> Path:
        """Folder of the rollouts of a checkpoint that were made during the training."""
        return self.root / EVALUATIONS / checkpoint_name(step)

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every complete checkpoint, ascending."""
        complete: list[tuple[int, Path]] = []
        for folder in self.checkpoint_folders():
            step = checkpoint_step(folder.name)
            if step is not None and (folder / MANIFEST).is_file():
                complete.append((step, folder))
        return sorted(complete)

    def checkpoint_folders(self) -> list[Path]:
        """Folders of checkpoints, complete or not, by name; hidden ones are being written.

        On storage that cannot be listed, the one that latest.json names.
        """
        folders: list[Path] = []
        if not can_list(self.root):
            latest = str(self.read_latest().get("checkpoint", "")).rpartition("/")[2]
            if checkpoint_step(latest) is not None:
                folders.append(self.checkpoints_folder / latest)
        elif self.checkpoints_folder.is_dir():
            for folder in sorted(self.checkpoints_folder.iterdir()):
                if folder.is_dir() and not folder.name.startswith("."):
                    folders.append(folder)
        return folders

    def check_no_files(self) -> None:
        """Raises StorageError if a file has the name of a folder that training writes."""
        steps: list[Path] = []
        if self.checkpoints_folder.is_dir():
            for path in sorted(self.checkpoints_folder.iterdir()):
                if checkpoint_step(path.name) is not None:
                    steps.append(path)
        for path in (self.checkpoints_folder, self.root / IMAGES, self.root / EVALUATIONS, *steps):
            if path.exists() and not path.is_dir():
                raise StorageError(
                    f"{path}: is a file, but training writes a folder of this name",
                    hint="move it out of the run, then run the same command again",
                    code="storage.write",
                    details={"path": str(path)},
                )

    def latest(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest checkpoint; None if there is none.

        Elsewhere, where files appear one by one, a checkpoint that is being sent is left out.
        """
        newest = self.newest_folder()
        if newest is None or (newest[1] / MANIFEST).is_file():
            return newest
        complete = self.checkpoints()
        if is_remote(self.root):
            named = self.read_latest().get("step")
            if named is None or (complete and named == complete[-1][0]):
                return complete[-1] if complete else None
        raise checkpoint_error(newest[1] / MANIFEST, "is missing")

    def newest_folder(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest checkpoint, complete or not."""
        newest: tuple[int, Path] | None = None
        for folder in self.checkpoint_folders():
            step = checkpoint_step(folder.name)
            if step is not None and (newest is None or step >= newest[0]):
                newest = step, folder
        return newest

    def prune(self, retention: Retention, needed: Collection[int] = ()) -> None:
        """Removes surplus checkpoints, and frozen weights that no other checkpoint names."""
        manifests = read_manifests(folder for _, folder in self.checkpoints())
        surplus = {*surplus_checkpoints(manifests, retention)} - {*needed, *self.best_steps()}
        for step in surplus:
            atomic.remove_atomically(self.checkpoint(step))
        for name in unnamed_weights(manifests, surplus):
            atomic.remove_file(self.checkpoints_folder / name)

    def write_latest(self, step: int) -> None:
        """Writes latest.json, which names the newest checkpoint."""
        atomic.write_json(self.latest_file, self._pointer(step))

    def _pointer(self, step: int) -> dict[str, Any]:
        return {"checkpoint": str(self.checkpoint(step).relative_to(self.root)), "step": step}

    def read_latest(self) -> dict[str, Any]:
        """Content of latest.json; empty if it does not exist."""
        return _json_object(self.latest_file)

    def read_best(self) -> BestCheckpoint | None:
        """Content of best.json; None if it does not exist."""
        content = _json_object(self.best_file)
        if not content:
            return None
        try:
            return parse_values(BestCheckpoint, content)
        except ValueError as error:
            raise _run_error(self.best_file, "data.broken", error) from None

    def best_steps(self) -> list[int]:
        """Step of the best checkpoint; empty if it is unknown."""
        with suppress(DataError):
            best = self.read_best()
            return [] if best is None else [best.step]
        return []

    def find_best(self) -> BestCheckpoint | None:
        """The best of the planned checkpoints by metrics.jsonl; None if it has no value of one."""
        manifests = read_manifests(folder for _, folder in self.checkpoints())
        planned: set[int] = set()
        for step, manifest in manifests.items():
            if manifest is not None and not manifest.stopped:
                planned.add(step)
        rows = read_metrics(self.metrics) if self.metrics.is_file() else []
        return choose_best(rows, planned)

    def write_best(self, best: BestCheckpoint) -> None:
        """Writes best.json, which names the best checkpoint."""
        pointer = self._pointer(best.step)
        atomic.write_json(self.best_file, {**pointer, "metric": best.metric, "value": best.value})

    def update_best(self) -> bool:
        """Updates best.json by the metrics of planned checkpoints; returns True if it changed."""
        best = self.find_best()
        before: BestCheckpoint | None = None
        with suppress(DataError):
            before = self.read_best()
        if best == before and (best is not None or not self.best_file.exists()):
            return False
        if best is None:
            atomic.remove_file(self.best_file)
        else:
            self.write_best(best)
        return True

    def write_config(self, tree: Mapping[str, Any]) -> None:
        atomic.write_text(
            self.config, yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
        )

    def write_origins(self, origins: Mapping[str, str]) -> None:
        """Writes origins.json, a map from dotted key of the configuration to its origin."""
        atomic.write_json(self.root / ORIGINS, dict(origins))

    def read_origins(self) -> dict[str, str]:
        """Content of origins.json; empty if it is missing or broken."""
        with suppress(OSError, ValueError):
            content = read_json(self.root / ORIGINS)
            if isinstance(content, dict):
                return {key: str(origin) for key, origin in content.items()}
        return {}

    def repair_latest(self) -> None:
        """Updates latest.json to name the newest checkpoint."""
        newest = self.latest()
        pointer: dict[str, Any] = {}
        with suppress(DataError):
            pointer = self.read_latest()
        if newest is not None and pointer != self._pointer(newest[0]):
            self.write_latest(newest[0])

    def clear_progress(self) -> None:
        """Removes checkpoints, metrics and dropped samples of a run that is replaced; checkpoints
        first, all at once: a run that is killed meanwhile has none of them.
        """
        for name in (CHECKPOINTS, IMAGES, *TRACKERS):
            if (self.root / name).exists():
                atomic.remove_atomically(self.root / name)
        for folder in self.rollouts(0).parent.glob("step_*"):
            atomic.remove_tree(folder)
        for path in (
            self.config,
            self.root / ORIGINS,
            self.latest_file,
            self.best_file,
            self.metrics,
            self.drops,
        ):
            atomic.remove_file(path)

    def read_config(self) -> dict[str, Any] | None:
        """Tree of config.yaml; None if it is missing or broken."""
        with suppress(DataError):
            return self.config_tree()
        return None

    def statistics(self) -> Statistics:
        """Statistics of the used fields."""
        content = read_stats(self.stats)
        record = read_record(self.root)
        digest = None if record is None else record.options.get("statistics")
        if digest is not None and digest != digest_of(content):
            raise DataError.at(
                self.stats,
                "differs from the statistics that the run was trained with",
                hint="copy it again, or run the same `vlatool train` again, which writes it",
                code="data.broken",
                finding="broken_statistics",
            )
        return content

    def recorded_files(self) -> list[FileEntry]:
        """Recorded entries of the config and asset files.

        Empty for runs of earlier versions.
        """
        return read_file_list(self.root) or []

    def check_assets(self, listed: Iterable[FileEntry]) -> None:
        """Checks that asset files are unchanged since they were written; `listed`: `recorded_files`
        of the run, or of the run that this is a copy of.
        """
        for entry in listed:
            path = self.root / entry.path
            # Users may edit YAML, for example to describe their cameras; origins are only shown.
            is_free = path.suffix == self.config.suffix or entry.path == ORIGINS
            if not is_free and not (path.is_file() and sha256_of(path) == entry.sha256):
                raise DataError.at(
                    path,
                    "is missing, or has changed since it was written",
                    hint="copy the run again, or run the command that trained it again",
                    code="data.broken",
                )

    def record_assets(self, names: Iterable[str], *, replace: bool = False) -> None:
        """Records the current state of files; `replace` removes all other entries."""
        entries: dict[str, FileEntry] = {}
        if not replace:
            entries = {entry.path: entry for entry in self.recorded_files()}
        for name in names:
            file = self.root / name
            entries[file.name] = FileEntry(file.name, file.stat().st_size, sha256_of(file))
        write_file_list(self.root, list(entries.values()))

    def config_tree(self) -> dict[str, Any]:
        """Tree of config.yaml."""
        try:
            content = read_yaml(self.config)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise _run_error(self.config, "data.broken", reason) from None
        if not isinstance(content, dict):
            raise _run_error(self.config, "data.broken", "not a mapping")
        return content

    def truncate_logs(self, last_step: int, log_every: int) -> str:
        """Removes the lines of steps after `last_step`, which will be repeated; returns what
        metrics.jsonl lacks; empty for nothing. A kill leaves a cut last line at most.
        """
        lost = _lost_metrics(self.metrics, last_step, log_every)
        for path in (self.metrics, self.drops):
            if not path.exists():
                continue
            if not path.is_file():
                raise _run_error(path, "data.broken", "is not a file")
            rows = [row for row in read_metrics(path) if row["step"] <= last_step]
            atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        return lost


def _lost_metrics(path: Path, last_step: int, log_every: int) -> str:
    rows = list(scan_metrics(path)) if path.is_file() else []
    damaged = sum(not has_step(row) for row in rows[:-1])
    if damaged:
        return f"{damaged} of {len(rows)} lines are damaged, and left out"
    steps = [0]
    for row in rows:
        if has_step(row) and row["step"] <= last_step:
            steps.append(row["step"])
    steps.sort()
    longest_gap = max((after - before for before, after in pairwise(steps)), default=0)
    if last_step - steps[-1] < max(log_every, longest_gap):
        return ""
    return f"there are no rows after step {steps[-1]}, and the checkpoint is of step {last_step}"


def _json_object(path: Path) -> dict[str, Any]:
    """Content of a small file; empty if it does not exist."""
    if not path.exists():
        return {}
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise _run_error(path, "data.broken", error) from None
    if not isinstance(content, dict):
        raise _run_error(path, "data.broken", "not a JSON object")
    return content


def _run_error(path: Path, code: str, reason: object) -> DataError:
    return DataError.at(
        path, reason, hint="copy the run again; `vlatool verify` lists all problems", code=code
    )


def read_manifests(folders: Iterable[Path]) -> dict[int, CheckpointManifest | None]:
    """Map from step to manifest of checkpoints; None if it is missing or damaged."""
    folder_by_step: dict[int, Path] = {}
    for folder in folders:
        step = checkpoint_step(folder.name)
        if step is not None:
            folder_by_step[step] = folder
    manifests = in_parallel(_manifest, folder_by_step.values(), _READ_AT_ONCE)
    return dict(zip(folder_by_step, manifests, strict=True))


def surplus_checkpoints(
    manifests: Mapping[int, CheckpointManifest | None], retention: Retention
) -> list[int]:
    """Steps of planned checkpoints that are not retained, and of all others but the newest.

    A checkpoint of a stop or of the clock only serves to resume: it does not count for
    `retention`.
    """
    planned: list[int] = []
    stops: list[int] = []
    for step, manifest in manifests.items():
        (stops if manifest is not None and manifest.stopped else planned).append(step)
    surplus: list[int] = []
    if retention.latest is not None:
        for step in sorted(planned)[: -retention.latest]:
            if retention.every is None or step % retention.every:
                surplus.append(step)
    newest = max(manifests, default=0)
    surplus += [step for step in stops if step != newest]
    return surplus


def unnamed_weights(
    manifests: Mapping[int, CheckpointManifest | None], removed: Collection[int]
) -> set[str]:
    """Names of frozen weights that only removed checkpoints name."""
    unnamed: set[str] = set()
    named: set[str] = set()
    for step, manifest in manifests.items():
        if manifest is None:
            continue
        if step in removed:
            unnamed.update(manifest.beside)
        else:
            named.update(manifest.beside)
    return unnamed - named


def _manifest(checkpoint: Path) -> CheckpointManifest | None:
    with suppress(DataError):  # raised when the checkpoint is opened
        return CheckpointManifest.read(checkpoint)
    return None


def recognize(location: Path) -> str | None:
    """`run` or `checkpoint` at the location of one, else None."""
    if is_run(location):
        return "run"
    return "checkpoint" if is_checkpoint(location) else None


def is_run(location: Path) -> bool:
    """True if a folder looks like a training run, finished or not.

    Experiments of the published program are none, although they have a configuration and
    checkpoints too.
    """
    has_traces = any((location / name).exists() for name in (LATEST, METRICS, CHECKPOINTS))
    has_config = (location / CONFIG).is_file() or (location / LATEST).is_file()
    return has_traces and has_config and not is_experiment(location)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file; invalid lines, such as truncated ones, are skipped."""
    return [row for row in scan_metrics(path) if has_step(row)]


def has_step(row: dict[str, Any] | None) -> TypeGuard[dict[str, Any]]:
    """True for the row of a step, a number that drawing and tables can take."""
    step = None if row is None else row.get("step")
    return type(step) is int and 0 <= step < _MAX_STEP


def scan_metrics(path: Path) -> Iterator[dict[str, Any] | None]:
    """Rows of a metrics file; None for a line that is not a JSON object."""
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(_LONGEST_LINE):
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            yield row if isinstance(row, dict) else None
