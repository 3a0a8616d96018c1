"""A run folder: configuration, metrics, checkpoints, and what evaluation needs beside them."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlatool.errors import DataError
from vlatool.storage.atomic import write_json, write_text
from vlatool.storage.digest import sha256_of

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
STATS = "stats.json"
LATEST = "latest.json"
MODEL = "model.safetensors"
EMA = "ema.safetensors"
TRAINER = "trainer.pt"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class RunDir:
    """Paths in a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The resolved, derived configuration."""
        return self.root / CONFIG

    @property
    def metrics(self) -> Path:
        """One JSON object per line."""
        return self.root / METRICS

    @property
    def stats(self) -> Path:
        """Statistics of the fields that are used."""
        return self.root / STATS

    def checkpoint(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.root / "checkpoints" / f"step_{step:08d}"

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every complete checkpoint, ascending."""
        found: list[tuple[int, Path]] = []
        for folder in (self.root / "checkpoints").glob("step_*"):
            digits = folder.name.removeprefix("step_")
            if digits.isdigit() and (folder / MANIFEST).is_file():
                found.append((int(digits), folder))
        return sorted(found)

    def latest(self) -> tuple[int, Path] | None:
        """The newest complete checkpoint."""
        found = self.checkpoints()
        return found[-1] if found else None

    def write_latest(self, step: int) -> None:
        """Names the newest checkpoint in latest.json."""
        name = str(self.checkpoint(step).relative_to(self.root))
        write_json(self.root / LATEST, {"checkpoint": name, "step": step})

    def write_config(self, tree: Mapping[str, Any]) -> None:
        """Writes config.yaml."""
        write_text(self.config, yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True))

    def forget_progress(self) -> None:
        """Removes checkpoints and metrics of a run that is replaced."""
        self.config.unlink(missing_ok=True)
        (self.root / LATEST).unlink(missing_ok=True)
        self.metrics.unlink(missing_ok=True)
        shutil.rmtree(self.root / "checkpoints", ignore_errors=True)

    def read_config(self) -> dict[str, Any] | None:
        """The tree of config.yaml; None where there is none."""
        try:
            content = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            return None
        return content if isinstance(content, dict) else None

    def truncate_metrics(self, last_step: int) -> None:
        """Forgets lines of steps after `last_step`, which are about to be done again."""
        if not self.metrics.is_file():
            return
        kept = [row for row in read_metrics(self.metrics) if row.get("step", 0) <= last_step]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a line that a killed run cut off is left out."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def write_checkpoint_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Lists the files of a checkpoint with size and digest; its presence marks it complete."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST
    }
    write_json(folder / MANIFEST, {**facts, "files": files})


def find_checkpoint(location: Path) -> tuple[RunDir, Path]:
    """The run and the checkpoint folder behind a run folder or a checkpoint folder.

    Raises:
        DataError: There is no checkpoint.
    """
    if (location / MANIFEST).is_file():
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
