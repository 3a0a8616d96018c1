"""Reads and writes the published layout of TiTok: a configuration and a file of weights; light.

Two forms: config.yaml with pytorch_model.bin, as training writes it, and config.json with
model.safetensors, as on the hub. Stage files of training, and overrides with their keys, are
converted to our sections. Source: reference/titok 5.1, 7.1, 7.2, 7.3.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from vlatool.config import coerce
from vlatool.config.problems import Problem, config_error
from vlatool.datasets.base_model import CONFIG as HUB_CONFIG
from vlatool.datasets.base_model import WEIGHTS as HUB_WEIGHTS
from vlatool.errors import ConfigError, DataError
from vlatool.models.published import PublishedFiles, run_folder
from vlatool.models.titok.config import TitokConfig, VitConfig, VqConfig
from vlatool.storage.atomic import write_text
from vlatool.storage.documents import read_json, read_yaml

CONFIG = "config.yaml"
WEIGHTS = "pytorch_model.bin"
MODEL = "model.vq_model"
_CROP = "dataset.preprocessing.crop_size"
# Our key of a head that does not follow from `is_legacy`, and the heads that do.
_HEAD = "decoder_head"
# Value of a published key; None if it is not set.
Lookup = Callable[[str], Any]
_HEADS = {True: "proxy", False: "pixel"}
_ENCODER_PATCH = f"{MODEL}.vit_enc_patch_size"
_DECODER_PATCH = f"{MODEL}.vit_dec_patch_size"
_MODE = f"{MODEL}.quantize_mode"
_MODES = ("vq", "vae")
# Published key to our key of a model, for values that stay the same.
MODEL_KEYS: Mapping[str, str] = {
    f"{MODEL}.vit_enc_model_size": "encoder",
    f"{MODEL}.vit_dec_model_size": "decoder",
    _ENCODER_PATCH: "patch_size",
    f"{MODEL}.num_latent_tokens": "num_latent_tokens",
    f"{MODEL}.token_size": "quantizer.token_size",
    f"{MODEL}.pretrained_tokenizer_weight": "teacher",
    f"{MODEL}.vqgan": "vqgan",  # not published; written for a teacher of other sizes
    **{
        f"losses.{name}": f"losses.{name}"
        for name in (
            "quantizer_weight",
            "reconstruction_weight",
            "perceptual_loss",
            "perceptual_weight",
            "discriminator_start",
            "discriminator_factor",
            "discriminator_weight",
            "lecam_regularization_weight",
            "lecam_ema_decay",
        )
    },
}


def find_published(location: Path) -> PublishedFiles | None:
    """Files of a published folder, or of one of its files; None if there are none."""
    folder = location.parent if location.is_file() else location
    for config, weights in ((CONFIG, WEIGHTS), (HUB_CONFIG, HUB_WEIGHTS)):
        files = PublishedFiles(folder / weights, folder / config)
        if files.weights.is_file() and (folder / config).is_file():
            is_tokenizer = config == CONFIG or not _is_other_model(folder)
            return files if is_tokenizer and location in (folder, files.weights) else None
    return None


def _is_other_model(folder: Path) -> bool:
    """True if config.json names a kind of model, as transformers and LeRobot do."""
    try:
        content = read_json(folder / HUB_CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and ("model_type" in content or "type" in content)


def read_published_config(path: Path) -> dict[str, Any]:
    try:
        content = (read_json if path.suffix == ".json" else read_yaml)(path)
    except (OSError, ValueError) as error:
        raise _broken(path, error) from None
    if not isinstance(content, dict):
        raise _broken(path, "not a mapping")
    return content


def _broken(path: Path, reason: object) -> DataError:
    return DataError.at(path, reason, hint="copy the folder again", code="data.broken")


def write_published_config(folder: Path, tree: Mapping[str, Any]) -> None:
    write_text(folder / CONFIG, yaml.safe_dump(dict(tree), sort_keys=False))


def published_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the published configuration of a model or of a training stage to `TitokConfig` keys.
    The published defaults of `is_legacy` and `finetune_decoder` are true.
    """
    lookup = partial(_at, tree)
    if not isinstance(lookup(MODEL), Mapping):
        raise ConfigError(
            f"the configuration has no {MODEL}",
            hint="give the config.yaml or config.json of a tokenizer",
            code="config.missing_key",
        )
    for key, reason in model_contradictions(lookup):
        raise ConfigError(
            f"{key} is {lookup(key)!r}, which is not supported: {reason}",
            hint="use a tokenizer of the published sizes",
            code="config.unsupported",
        )
    keys: dict[str, Any] = {"model.encoder": "large", "model.decoder": "large"}
    for key, our_key in {**MODEL_KEYS, _CROP: "image_size"}.items():
        value = lookup(key)
        if value not in (None, "") and not is_reference(value):
            keys[f"model.{our_key}"] = value
    keys |= {"model.type": "titok", **_stage(lookup), **_quantizer(lookup)}
    converted: dict[str, Any] = {}
    for key, value in keys.items():
        _set(converted, key, value)
    return converted["model"]


def model_contradictions(lookup: Lookup) -> Iterator[tuple[str, str]]:
    """Published keys of a model with values that it cannot have here, and the reasons; `lookup`:
    returns the value of a published key; None if it is not set.
    """
    encoder = lookup(_ENCODER_PATCH) or TitokConfig.model_fields["patch_size"].default
    if lookup(_DECODER_PATCH) not in (None, encoder):
        yield _DECODER_PATCH, f"the decoder always has the patches of the encoder, {_ENCODER_PATCH}"
    if lookup(_MODE) not in (None, *_MODES):
        yield _MODE, f"it is one of {', '.join(_MODES)}"


def published_tree(config: TitokConfig) -> dict[str, Any]:
    """Converts a config to the published configuration of a tokenizer.

    Sizes without a published key have our keys, which only this program reads. `is_legacy` tells
    the layout of the latent tokens; if the head is not the one that it implies, our key names the
    head. The published program then builds the other head, whose weights do not match, and rejects
    the file: it cannot run the tokenizer with another layout.
    """
    quantizer = config.quantizer
    is_legacy = config.latent_layout == "legacy"
    section: dict[str, Any] = {
        "quantize_mode": "vq" if isinstance(quantizer, VqConfig) else "vae",
        "token_size": quantizer.token_size,
        "vit_enc_model_size": _size(config.encoder),
        "vit_dec_model_size": _size(config.decoder),
        "vit_enc_patch_size": config.patch_size,
        "vit_dec_patch_size": config.patch_size,
        "num_latent_tokens": config.num_latent_tokens,
        "finetune_decoder": config.stage == 2,
        "is_legacy": is_legacy,
    }
    if config.decoder_head != _HEADS[is_legacy]:
        section[_HEAD] = config.decoder_head
    if isinstance(quantizer, VqConfig):
        names = ("codebook_size", "use_l2_norm", "commitment_cost")
        section |= {name: getattr(quantizer, name) for name in names}
    if config.decoder_head == "proxy" and config.vqgan != type(config.vqgan)():
        section["vqgan"] = config.vqgan.model_dump(mode="json")
    return {
        "model": {"vq_model": section},
        "dataset": {"preprocessing": {"crop_size": config.image_size}},
    }


def _size(config: VitConfig) -> str | dict[str, int]:
    return config.size or config.model_dump()


def _at(tree: Mapping[str, Any], key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


def is_reference(value: Any) -> bool:
    """True for `${...}`, which some published files have outside the section of the tokenizer."""
    return isinstance(value, str) and "${" in value


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
_RATE = "optimizer.params.learning_rate"
_SCHEDULED_RATE = "lr_scheduler.params.learning_rate"
_END_RATE = "lr_scheduler.params.end_lr"
# Without a key here, because they are checked.
_CHECKED = (f"{MODEL}.vit_dec_patch_size", *_FIXED)
_OF_VQ = ("codebook_size", "use_l2_norm", "commitment_cost")
_SCHEDULES = {"cosine": "cosine", "constant": "const"}
_PRECISIONS = {"no": "float32", "fp16": "amp_bfloat16", "bf16": "amp_bfloat16"}


def translate(tree: coerce.Node, below: coerce.Node) -> coerce.Node | None:
    """Converts a tree to our keys; None if it has no keys of a published stage file. Published keys
    without a meaning here stay in the tree and are allowed to be unknown.
    """
    published = _published_sections(tree)
    if not published.value:
        return None
    whole = coerce.merge(_published_sections(below), published)

    def lookup(key: str) -> Any:
        node = coerce.find(whole, key.split("."))
        return None if node is None else coerce.plain(node)

    unsupported = list(model_contradictions(lookup))
    for key, (value, reason) in _FIXED.items():
        if lookup(key) not in (None, value) and not is_reference(lookup(key)):
            unsupported.append((key, reason))
    problems = [
        Problem(
            key,
            coerce.nearest_origin(whole, key.split(".")),
            f'"{key}" is {lookup(key)!r}, which is not supported: {reason}',
            code="config.unsupported",
        )
        for key, reason in unsupported
    ]
    if problems:
        raise config_error(problems, hint=f"set {problems[0].key} to another value")
    rest = tree
    for section in published.value:
        rest = coerce.without(rest, [section] if section != "model" else MODEL.split("."))
    is_new_model = (
        tree.origin != coerce.TYPED_ORIGIN and coerce.find(below, MODEL.split(".")) is None
    )
    converted, used = _convert(published, lookup, is_new_model=is_new_model)
    # The tree without the used keys, and without sections that are empty then.
    left = coerce.Node({}, published.origin)
    for key, _ in coerce.leaf_origins(published):
        if not any(key == name or key.startswith(f"{name}.") for name in used if name != MODEL):
            node = coerce.find(published, key.split("."))
            assert node is not None
            left = coerce.put(left, key, node)
    # A typed key is of a published file only where there is one.
    is_of_file = tree.origin != coerce.TYPED_ORIGIN or bool(_published_sections(below).value)
    unused = coerce.lenient(left) if is_of_file else left
    return coerce.merge(coerce.merge(unused, converted), rest)


def _published_sections(tree: coerce.Node) -> coerce.Node:
    """The sections of a tree that only a published file has."""
    if not isinstance(tree.value, dict):
        return coerce.Node({}, tree.origin)
    sections = {
        key: node
        for key, node in tree.value.items()
        if key in _SECTIONS and isinstance(node.value, dict)
    }
    section = coerce.find(tree, MODEL.split("."))
    if section is not None:
        model = tree.value["model"]
        sections["model"] = coerce.Node({"vq_model": section}, model.origin)
    return coerce.Node(sections, tree.origin)


def _convert(
    published: coerce.Node, lookup: Lookup, *, is_new_model: bool
) -> tuple[coerce.Node, list[str]]:
    """Returns our keys, and the published keys that were converted. A file that starts a model gets
    the published defaults.
    """
    converted = coerce.Node({}, published.origin)
    used: list[str] = [*_CHECKED]
    for sources, make in _RULES.items():
        if is_new_model and make in (_stage, _quantizer):
            sources = (*sources, MODEL)
        nodes = [coerce.find(published, key.split(".")) for key in sources]
        present = [node for node in nodes if node is not None]
        if present:
            keys = make(lookup)
            if is_new_model and make is _stage:
                # The published reader samples shards with replacement, endlessly.
                kinds = {"model.type": "titok", "data.type": "images"}
                keys = {**kinds, "data.allow_multiple_epochs": True, **keys}
            for key, value in keys.items():
                converted = coerce.put(converted, key, coerce.from_value(value, present[0].origin))
            used += sources
    for key, name in _SAME.items():
        node = coerce.find(published, key.split("."))
        if node is not None:
            used.append(key)
            if coerce.plain(node) not in (None, "") and not is_reference(node.value):
                converted = coerce.put(converted, name, node)
    return converted, used


def _stage(lookup: Lookup) -> Mapping[str, Any]:
    is_legacy = lookup(f"{MODEL}.is_legacy") is not False
    head = lookup(f"{MODEL}.{_HEAD}") or _HEADS[is_legacy]
    tunes = lookup(f"{MODEL}.finetune_decoder") is not False
    return {
        "model.stage": 2 if head == "proxy" and tunes else 1,
        "model.latent_layout": "legacy" if is_legacy else "aligned",
        "model.decoder_head": head,
    }


def _quantizer(lookup: Lookup) -> Mapping[str, Any]:
    if lookup(_MODE) == "vae":
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
    end = lookup(_END_RATE)
    rates = (lookup(_RATE), lookup(_SCHEDULED_RATE))
    if isinstance(end, float) and all(isinstance(rate, float) and rate for rate in rates):
        end *= rates[0] / rates[1]  # exactly 1 where they are equal
    return {} if end is None or is_reference(end) else {"hparams.lr_cooldown_end": end}


def _averages(lookup: Lookup) -> Mapping[str, Any]:
    uses = lookup("training.use_ema")
    kind = {"ema.type": "rising", "ema.max_value": _DECAY} if uses is True else {}
    return {"ema.enabled": uses, **kind}


def _folder(lookup: Lookup) -> Mapping[str, Any]:
    return run_folder(lookup("experiment.output_dir"))


def _shards(split: str, name: str, lookup: Lookup) -> Mapping[str, Any]:
    value = lookup(_SHARDS.format(split))
    if value in (None, "", []):
        return {}
    return {name: value if isinstance(value, list) else [value]}


def _word(source: str, name: str, words: Mapping[str, str], lookup: Lookup) -> Mapping[str, Any]:
    return {name: words.get(str(lookup(source)), lookup(source))}


# What converts several published keys, or the value of one; it applies if a layer sets one of them.
_PRECISION = "training.mixed_precision"
_SCHEDULE = "lr_scheduler.scheduler"
_SHARDS = "dataset.params.{}_shards_path_or_url"
_RULES: Mapping[tuple[str, ...], Callable[[Lookup], Mapping[str, Any]]] = {
    (f"{MODEL}.is_legacy", f"{MODEL}.finetune_decoder", f"{MODEL}.{_HEAD}"): _stage,
    (_MODE, *(f"{MODEL}.{name}" for name in _OF_VQ)): _quantizer,
    ("training.per_gpu_batch_size", "training.gradient_accumulation_steps"): _batch_sizes,
    (_PRECISION,): partial(_word, _PRECISION, "hparams.precision", _PRECISIONS),
    (_SCHEDULE,): partial(_word, _SCHEDULE, "hparams.lr_scheduler", _SCHEDULES),
    (_END_RATE, _SCHEDULED_RATE, _RATE): _end_rate,
    ("training.use_ema",): _averages,
    ("experiment.output_dir",): _folder,
    (_SHARDS.format("train"),): partial(_shards, "train", "data.shards"),
    (_SHARDS.format("eval"),): partial(_shards, "eval", "data.val_shards"),
}
