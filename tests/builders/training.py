"""Small shards of the built-in world and a tiny policy that learns from them."""

import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlatool.config.resolve import config_of, load_config, parse_override
from vlatool.training.config import TrainConfig
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample

ARM = "right::panda"
XYZ = f"robot__actual__poses__{ARM}__xyz"
ROT = f"robot__actual__poses__{ARM}__rot_6d"
HAND = f"robot__actual__grippers__{ARM}_hand"
XYZ_COMMAND = f"robot__action__poses__{ARM}__xyz"
HAND_COMMAND = f"robot__action__grippers__{ARM}_hand"
BACKBONE = "model.vision_language_backbone"
CAMERAS = ["scene_right_0", "wrist_right_minus"]
TINY = {
    "model.vision_language_backbone.hidden_dim": 16,
    "model.vision_language_backbone.channels": "4,8",
    "model.vision_language_backbone.num_keypoints": 4,
    "model.vision_language_backbone.text_encoder.hidden_dim": 8,
    "model.transformer.hidden_dim": 16,
    "model.transformer.n_layers": 1,
    "model.transformer.n_heads": 2,
    "data.num_workers": 0,
    "data.proprioception_fields": f"{XYZ},{HAND}",
    "data.action_fields": f"{XYZ_COMMAND}_relative,{HAND_COMMAND}",
    "data.shuffle_initial": 8,
    "hparams.global_batch_size": 8,
    "hparams.per_gpu_batch_size": 4,
    "hparams.warmup": 1,
    "log_every_n_steps": 1,
    "total_train_steps": 6,
}


def world_shards(
    root: Path,
    episodes: int = 4,
    frames: int = 12,
    cameras: Sequence[str] = CAMERAS,
    **options: Any,
) -> Path:
    """Samples and preprocesses a few episodes; returns the parent folder of the shards."""
    raw = SampleConfig(
        layout="spartan", output=str(root / "raw"), episodes=episodes, frames=frames, workers=1
    )
    sample(raw)
    tree = {
        "format": "spartan",
        "sources": [str(root / "raw")],
        "output": str(root / "data"),
        "past_lowdim_steps": 1,
        "future_lowdim_steps": 6,
        "max_padding_right": 6,
        "camera_names": [*cameras],
        "samples_per_shard": 16,
        "workers": 1,
        **options,
    }
    preprocess(config_of(PreprocessConfig, tree))
    return root / "data"


def damage_image(shard: Path) -> None:
    """Overwrites the first JPEG of a shard with zeros; offsets of all members stay equal."""
    with tarfile.open(shard) as tar:
        member = next(item for item in tar if item.name.endswith(".jpg"))
    with shard.open("r+b") as file:
        file.seek(member.offset_data)
        file.write(bytes(member.size))


def tiny_overrides(data: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """Dotted keys of a tiny run, to be set over the preset `diffusion-policy-tiny`; `changes`:
    further keys, with `__` in place of dots.
    """
    return {
        **TINY,
        "data.dataset_manifest": str(data / "shards" / "manifest.jsonl"),
        "save_path": str(run.parent),
        "name": run.name,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }


def tiny_config(data: Path, run: Path, **changes: Any) -> TrainConfig:
    """The resolved configuration of a tiny run."""
    keys = tiny_overrides(data, run, **changes)
    overrides = [parse_override(f"{key}={value}") for key, value in keys.items()]
    return load_config(TrainConfig, presets=["diffusion-policy-tiny"], overrides=overrides).config


def tiny_arguments(data: Path, run: Path, **changes: Any) -> list[str]:
    """The configuration of a tiny run as arguments of `vlatool train`."""
    keys = tiny_overrides(data, run, **changes)
    settings = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    return ["train", "--preset", "diffusion-policy-tiny", *settings]


def base_model_config(data: Path, run: Path, base: Path | str, **changes: Any) -> TrainConfig:
    """The configuration of a tiny run; a `base` that is one of CLIP has a name with `clip`."""
    is_clip = Path(base).name.startswith("clip")
    sizes = {} if is_clip else {"image_size": 32, "num_vlm_layers_to_use": 2}
    keys = {
        "model.type": "diffusion_policy",
        f"{BACKBONE}.type": "clip_backbone" if is_clip else "vlm_backbone",
        f"{BACKBONE}.hf_pretrained": base,
        **{f"{BACKBONE}.{key}": value for key, value in sizes.items()},
        "model.transformer.hidden_dim": 16,
        "model.transformer.n_layers": 1,
        "model.transformer.n_heads": 2,
        "data.num_workers": 0,
        "data.proprioception_fields": f"{XYZ},{HAND}",
        "data.action_fields": f"{XYZ_COMMAND}_relative,{HAND_COMMAND}",
        "data.dataset_manifest": str(data / "shards"),
        "hparams.global_batch_size": 4,
        "hparams.per_gpu_batch_size": 4,
        "hparams.lr_scheduler": "const",
        "total_train_steps": 2,
        "save_path": str(run.parent),
        "name": run.name,
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    overrides = [parse_override(f"{key}={value}") for key, value in keys.items()]
    return load_config(TrainConfig, overrides=overrides).config
