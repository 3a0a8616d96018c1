"""Runs of shipped presets, at tiny sizes: each is exported and read back, or cannot be exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.builders import preset_runs
from tests.builders.errors import fails
from vlatool.config.resolve import load_config
from vlatool.models.trained import open_trained
from vlatool.training.config import TrainConfig
from vlatool.workflows.export import ExportConfig, check_equal, example_outputs, export
from vlatool.workflows.train import train

# `test_future_vla_export.py` exports the language model.
OTHER_DATA = {"future-vla-libero", "future-vla-tiny", "future-vla-tiny-first"}
KEYPOINTS = {"diffusion-policy-tiny", "policy-tiny", "world-pick", "metaworld"}
NOT_EXPORTED = {
    *KEYPOINTS,
    "policy-state",
    "policy-small",
    "pusht-state",
    "pusht-state-published",
    "vqgan-tiny",
    "future-vla-tiny-tokenizer",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with all that runs of the presets read."""
    root = tmp_path_factory.mktemp("presets")
    preset_runs.write_sources(root)
    return root


def exported(root: Path, preset: str, **changes: Any) -> tuple[Path, Path]:
    """Folders of a run of one step, and of its export, which reads back with equal outputs."""
    name = "-".join([preset, *map(str, changes.values())])
    keys = {"save_path": str(root / "runs"), "name": name, "total_train_steps": 1, **changes}
    train(preset_runs.preset_config(root, preset, **keys))
    run, output = root / "runs" / name, root / "exports" / name
    assert export(ExportConfig(source=str(run), output=str(output))).bytes > 0
    return run, output


@pytest.mark.slow  # test_policy_export and test_tokenizer_commands export a run of each type
def test_runs_of_all_shipped_presets_are_exported(root: Path) -> None:
    for preset in preset_runs.groups_of(root):
        if preset not in NOT_EXPORTED | OTHER_DATA:
            exported(root, preset)


@pytest.mark.parametrize("preset", sorted({*preset_runs.PRESETS} - OTHER_DATA))
def test_preset_has_a_published_layout_or_says_that_it_has_none(preset: str) -> None:
    config = load_config(TrainConfig, presets=[preset]).config
    assert bool(config.model_type.layout.problem(config.model)) == (preset in NOT_EXPORTED)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_tokenizer_with_another_layout_than_its_head_reads_back(stage: int, root: Path) -> None:
    folders = exported(root, f"titok-tiny-stage{stage}", model__latent_layout="aligned")
    models = [open_trained(str(path), device="cpu") for path in folders]
    expected, outputs = map(example_outputs, models)
    assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
    written: Any = models[1].config.model
    assert (written.latent_layout, written.decoder_head) == ("aligned", "proxy")
    section = yaml.safe_load((folders[1] / "config.yaml").read_text())["model"]["vq_model"]
    assert section["is_legacy"] is False  # the published program builds another head, and stops


@pytest.mark.slow
def test_export_with_other_outputs_is_an_error(root: Path) -> None:
    run, output = exported(root, "titok-tiny-stage2", model__latent_layout="legacy")
    tree = yaml.safe_load((output / "config.yaml").read_text())
    tree["model"]["vq_model"]["is_legacy"] = False
    tree["model"]["vq_model"]["decoder_head"] = "proxy"
    (output / "config.yaml").write_text(yaml.safe_dump(tree))
    with fails("bug.differs"):
        check_equal(open_trained(str(run), device="cpu"), output / "pytorch_model.bin")
