"""Published layout of a policy: job files, recorded configurations, experiment folders. No torch.

Source: formats/published-runs 1 to 5; reference/training 1.7.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vlatool.artifacts.run.checkpoint import CheckpointManifest
from vlatool.artifacts.run.format import RunDir
from vlatool.artifacts.shards.format import CONFIG_NAME as OPTIONS_NAME
from vlatool.artifacts.stats.format import STATS_NAME
from vlatool.config.layers import ConvertedConfig
from vlatool.config.tree import Node, child, find, from_value, plain
from vlatool.events import Reporter
from vlatool.models.published import Exported
from vlatool.storage.atomic import write_bytes, write_text

if TYPE_CHECKING:
    from torch import Tensor

    from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig
    from vlatool.models.trained import Trained

_CONFIG, _MODEL = "config.yaml", "config_model.yaml"
_NORMALIZER, _PROCESSOR = "config_normalizer.yaml", "config_processor.yaml"
WEIGHTS, AVERAGE = "checkpoints/checkpoint_1.pt", "checkpoints/ema_1.pt"
CHECKPOINT_NUMBER = 1
FILES = (
    _CONFIG,
    _MODEL,
    _NORMALIZER,
    _PROCESSOR,
    STATS_NAME,
    OPTIONS_NAME,
    WEIGHTS,
    AVERAGE,
)
# Keys that the published program does not have, by section.
_OWN: Mapping[tuple[str, ...], frozenset[str]] = {
    (): frozenset(
        {
            "total_train_steps",
            "save_every_n_steps",
            "keep_every_n_steps",
            "images_every_n_steps",
            "num_val_chunks",
            "init_from",
            "init_except",
            "overwrite",
            "dry_run",
        }
    ),
    ("data",): frozenset({"lanes", "max_dropped_share", "statistics_from"}),
    ("hparams",): frozenset({"decay_by_name"}),
    ("model",): frozenset({"solver", "lr_factors", "clean_padded_steps"}),
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
# Each process of the published program derives these and records them: only a record has them.
_PROCESS_KEYS = ("use_distributed", "rank", "local_rank", "device")
_LISTS = ("dataset_", "val_dataset_")
_BACKBONE = ("model", "vision_language_backbone")
# Keys that only one backbone type has. Source: formats/published-runs 2.
_BACKBONE_KEYS: Mapping[str, tuple[str, ...]] = {
    "clip_backbone": ("freeze_text_encoder", "freeze_image_encoder", "disable_text"),
    "vlm_backbone": ("num_vlm_layers_to_use",),
    "vit_backbone": ("patch_size", "img_size", "inter_dim"),
}


# configurations of the published program


def translate(tree: Node, below: Node) -> ConvertedConfig | None:
    """The tree with our keys; None if it has no key that only published files have."""
    del below
    is_record = any(find(tree, ["distributed", key]) is not None for key in _PROCESS_KEYS)
    translated = tree
    for path, change in _CHANGES.items():
        translated = _changed(translated, path, change)
    if is_record:
        for path, change in _RULES.items():
            translated = _changed(translated, path, change)
    return ConvertedConfig(translated, is_record) if is_record or translated is not tree else None


def _changed(tree: Node, path: tuple[str, ...], change: Callable[[Node], Node]) -> Node:
    """The tree with the section at a path changed; the same object if nothing changes."""
    if not path:
        return change(tree) if isinstance(tree.value, dict) else tree
    below = child(tree, path[0])
    changed = None if below is None else _changed(below, path[1:], change)
    if changed is below or changed is None:
        return tree
    return replace(tree, value={**tree.value, path[0]: changed})


def _crop(image: Node) -> Node:
    """Renames `random_crop` of earlier records to `crop`."""
    if "random_crop" not in image.value or "crop" in image.value:
        return image
    names = {"random_crop": "crop"}
    return replace(image, value={names.get(key, key): node for key, node in image.value.items()})


def _without_nulls(data: Node) -> Node:
    """Replaces `[null]`, which records have for an empty list."""
    empty = [key for key, node in data.value.items() if key.startswith(_LISTS) and _is_null(node)]
    if not empty:
        return data
    lists = {key: replace(node, value=[]) for key, node in data.value.items() if key in empty}
    return replace(data, value={**data.value, **lists})


def _is_null(node: Node) -> bool:
    return isinstance(node.value, list) and plain(node) == [None] * len(node.value) != []


def _with_backbone_type(backbone: Node) -> Node:
    """Adds the backbone type, which published files may leave out, by the keys of the section."""
    if "type" in backbone.value:
        return backbone
    kinds = [
        kind for kind, keys in _BACKBONE_KEYS.items() if any(k in backbone.value for k in keys)
    ]
    if len(kinds) != 1:
        return backbone
    return replace(backbone, value={"type": Node(kinds[0], backbone.origin), **backbone.value})


def _with_image_words(backbone: Node) -> Node:
    """Sets `image_words`: the published processor writes one word per image before the sentence."""
    if plain(backbone.value.get("type", Node(None, ""))) != "clip_backbone":
        return backbone
    return _with_rule("image_words", backbone)


def _with_clean_padding(model: Node) -> Node:
    is_policy = plain(model.value.get("type", Node(None, ""))) == "diffusion_policy"
    return _with_rule("clean_padded_steps", model) if is_policy else model


def _with_rule(name: str, section: Node) -> Node:
    """Sets a rule of the published program for which it has no key."""
    rule = {name: from_value(value=True, origin=section.origin)}
    return replace(section, value={**rule, **section.value})


_CHANGES: Mapping[tuple[str, ...], Callable[[Node], Node]] = {
    ("data", "augmentation", "image"): _crop,
    ("data",): _without_nulls,
    _BACKBONE: _with_backbone_type,
}
# Changes of a record, whose weights were trained by these rules.
_RULES: Mapping[tuple[str, ...], Callable[[Node], Node]] = {
    _BACKBONE: _with_image_words,
    ("model",): _with_clean_padding,
    ("hparams",): partial(_with_rule, "decay_by_name"),
}


# export


def prepare_export(trained: "Trained", tree: Mapping[str, Any], reporter: Reporter) -> Exported:
    """Prepares the experiment folder of a run, with raw and averaged weights.

    Args:
        trained: Opened run.
        tree: Whole configuration of the run.
        reporter: Gets a warning if the published program would run the policy differently.

    Raises:
        UsageError: The published program does not support this model.
    """
    from vlatool.models.diffusion_policy.weights import export_published

    model: Any = trained.config.model
    raw = trained if trained.origin.weights == "raw" else trained.with_weights("raw")
    states = {WEIGHTS: export_published(model, raw.parts["model"].state_dict())}
    if trained.origin.weights == "ema":
        states[AVERAGE] = export_published(model, trained.parts["model"].state_dict())
    if getattr(model.vision_language_backbone, "image_words", True) is False:
        reporter.warn(
            "export.image_words",
            "the published program prepends `<image> ` to instructions, but this policy was "
            "trained without it. Train with model.vision_language_backbone.image_words=true to get "
            "equal actions in both.",
        )
    return Exported(
        files=FILES,
        weights=tuple(states),
        parameters=sum(tensor.numel() for tensor in states[WEIGHTS].values()),
        summary=" and ".join(states),
        write=partial(_write_experiment, trained, published_tree(tree, model), states),
    )


def _write_experiment(
    trained: "Trained",
    tree: Mapping[str, Any],
    states: "Mapping[str, Mapping[str, Tensor]]",
    folder: Path,
) -> Mapping[str, Any]:
    from vlatool.models.diffusion_policy.weights import write_published, write_published_average

    assert trained.origin.checkpoint is not None
    step = CheckpointManifest.read(trained.origin.checkpoint).step
    _write_config(folder, tree, RunDir(trained.folder))
    write_published(folder / WEIGHTS, states[WEIGHTS], CHECKPOINT_NUMBER, step)
    if AVERAGE in states:
        write_published_average(folder / AVERAGE, states[AVERAGE], CHECKPOINT_NUMBER, step)
    return {"averaged": AVERAGE in states}


def published_tree(tree: Mapping[str, Any], model: "DiffusionPolicyConfig") -> dict[str, Any]:
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


def _write_config(folder: Path, tree: Mapping[str, Any], run: RunDir) -> None:
    """Writes all but the weights.

    Args:
        folder: Existing folder.
        tree: The whole configuration, with published keys.
        run: Run whose statistics and preprocessing options are copied.
    """
    data = tree["data"]
    files = {
        _CONFIG: tree,
        _MODEL: tree["model"],
        _NORMALIZER: data["normalization"],
        _PROCESSOR: data,
    }
    for name, content in files.items():
        write_text(folder / name, yaml.safe_dump(content, sort_keys=True, allow_unicode=True))
    for path in (run.stats, run.options):
        write_bytes(folder / path.name, path.read_bytes())
