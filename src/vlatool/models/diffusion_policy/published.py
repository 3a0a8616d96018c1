"""Job files and recorded configurations of the published program, in our keys. No torch.

A type is `str`, `int`, `float`, `bool`, `dict`, or `list[...]` of one of them; `?` allows
null. A mapping is a section, or a map from the `type` of a section to its keys. Source:
formats/published-runs 1, 2; reference/training 1.7.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from vlatool.config.coerce import Node, child, find, from_value, plain
from vlatool.config.resolve import ConvertedConfig
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig, TransformerConfig

_NETWORK = {
    "type": "str",
    "resume_from_checkpoint": "str?",
    "resume_weights_only": "bool",
    "freeze": "bool",
}
_CLIP = {
    **_NETWORK,
    "hf_pretrained": "str",
    "freeze_text_encoder": "bool",
    "freeze_image_encoder": "bool",
}
BACKBONES: Mapping[str, Mapping[str, str]] = {
    "clip_hf": _CLIP,
    "clip_backbone": {**_CLIP, "disable_text": "bool"},
    "vlm_backbone": {**_NETWORK, "hf_pretrained": "str", "num_vlm_layers_to_use": "int"},
    "vit_backbone": {
        **_NETWORK,
        **dict.fromkeys(("hidden_dim", "inter_dim", "patch_size", "img_size"), "int"),
        **dict.fromkeys(("n_heads", "n_layers", "projector_pixel_shuffle_factor"), "int"),
        **dict.fromkeys(("dropout", "ln_eps"), "float"),
        "cls_flag": "bool",
    },
}
_DENOISER = {
    **_NETWORK,
    **dict.fromkeys(
        ("norm_type", "ffn_type", "positional_embedding_type", "attn_name"),
        "str",
    ),
    **dict.fromkeys(("hidden_dim", "n_layers", "n_heads", "vocab_size", "max_seq_len"), "int"),
    **dict.fromkeys(
        ("qk_norm", "post_embed_norm", "weight_tying", "cast_output_to_float32", "is_causal"),
        "bool",
    ),
    "norm_eps": "float",
}
_MODEL: Mapping[str, Any] = {
    **_NETWORK,
    "transformer": _DENOISER,
    "noise_scheduler": {
        **_NETWORK,
        "num_timesteps": "int",
        "beta_start": "float",
        "beta_end": "float",
        "clamp_range": "list[float]?",
    },
    "use_diffusers_scheduler": "bool",
    "use_flow_matching_scheduler": "bool",
    "input_noise_std": "float",
    "diffusion_step_conditioning": "str",
    "num_action_head_repeats": "int?",
    "action_dim": "int?",
    "proprioception_dim": "int?",
}
_FIELD_NORMALIZATION = {
    "enabled": "bool",
    "method": "str",
    "scope": "str",
    "epsilon": "float",
}
_DATA: Mapping[str, Any] = {
    "type": "str",
    **dict.fromkeys(
        (
            "dataset_manifest",
            "dataset_modality",
            "dataset_statistics",
            "val_dataset_manifest",
            "language_instruction_types",
            "camera_names",
            "image_names",
            "proprioception_fields",
            "action_fields",
        ),
        "list[str]",
    ),
    "dataset_weighting": "list[float]",
    "image_indices": "list[int]",
    "pose_groups": "list[dict]",
    **dict.fromkeys(
        ("allow_multiple_epochs", "shuffle", "pad_missing_images", "mask_padded_images"), "bool"
    ),
    **dict.fromkeys(("prefetch_factor", "shuffle_buffer_size", "seed"), "int"),
    **dict.fromkeys(
        (
            "num_workers",
            "max_text_seq_len",
            "lowdim_past_timesteps",
            "lowdim_future_timesteps",
            "action_dim",
            "proprioception_dim",
        ),
        "int?",
    ),
    "processor": "str?",
    "dataset_cache": {"enabled": "bool", "cache_dir": "str?", "cache_size_gb": "float?"},
    "normalization": {
        **_FIELD_NORMALIZATION,
        "centered_norm": "bool",
        "field_configs": "dict",
        "include_fields": "list[str]",
        "lowdim_past_timesteps": "int?",
        "lowdim_future_timesteps": "int?",
    },
    "augmentation": {
        "enabled": "bool",
        "image": {
            "color_jitter": {
                "enabled": "bool",
                **dict.fromkeys(("brightness", "contrast", "saturation"), "float"),
                "hue": "list[float]",
            },
            "crop": {"enabled": "bool", "shape": "list[number]", "mode": "str"},
        },
    },
}
_HPARAMS = {
    **dict.fromkeys(
        ("precision", "lr_scheduler", "warmup", "decay", "optimizer", "loss_function"), "str"
    ),
    **dict.fromkeys(("global_batch_size", "per_gpu_batch_size", "seed", "world_size"), "int"),
    **dict.fromkeys(
        (
            "lr",
            "lr_cooldown_end",
            "force_min_lr",
            "wd",
            "beta1",
            "beta2",
            "eps",
            "z_loss_coefficient",
        ),
        "float",
    ),
    "grad_clip_norm": "float?",
    "grad_checkpointing": "bool",
    "torchcompile": "bool",
}
KEYS: Mapping[str, Any] = {
    **dict.fromkeys(("name", "save_path", "resolve_configs_path", "remote_sync"), "str?"),
    **dict.fromkeys(("resolve_configs", "wandb"), "bool"),
    **dict.fromkeys(("log_every_n_steps", "num_checkpoints", "val_every_n_checkpoints"), "int"),
    **dict.fromkeys(
        ("total_train_samples", "num_epochs", "max_checkpoint_limit", "total_val_samples"), "int?"
    ),
    "data": _DATA,
    "model": _MODEL,
    "hparams": _HPARAMS,
    "distributed": {
        "dist_url": "str",
        "dist_backend": "str",
        "world_size": "int",
        **dict.fromkeys(("fsdp", "fsdp_cpu_offload", "fsdp_reshard_after_forward"), "bool"),
    },
    "ema": {
        "enabled": "bool",
        "type": "str",
        "update_after_step": "int",
        **dict.fromkeys(("alpha", "inv_gamma", "power", "min_value", "max_value"), "float"),
    },
}


def export_problem(model: DiffusionPolicyConfig) -> str:
    """Reason why the published program has no module for a policy; empty if it has one."""
    backbone = model.vision_language_backbone
    if backbone.type not in BACKBONES:
        return f"the published program has no {backbone.type}"
    if getattr(backbone, "text_encoder", None) is not None:
        return "the published vit_backbone has no text encoder (text_encoder)"
    if not isinstance(model.transformer, TransformerConfig):
        return "the weights of a published language model as denoiser have unknown names"
    if not model.is_flow and model.noise_scheduler.beta_schedule != "linear":
        return f"the published noise has no beta_schedule {model.noise_scheduler.beta_schedule!r}"
    return ""


def split_keys(
    tree: Mapping[str, Any], keys: Mapping[str, Any] = KEYS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A tree with the published keys and types, and a tree with all other keys. A null where the
    published program allows none is left out: its default applies.
    """
    published: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in tree.items():
        kind = BACKBONES.get(_type_of(value)) if name == "vision_language_backbone" else None
        kind = keys.get(name) if kind is None else kind
        if isinstance(kind, Mapping) and isinstance(value, Mapping):
            published[name], rest = split_keys(value, kind)
            own |= {name: rest} if rest else {}
        elif not isinstance(kind, str):
            own[name] = value
        elif value is not None:
            published[name] = _CONVERTERS[kind.removesuffix("?")](value)
        elif kind.endswith("?"):
            published[name] = None
    return published, own


def _type_of(section: Any) -> str:
    return str(section.get("type", "")) if isinstance(section, Mapping) else ""


def _text(value: Any) -> str:
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value) if is_whole else value)


def _number(value: Any) -> int | float:
    return int(value) if value > 1 else float(value)


def _list_of(convert: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda values: [convert(value) for value in values]


def _fields(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values that differ for a field, without null, which stands for the value of the section."""
    return {name: split_keys(row, _FIELD_NORMALIZATION)[0] for name, row in configs.items()}


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "str": _text,
    "int": int,
    "float": float,
    "bool": bool,
    "dict": _fields,
    "list[str]": _list_of(str),
    "list[int]": _list_of(int),
    "list[float]": _list_of(float),
    "list[number]": _list_of(_number),
    "list[dict]": _list_of(dict),
}


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


def translate(tree: Node, below: Node) -> ConvertedConfig | None:
    """The tree with our keys; None if it has no key that only published files have."""
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
