"""Runs that start with a base model, which their assets replace later."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders.base_models import clip_base, vlm_base
from tests.builders.errors import fails
from tests.builders.training import BACKBONE, CAMERAS, base_model_config
from tests.builders.verifying import verified
from tests.builders.web_server import COMMIT, WebServer, web_server
from vlatool import load_policy
from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.errors import DataError
from vlatool.workflows.train import TrainResult, finetune, train

FAMILIES = ["clip", "paligemma", "smolvlm", "qwen3_vl"]
OTHER_COMMIT = "f" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """A hub with the CLIP `lab/clip`."""
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    clip_base(tmp_path / "site/lab/clip")
    with web_server(tmp_path / "site") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def trained(*arguments: Any, **changes: Any) -> TrainResult:
    return train(base_model_config(*arguments, **changes))


@pytest.mark.parametrize("family", FAMILIES)
def test_run_is_resumed_evaluated_and_finetuned_without_its_base_model(
    family: str, data: Path, tmp_path: Path
) -> None:
    run, base = tmp_path / "run", tmp_path / family
    clip_base(base) if family == "clip" else vlm_base(base, family)
    trained(data, run, base)
    shutil.rmtree(base)

    assert trained(data, run, base, total_train_steps=3).steps == 3
    policy = load_policy(run, inference_steps=2)
    image = np.zeros((48, 48, 3), np.uint8)
    state = {name: np.zeros(width) for name, width in policy.fields.items()}
    actions = policy.act({**dict.fromkeys(CAMERAS, image), **state, "instruction": "put"})
    assert all(np.isfinite(value).all() for value in actions.values())
    init = {"model__resume_from_checkpoint": str(run), "model__resume_weights_only": True}
    frozen = {"model__transformer__freeze": True}
    result = finetune(base_model_config(data, tmp_path / "tuned", base, **init, **frozen))
    assert result.steps == 2


def test_base_model_of_another_family_is_refused(data: Path, tmp_path: Path) -> None:
    clip_base(tmp_path / "other")
    with pytest.raises(DataError, match="the family 'clip'"):
        trained(data, tmp_path / "run", tmp_path / "other")


def test_base_model_is_read_at_the_configured_commit(
    hub: WebServer, data: Path, tmp_path: Path
) -> None:
    hub.faults.commit = OTHER_COMMIT
    run = tmp_path / "run"
    trained(data, run, "lab/clip", **{f"{BACKBONE}.revision": COMMIT})

    paths = {path for _, path, _ in hub.faults.requests if "/resolve/" in path}
    assert paths
    assert all(COMMIT in path for path in paths)


def test_missing_tokenizer_is_rewritten(data: Path, whole: Path, tmp_path: Path) -> None:
    run, base = Path(shutil.copytree(whole, tmp_path / "run")), whole.parent / "clip"
    (run / "tokenizer.json").unlink()

    trained(data, run, base, total_train_steps=3)

    assert (run / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    trained(data, folder / "run", clip_base(folder / "clip"))
    return folder / "run"


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("tokenizer.json", "lost", "run.broken_kept"),
        ("tokenizer.json", "changed", "run.broken_kept"),
        ("config.yaml", "changed", "run.broken_kept"),
        ("origins.json", "changed", "run.broken_kept"),
    ],
)
def test_verify_reports_changed_assets(
    name: str, change: str, code: str, whole: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert verified(run).findings == ()
    path = run / name
    path.unlink() if change == "lost" else path.write_bytes(path.read_bytes() + b"\n")

    assert verified(run).codes == {code: 1}


def test_policy_with_another_tokenizer_is_an_error(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    path = run / "tokenizer.json"
    path.write_text(path.read_text().replace("green", "grey"))

    with fails("data.broken", 3):
        load_policy(run)


def with_dropout(base: Path) -> Path:
    """Sets the dropout of attention in config.json of a base model."""
    tree = json.loads((base / "config.json").read_text())
    for section in ("text_config", "vision_config"):
        tree[section]["attention_dropout"] = 0.3
    (base / "config.json").write_text(json.dumps(tree))
    return base


# The families of the base models of presets: dropout is drawn inside the attention kernel.
@pytest.mark.parametrize("family", ["clip", "paligemma"])
def test_dropout_of_a_base_model_makes_the_size_of_micro_batches_decide(
    family: str, data: Path, tmp_path: Path
) -> None:
    base = tmp_path / family
    with_dropout(clip_base(base) if family == "clip" else vlm_base(base, family))
    # The learning rate is 0, so validation measures the same weights.
    changes = {"hparams__precision": "float32", "hparams__lr": 0, "num_checkpoints": 1}
    changes |= {"data__val_dataset_manifest": str(data / "shards"), "total_val_samples": 8}
    losses: list[float] = []
    for size in (4, 2):
        run = tmp_path / f"run-{size}"
        trained(data, run, base, hparams__per_gpu_batch_size=size, total_train_steps=1, **changes)
        losses += [
            row["val/loss"] for row in read_metrics(run / "metrics.jsonl") if "val/loss" in row
        ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)

    with fails("usage.output_differs") as caught:
        trained(data, tmp_path / "run-4", base, hparams__per_gpu_batch_size=2, **changes)
    assert "micro-batch of 4 samples on each of 1 ranks" in caught.value.message
    trained(data, tmp_path / "run-4", base, hparams__per_gpu_batch_size=4, **changes)


def test_run_keeps_the_commit_of_its_first_start_and_another_is_another_run(
    hub: WebServer, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    trained(data, run, "lab/clip")

    hub.faults.commit = OTHER_COMMIT
    trained(data, run, "lab/clip", total_train_steps=3)

    section = RunDir(run).config_tree()["model"]["vision_language_backbone"]
    assert (section["hf_pretrained"], section["revision"]) == ("lab/clip", COMMIT)
    with fails("usage.output_differs"):
        trained(data, run, f"lab/clip@{OTHER_COMMIT}", total_train_steps=3)
