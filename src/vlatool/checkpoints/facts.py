"""Reports of a training run and of a checkpoint."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlatool.checkpoints import checkpoint
from vlatool.checkpoints.contract import CONTRACT, contract_text
from vlatool.checkpoints.layout import EVALUATION, VALIDATION, RunDir, is_run, read_metrics
from vlatool.events import counted
from vlatool.report.facts import Problems, Report, Table, branch
from vlatool.report.text import number_text
from vlatool.storage.tree import files_named, size_text
from vlatool.storage.uri import can_list


@dataclass(frozen=True)
class CheckpointListing:
    """Names and total size of the files of a checkpoint folder."""

    name: str
    step: int | None
    bytes: int
    files: tuple[str, ...]


def inspect(location: Path) -> Report:
    """Reads the small files of a run or a checkpoint, and the header of its latest weights."""
    return _run(location) if is_run(location) else _checkpoint(location)


def _checkpoint(location: Path) -> Report:
    findings = Problems()
    weights = findings.read(checkpoint.read_part_header, location / checkpoint.MODEL)
    files = _checkpoint_files(location)
    return Report(
        kind="checkpoint",
        headline="checkpoint" if files.step is None else f"checkpoint of step {files.step}",
        facts={
            "checkpoint": asdict(files),
            "weights": None if weights is None else asdict(weights),
        },
        summary={
            "parameters": _parameters(weights),
            "on disk": size_text(files.bytes),
            "files": files.files,
        },
        findings=findings,
    )


def _run(location: Path) -> Report:
    """Report of a run; None and empty values are not in its files."""
    run = RunDir(location)
    findings = Problems()
    config = findings.read(run.config_tree) or {}
    findings.read(run.read_latest)
    best = findings.read(run.read_best)
    step: int | None = None
    weights: checkpoint.WeightsInfo | None = None
    newest = run.newest_folder()
    if newest is not None:
        step, folder = newest
        weights = findings.read(checkpoint.read_part_header, folder / checkpoint.MODEL)
    checkpoints = [_checkpoint_files(folder) for folder in run.checkpoint_folders()]
    checkpoints.sort(key=lambda files: files.step or 0)
    model_type = str(branch(config, "model").get("type") or "")
    data = _texts(branch(config, "data").get("dataset_manifest"))
    budget: dict[str, Any] = {}
    for key, value in config.items():
        if str(key).startswith("total_train_") and value is not None:
            budget[key] = value
    first, last, validation, rollouts = _metrics(run)
    contract = findings.read(CONTRACT.read, location)
    done = "no checkpoint yet" if step is None else f"{counted(step, 'step')} done"
    loss = ""
    if last.get("loss") is not None:
        loss = f"{number_text(first.get('loss'))} -> {number_text(last.get('loss'))}"
    facts: dict[str, Any] = {
        "model_type": model_type,
        "data": data,
        "budget": budget,
        "step": step,
        "best": None if best is None else asdict(best),
        "checkpoints": [asdict(files) for files in checkpoints],
        "weights": None if weights is None else asdict(weights),
        "first_metrics": first,
        "last_metrics": last,
        "last_validation": validation,
        "last_rollouts": rollouts,
    }
    if contract is not None:
        facts["contract"] = asdict(contract)
    return Report(
        kind="run",
        headline=f"run of {model_type or 'an unknown model type'}, {done}",
        facts=facts,
        summary={
            "model": model_type or "unknown",
            "parameters": _parameters(weights),
            "data": data,
            "budget": ", ".join(f"{key} {value}" for key, value in budget.items()),
            "loss": loss,
            "training saw": "" if contract is None else contract_text(contract),
            "best checkpoint": "" if best is None else best.text(),
        },
        tables=[
            _checkpoint_table(checkpoints),
            _metric_table("Last metrics", last),
            _metric_table("Last validation", validation),
            _metric_table("Last rollouts", rollouts),
        ],
        findings=findings,
    )


def _checkpoint_table(checkpoints: Sequence[CheckpointListing]) -> Table:
    rows: list[tuple[object, ...]] = []
    for files in checkpoints:
        step = "-" if files.step is None else files.step
        rows.append((files.name, step, size_text(files.bytes), ", ".join(files.files)))
    return Table(("name", "step", "size", "files"), rows, "Checkpoints")


def _checkpoint_files(path: Path) -> CheckpointListing:
    if can_list(path):
        files = sorted(file for file in path.rglob("*") if file.is_file())
    else:
        names = sorted(checkpoint.CheckpointManifest.read(path).files)
        files = files_named(path, [checkpoint.MANIFEST, *names])
    return CheckpointListing(
        name=path.name,
        step=checkpoint.checkpoint_step(path.name),
        bytes=sum(file.stat().st_size for file in files),
        files=tuple(str(file.relative_to(path)) for file in files),
    )


def _parameters(weights: checkpoint.WeightsInfo | None) -> str:
    if weights is None:
        return ""
    dtypes = ", ".join(weights.dtypes)
    return f"{weights.parameters:,} in {weights.tensors} tensors ({dtypes})"


def _metric_table(title: str, metrics: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, str]] = []
    for name, value in metrics.items():
        if isinstance(value, float):
            rows.append((name, number_text(value)))
        elif isinstance(value, int | str):
            rows.append((name, str(value)))
    return Table(("name", "value"), rows, title)


def _metrics(run: RunDir) -> tuple[dict[str, Any], ...]:
    """The first and the last row with a loss, the last of a validation, the last of rollouts."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    validation: dict[str, Any] = {}
    rollouts: dict[str, Any] = {}
    if run.metrics.is_file():
        for row in read_metrics(run.metrics):
            if "loss" in row:
                first = first or row
                last = row
                continue
            if any(name.startswith(VALIDATION) for name in row):
                validation = row
            if any(name.startswith(EVALUATION) for name in row):
                rollouts = row
    return tuple(_strict(row) for row in (first, last, validation, rollouts))


def _strict(row: Mapping[str, Any]) -> dict[str, Any]:
    """Row for strict JSON: None for numbers that are not finite."""
    strict = dict(row)
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            strict[name] = None
    return strict


def _texts(value: object) -> tuple[str, ...]:
    """The texts of a list, or the only one."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        return tuple(map(str, value))
    return ()
