"""Report of an experiment of the published program."""

from pathlib import Path
from typing import Any

from vlatool.checkpoints.experiment.layout import CheckpointFiles, Experiment
from vlatool.events import counted
from vlatool.report.facts import Problems, Report, Table, branch
from vlatool.storage.tree import size_text


def inspect(location: Path) -> Report:
    """Reads the configuration, and lists the files of the checkpoints.

    Its facts: `model_type` is empty if it is unknown; `checkpoints` has the number of each
    checkpoint with the sizes of its files in bytes.
    """
    if location.is_file():
        return _file(location)
    experiment = Experiment(location)
    findings = Problems()
    config = findings.read(experiment.tree) or {}
    model = branch(config, "model")
    kind = str(model.get("type") or "")
    backbone = str(branch(model, "vision_language_backbone").get("type") or "")
    cameras = [str(name) for name in branch(config, "data").get("camera_names") or []]
    checkpoints: list[dict[str, Any]] = []
    rows: list[tuple[object, ...]] = []
    for files in experiment.checkpoints():
        sizes: dict[str, int] = {}
        for path in (files.raw, files.averaged, files.optimizer):
            if path.is_file():
                sizes[path.name] = path.stat().st_size
        checkpoints.append({"number": files.number, "files": sizes})
        rows.append((files.number, size_text(sum(sizes.values())), ", ".join(sizes)))
    title = f"experiment of {kind or 'an unknown model type'}"
    return Report(
        kind="experiment",
        headline=f"{title}, {counted(len(checkpoints), 'checkpoint')}",
        facts={
            "model_type": kind,
            "backbone": backbone,
            "cameras": cameras,
            "is_export": experiment.is_export,
            "checkpoints": checkpoints,
        },
        summary={"model": kind or "unknown", "backbone": backbone, "cameras": cameras},
        tables=[Table(("number", "size", "files"), rows, "Checkpoints")],
        findings=findings,
    )


def _file(location: Path) -> Report:
    files = CheckpointFiles.with_file(location)
    number = 0 if files is None else files.number
    size = location.stat().st_size
    return Report(
        kind="experiment_file",
        headline=f"file of checkpoint {number} of an experiment",
        facts={"number": number, "bytes": size},
        summary={"on disk": size_text(size)},
    )
