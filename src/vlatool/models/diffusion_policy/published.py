"""Job files and recorded configurations of the published program, in our keys. No torch.

Source: formats/published-runs 1, 2; reference/training 1.7.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from vlatool.config.coerce import Node, child, find, from_value, plain
from vlatool.config.resolve import ConvertedConfig

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
