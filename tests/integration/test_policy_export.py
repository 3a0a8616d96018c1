"""Export of a trained policy to the published layout, and finetuning from it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.builders.base_models import clip_base
from tests.builders.training import CAMERAS, HAND, HAND_COMMAND, XYZ, tiny_config, world_shards
from vlatool.artifacts.run.format import RunDir
from vlatool.config.resolve import load_config, parse_override
from vlatool.errors import DataError, UsageError
from vlatool.models.trained import open_trained
from vlatool.models.weights import read_pickled_weights
from vlatool.training.config import TrainConfig
from vlatool.workflows.export import ExportConfig, export
from vlatool.workflows.train import finetune, train

# Keys of the section of a CLIP backbone. Source: formats/published-runs 2.1.
CLIP_KEYS = {
    "type", "resume_from_checkpoint", "resume_weights_only", "freeze", "hf_pretrained",
    "freeze_text_encoder", "freeze_image_encoder", "disable_text",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_shards(tmp_path_factory.mktemp("world"), episodes=2)


def config(data: Path, run: Path, **changes: object) -> TrainConfig:
    base = run.parent / "clip"
    if not base.is_dir():
        clip_base(base)
    keys = {
        "model": {
            "type": "diffusion_policy",
            "vision_language_backbone": {"type": "clip_backbone", "hf_pretrained": str(base)},
            "transformer": {"hidden_dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 8},
        },
        "data.num_workers": 0,
        "data.proprioception_fields": f"{XYZ},{HAND}",
        "data.action_fields": HAND_COMMAND,
        "data.dataset_manifest": str(data),
        "hparams.global_batch_size": 4,
        "hparams.per_gpu_batch_size": "null",
        "ema.enabled": True,
        "total_train_steps": 2,
        "save_path": str(run.parent),
        "name": run.name,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    overrides = [parse_override(f"{key}={value}") for key, value in keys.items()]
    return load_config(TrainConfig, overrides=overrides).config


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(config(data, run))
    return run


@pytest.fixture(scope="module")
def published(run: Path) -> Path:
    output = run.parent / "published"
    export(ExportConfig(source=str(run), output=str(output)))
    return output


@pytest.mark.parametrize(
    ("file", "own"),
    [
        ("checkpoints/checkpoint_1.pt", "model.safetensors"),
        ("checkpoints/ema_1.pt", "ema.safetensors"),
        (".", "ema.safetensors"),
    ],
)
def test_exported_weights_loaded_again_are_those_of_the_run(
    data: Path, run: Path, published: Path, tmp_path: Path, file: str, own: str
) -> None:
    unchanged = {"hparams__lr": 0, "hparams__lr_cooldown_end": 0, "total_train_steps": 1}
    origin = {"model__resume_from_checkpoint": published / file}
    finetune(
        config(data, tmp_path / "back", **origin, model__resume_weights_only=True, **unchanged)
    )

    weights = load_file(RunDir(tmp_path / "back").checkpoint(1) / "model.safetensors")
    expected = load_file(RunDir(run).checkpoint(2) / own)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_exported_values_have_the_published_types(published: Path) -> None:
    tree = yaml.safe_load((published / "config.yaml").read_text())
    for key, kind in {
        "hparams.warmup": str,
        "hparams.decay": str,
        "hparams.lr": float,
        "ema.alpha": float,
        "data.normalization.epsilon": float,
        "data.dataset_statistics.0": str,
        "data.dataset_weighting.0": float,
        "data.pose_groups.0.position_key": str,
        "model.noise_scheduler.clamp_range.0": float,
        "data.prefetch_factor": int,
    }.items():
        value = tree
        for part in key.split("."):
            value = value[int(part) if part.isdigit() else part]
        assert type(value) is kind, key


def test_exported_files_have_the_published_names_keys_and_provenance(
    published: Path, data: Path
) -> None:
    tree = yaml.safe_load((published / "config.yaml").read_text())

    assert set(tree["model"]["vision_language_backbone"]) == CLIP_KEYS
    assert yaml.safe_load((published / "config_model.yaml").read_text()) == tree["model"]
    assert yaml.safe_load((published / "config_processor.yaml").read_text()) == tree["data"]
    normalizer = yaml.safe_load((published / "config_normalizer.yaml").read_text())
    assert normalizer == tree["data"]["normalization"]
    assert (tree["total_train_samples"], tree["hparams"]["per_gpu_batch_size"]) == (8, 4)
    assert tree["data"]["camera_names"] == CAMERAS
    content = read_pickled_weights(published / "checkpoints/checkpoint_1.pt")
    assert (content["checkpoint_num"], content["global_step"]) == (1, 2)

    metadata = json.loads((published / "processing_metadata.json").read_text())

    assert (metadata["dataset_sources"], metadata["num_sources"]) == ([str(data)], 1)
    assert metadata["command_line"]["arguments"]["camera_names"] == CAMERAS


def test_exported_configuration_resolves_to_the_model_of_the_run(
    run: Path, published: Path
) -> None:
    models = [
        load_config(TrainConfig, files=[str(folder / "config.yaml")]).config.model
        for folder in (run, published)
    ]

    dumps = [dump.model_dump(mode="json") for dump in models]
    for dump in dumps:
        dump["vision_language_backbone"] = {
            key: dump["vision_language_backbone"][key] for key in CLIP_KEYS
        }
    assert dumps[0] == dumps[1]


def test_dry_run_says_that_a_run_cannot_be_exported(data: Path, run: Path, tmp_path: Path) -> None:
    planned = train(tiny_config(data, tmp_path / "run", dry_run=True))
    assert "keypoint_backbone" in planned.export_problem
    assert planned.export_problem in planned.text()

    assert train(config(data, run.parent / "other", dry_run=True)).export_problem == ""


def test_policy_without_a_published_layout_is_an_error(data: Path, tmp_path: Path) -> None:
    train(tiny_config(data, tmp_path / "run", total_train_steps=1))

    with pytest.raises(UsageError) as caught:
        export(ExportConfig(source=str(tmp_path / "run"), output=str(tmp_path / "out")))
    assert (caught.value.code, (tmp_path / "out").exists()) == ("usage.not_exportable", False)


def test_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run/checkpoints/step_00000002"
    folder.parent.mkdir(parents=True)
    for path in (run / "config.yaml", run / "stats.json", run / "preprocessing_config.yaml"):
        (tmp_path / "run" / path.name).write_bytes(path.read_bytes())
    folder.mkdir()
    for path in RunDir(run).checkpoint(2).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.safetensors").write_bytes(b"half")

    with pytest.raises(DataError) as caught:
        export(ExportConfig(source=str(tmp_path / "run"), output=str(tmp_path / "out")))
    assert caught.value.code == "data.broken_checkpoint"


@pytest.mark.parametrize("name", ["checkpoints/ema_1.pt", "stats.json"])
def test_changed_file_of_an_export_is_not_opened(
    published: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(published, tmp_path / "export")
    changed = tmp_path / "export" / name
    changed.write_bytes(changed.read_bytes() + b" ")
    with pytest.raises(DataError) as caught:
        open_trained(str(tmp_path / "export"), device="cpu")
    assert (caught.value.code, caught.value.details["path"]) == ("data.broken_export", str(changed))


def test_export_of_another_checkpoint_is_replaced_on_request_only(
    run: Path, tmp_path: Path
) -> None:
    first, *_, last = sorted(run.glob("checkpoints/step_*"))
    export(ExportConfig(source=str(last), output=str(tmp_path)))
    weights = tmp_path / "checkpoints/checkpoint_1.pt"
    before = weights.read_bytes()
    other = {"source": str(first), "output": str(tmp_path)}
    with pytest.raises(UsageError) as caught:
        export(ExportConfig(**other))
    assert caught.value.code == "usage.output_differs"
    assert weights.read_bytes() == before
    export(ExportConfig(**other, overwrite=True))
    assert weights.read_bytes() != before
