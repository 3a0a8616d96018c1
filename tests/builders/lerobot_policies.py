"""Tiny policies of the package lerobot, and data for them."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vlatool.config.resolve import load_config, parse_override
from vlatool.training.config import TrainConfig
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample
from vlatool.workflows.train import train

needs_lerobot = pytest.mark.skipif(
    importlib.util.find_spec("lerobot") is None,
    reason="the extra lerobot is not installed; it has an environment of its own",
)
CAMERAS = ("scene_right_0", "wrist_right_minus")
_RESNET = {"pretrained_backbone_weights": None, "spatial_softmax_num_keypoints": 4}
TINY: Mapping[str, dict[str, Any]] = {
    "act": {
        "pretrained_backbone_weights": None,
        "chunk_size": 8,
        "n_action_steps": 8,
        "dim_model": 16,
        "n_heads": 2,
        "dim_feedforward": 32,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 4,
    },
    "diffusion": {
        **_RESNET,
        "use_group_norm": True,
        "horizon": 8,
        "n_action_steps": 6,
        "down_dims": [16, 32],
        "diffusion_step_embed_dim": 16,
        "num_train_timesteps": 5,
        "n_groups": 4,
    },
    "vqbet": {
        **_RESNET,
        "crop_shape": [60, 60],
        "n_vqvae_training_steps": 3,
        "gpt_n_layer": 1,
        "gpt_n_head": 2,
        "gpt_hidden_dim": 16,
        "gpt_input_dim": 16,
        "gpt_output_dim": 16,
        "vqvae_embedding_dim": 8,
        "vqvae_enc_hidden_dim": 8,
        "n_obs_steps": 3,
        "action_chunk_size": 4,
        "n_action_pred_token": 3,
    },
}


def make_frames(folder: Path, episodes: int = 4) -> Path:
    """Frames of the built-in world; none are held out."""
    raw = folder / "raw"
    sample(SampleConfig(layout="spartan", output=str(raw), episodes=episodes, seed=0))
    keys = {"format": "spartan", "sources": raw, "output": folder / "frames", "hold_out": 0}
    overrides = [parse_override(f"{key}={value}") for key, value in keys.items()]
    resolved = load_config(PreprocessConfig, presets=["lerobot-data"], overrides=overrides)
    preprocess(resolved.config)
    return folder / "frames"


def run_config(policy: str, data: Path, output: Path, **keys: Any) -> TrainConfig:
    """Configuration of a run of a tiny policy; VQ-BeT sees one camera."""
    values: dict[str, Any] = {
        "model.type": "lerobot",
        "model.policy": policy,
        "model.config": TINY.get(policy, {}),
        "data.dataset_manifest": str(data),
        "data.num_workers": 0,
        "data.allow_multiple_epochs": True,
        "data.camera_names": list(CAMERAS[: 1 if policy == "vqbet" else 2]),
        "save_path": str(output.parent),
        "name": output.name,
        "total_train_steps": 4,
        "hparams.global_batch_size": 4,
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    overrides = [typed(key, value) for key, value in values.items()]
    return load_config(TrainConfig, overrides=overrides).config


def typed(key: str, value: Any) -> Any:
    """An override with a value of any type."""
    from vlatool.config.resolve import Override

    return Override(key, value, "test")


def train_tiny(policy: str, data: Path, output: Path, **keys: Any) -> Path:
    train(run_config(policy, data, output, **keys))
    return output
