"""What is in a training run: its model, its checkpoints, how far it got."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from vlatool.errors import DataError
from vlatool.inspection.text import number_text, pairs, size_text, table
from vlatool.sources.order import natural_key

_CONFIG, _LATEST, _METRICS, _CHECKPOINTS = (
    "config.yaml",
    "latest.json",
    "metrics.jsonl",
    "checkpoints",
)
_WEIGHTS = "model.safetensors"
# The limit of the safetensors library itself.
_LARGEST_HEADER = 100_000_000
_STEP = "step_"


@dataclass(frozen=True)
class WeightsFacts:
    """What the header of a safetensors file says; dtypes as it names them (`F32`)."""

    parameters: int
    tensors: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointFacts:
    """One checkpoint folder."""

    name: str
    step: int | None
    bytes: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class RunReport:
    """What is in a run folder; None and empty values are what its files do not tell.

    Attributes:
        model_type: Name in the registry.
        data: Manifests it trains on.
        budget: Keys of the configuration that say how long it trains.
        step: Steps done at the latest checkpoint.
        weights: Of the latest checkpoint.
        first_metrics: First line of the metrics with a loss.
        last_metrics: Last one.
        findings: What is broken or missing, with `code` and `message`.
    """

    model_type: str
    data: tuple[str, ...]
    budget: Mapping[str, Any]
    step: int | None
    checkpoints: tuple[CheckpointFacts, ...]
    weights: WeightsFacts | None
    first_metrics: Mapping[str, Any]
    last_metrics: Mapping[str, Any]
    findings: tuple[Mapping[str, str], ...] = ()
    kind: str = "run"

    def document(self) -> dict[str, Any]:
        """The report for programs."""
        return asdict(self)

    def headline(self) -> str:
        """What it is, in a few words."""
        done = "no checkpoint yet" if self.step is None else f"{self.step} steps done"
        return f"run of {self.model_type or 'an unknown model type'}, {done}"

    def blocks(self) -> list[str]:
        """The report for people, block by block."""
        return [
            pairs(self._summary()),
            table("Findings", ("code", "message"), [tuple(one.values()) for one in self.findings]),
            table(
                "Checkpoints",
                ("name", "step", "size", "files"),
                [
                    (
                        one.name,
                        "-" if one.step is None else one.step,
                        size_text(one.bytes),
                        ", ".join(one.files),
                    )
                    for one in self.checkpoints
                ],
            ),
            table("Last metrics", ("name", "value"), _metric_rows(self.last_metrics)),
        ]

    def _summary(self) -> dict[str, object]:
        weights = ""
        if self.weights is not None:
            weights = f"{self.weights.parameters:,} in {self.weights.tensors} tensors"
            weights += f" ({', '.join(self.weights.dtypes)})"
        first, last = self.first_metrics.get("loss"), self.last_metrics.get("loss")
        return {
            "model": self.model_type or "unknown",
            "parameters": weights,
            "data": self.data,
            "budget": ", ".join(f"{key} {value}" for key, value in self.budget.items()),
            "loss": "" if last is None else f"{number_text(first)} -> {number_text(last)}",
        }


def is_run(location: Path) -> bool:
    """Whether a folder looks like a training run, however unfinished."""
    has_traces = any((location / name).exists() for name in (_LATEST, _METRICS, _CHECKPOINTS))
    return has_traces and ((location / _CONFIG).is_file() or (location / _LATEST).is_file())


def inspect_run(location: Path) -> RunReport:
    """Reads the small files of a run; of the weights only the header."""
    findings: list[dict[str, str]] = []
    config = _config(location, findings)
    latest = _latest(location, findings)
    checkpoints = tuple(_checkpoints(location / _CHECKPOINTS))
    first, last = _metrics(location / _METRICS)
    return RunReport(
        model_type=str(_section(config, "model").get("type") or ""),
        data=_texts(_section(config, "data").get("dataset_manifest")),
        budget={
            key: value
            for key, value in config.items()
            if str(key).startswith("total_train_") and value is not None
        },
        step=_step(latest, checkpoints),
        checkpoints=checkpoints,
        weights=_weights(location, latest, checkpoints, findings),
        first_metrics=first,
        last_metrics=last,
        findings=tuple(findings),
    )


def read_weights_header(path: Path) -> WeightsFacts:
    """Counts the parameters of a safetensors file without reading one.

    The file begins with the length of a JSON header, 8 bytes, little endian.
    Source: huggingface.co/docs/safetensors, format.

    Raises:
        DataError: It is missing, no safetensors file, or cut off.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        sizes = [math.prod(map(int, one["shape"])) for one in tensors.values()]
        end = 8 + length + max((int(one["data_offsets"][1]) for one in tensors.values()), default=0)
        if path.stat().st_size != end:
            raise ValueError(f"{path.stat().st_size} bytes, the header says {end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path}: weights cannot be read: {error}",
            hint="use another checkpoint of the run",
            code="data.broken_weights",
            details={"path": str(path)},
        ) from None
    dtypes = sorted({str(one.get("dtype")) for one in tensors.values()})
    return WeightsFacts(sum(sizes), len(sizes), tuple(dtypes))


def _config(location: Path, findings: list[dict[str, str]]) -> Mapping[str, Any]:
    path = location / _CONFIG
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        findings.append({"code": "data.broken_config", "message": f"{path}: {error}"})
        return {}
    return content if isinstance(content, Mapping) else {}


def _latest(location: Path, findings: list[dict[str, str]]) -> Mapping[str, Any]:
    path = location / _LATEST
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        findings.append({"code": "data.broken_json", "message": f"{path}: {error}"})
        return {}
    return content if isinstance(content, Mapping) else {}


def _checkpoints(folder: Path) -> Iterator[CheckpointFacts]:
    """Checkpoints by step; names that begin with a dot are unfinished and left out."""
    found = folder.iterdir() if folder.is_dir() else ()
    for path in sorted(found, key=natural_key):
        if path.is_dir() and not path.name.startswith("."):
            files = sorted(file for file in path.rglob("*") if file.is_file())
            digits = path.name.removeprefix(_STEP)
            yield CheckpointFacts(
                name=path.name,
                step=int(digits) if digits.isdigit() else None,
                bytes=sum(file.stat().st_size for file in files),
                files=tuple(str(file.relative_to(path)) for file in files),
            )


def _step(latest: Mapping[str, Any], checkpoints: tuple[CheckpointFacts, ...]) -> int | None:
    step = latest.get("step")
    if isinstance(step, int):
        return step
    return max((one.step for one in checkpoints if one.step is not None), default=None)


def _weights(
    location: Path,
    latest: Mapping[str, Any],
    checkpoints: tuple[CheckpointFacts, ...],
    findings: list[dict[str, str]],
) -> WeightsFacts | None:
    """Of the checkpoint that latest.json names, else of the last one."""
    named = latest.get("checkpoint")
    if not named and not checkpoints:
        return None
    folder = location / str(named or f"{_CHECKPOINTS}/{checkpoints[-1].name}")
    try:
        return read_weights_header(folder / _WEIGHTS)
    except DataError as error:
        findings.append({"code": error.code, "message": error.message})
        return None


def _metrics(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first and the last line that have a loss; a half-written line is passed over."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    if not path.is_file():
        return first, last
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if '"loss"' in line and (row := _row(line)):
                first, last = first or row, row
    return first, last


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, number_text(value) if isinstance(value, float) else str(value))
        for name, value in metrics.items()
        if isinstance(value, int | float | str)
    ]


def _section(tree: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = tree.get(key)
    return value if isinstance(value, Mapping) else {}


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(map(str, value)) if isinstance(value, list) else ()
