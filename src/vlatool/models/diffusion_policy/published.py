"""Converts configurations of the published program to our keys, and back. No torch.

`translate` turns a job file or a recorded configuration into our keys. `split_keys` splits our
configuration into what the published program knows, in its types (`published_keys.yaml`), and the
rest. Source: formats/published-runs 1, 2; reference/training 1.6.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vlatool.config.coerce import Node, child, find, from_value, lenient, plain
from vlatool.models.diffusion_policy.config import DiffusionPolicyConfig, TransformerConfig

_TYPES = Path(__file__).with_name("published_keys.yaml")
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


# reading


def translate(tree: Node, below: Node) -> Node | None:
    """The tree with our keys; None if none of its keys is from a published file."""
    translated = _changed(tree, ("data", "augmentation", "image"), _with_crop)
    translated = _changed(translated, ("data",), _without_nulls)
    translated = _changed(translated, _BACKBONE, _with_backbone_type)
    is_record = any(find(tree, ["distributed", key]) is not None for key in _PROCESS_KEYS)
    if is_record:  # its weights were trained by the published rules
        translated = _changed(translated, _BACKBONE, _with_image_words)
        translated = _changed(translated, ("model",), _with_clean_padding)
        translated = _changed(
            translated, ("hparams",), lambda hparams: _with_true("decay_by_name", hparams)
        )
    if translated is tree and not is_record:
        return None
    return lenient(translated) if is_record else translated


def _changed(tree: Node, path: tuple[str, ...], change: Callable[[Node], Node]) -> Node:
    """The tree with the section at a path changed; the same object if nothing changes."""
    if not path:
        return change(tree) if isinstance(tree.value, dict) else tree
    section = child(tree, path[0])
    if section is None:
        return tree
    changed = _changed(section, path[1:], change)
    if changed is section:
        return tree
    return replace(tree, value={**tree.value, path[0]: changed})


def _with_crop(image: Node) -> Node:
    """Renames `random_crop` of earlier records to `crop`."""
    if "random_crop" not in image.value or "crop" in image.value:
        return image
    names = {"random_crop": "crop"}
    return replace(image, value={names.get(key, key): node for key, node in image.value.items()})


def _without_nulls(data: Node) -> Node:
    """Replaces `[null]`, which records have for an empty list."""
    lists: dict[str, Node] = {}
    for key, node in data.value.items():
        if key.startswith(_LISTS) and isinstance(node.value, list):
            values = plain(node)
            if values and values == [None] * len(values):
                lists[key] = replace(node, value=[])
    if not lists:
        return data
    return replace(data, value={**data.value, **lists})


def _with_backbone_type(backbone: Node) -> Node:
    """Adds the backbone type, which published files may leave out, by the keys of the section."""
    if "type" in backbone.value:
        return backbone
    kinds: list[str] = []
    for kind, keys in _BACKBONE_KEYS.items():
        if not backbone.value.keys().isdisjoint(keys):
            kinds.append(kind)
    if len(kinds) != 1:
        return backbone
    return replace(backbone, value={"type": Node(kinds[0], backbone.origin), **backbone.value})


def _with_image_words(backbone: Node) -> Node:
    """Sets `image_words`: the published processor writes one word per image before the sentence."""
    if _type_of(plain(backbone)) != "clip_backbone":
        return backbone
    return _with_true("image_words", backbone)


def _with_clean_padding(model: Node) -> Node:
    if _type_of(plain(model)) != "diffusion_policy":
        return model
    return _with_true("clean_padded_steps", model)


def _with_true(key: str, section: Node) -> Node:
    """The section with a key that is true, unless the section has the key."""
    default = {key: from_value(value=True, origin=section.origin)}
    return replace(section, value={**default, **section.value})


def _type_of(section: Any) -> str:
    return str(section.get("type", "")) if isinstance(section, Mapping) else ""


# writing


def export_problem(model: DiffusionPolicyConfig) -> str:
    """Reason why the published program cannot load a policy; empty if it can."""
    backbone = model.vision_language_backbone
    if backbone.type not in _types()["backbones"]:
        return f"the published program has no {backbone.type}"
    if getattr(backbone, "text_encoder", None) is not None:
        return "the published vit_backbone has no text encoder (text_encoder)"
    if not isinstance(model.transformer, TransformerConfig):
        return "the weights of a published language model as denoiser have unknown names"
    if not model.is_flow and model.noise_scheduler.beta_schedule != "linear":
        return f"the published noise has no beta_schedule {model.noise_scheduler.beta_schedule!r}"
    return ""


@cache
def _types() -> Mapping[str, Any]:
    return yaml.safe_load(_TYPES.read_text("utf-8"))


def split_keys(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration with the published keys and types, and one with all other keys.

    A null that the published program does not allow is left out, so its default applies.
    """
    return _split(tree, _types()["run"])


def _split(
    tree: Mapping[str, Any], types: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    published: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for name, value in tree.items():
        kind = types.get(name)
        if name == "vision_language_backbone":
            kind = _types()["backbones"].get(_type_of(value))
        if isinstance(kind, Mapping) and isinstance(value, Mapping):
            published[name], rest = _split(value, kind)
            if rest:
                own[name] = rest
        elif not isinstance(kind, str):
            own[name] = value
        elif value is not None:
            published[name] = _converted(value, kind.removesuffix("?"))
        elif kind.endswith("?"):
            published[name] = None
    return published, own


def _converted(value: Any, kind: str) -> Any:
    """A value in the published type."""
    if kind.startswith("list["):
        item_kind = kind.removeprefix("list[").removesuffix("]")
        return [_converted(item, item_kind) for item in value]
    if kind == "str":
        is_whole = isinstance(value, float) and value.is_integer()
        return str(int(value) if is_whole else value)
    if kind == "number":  # pixels, or a share of the image
        return int(value) if value > 1 else float(value)
    if kind == "fields":  # what differs for a field; null stands for the value of the section
        types = _types()["field_normalization"]
        return {name: _split(section, types)[0] for name, section in value.items()}
    convert = {"int": int, "float": float, "bool": bool, "dict": dict}[kind]
    return convert(value)
