"""Published stage files of TiTok, and what is typed for them, in our keys; light.

Source: reference/titok 5.1, 7.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vlatool.config.layers import ConvertedConfig
from vlatool.config.tree import (
    TYPED_ORIGIN,
    Node,
    find,
    from_value,
    leaf_origins,
    lenient,
    merge,
    plain,
    without,
)
from vlatool.models.titok.published import MODEL, MODEL_KEYS, is_reference

# Of the published launch, for which its batch size per process is meant.
PROCESSES = 8

_SECTIONS = ("experiment", "losses", "dataset", "optimizer", "lr_scheduler", "training")
_DECAY = 0.999  # published code has it, no published file
# Published key to ours, where the value stays as it is.
_SAME: Mapping[str, str] = {
    **{theirs: f"model.{ours}" for theirs, ours in MODEL_KEYS.items()},
    "experiment.save_every": "save_every_n_steps",
    "experiment.generate_every": "images_every_n_steps",
    "experiment.log_every": "log_every_n_steps",
    f"{MODEL}.token_size": "model.quantizer.token_size",
    "training.max_train_steps": "total_train_steps",
    "training.seed": "hparams.seed",
    "training.max_grad_norm": "hparams.grad_clip_norm",
    "optimizer.params.learning_rate": "hparams.lr",
    "optimizer.params.discriminator_learning_rate": "model.losses.discriminator_learning_rate",
    "optimizer.params.beta1": "hparams.beta1",
    "optimizer.params.beta2": "hparams.beta2",
    "optimizer.params.weight_decay": "hparams.wd",
    "lr_scheduler.params.warmup_steps": "hparams.warmup",
    "lr_scheduler.params.end_lr": "hparams.lr_cooldown_end",
    "dataset.params.num_workers_per_gpu": "data.num_workers",
    **{
        f"dataset.preprocessing.{name}": f"data.preprocessing.{name}"
        for name in ("resize_shorter_edge", "crop_size", "random_crop", "random_flip")
    },
}
# Said by the other side already.
_TWICE = (f"{MODEL}.vit_dec_patch_size",)
_OF_VQ = ("codebook_size", "use_l2_norm", "commitment_cost")
_SCHEDULES = {"cosine": "cosine", "constant": "const"}
_PRECISIONS = {"no": "float32", "fp16": "amp_bfloat16", "bf16": "amp_bfloat16"}

Look = Callable[[str], Any]


@dataclass(frozen=True)
class _Rule:
    """Our keys that come of several published ones, or have another value.

    Attributes:
        sources: Published keys, any of which brings it about.
        make: From the values of the whole file, our keys and their values.
    """

    sources: tuple[str, ...]
    make: Callable[[Look], Mapping[str, Any]]


def translate(tree: Node, below: Node) -> ConvertedConfig | None:
    """The tree in our keys; None where nothing in it is of a published stage file.

    What has no meaning here stays, and may be left out.

    Args:
        tree: A file, or what was typed.
        below: The files under it as they were written: some of our keys come of several.
    """
    theirs = _theirs(tree)
    if not theirs.value:
        return None
    whole = merge(_theirs(below), theirs)

    def look(key: str) -> Any:
        found = find(whole, key.split("."))
        return None if found is None else plain(found)

    ours = tree
    for section in theirs.value:
        ours = without(ours, [section] if section != "model" else MODEL.split("."))
    begins = tree.origin != TYPED_ORIGIN and find(below, MODEL.split(".")) is None
    made, used = _made(theirs, look, _rules(whole_model=begins))
    rest = lenient(_without(theirs, used))
    return ConvertedConfig(merge(merge(rest, made), ours))


def _theirs(tree: Node) -> Node:
    """The sections that only a published file has."""
    if not isinstance(tree.value, dict):
        return Node({}, tree.origin)
    found = {key: node for key, node in tree.value.items() if key in _SECTIONS}
    section = find(tree, MODEL.split("."))
    if section is not None:
        model = tree.value["model"]
        found["model"] = Node({"vq_model": section}, model.origin)
    return Node(found, tree.origin)


def _made(theirs: Node, look: Look, rules: tuple[_Rule, ...]) -> tuple[Node, list[str]]:
    """Our keys, and the published keys that are in them."""
    made = Node({}, theirs.origin)
    used: list[str] = [*_TWICE]
    for rule in rules:
        present = [one for key in rule.sources if (one := find(theirs, key.split("."))) is not None]
        if present:
            for key, value in rule.make(look).items():
                made = _put(made, key, from_value(value, present[0].origin))
            used += rule.sources
    for key, name in _SAME.items():
        node = find(theirs, key.split("."))
        if node is not None:
            used.append(key)
            if plain(node) not in (None, "") and not is_reference(node.value):
                made = _put(made, name, node)
    return made, used


def _rules(*, whole_model: bool) -> tuple[_Rule, ...]:
    """All of them; a model that a file begins has the published defaults too."""
    switches = tuple(f"{MODEL}.{name}" for name in ("is_legacy", "finetune_decoder"))
    quantizer = tuple(f"{MODEL}.{name}" for name in ("quantize_mode", *_OF_VQ))
    first = (MODEL,) if whole_model else ()
    return (
        *((_Rule(first, _kinds),) if first else ()),
        _Rule((*switches, *first), _stage),
        _Rule((*quantizer, *first), _quantizer),
        _Rule(
            ("training.per_gpu_batch_size", "training.gradient_accumulation_steps"), _batch_sizes
        ),
        _Rule(("training.mixed_precision",), _chosen("precision", _PRECISIONS)),
        _Rule(("lr_scheduler.scheduler",), _chosen("lr_scheduler", _SCHEDULES)),
        _Rule(("training.use_ema",), _averages),
        _Rule(("experiment.output_dir",), _folder),
        _Rule(("dataset.params.train_shards_path_or_url",), _list("train", "data.shards")),
        _Rule(("dataset.params.eval_shards_path_or_url",), _list("eval", "data.val_shards")),
    )


def _kinds(look: Look) -> Mapping[str, Any]:
    """The published reader draws shards with replacement, without an end."""
    del look
    return {"model.type": "titok", "data.type": "images", "data.allow_multiple_epochs": True}


def _stage(look: Look) -> Mapping[str, Any]:
    is_legacy = look(f"{MODEL}.is_legacy") is not False
    tunes = look(f"{MODEL}.finetune_decoder") is not False
    return {
        "model.stage": 2 if is_legacy and tunes else 1,
        "model.latent_layout": "legacy" if is_legacy else "aligned",
        "model.decoder_head": "proxy" if is_legacy else "pixel",
    }


def _quantizer(look: Look) -> Mapping[str, Any]:
    if look(f"{MODEL}.quantize_mode") == "vae":
        return {"model.quantizer.type": "kl"}
    given = {name: look(f"{MODEL}.{name}") for name in _OF_VQ}
    found = {f"model.quantizer.{name}": one for name, one in given.items() if one is not None}
    return {"model.quantizer.type": "vq", **found}


def _batch_sizes(look: Look) -> Mapping[str, Any]:
    size = look("training.per_gpu_batch_size")
    repeats = look("training.gradient_accumulation_steps")
    repeats = 1 if repeats is None else repeats
    found = {} if size is None else {"hparams.per_gpu_batch_size": size}
    if isinstance(size, int) and isinstance(repeats, int):
        found["hparams.global_batch_size"] = size * repeats * PROCESSES
    return found


def _averages(look: Look) -> Mapping[str, Any]:
    uses = look("training.use_ema")
    kind = {"ema.type": "rising", "ema.max_value": _DECAY} if uses is True else {}
    return {"ema.enabled": uses, **kind}


def _folder(look: Look) -> Mapping[str, Any]:
    folder = PurePosixPath(str(look("experiment.output_dir")))
    return {"save_path": str(folder.parent), "name": folder.name}


def _list(which: str, name: str) -> Callable[[Look], Mapping[str, Any]]:
    def make(look: Look) -> Mapping[str, Any]:
        given = look(f"dataset.params.{which}_shards_path_or_url")
        if given in (None, "", []):
            return {}
        return {name: given if isinstance(given, list) else [given]}

    return make


def _chosen(name: str, words: Mapping[str, str]) -> Callable[[Look], Mapping[str, Any]]:
    source = {"precision": "training.mixed_precision", "lr_scheduler": "lr_scheduler.scheduler"}

    def make(look: Look) -> Mapping[str, Any]:
        given = look(source[name])
        return {f"hparams.{name}": words.get(str(given), given)}

    return make


def _put(tree: Node, key: str, value: Node) -> Node:
    for name in reversed(key.split(".")):
        value = Node({name: value}, value.origin)
    return merge(tree, value)


def _without(tree: Node, used: list[str]) -> Node:
    """The tree without keys, and without the sections that are empty then."""
    left = Node({}, tree.origin)
    for key, _ in leaf_origins(tree):
        if not any(key == one or key.startswith(f"{one}.") for one in used if one != MODEL):
            node = find(tree, key.split("."))
            assert node is not None
            left = _put(left, key, node)
    return left
