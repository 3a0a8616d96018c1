"""Published job files and recorded configurations of policy training, in our keys.

Most keys are the same; what differs is said here. Source: formats/published-runs 2.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from vlatool.config.layers import ConvertedConfig
from vlatool.config.tree import Node, child, find, from_value, plain

# Each process of the published program finds them itself, and writes them down: a record has them.
_OF_A_PROCESS = ("use_distributed", "rank", "local_rank", "device")
_LISTS = ("dataset_", "val_dataset_")
_BACKBONE = ("model", "vision_language_backbone")
# Keys that one kind of backbone alone has. Source: formats/published-runs 2.
_BACKBONE_KEYS: Mapping[str, tuple[str, ...]] = {
    "clip_backbone": ("freeze_text_encoder", "freeze_image_encoder", "disable_text"),
    "vlm_backbone": ("num_vlm_layers_to_use",),
    "vit_backbone": ("patch_size", "img_size", "inter_dim"),
}


def translate(tree: Node, below: Node) -> ConvertedConfig | None:
    """The tree in our keys; None where nothing in it is published alone."""
    del below
    is_record = any(find(tree, ["distributed", key]) is not None for key in _OF_A_PROCESS)
    told = tree
    for place, change in _CHANGES.items():
        told = _changed(told, place, change)
    if is_record:
        told = _changed(told, _BACKBONE, _with_image_words)
    return ConvertedConfig(told, is_record) if is_record or told is not tree else None


def _changed(tree: Node, place: tuple[str, ...], change: Callable[[Node], Node]) -> Node:
    """The tree with the section at a place changed; the same one where nothing changes."""
    if not place:
        return change(tree) if isinstance(tree.value, dict) else tree
    below = child(tree, place[0])
    changed = None if below is None else _changed(below, place[1:], change)
    if changed is below or changed is None:
        return tree
    return replace(tree, value={**tree.value, place[0]: changed})


def _crop(image: Node) -> Node:
    """`random_crop`, as earlier records have it, is `crop`."""
    if "random_crop" not in image.value or "crop" in image.value:
        return image
    names = {"random_crop": "crop"}
    return replace(image, value={names.get(key, key): one for key, one in image.value.items()})


def _without_nulls(data: Node) -> Node:
    """Records have `[null]` for a list without entries."""
    empty = [key for key, one in data.value.items() if key.startswith(_LISTS) and _is_null(one)]
    if not empty:
        return data
    kept = {key: replace(one, value=[]) for key, one in data.value.items() if key in empty}
    return replace(data, value={**data.value, **kept})


def _is_null(node: Node) -> bool:
    return isinstance(node.value, list) and plain(node) == [None] * len(node.value) != []


def _with_backbone_type(backbone: Node) -> Node:
    """Published files may leave the kind of backbone to its keys."""
    if "type" in backbone.value:
        return backbone
    kinds = [
        kind for kind, keys in _BACKBONE_KEYS.items() if any(k in backbone.value for k in keys)
    ]
    if len(kinds) != 1:
        return backbone
    return replace(backbone, value={"type": Node(kinds[0], backbone.origin), **backbone.value})


def _with_image_words(backbone: Node) -> Node:
    """The published processor wrote a word per picture before every sentence."""
    if plain(backbone.value.get("type", Node(None, ""))) != "clip_backbone":
        return backbone
    words = {"image_words": from_value(value=True, origin=backbone.origin)}
    return replace(backbone, value={**words, **backbone.value})


_CHANGES: Mapping[tuple[str, ...], Callable[[Node], Node]] = {
    ("data", "augmentation", "image"): _crop,
    ("data",): _without_nulls,
    _BACKBONE: _with_backbone_type,
}
