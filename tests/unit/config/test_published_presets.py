"""Presets of the published policy jobs: their values, and the changes of the recommended ones.

The tables have the values of reference/policy 5, reference/titok 1.1 and 5.1,
formats/lbm-preprocessing 3, formats/spartan 3 and 7, and reference/future-vla 1 and 2.1.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vlatool.config.coerce import plain
from vlatool.config.includes import read_file
from vlatool.config.resolve import Resolved, load_config
from vlatool.config.yaml_text import value_origins
from vlatool.training.config import TrainConfig

PRESETS = Path(__file__).parents[3] / "presets"
LEFT, RIGHT = "left::panda", "right::panda"
FOUR = ["scene_right_0", "scene_left_0", "wrist_left_plus", "wrist_right_minus"]
SIX = [
    "scene_right_0",
    "scene_left_0",
    "wrist_left_minus",
    "wrist_left_plus",
    "wrist_right_minus",
    "wrist_right_plus",
]
ALL_WORDS = ["original", "randomized", "verbose", "alternative"]


def _pose(kind: str, arm: str, part: str) -> str:
    return f"robot__{kind}__poses__{arm}__{part}"


def _hand(kind: str, arm: str) -> str:
    return f"robot__{kind}__grippers__{arm}_hand"


PER_ARM_ACTIONS = [
    name
    for arm in (LEFT, RIGHT)
    for name in (
        _pose("action", arm, "xyz_relative"),
        _pose("action", arm, "rot_6d_relative"),
        _hand("action", arm),
    )
]
PER_ARM_SEEN = [
    name
    for arm in (LEFT, RIGHT)
    for name in (
        _pose("actual", arm, "xyz"),
        _pose("actual", arm, "rot_6d"),
        _hand("actual", arm),
    )
]
GROUPED_ACTIONS = [
    *(
        _pose("action", arm, part)
        for part in ("xyz_relative", "rot_6d_relative")
        for arm in (LEFT, RIGHT)
    ),
    *(_hand("action", arm) for arm in (LEFT, RIGHT)),
]
GROUPED_SEEN = [_pose("actual", arm, part) for part in ("xyz", "rot_6d") for arm in (LEFT, RIGHT)]

COMMON: dict[str, Any] = {
    "total_train_samples": None,
    "num_checkpoints": 5,
    "total_val_samples": None,
    "hparams.seed": 42,
    "hparams.loss_function": "mse",
    "hparams.optimizer": "adamw",
    "hparams.lr_scheduler": "cosine",
    "hparams.warmup": 1000,
    "hparams.decay": 0.3,
    "hparams.force_min_lr": 0,
    "hparams.eps": 1e-8,
    "hparams.decay_by_name": True,
    "hparams.z_loss_coefficient": 0,
    "hparams.grad_checkpointing": False,
    "hparams.torchcompile": False,
    "ema.type": "ema",
    "ema.inv_gamma": 1,
    "ema.power": 0.75,
    "ema.max_value": 0.9999,
    "ema.update_after_step": 0,
    "model.type": "diffusion_policy",
    "model.vision_language_backbone.type": "clip_backbone",
    "model.vision_language_backbone.hf_pretrained": "openai/clip-vit-base-patch32",
    "model.vision_language_backbone.disable_text": False,
    "model.vision_language_backbone.image_words": True,
    "model.vision_language_backbone.freeze_image_encoder": False,
    "model.transformer.type": "transformer",
    "model.transformer.is_causal": True,
    "model.transformer.vocab_size": 50432,
    "model.transformer.weight_tying": False,
    "model.transformer.ffn_type": "swiglu",
    "model.noise_scheduler.beta_start": 1e-4,
    "model.noise_scheduler.beta_end": 0.02,
    "model.use_flow_matching_scheduler": True,
    "model.use_diffusers_scheduler": False,
    "model.clean_padded_steps": True,
    "model.diffusion_step_conditioning": "concat",
    "model.num_action_head_repeats": None,
    "data.type": "robotics",
    "data.image_indices": [-1, 0],
    "data.normalization.enabled": True,
    "data.normalization.method": "percentile_1_99",
    "data.normalization.epsilon": 1e-2,
    "data.normalization.centered_norm": True,
    "data.processor": "openai/clip-vit-base-patch32",
    "data.allow_multiple_epochs": True,
    "data.num_workers": 8,
    "data.mask_padded_images": False,
}
SMALL: dict[str, Any] = {
    **COMMON,
    "hparams.precision": "amp_bf16",
    "hparams.per_gpu_batch_size": 16,
    "distributed.fsdp": True,
    "ema.enabled": False,
    "model.transformer.hidden_dim": 512,
    "model.transformer.n_layers": 12,
    "model.transformer.n_heads": 8,
    "model.transformer.post_embed_norm": True,
    "model.vision_language_backbone.freeze_text_encoder": True,
    "model.input_noise_std": 0,
    "data.lowdim_past_timesteps": 1,
    "data.lowdim_future_timesteps": 14,
    "data.action_fields": PER_ARM_ACTIONS,
    "data.proprioception_fields": PER_ARM_SEEN,
    "data.augmentation.image.color_jitter.enabled": False,
    "data.prefetch_factor": 8,
}
LBM: dict[str, Any] = {
    **COMMON,
    "hparams.precision": "float32",
    "hparams.lr": 5e-5,
    "hparams.lr_cooldown_end": 1e-6,
    "hparams.wd": 1e-8,
    "hparams.beta1": 0.9,
    "hparams.beta2": 0.95,
    "hparams.grad_clip_norm": 1.0,
    "hparams.per_gpu_batch_size": 128,
    "hparams.global_batch_size": 1024,
    "distributed.fsdp": False,
    "ema.enabled": True,
    "model.transformer.hidden_dim": 1024,
    "model.transformer.n_layers": 24,
    "model.transformer.n_heads": 16,
    "model.transformer.post_embed_norm": False,
    "model.vision_language_backbone.freeze_text_encoder": False,
    "model.noise_scheduler.num_timesteps": 1000,
    "model.noise_scheduler.clamp_range": [-1.5, 1.5],
    "model.input_noise_std": 0.05,
    "data.camera_names": FOUR,
    "data.lowdim_past_timesteps": 2,
    "data.lowdim_future_timesteps": 8,
    "data.action_fields": GROUPED_ACTIONS,
    "data.proprioception_fields": GROUPED_SEEN,
    "data.language_instruction_types": ALL_WORDS,
    "data.normalization.scope": "per_timestep",
    "data.augmentation.image.crop.enabled": True,
    "data.augmentation.image.crop.shape": [224, 224],
    "data.augmentation.image.crop.mode": "random",
    "data.augmentation.image.color_jitter.enabled": True,
    "data.augmentation.image.color_jitter.brightness": 0.2,
    "data.augmentation.image.color_jitter.contrast": 0.4,
    "data.augmentation.image.color_jitter.saturation": 0.2,
    "data.augmentation.image.color_jitter.hue": [-0.05, 0.05],
    "data.pad_missing_images": False,
    "data.prefetch_factor": 16,
}
JOBS: dict[str, dict[str, Any]] = {
    "diffusion-policy-bellpepper": {
        **SMALL,
        "hparams.lr": 5e-4,
        "hparams.lr_cooldown_end": 1e-5,
        "hparams.wd": 0.01,
        "hparams.beta1": 0.9,
        "hparams.beta2": 0.95,
        "hparams.grad_clip_norm": 1.0,
        "hparams.global_batch_size": 128,
        "model.noise_scheduler.num_timesteps": 1000,
        "model.noise_scheduler.clamp_range": [-3, 3],
        "data.camera_names": FOUR,
        "data.language_instruction_types": ALL_WORDS,
        "data.normalization.scope": "per_timestep",
        "data.augmentation.image.crop.enabled": True,
        "data.augmentation.image.crop.shape": [224, 224],
        "data.augmentation.image.crop.mode": "center",
        "data.pad_missing_images": False,
    },
    "lbm-hparams-4cams": LBM,
    "lbm-hparams-6cams": {**LBM, "data.camera_names": SIX},
    "lbm-multitask-4cams": {
        **LBM,
        "total_train_samples": 614_400_000,
        "num_checkpoints": 15,
        "hparams.global_batch_size": 4096,
        "data.pad_missing_images": True,
    },
    "diffusion-policy-lbm1": {
        **SMALL,
        "hparams.lr": 1e-4,
        "hparams.lr_cooldown_end": 1e-4,
        "hparams.lr_scheduler": "const",
        "hparams.warmup": 0,
        "hparams.wd": 1e-6,
        "hparams.beta1": 0.95,
        "hparams.beta2": 0.999,
        "hparams.grad_clip_norm": None,
        "hparams.global_batch_size": 32,
        "model.noise_scheduler.num_timesteps": 100,
        "model.noise_scheduler.clamp_range": [-1, 1],
        "data.camera_names": SIX,
        "data.language_instruction_types": ["original", "randomized"],
        "data.normalization.scope": "global",
        "data.augmentation.image.crop.enabled": False,
        "data.pad_missing_images": True,
    },
}
VLA: dict[str, Any] = {
    **{key: value for key, value in SMALL.items() if not key.startswith("model.vision_language")},
    "hparams.lr": 5e-4,
    "hparams.lr_cooldown_end": 1e-5,
    "hparams.grad_clip_norm": 1.0,
    "hparams.per_gpu_batch_size": 1,
    "hparams.global_batch_size": 2,
    "model.vision_language_backbone.type": "vlm_backbone",
    "model.vision_language_backbone.hf_pretrained": "google/paligemma-3b-pt-224",
    "model.vision_language_backbone.num_vlm_layers_to_use": 4,
    "model.transformer.is_causal": False,
    "model.noise_scheduler.num_timesteps": 1000,
    "model.noise_scheduler.clamp_range": [-3, 3],
    "data.camera_names": SIX,
    "data.language_instruction_types": ALL_WORDS,
    "data.normalization.scope": "per_timestep",
    "data.processor": "google/paligemma2-3b-pt-224",
    "data.augmentation.image.crop.enabled": False,
    "data.pad_missing_images": False,
}
JOBS["vla-diffusion-bellpepper"] = VLA
JOBS["vla-diffusion-tiny-test"] = {
    **VLA,
    "hparams.global_batch_size": 1,
    "distributed.fsdp": False,
    "model.vision_language_backbone.hf_pretrained": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
    "model.vision_language_backbone.num_vlm_layers_to_use": 1,
    "model.transformer.hidden_dim": 64,
    "model.transformer.n_layers": 2,
    "model.transformer.n_heads": 2,
    "model.transformer.post_embed_norm": False,
    "data.processor": "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
    "data.num_workers": 0,
    "data.prefetch_factor": 4,  # null, which is the default
}
# Diffusion Policy, its transformer for PushT (train_diffusion_transformer_lowdim_pusht).
JOBS["pusht-state"] = {
    "model.type": "diffusion_policy",
    "model.vision_language_backbone.type": "text_backbone",
    "model.vision_language_backbone.hidden_dim": 256,
    "model.vision_language_backbone.text_encoder": None,
    "model.transformer.type": "transformer",
    "model.transformer.hidden_dim": 256,
    "model.transformer.n_layers": 8,
    "model.transformer.n_heads": 4,
    "model.transformer.ffn_type": "gelu",
    "model.transformer.is_causal": True,
    "model.use_flow_matching_scheduler": False,
    "model.noise_scheduler.num_timesteps": 100,
    "model.noise_scheduler.beta_schedule": "cosine",
    "model.noise_scheduler.clamp_range": [-1.0, 1.0],
    "model.solver.type": "ddpm",
    "data.type": "robotics",
    "data.camera_names": ["none"],
    "data.proprioception_fields": ["state"],
    "data.action_fields": ["action"],
    "data.normalization.method": "min_max",
    "data.normalization.centered_norm": True,
    "data.allow_multiple_epochs": True,
    "data.num_workers": 1,
    "hparams.precision": "float32",
    "hparams.global_batch_size": 256,
    "hparams.per_gpu_batch_size": None,
    "hparams.lr": 1e-4,
    "hparams.lr_scheduler": "cosine",
    "hparams.lr_cooldown_end": 0.0,
    "hparams.warmup": 1000,
    "hparams.wd": 0.1,
    "hparams.beta1": 0.9,
    "hparams.beta2": 0.95,
    "hparams.eps": 1e-8,
    "hparams.grad_clip_norm": None,
    "hparams.seed": 42,
    "ema.enabled": True,
    "ema.type": "ema",
    "ema.update_after_step": 0,
    "ema.inv_gamma": 1.0,
    "ema.power": 0.75,
    "ema.min_value": 0.0,
    "ema.max_value": 0.9999,
    "num_epochs": 8000,
    "num_checkpoints": 160,
}
RULES = {"model.clean_padded_steps", "hparams.decay_by_name"}
LOADER = {"data.prefetch_factor", "data.num_workers"}
POLICY = {*RULES, *LOADER, "model.vision_language_backbone.image_words"}
CLAMP, WARMUP = {"model.noise_scheduler.clamp_range"}, {"hparams.warmup"}
CORRECTED = {
    "diffusion-policy-bellpepper": POLICY | WARMUP,
    "diffusion-policy-lbm1": {
        *POLICY,
        *CLAMP,
        "data.mask_padded_images",
        "hparams.grad_clip_norm",
    },
    "lbm-hparams-4cams": POLICY | CLAMP | WARMUP | {"hparams.precision"},
    "vla-diffusion-tiny-test": RULES | WARMUP,
    "vla-diffusion-bellpepper": RULES | LOADER | WARMUP | {"data.processor"},
    "pusht-state": {
        "model.vision_language_backbone.hidden_dim",
        "model.transformer.hidden_dim",
        "model.transformer.n_layers",
        "model.transformer.is_causal",
        "model.solver.type",
        "hparams.global_batch_size",
        "hparams.lr",
        "hparams.warmup",
        "hparams.wd",
        "hparams.grad_clip_norm",
        "ema.max_value",
        "num_epochs",
        "total_train_steps",
        "num_checkpoints",
    },
}

CORRECTED["lbm-hparams-6cams"] = CORRECTED["lbm-hparams-4cams"]
CORRECTED["lbm-multitask-4cams"] = CORRECTED["lbm-hparams-4cams"] | {"data.mask_padded_images"}


@cache
def resolved(preset: str) -> Resolved[TrainConfig]:
    """Configuration of a preset alone."""
    return load_config(TrainConfig, presets=[preset])


@cache
def values(preset: str) -> dict[str, Any]:
    """Dotted key to value."""
    tree = resolved(preset).config.model_dump(mode="json")
    return {key: _at(tree, key) for key in value_origins(resolved(preset))}


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree


@pytest.mark.parametrize("job", JOBS)
def test_published_job_has_the_published_values_and_writes_no_others(job: str) -> None:
    """The files of sections are in jobs that include them."""
    tree = resolved(f"{job}-published").config.model_dump(mode="json")
    keys = {*JOBS[job], *(written(_path(job)).keys() & values(f"{job}-published").keys())}
    result = {key: _at(tree, key) for key in keys}
    assert result == JOBS[job]


def _path(job: str) -> Path:
    return next(PRESETS.rglob(f"{job}-published.yaml"))


@pytest.mark.parametrize("job", JOBS)
def test_recommended_job_changes_what_its_file_says(job: str) -> None:
    published, recommended = values(f"{job}-published"), values(job)
    assert {key for key in published if published[key] != recommended[key]} == CORRECTED[job]


TITOK: dict[str, Any] = {
    "data.type": "images",
    "data.allow_multiple_epochs": True,
    "model.type": "titok",
    "hparams.precision": "amp_bfloat16",
    "hparams.global_batch_size": 256,
    "hparams.per_gpu_batch_size": 32,
    "hparams.lr": 1e-4,
    "hparams.lr_scheduler": "cosine",
    "hparams.lr_cooldown_end": 1e-5,
    "hparams.wd": 1e-4,
    "hparams.beta1": 0.9,
    "hparams.eps": 1e-8,
    "hparams.grad_clip_norm": 1.0,
    "hparams.seed": 42,
    "ema.enabled": True,
    "ema.type": "rising",
    "ema.max_value": 0.999,
    "save_every_n_steps": 50_000,
    "images_every_n_steps": 5_000,
    "log_every_n_steps": 50,
    "model.patch_size": 16,
    "model.quantizer.type": "vq",
    "model.quantizer.codebook_size": 4096,
    "model.quantizer.token_size": 12,
    "model.quantizer.use_l2_norm": True,
    "model.quantizer.entropy_weight": 0,
    "model.latent_layout": "legacy",
    "model.decoder_head": "proxy",
    "model.teacher_precision": "float32",
    "model.vqgan.codebook_size": 1024,
    "model.losses.reconstruction_weight": 1.0,
    "model.losses.foreground_weight": 0,
    "model.losses.perceptual_weight": 0.1,
    "model.losses.discriminator_start": 20_000,
    "model.losses.discriminator_ramp": 0,
    "model.losses.discriminator_factor": 1.0,
    "model.losses.discriminator_weight": 0.01,
    "model.losses.discriminator_channels": 128,
    "model.losses.lecam_regularization_weight": 0.001,
    "model.losses.lecam_ema_decay": 0.999,
    "data.num_workers": 12,
    "data.convert_colors": True,
    "data.preprocessing.resize": "shorter_edge",
    "data.preprocessing.resize_shorter_edge": 256,
    "data.preprocessing.crop_size": 256,
    "data.preprocessing.random_crop": True,
    "data.preprocessing.random_flip": True,
    "data.preprocessing.resize_filter": "bicubic",
}
STAGES: dict[int, dict[str, Any]] = {
    1: {
        "total_train_steps": 1_000_000,
        "hparams.warmup": 10_000,
        "hparams.beta2": 0.99,
        "model.stage": 1,
        "model.quantizer.commitment_cost": 0.25,
        "model.losses.quantizer_weight": 1.0,
    },
    2: {
        "total_train_steps": 500_000,
        "hparams.warmup": 5_000,
        "hparams.beta2": 0.999,
        "model.stage": 2,
        "model.quantizer.commitment_cost": 0,
        "model.losses.quantizer_weight": 0,
        "model.losses.perceptual_loss": "convnext_s",
        "model.losses.discriminator_learning_rate": 1e-4,
    },
}
# Codes of an image, and width, blocks and heads of both transformers.
VARIANTS = {"s128": (128, 512, 8, 8), "b64": (64, 768, 12, 12), "l32": (32, 1024, 24, 16)}
SIZES = ("hidden_dim", "n_layers", "n_heads")
LOSSES = ("perceptual_loss", "discriminator_ramp")
for variant, (tokens, *sizes) in VARIANTS.items():
    networks = {
        f"model.{part}.{name}": value
        for part in ("encoder", "decoder")
        for name, value in zip(SIZES, sizes, strict=True)
    }
    for stage, keys in STAGES.items():
        job = f"titok-{variant}-stage{stage}"
        JOBS[job] = {**TITOK, **networks, **keys, "model.num_latent_tokens": tokens}
        CORRECTED[job] = {
            "data.num_workers",
            "data.convert_colors",
            "data.preprocessing.random_flip",
            *([f"model.losses.{key}" for key in LOSSES] if stage == 2 else []),
        }


SHARDS: dict[str, Any] = {
    "image_indices": [-1, 0],
    "stride": 1,
    "padding_strategy": "copy",
    "filter_still_samples": False,
    "still_threshold": 0.05,
    "jpeg_quality": 95,
    "fail_on_nan": True,
    "max_episodes": -1,
    "image_resizing_method": "center_crop",
    "camera_names": FOUR,
    "format": "spartan",
    "data_discard_keys": [
        f"robot__desired__{kind}__{side}::panda"
        for kind in ("wrench", "joint_torque", "external_wrench", "joint_torque_external")
        for side in ("right", "left")
    ],
    "action_key_fields": [
        *(_pose("action", arm, part) for arm in (RIGHT, LEFT) for part in ("xyz", "rot_6d")),
        *(_hand("action", arm) for arm in (RIGHT, LEFT)),
    ],
    "action_index_fields": [3, 9, 12, 18, 19, 20],
}
CONVERSIONS: dict[str, dict[str, Any]] = {
    "titok-images-published": {
        "sink": "image-shards",
        "image_format": "jpeg",
        "jpeg_quality": 100,
        "jpeg_subsampling": "4:2:0",
        "resize_images_size": [256, 256],
        "image_resizing_method": "resize_no_crop",
        "image_resizing_filter": "lanczos",
        "image_metadata": False,
    },
    "lbm-cameras-6": {"camera_names": SIX},
    "lbm-1past-14future": {
        "sink": "lbm",
        **SHARDS,
        "past_lowdim_steps": 1,
        "future_lowdim_steps": 14,
        "max_padding_left": 3,
        "max_padding_right": 15,
        "resize_images_size": [384, 384],
    },
    "lbm-5past-20future": {
        "sink": "lbm",
        **SHARDS,
        "past_lowdim_steps": 5,
        "future_lowdim_steps": 20,
        "max_padding_left": 5,
        "max_padding_right": 17,
        "resize_images_size": [342, 256],
    },
    "future-vla": {
        "format": "libero",
        "sink": "jsonl",
        "camera_names": ["image", "wrist_image"],
        "action_keys": ["actions"],
        "past_steps": 16,
        "future_steps": 16,
        "action_width": 7,
        "qa_mode": "both",
        "resize_images_size": [256, 256],
    },
}


def written(path: Path) -> dict[str, Any]:
    """Dotted key to value of a file and what it includes."""
    return dict(_leaves(plain(read_file(path)), ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            is_grouped = isinstance(value, str) and re.fullmatch(r"[\d_]+", value)  # 1_000
            yield prefix + key, int(value) if is_grouped else value


PUBLISHED = sorted(PRESETS.rglob("*-published.yaml"))


@pytest.mark.parametrize("preset", CONVERSIONS)
def test_published_conversion_has_the_published_values(preset: str) -> None:
    assert written(PRESETS / f"preprocess/{preset}.yaml") == CONVERSIONS[preset]


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_recommended_preset_includes_the_published_one(path: Path) -> None:
    if path.stem == "hparams-defaults-published":
        return  # there is no recommended version of the defaults of vlatool
    recommended = path.with_name(path.name.replace("-published", ""))
    assert f"<<: !include {path.name}" in recommended.read_text()
