"""Runs of shipped presets, at tiny sizes: each is exported and read back, or cannot be exported."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.builders.base_models import PROMPT_WORDS, clip_config, vlm_config, write_tokenizer
from tests.builders.errors import fails
from tests.builders.tokenizers import NETWORK, SIDE, SIZES
from vlatool.artifacts.run.checkpoint import CheckpointManifest, part_weights
from vlatool.artifacts.run.format import RunDir
from vlatool.config.resolve import load_config
from vlatool.models.trained import open_trained
from vlatool.training.config import TrainConfig
from vlatool.workflows.export import ExportConfig, check_equal, example_outputs, export

# `test_future_vla_export.py` exports the language model.
OTHER_DATA = {"future-vla-libero", "future-vla-tiny"}
PRESETS = sorted({path.stem for path in Path("presets/runs").glob("*.yaml")} - OTHER_DATA)
KEYPOINTS = {"diffusion-policy-tiny", "world-pick", "metaworld"}
NOT_EXPORTED = {*KEYPOINTS, "policy-state", "vqgan-tiny", "future-vla-tiny-teacher"}
ARMS = ("left", "right")
DATA = {"camera_names": ["front"], "image_indices": [0]}
WINDOW = {"lowdim_past_timesteps": 1, "lowdim_future_timesteps": 2}
STATISTICS = {"mean": 0.0, "std": 1.0, "min": -2.0, "max": 2.0, "percentile_1": -1.5}


def tiny(preset: str, **model: Any) -> TrainConfig:
    """Configuration of a preset with tiny networks, as a run has it."""
    config: Any = load_config(TrainConfig, presets=[preset]).config.derive_static()[0]
    if config.model.type == "titok":
        keys = {**model, "image_size": SIDE, "teacher": "teacher", "vqgan": NETWORK, **SIZES}
        keys["quantizer"] = {**config.model.quantizer.model_dump(), **SIZES["quantizer"]}
        section = {**config.model.model_dump(), **keys}
        images = config.data.preprocessing.model_copy(update={"crop_size": SIDE})
        data = config.data.model_copy(update={"shards": ["shards"], "preprocessing": images})
    else:
        section = tiny_policy(config, preset)
        data = tiny_data(config.data)
        section |= {"action_dim": data.action_dim, "proprioception_dim": data.proprioception_dim}
    section = type(config.model).model_validate(section)
    return config.model_copy(update={"model": section, "data": data})


def tiny_policy(config: Any, preset: str) -> dict[str, Any]:
    section = config.model.model_dump()
    section["transformer"] |= {"hidden_dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 8}
    colors = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.2, 0.2, 0.2), "num_images": 1}
    backbone = section["vision_language_backbone"]
    if backbone["type"] == "clip_backbone":
        backbone |= {**colors, "architecture": clip_config()}
    elif backbone["type"] == "vlm_backbone":
        backbone |= {**colors, "architecture": vlm_config(family(preset)), "image_size": 32}
        backbone["num_vlm_layers_to_use"] = 2
    return section


def family(preset: str) -> str:
    return "smolvlm" if "tiny-test" in preset else "paligemma"


def tiny_data(data: Any) -> Any:
    """The section `data` with one camera, derived."""
    update = {**DATA, **WINDOW, "dataset_manifest": ["data"], "image_names": []}
    for key, kind in (("action_fields", "action"), ("proprioception_fields", "actual")):
        update[key] = getattr(data, key) or [f"robot__{kind}__poses__left::panda__xyz"]
    widths = {
        key: sum(map(width, update[key])) for key in ("action_fields", "proprioception_fields")
    }
    update |= {"action_dim": widths["action_fields"]}
    update |= {"proprioception_dim": widths["proprioception_fields"]}
    update["normalization"] = data.normalization.model_copy(update=WINDOW)
    return data.model_copy(update=update)


def width(field: str) -> int:
    return next((size for part, size in (("xyz", 3), ("rot_6d", 6)) if part in field), 1)


def write_run(root: Path, config: Any, preset: str) -> Path:
    """Writes a run with random weights, as training leaves it."""
    run = RunDir(root)
    folder = run.checkpoint(4)
    folder.mkdir(parents=True)
    torch.manual_seed(3)
    for name, part in config.model_type.build_for_inference(config.model).items():
        weights = part.module.state_dict()
        save_file(weights, folder / part_weights(name))
        if config.ema.enabled:
            averages = {key: value + 0.01 for key, value in part.module.named_parameters()}
            save_file({**weights, **averages}, folder / part_weights(name, averaged=True))
    CheckpointManifest.of(folder, 4, 8).write(folder)
    run.write_latest(4)
    run.write_config(config.model_dump(mode="json", exclude={"overwrite", "dry_run"}))
    options: Mapping[str, Any]
    if config.model.type == "titok":
        options = config.data.preprocessing.model_dump(mode="json")
    else:
        fields = [*config.data.action_fields, *config.data.proprioception_fields]
        run.stats.write_text(json.dumps({name: statistics(width(name)) for name in fields}))
        options = {
            "past_lowdim_steps": 1,
            "future_lowdim_steps": 2,
            "resize_images_size": [240, 240],
        }
        options |= {"pose_groups": [group(side) for side in ARMS]}
        write_tokenizer(root, *PROMPT_WORDS[family(preset)])
    run.options.write_text(yaml.safe_dump(dict(options)))
    return root


def statistics(dimensions: int) -> dict[str, Any]:
    upper = {key.replace("_1", "_99"): -value for key, value in STATISTICS.items()}
    values = {**upper, **STATISTICS}
    whole = {key: [value] * dimensions for key, value in values.items()}
    return whole | {f"{key}_per_timestep": [row] * 4 for key, row in whole.items()}


def group(side: str) -> dict[str, str]:
    pose = f"robot__action__poses__{side}::panda__"
    return {"name": side, "position_key": f"{pose}xyz", "rotation_key": f"{pose}rot_6d"}


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in NOT_EXPORTED])
def test_run_of_a_shipped_preset_is_exported(preset: str, tmp_path: Path) -> None:
    config = tiny(preset)
    assert config.model_type.layout.problem(config.model) == ""
    run = write_run(tmp_path / "run", config, preset)

    result = export(ExportConfig(source=str(run), output=str(tmp_path / "out")))

    assert result.bytes > 0


@pytest.mark.parametrize("preset", sorted(NOT_EXPORTED))
def test_preset_without_a_published_layout_says_so(preset: str) -> None:
    config = load_config(TrainConfig, presets=[preset]).config

    assert config.model_type.layout.problem(config.model)


@pytest.mark.parametrize("stage", [1, 2])
def test_tokenizer_with_another_layout_than_its_head_reads_back(stage: int, tmp_path: Path) -> None:
    config = tiny(f"titok-tiny-stage{stage}", latent_layout="aligned")
    run = write_run(tmp_path / "run", config, "")

    export(ExportConfig(source=str(run), output=str(tmp_path / "out")))

    models = [open_trained(str(path), device="cpu") for path in (run, tmp_path / "out")]
    expected, outputs = map(example_outputs, models)
    assert all(np.array_equal(outputs[name], expected[name]) for name in expected)
    written: Any = models[1].config.model
    assert (written.latent_layout, written.decoder_head) == ("aligned", "proxy")
    section = yaml.safe_load((tmp_path / "out/config.yaml").read_text())["model"]["vq_model"]
    assert section["is_legacy"] is False  # the published program builds another head, and stops


def test_export_with_other_outputs_is_an_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny("titok-tiny-stage2"), "")
    export(ExportConfig(source=str(run), output=str(tmp_path / "out")))
    tree = yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    tree["model"]["vq_model"]["is_legacy"] = False
    tree["model"]["vq_model"]["decoder_head"] = "proxy"
    (tmp_path / "out/config.yaml").write_text(yaml.safe_dump(tree))

    with fails("bug.export_differs"):
        check_equal(open_trained(str(run), device="cpu"), tmp_path / "out/pytorch_model.bin")
