"""Report of a training run: its model, its checkpoints and its progress."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.artifacts.run.checkpoint import (
    MANIFEST,
    MODEL,
    CheckpointManifest,
    WeightsInfo,
    checkpoint_step,
    read_weights_header,
)
from vlatool.artifacts.run.format import RunDir, scan_metrics
from vlatool.inspection.report import (
    Findings,
    Problems,
    branch,
    findings_table,
    number_text,
    pairs,
    table,
)
from vlatool.sources.order import natural_key
from vlatool.storage.tree import files_named, size_text
from vlatool.storage.uri import can_list


@dataclass(frozen=True)
class CheckpointSummary:
    """Files of a checkpoint folder."""

    name: str
    step: int | None
    bytes: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class RunReport:
    """Contents of a run folder; None and empty values are not in its files.

    Attributes:
        model_type: Name in the registry.
        data: Manifests of the training data.
        budget: Keys of the configuration that set the length of the run.
        step: Steps done at the latest checkpoint.
        checkpoints: All checkpoints, by step.
        weights: Header of the weights of the latest checkpoint.
        first_metrics: First line of the metrics with a loss.
        last_metrics: Last line of the metrics with a loss.
        findings: Broken or missing files, with `code` and `message`.
    """

    model_type: str
    data: tuple[str, ...]
    budget: Mapping[str, Any]
    step: int | None
    checkpoints: tuple[CheckpointSummary, ...]
    weights: WeightsInfo | None
    first_metrics: Mapping[str, Any]
    last_metrics: Mapping[str, Any]
    findings: Findings = ()
    kind: str = "run"

    def document(self) -> dict[str, Any]:
        """Report as JSON values."""
        return asdict(self)

    def headline(self) -> str:
        """Summary in one line."""
        done = "no checkpoint yet" if self.step is None else f"{self.step} steps done"
        return f"run of {self.model_type or 'an unknown model type'}, {done}"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        checkpoints = [
            (
                checkpoint.name,
                "-" if checkpoint.step is None else checkpoint.step,
                size_text(checkpoint.bytes),
                ", ".join(checkpoint.files),
            )
            for checkpoint in self.checkpoints
        ]
        return [
            pairs(self._summary()),
            findings_table(self.findings),
            table("Checkpoints", ("name", "step", "size", "files"), checkpoints),
            table("Last metrics", ("name", "value"), _metric_rows(self.last_metrics)),
        ]

    def _summary(self) -> dict[str, object]:
        first, last = self.first_metrics.get("loss"), self.last_metrics.get("loss")
        return {
            "model": self.model_type or "unknown",
            "parameters": _parameters(self.weights),
            "data": self.data,
            "budget": ", ".join(f"{key} {value}" for key, value in self.budget.items()),
            "loss": "" if last is None else f"{number_text(first)} -> {number_text(last)}",
        }


@dataclass(frozen=True)
class CheckpointReport:
    """Contents of a checkpoint folder; `weights` is None if their header cannot be read."""

    checkpoint: CheckpointSummary
    weights: WeightsInfo | None
    findings: Findings = ()
    kind: str = "checkpoint"

    def document(self) -> dict[str, Any]:
        """Report as JSON values."""
        return asdict(self)

    def headline(self) -> str:
        """Summary in one line."""
        step = self.checkpoint.step
        return "checkpoint" if step is None else f"checkpoint of step {step}"

    def blocks(self) -> list[str]:
        """Report as blocks of text."""
        return [
            pairs(
                {
                    "parameters": _parameters(self.weights),
                    "on disk": size_text(self.checkpoint.bytes),
                    "files": self.checkpoint.files,
                }
            ),
            findings_table(self.findings),
        ]


def inspect_checkpoint(location: Path) -> CheckpointReport:
    """Reads names and sizes of a checkpoint's files, and the header of its weights."""
    findings = Problems()
    weights = findings.read(read_weights_header, location / MODEL)
    return CheckpointReport(_checkpoint_summary(location), weights, tuple(findings))


def inspect_run(location: Path) -> RunReport:
    """Reads the small files of a run, and the header of its latest weights."""
    run, findings = RunDir(location), Problems()
    config = findings.read(run.config_tree) or {}
    findings.read(run.read_latest)
    newest = run.newest_folder()
    checkpoints = tuple(map(_checkpoint_summary, sorted(run.checkpoint_folders(), key=natural_key)))
    first, last = _metrics(run)
    return RunReport(
        model_type=str(branch(config, "model").get("type") or ""),
        data=_texts(branch(config, "data").get("dataset_manifest")),
        budget={
            key: value
            for key, value in config.items()
            if str(key).startswith("total_train_") and value is not None
        },
        step=None if newest is None else newest[0],
        checkpoints=checkpoints,
        weights=newest and findings.read(read_weights_header, newest[1] / MODEL),
        first_metrics=first,
        last_metrics=last,
        findings=tuple(findings),
    )


def _checkpoint_summary(path: Path) -> CheckpointSummary:
    """Summary of a checkpoint folder from the names and sizes of its files."""
    if can_list(path):
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        files = files_named(path, [MANIFEST, *sorted(CheckpointManifest.read(path).files)])
    return CheckpointSummary(
        name=path.name,
        step=checkpoint_step(path.name),
        bytes=sum(file.stat().st_size for file in files),
        files=tuple(str(file.relative_to(path)) for file in files),
    )


def _parameters(weights: WeightsInfo | None) -> str:
    if weights is None:
        return ""
    dtypes = ", ".join(weights.dtypes)
    return f"{weights.parameters:,} in {weights.tensors} tensors ({dtypes})"


def _metrics(run: RunDir) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first and the last row that have a loss; a half-written line is skipped."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    for row in scan_metrics(run.metrics) if run.metrics.is_file() else ():
        if row is not None and "loss" in row:
            first, last = first or row, row
    return _strict(first), _strict(last)


def _strict(row: Mapping[str, Any]) -> dict[str, Any]:
    """Row for strict JSON: None for numbers that are not finite."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, number_text(value) if isinstance(value, float) else str(value))
        for name, value in metrics.items()
        if isinstance(value, int | float | str)
    ]


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(map(str, value)) if isinstance(value, list) else ()
