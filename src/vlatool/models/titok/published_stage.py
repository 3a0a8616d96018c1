"""Conversion of published stage files of TiTok, and of overrides with their keys; light.

Source: reference/titok 5.1, 7.3.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from vlatool.config.layers import ConvertedConfig
from vlatool.config.problems import Problem, config_error
from vlatool.config.tree import (
    TYPED_ORIGIN,
    Node,
    find,
    from_value,
    leaf_origins,
    lenient,
    merge,
    nearest_origin,
    plain,
    without,
)
from vlatool.models.titok.published import (
    MODEL,
    MODEL_KEYS,
    is_reference,
    model_contradictions,
)

# World size of the published launch; the published batch size is per process.
PROCESSES = 8

_SECTIONS = ("experiment", "losses", "dataset", "optimizer", "lr_scheduler", "training")
_DECAY = 0.999  # from the published code; not in a published file
# Published key to our key, for values that stay the same.
_SAME: Mapping[str, str] = {
    **{published: f"model.{key}" for published, key in MODEL_KEYS.items()},
    "experiment.init_weight": "init_from",
    "experiment.save_every": "save_every_n_steps",
    "experiment.eval_every": "val_every_n_steps",
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
    "dataset.params.num_workers_per_gpu": "data.num_workers",
    **{
        f"dataset.preprocessing.{name}": f"data.preprocessing.{name}"
        for name in ("resize_shorter_edge", "crop_size", "random_crop", "random_flip")
    },
}
# Keys with one possible value: the value, and the reason for the error with others.
_FIXED: Mapping[str, tuple[Any, str]] = {
    "experiment.resume": (True, "a run in the same folder resumes; --overwrite starts it again"),
    "losses.reconstruction_loss": ("l2", "the loss of pixels is their squared error"),
    "optimizer.name": ("adamw", "AdamW is the only optimizer"),
    "training.enable_tf32": (True, "products in float32 use TF32"),
}
_RATE, _SCHEDULED_RATE = "optimizer.params.learning_rate", "lr_scheduler.params.learning_rate"
_END_RATE = "lr_scheduler.params.end_lr"
# Without a key here, because they are checked.
_CHECKED = (f"{MODEL}.vit_dec_patch_size", *_FIXED)
_OF_VQ = ("codebook_size", "use_l2_norm", "commitment_cost")
_SCHEDULES = {"cosine": "cosine", "constant": "const"}
_PRECISIONS = {"no": "float32", "fp16": "amp_bfloat16", "bf16": "amp_bfloat16"}

# Returns the value of a published key; None if it is not set.
Lookup = Callable[[str], Any]


@dataclass(frozen=True)
class _Rule:
    """A conversion of several published keys, or of one whose value changes."""

    sources: tuple[str, ...]  # published keys; the rule applies if one of them is set
    # function from the values of the whole file to our keys and their values
    make: Callable[[Lookup], Mapping[str, Any]]


def translate(tree: Node, below: Node) -> ConvertedConfig | None:
    """Converts a tree to our keys; None if it has no keys of a published stage file.

    Published keys without a meaning here stay in the tree and are allowed to be unknown.
    """
    published = _published_sections(tree)
    if not published.value:
        return None
    whole = merge(_published_sections(below), published)

    def lookup(key: str) -> Any:
        node = find(whole, key.split("."))
        return None if node is None else plain(node)

    _check_values(whole, lookup)
    rest = tree
    for section in published.value:
        rest = without(rest, [section] if section != "model" else MODEL.split("."))
    is_new_model = tree.origin != TYPED_ORIGIN and find(below, MODEL.split(".")) is None
    converted, used = _convert(published, lookup, _rules(is_new_model=is_new_model))
    unused = lenient(_without(published, used))
    return ConvertedConfig(merge(merge(unused, converted), rest))


def _check_values(published: Node, lookup: Lookup) -> None:
    """Raises ConfigError with all values that contradict what would run."""
    unsupported = list(model_contradictions(lookup))
    for key, (value, reason) in _FIXED.items():
        if lookup(key) not in (None, value) and not is_reference(lookup(key)):
            unsupported.append((key, reason))
    problems = [
        Problem(
            key,
            nearest_origin(published, key.split(".")),
            f'"{key}" is {lookup(key)!r}, which is not supported: {reason}',
            code="config.refused",
        )
        for key, reason in unsupported
    ]
    if problems:
        raise config_error(problems, hint=f"set {problems[0].key} to another value")


def _published_sections(tree: Node) -> Node:
    """The sections of a tree that only a published file has."""
    if not isinstance(tree.value, dict):
        return Node({}, tree.origin)
    sections = {
        key: node
        for key, node in tree.value.items()
        if key in _SECTIONS and isinstance(node.value, dict)
    }
    section = find(tree, MODEL.split("."))
    if section is not None:
        model = tree.value["model"]
        sections["model"] = Node({"vq_model": section}, model.origin)
    return Node(sections, tree.origin)


def _convert(published: Node, lookup: Lookup, rules: tuple[_Rule, ...]) -> tuple[Node, list[str]]:
    """Returns our keys, and the published keys that were converted."""
    converted = Node({}, published.origin)
    used: list[str] = [*_CHECKED]
    for rule in rules:
        nodes = [find(published, key.split(".")) for key in rule.sources]
        present = [node for node in nodes if node is not None]
        if present:
            for key, value in rule.make(lookup).items():
                converted = _put(converted, key, from_value(value, present[0].origin))
            used += rule.sources
    for key, name in _SAME.items():
        node = find(published, key.split("."))
        if node is not None:
            used.append(key)
            if plain(node) not in (None, "") and not is_reference(node.value):
                converted = _put(converted, name, node)
    return converted, used


def _rules(*, is_new_model: bool) -> tuple[_Rule, ...]:
    """Returns all rules; for a file that starts a model they fill in the published defaults."""
    switches = tuple(f"{MODEL}.{name}" for name in ("is_legacy", "finetune_decoder"))
    quantizer = tuple(f"{MODEL}.{name}" for name in ("quantize_mode", *_OF_VQ))
    first = (MODEL,) if is_new_model else ()
    return (
        *((_Rule(first, _kinds),) if first else ()),
        _Rule((*switches, *first), _stage),
        _Rule((*quantizer, *first), _quantizer),
        _Rule(
            ("training.per_gpu_batch_size", "training.gradient_accumulation_steps"), _batch_sizes
        ),
        _Rule(("training.mixed_precision",), _mapped("precision", _PRECISIONS)),
        _Rule(("lr_scheduler.scheduler",), _mapped("lr_scheduler", _SCHEDULES)),
        _Rule((_END_RATE, _SCHEDULED_RATE, _RATE), _end_rate),
        _Rule(("training.use_ema",), _averages),
        _Rule(("experiment.output_dir",), _folder),
        _Rule(("dataset.params.train_shards_path_or_url",), _list("train", "data.shards")),
        _Rule(("dataset.params.eval_shards_path_or_url",), _list("eval", "data.val_shards")),
    )


def _kinds(lookup: Lookup) -> Mapping[str, Any]:
    """Types of model and data; the published reader samples shards with replacement, endlessly."""
    del lookup
    return {"model.type": "titok", "data.type": "images", "data.allow_multiple_epochs": True}


def _stage(lookup: Lookup) -> Mapping[str, Any]:
    is_legacy = lookup(f"{MODEL}.is_legacy") is not False
    tunes = lookup(f"{MODEL}.finetune_decoder") is not False
    return {
        "model.stage": 2 if is_legacy and tunes else 1,
        "model.latent_layout": "legacy" if is_legacy else "aligned",
        "model.decoder_head": "proxy" if is_legacy else "pixel",
    }


def _quantizer(lookup: Lookup) -> Mapping[str, Any]:
    if lookup(f"{MODEL}.quantize_mode") == "vae":
        return {"model.quantizer.type": "kl"}
    values = {f"model.quantizer.{name}": lookup(f"{MODEL}.{name}") for name in _OF_VQ}
    known = {key: value for key, value in values.items() if value is not None}
    return {"model.quantizer.type": "vq", **known}


def _batch_sizes(lookup: Lookup) -> Mapping[str, Any]:
    size = lookup("training.per_gpu_batch_size")
    repeats = lookup("training.gradient_accumulation_steps")
    repeats = 1 if repeats is None else repeats
    sizes = {} if size is None else {"hparams.per_gpu_batch_size": size}
    if isinstance(size, int) and isinstance(repeats, int):
        sizes["hparams.global_batch_size"] = size * repeats * PROCESSES
    return sizes


def _end_rate(lookup: Lookup) -> Mapping[str, Any]:
    """The published end rate is scaled like the peak rate, if the schedule has another one."""
    end, rates = lookup(_END_RATE), (lookup(_RATE), lookup(_SCHEDULED_RATE))
    if isinstance(end, float) and all(isinstance(rate, float) and rate for rate in rates):
        end *= rates[0] / rates[1]  # exactly 1 where they are equal
    return {} if end is None or is_reference(end) else {"hparams.lr_cooldown_end": end}


def _averages(lookup: Lookup) -> Mapping[str, Any]:
    uses = lookup("training.use_ema")
    kind = {"ema.type": "rising", "ema.max_value": _DECAY} if uses is True else {}
    return {"ema.enabled": uses, **kind}


def _folder(lookup: Lookup) -> Mapping[str, Any]:
    folder = PurePosixPath(str(lookup("experiment.output_dir")))
    return {"save_path": str(folder.parent), "name": folder.name}


def _list(split: str, name: str) -> Callable[[Lookup], Mapping[str, Any]]:
    def make(lookup: Lookup) -> Mapping[str, Any]:
        value = lookup(f"dataset.params.{split}_shards_path_or_url")
        if value in (None, "", []):
            return {}
        return {name: value if isinstance(value, list) else [value]}

    return make


def _mapped(name: str, values: Mapping[str, str]) -> Callable[[Lookup], Mapping[str, Any]]:
    source = {"precision": "training.mixed_precision", "lr_scheduler": "lr_scheduler.scheduler"}

    def make(lookup: Lookup) -> Mapping[str, Any]:
        value = lookup(source[name])
        return {f"hparams.{name}": values.get(str(value), value)}

    return make


def _put(tree: Node, key: str, value: Node) -> Node:
    for name in reversed(key.split(".")):
        value = Node({name: value}, value.origin)
    return merge(tree, value)


def _without(tree: Node, used: list[str]) -> Node:
    """Returns the tree without some keys, and without sections that are empty then."""
    left = Node({}, tree.origin)
    for key, _ in leaf_origins(tree):
        if not any(key == name or key.startswith(f"{name}.") for name in used if name != MODEL):
            node = find(tree, key.split("."))
            assert node is not None
            left = _put(left, key, node)
    return left
