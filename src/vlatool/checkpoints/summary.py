"""Summary of a training run, read from its small files: state, last values, curves."""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.checkpoints import layout as run_layout
from vlatool.checkpoints.checkpoint import CheckpointManifest
from vlatool.checkpoints.locations import is_started
from vlatool.errors import DataError
from vlatool.jobs.record import OutputRecord, is_being_written, read_record, read_valid_record
from vlatool.report.facts import Curve, Problems, branch

# Levels of folders below the one that is searched.
_LEVELS = 2


@dataclass(frozen=True)
class RunSummary:
    """Content of the small files of a run."""

    run: run_layout.RunDir  # the run folder
    name: str  # its path below the folder that was searched
    # `running` (its folder is locked), `complete`, `stopped` (on request, with a checkpoint),
    # `interrupted`, or `unknown` without a record
    state: str
    # record of the command that wrote it; None if it is missing or damaged
    record: OutputRecord | None
    config: Mapping[str, Any]  # tree of config.yaml
    rows: tuple[Mapping[str, Any], ...]  # rows of metrics.jsonl
    checkpoint: int | None  # step of the newest checkpoint; None without one
    best: run_layout.BestCheckpoint | None  # the best checkpoint; None if nothing says which it is
    changed: datetime | None  # last change; None if unknown
    findings: Problems  # what is missing or damaged

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Curve of each metric, with the name of the run as legend."""
        points: dict[str, dict[int, float]] = {}
        for row in self.rows:
            for name, value in row.items():
                number = _number(value)
                if name != "step" and number is not None:
                    points.setdefault(name, {})[row["step"]] = number
        curves: dict[str, Curve] = {}
        for name, values in points.items():
            curves[name] = Curve(self.name, np.array([*values]), np.array([*values.values()]))
        return curves

    def last(self, *names: str) -> float | None:
        """Last finite value of the first of some metrics that has one."""
        for name in names:
            if name in self.curves:
                values = self.curves[name].y
                finite = values[np.isfinite(values)]
                if finite.size:
                    return float(finite[-1])
        return None

    @property
    def model_type(self) -> str:
        """Type of the model; empty if unknown."""
        return str(branch(self.config, "model").get("type") or "")

    @property
    def step(self) -> int | None:
        """Last step that is known; None before the first."""
        steps: list[int] = []
        if self.rows:
            steps.append(self.rows[-1]["step"])
        if self.checkpoint is not None:
            steps.append(self.checkpoint)
        return max(steps, default=None)

    @property
    def total_steps(self) -> int | None:
        """Budget in steps; None if only the data say it."""
        if self.record is not None and self.record.complete and self.state == "complete":
            return self.step
        steps = _number(self.config.get("total_train_steps"))
        samples = _number(self.config.get("total_train_samples"))
        batch = _number(branch(self.config, "hparams").get("global_batch_size"))
        if steps is None and samples is not None and batch:
            steps = samples // batch
        return None if steps is None or not math.isfinite(steps) else int(steps)

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "location": str(self.run.root),
            "state": self.state,
            "model_type": self.model_type,
            "step": self.step,
            "total_steps": self.total_steps,
            "checkpoint": self.checkpoint,
            "loss": self.last("loss"),
            "validation_loss": self.last(*run_layout.VALIDATION_LOSSES),
            "success_rate": self.last(run_layout.SUCCESS),
            "best": None if self.best is None else asdict(self.best),
            "changed": None if self.changed is None else self.changed.isoformat(timespec="seconds"),
            "last_metrics": {name: self.last(name) for name in self.curves},
            "findings": list(self.findings),
        }


def find_runs(folder: Path, levels: int = _LEVELS) -> list[Path]:
    """Runs in a folder, up to two levels below it, by name; the folder itself if it is a run."""
    record = read_record(folder)
    if run_layout.is_run(folder) or is_started(folder):
        return [folder]
    runs: list[Path] = []
    if record is None and levels and folder.is_dir():
        for child in sorted(folder.iterdir()):
            if not child.name.startswith(".") and child.is_dir():
                runs += find_runs(child, levels - 1)
    return runs


def read_summary(root: Path, name: str) -> RunSummary:
    """Summary of a run; what is damaged is a finding."""
    run = run_layout.RunDir(root)
    findings = Problems()
    record = findings.read(read_valid_record, root)
    config = findings.read(run.config_tree) or {}
    newest = findings.read(run.newest_folder)
    rows: tuple[Mapping[str, Any], ...] = ()
    if run.metrics.is_file():
        rows = findings.read(_rows, run.metrics) or ()
    return RunSummary(
        run=run,
        name=name,
        state=_state(root, record, newest),
        record=record,
        config=config,
        rows=rows,
        checkpoint=None if newest is None else newest[0],
        best=findings.read(run.read_best),
        changed=_changed((run.metrics, run.latest_file, run.config)),
        findings=findings,
    )


def _rows(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        return tuple(run_layout.read_metrics(path))
    except OSError as error:
        raise DataError.at(
            path, error.strerror or error, code="data.broken", finding="unreadable_file"
        ) from None


def _state(root: Path, record: OutputRecord | None, newest: tuple[int, Path] | None) -> str:
    if is_being_written(root):
        return "running"
    if record is None:
        return "unknown"
    if record.complete:
        return "complete"
    if newest is not None:
        with suppress(DataError):  # half-written, by a run that was killed
            if CheckpointManifest.read(newest[1]).stopped:
                return "stopped"
    return "interrupted"


def _changed(files: Iterable[Path]) -> datetime | None:
    times: list[float] = []
    for file in files:
        with suppress(OSError):
            times.append(file.stat().st_mtime)
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _number(value: object) -> float | None:
    """A number of a file, NaN for null; None for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.nan
