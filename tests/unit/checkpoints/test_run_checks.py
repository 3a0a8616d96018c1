"""`verify` of a training run and of one of its checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.builders.training import tiny_config
from tests.builders.verifying import verified
from vlatool.checkpoints.checkpoint import CheckpointManifest
from vlatool.checkpoints.layout import RunDir
from vlatool.datasets.stats.layout import write_stats
from vlatool.jobs.job import digest_of
from vlatool.jobs.record import OutputRecord
from vlatool.storage.documents import write_checksummed
from vlatool.workflows.verify import InspectConfig, inspect

STEPS = (2, 4)


def weights(shape: tuple[int, ...] = (3, 4)) -> bytes:
    """A safetensors file of one float32 tensor of zeros."""
    size = 4 * int(np.prod(shape))
    header = {"a": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder as `train` writes it, with made-up weights."""
    root = tmp_path_factory.mktemp("verify") / "run"
    run = RunDir(root)
    for step in STEPS:
        folder = run.checkpoint(step)
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(weights())
        (folder / "trainer.pt").write_bytes(b"counters")
        CheckpointManifest.of(folder, step, 8 * step).write(folder)
    run.write_latest(STEPS[-1])
    run.write_config(tiny_config(Path("data"), root).model_dump(mode="json"))
    run.metrics.write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in (1, 2)))
    run.stats.write_text("{}")
    run.options.write_text("past_lowdim_steps: 1\n")
    return root


@pytest.fixture
def run(intact: Path, tmp_path: Path) -> RunDir:
    """Copy that a test may damage."""
    return RunDir(Path(shutil.copytree(intact, tmp_path / "run")))


@pytest.mark.parametrize("options", [{}, {"quick": True}, {"full": True}])
def test_an_unchanged_run_is_valid(intact: Path, options: dict[str, Any]) -> None:
    result = verified(intact, **options)
    assert (result.kind, result.findings) == ("run", ())
    assert result.checked["files"] == 2 * len(STEPS)


def test_a_single_checkpoint_is_verified_and_inspected(run: RunDir, tmp_path: Path) -> None:
    checkpoint = Path(shutil.move(run.checkpoint(4), tmp_path / "step_00000004"))
    assert (verified(checkpoint).kind, verified(checkpoint).findings) == ("checkpoint", ())
    result = inspect(InspectConfig(location=str(checkpoint))).document()
    assert (result["kind"], result["checkpoint"]["step"]) == ("checkpoint", 4)
    assert result["weights"] == {"parameters": 12, "tensors": 1, "dtypes": ("F32",)}
    (checkpoint / "trainer.pt").write_bytes(b"countess")
    assert verified(checkpoint).codes == {"run.digest_mismatch": 1}


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def flip_record(run: RunDir) -> None:
    OutputRecord("train", {"seed": 1}).save(run.root)
    path = run.root / ".vlatool/run.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 3'))


def manifest(run: RunDir) -> Path:
    return run.checkpoint(4) / "manifest.json"


def spoil_config(run: RunDir) -> None:
    tree = yaml.safe_load(run.config.read_text())
    run.write_config({**tree, "hparams": {**tree["hparams"], "lr": "fast"}})


def change_statistics(run: RunDir) -> None:
    write_stats(run.stats, {"a": {"mean": [0.0], "std": [1.0]}})
    options = {"statistics": digest_of({"a": {"mean": [0.5], "std": [1.0]}})}
    OutputRecord("train", options).save(run.root)


def hide_metrics(run: RunDir) -> None:
    run.metrics.unlink()
    run.metrics.mkdir()


def misfit_weights(run: RunDir) -> None:
    folder = run.checkpoint(4)
    (folder / "model.safetensors").write_bytes(weights()[:-4])
    CheckpointManifest.of(folder, 4, 32).write(folder)


# Severity to what is damaged, how, and the code.
BREAKS: dict[str, dict[str, tuple[Callable[[RunDir], Any], str]]] = {
    "error": {
        "no config": (lambda run: run.config.unlink(), "broken_config"),
        "config with a wrong value": (spoil_config, "broken_config"),
        "config that is no YAML": (lambda run: run.config.write_text("{"), "broken_config"),
        "statistics": (lambda run: run.stats.write_text("["), "broken_statistics"),
        "statistics that are not finite": (
            lambda run: run.stats.write_text('{"a": {"mean": [0.0, NaN], "std": [1.0, 1.0]}}'),
            "broken_statistics",
        ),
        "statistics that others were trained with": (change_statistics, "broken_statistics"),
        "metrics that are a folder": (hide_metrics, "broken_metrics"),
        "options": (lambda run: run.options.unlink(), "broken_options"),
        "record": (
            lambda run: write_checksummed(run.root / ".vlatool/run.json", {"command": "train"}),
            "broken_record",
        ),
        "record with a flipped bit": (flip_record, "broken_record"),
        "metrics of no step": (
            lambda run: run.metrics.write_text('{"loss": 1.0}\n{"step": 2}\n'),
            "broken_metrics",
        ),
        "latest is gone": (lambda run: run.latest_file.unlink(), "broken_latest"),
        "latest is no JSON": (lambda run: run.latest_file.write_text("{"), "broken_latest"),
        "latest names nothing": (lambda run: run.write_latest(6), "broken_latest"),
        "newest checkpoint without manifest": (
            lambda run: (
                run.latest_file.write_text("{}"),
                manifest(run).unlink(),
                run.write_latest(2),
            ),
            "broken_manifest",
        ),
        "broken manifest": (lambda run: manifest(run).write_text("{}"), "broken_manifest"),
        "manifest of another step": (
            lambda run: rewrite(manifest(run), lambda tree: tree.update(step=7)),
            "broken_manifest",
        ),
        "manifest that leaves its folder": (
            lambda run: rewrite(manifest(run), lambda t: t["files"].update({"../x": {}})),
            "broken_manifest",
        ),
        "missing file": (lambda run: (run.checkpoint(2) / "trainer.pt").unlink(), "missing_file"),
        "longer file": (
            lambda run: (run.checkpoint(2) / "trainer.pt").write_bytes(b"counters!"),
            "size_mismatch",
        ),
        "flipped byte": (
            lambda run: (run.checkpoint(2) / "trainer.pt").write_bytes(b"countess"),
            "digest_mismatch",
        ),
        "name that no file can have": (
            lambda run: rewrite(
                manifest(run), lambda t: t["files"].update({"x" * 300: {"bytes": 1, "sha256": ""}})
            ),
            "unreadable_file",
        ),
        "weights that do not fit their header": (misfit_weights, "broken_weights"),
    },
    "warning": {
        "no metrics": (lambda run: run.metrics.unlink(), "no_metrics"),
        "no checkpoint yet": (
            lambda run: (shutil.rmtree(run.checkpoints_folder), run.latest_file.unlink()),
            "no_checkpoint",
        ),
        "latest is behind": (lambda run: run.write_latest(2), "stale_latest"),
        "unfinished checkpoint": (
            lambda run: (run.checkpoint(2) / "manifest.json").unlink(),
            "unfinished_checkpoint",
        ),
        "stranger": (
            lambda run: (run.checkpoint(2) / "notes.txt").write_text("x"),
            "unlisted_file",
        ),
    },
    "info": {
        "metrics cut off": (
            lambda run: run.metrics.write_text('{"step": 1}\n{"step": 2, "lo'),
            "cut_metrics",
        ),
    },
}


@pytest.mark.parametrize(
    ("severity", "name"), [(severity, name) for severity in BREAKS for name in BREAKS[severity]]
)
def test_a_defect_of_a_run_has_its_code(severity: str, name: str, run: RunDir) -> None:
    break_it, code = BREAKS[severity][name]
    break_it(run)
    result = verified(run.root)
    assert {finding.code for finding in result.findings} == {f"run.{code}"}
    assert {finding.severity for finding in result.findings} == {severity}
    assert not str(result.findings[0].place["path"]).startswith("/")


def test_quick_compares_no_digests(run: RunDir) -> None:
    (run.checkpoint(2) / "trainer.pt").write_bytes(b"countess")
    assert verified(run.root, quick=True).findings == ()
