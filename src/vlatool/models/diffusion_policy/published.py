"""Configuration of a trained policy in published keys. No torch. Source: reference/training 1.7."""

from collections.abc import Mapping
from typing import Any

from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig

# Keys that the published program does not have, by section.
_OWN: Mapping[tuple[str, ...], frozenset[str]] = {
    (): frozenset(
        {
            "total_train_steps",
            "save_every_n_steps",
            "keep_every_n_steps",
            "images_every_n_steps",
            "overwrite",
            "dry_run",
        }
    ),
    ("data",): frozenset({"lanes", "max_dropped_share"}),
    ("model",): frozenset({"solver", "resume_except", "lr_factors"}),
    ("model", "vision_language_backbone"): frozenset(
        {
            "revision",
            "architecture",
            "image_mean",
            "image_std",
            "image_size",
            "image_words",
            "num_images",
            "text_encoder",
        }
    ),
    ("model", "noise_scheduler"): frozenset({"beta_schedule"}),
}
_NO_INIT = {"resume_from_checkpoint": None, "resume_weights_only": False}


def published_tree(tree: Mapping[str, Any], model: DiffusionPolicyConfig) -> dict[str, Any]:
    """A configuration in published keys, with values for keys that may not be null there.

    Args:
        tree: The derived configuration as plain data.
        model: The model section.
    """
    published = _without_own(tree, ())
    data, hparams = published["data"], published["hparams"]
    count = len(data["dataset_manifest"])
    base = getattr(model.vision_language_backbone, "hf_pretrained", None)
    data |= {
        "dataset_statistics": [None] * count,
        "dataset_modality": ["robotics"] * count,
        "dataset_weighting": data["dataset_weighting"] or [1.0] * count,
        "processor": data["processor"] or base,
    }
    hparams |= {
        "loss_function": "mse",
        "per_gpu_batch_size": hparams["per_gpu_batch_size"] or hparams["global_batch_size"],
    }
    crop = data["augmentation"]["image"]["crop"]
    crop["shape"] = [int(side) if side > 1 else side for side in crop["shape"]]
    published["distributed"]["dist_backend"] = "nccl"
    if tree.get("total_train_steps"):
        published["total_train_samples"] = tree["total_train_steps"] * hparams["global_batch_size"]
    return published


def _without_own(section: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    own_keys = _OWN.get(path, frozenset())
    published = {
        key: _without_own(value, (*path, key)) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if key not in own_keys
    }
    return {**published, **_NO_INIT} if published.keys() >= _NO_INIT.keys() else published
