"""Reads and writes the published layout of TiTok: a configuration and a file of weights; light.

Two forms: config.yaml with pytorch_model.bin, as training writes it, and config.json with
model.safetensors, as on the hub. Stage files of training, and overrides with their keys, are
converted to our sections. Source: reference/titok 5.1, 7.1, 7.2, 7.3.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlatool.config import coerce
from vlatool.config.problems import Problem, config_error
from vlatool.datasets.base_model import CONFIG as HUB_CONFIG
from vlatool.datasets.base_model import WEIGHTS as HUB_WEIGHTS
from vlatool.errors import ConfigError, DataError
from vlatool.models.published import PublishedFiles, WeightsOrigin, run_folder
from vlatool.models.titok.config import TitokConfig, VitConfig, VqConfig
from vlatool.models.trained import as_config_error
from vlatool.models.vqgan.config import VqganNetworkConfig
from vlatool.storage.documents import read_json, read_yaml

CONFIG = "config.yaml"
WEIGHTS = "pytorch_model.bin"
MODEL = "model.vq_model"
_ENCODER_PATCH = f"{MODEL}.vit_enc_patch_size"
_DECODER_PATCH = f"{MODEL}.vit_dec_patch_size"
_MODE = f"{MODEL}.quantize_mode"
_MODES = ("vq", "vae")
# Our key of a head that does not follow from `is_legacy`, and the heads that do.
_HEAD = "decoder_head"
_HEADS = {True: "proxy", False: "pixel"}
_OF_VQ = ("codebook_size", "use_l2_norm", "commitment_cost")


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


def published_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the configuration of a published tokenizer to the keys of `TitokConfig`."""
    model = tree.get("model")
    section = model.get("vq_model") if isinstance(model, dict) else None
    if not isinstance(section, dict):
        raise ConfigError(
            f"the configuration has no {MODEL}",
            hint="give the config.yaml or config.json of a tokenizer",
            code="config.missing_key",
        )
    # How it was trained does not matter.
    known = {"model": {"vq_model": section}, "dataset": tree.get("dataset")}
    translated = translate(coerce.from_value(known, "config"), coerce.Node({}, "config"))
    assert translated is not None
    keys = coerce.plain(translated)
    size = keys.get("data", {}).get("preprocessing", {}).get("crop_size")
    keys["model"].pop("vq_model", None)  # keys that are not known
    return {"image_size": size, **keys["model"]}


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


def is_reference(value: Any) -> bool:
    """True for `${...}`, which some published files have outside the section of the tokenizer."""
    return isinstance(value, str) and "${" in value


# Processes of the published launch; the published batch size is per process.
_PROCESSES = 8
_DECAY = 0.999  # from the published code; not in a published file
_SECTIONS = ("experiment", "losses", "dataset", "optimizer", "lr_scheduler", "training")
_RATE = "optimizer.params.learning_rate"
_SCHEDULED_RATE = "lr_scheduler.params.learning_rate"
_END_RATE = "lr_scheduler.params.end_lr"
_BATCH_SIZE = "training.per_gpu_batch_size"
_REPEATS = "training.gradient_accumulation_steps"
_SCHEDULES = {"constant": "const"}
_PRECISIONS = {"no": "float32", "fp16": "amp_bfloat16", "bf16": "amp_bfloat16"}


def _averages(uses: Any) -> Mapping[str, Any]:
    kind = {"ema.type": "rising", "ema.max_value": _DECAY} if uses is True else {}
    return {"ema.enabled": uses, **kind}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# Published key to our key, for values that stay the same; or to a function of the value, which
# returns our keys.
_KEYS: Mapping[str, str | Callable[[Any], Mapping[str, Any]]] = {
    f"{MODEL}.vit_enc_model_size": "model.encoder",
    f"{MODEL}.vit_dec_model_size": "model.decoder",
    _ENCODER_PATCH: "model.patch_size",
    f"{MODEL}.num_latent_tokens": "model.num_latent_tokens",
    f"{MODEL}.token_size": "model.quantizer.token_size",
    f"{MODEL}.pretrained_tokenizer_weight": "model.teacher",
    f"{MODEL}.vqgan": "model.vqgan",  # not published; written for a teacher of other sizes
    "losses.quantizer_weight": "model.losses.quantizer_weight",
    "losses.reconstruction_weight": "model.losses.reconstruction_weight",
    "losses.perceptual_loss": "model.losses.perceptual_loss",
    "losses.perceptual_weight": "model.losses.perceptual_weight",
    "losses.discriminator_start": "model.losses.discriminator_start",
    "losses.discriminator_factor": "model.losses.discriminator_factor",
    "losses.discriminator_weight": "model.losses.discriminator_weight",
    "losses.lecam_regularization_weight": "model.losses.lecam_regularization_weight",
    "losses.lecam_ema_decay": "model.losses.lecam_ema_decay",
    "experiment.init_weight": "init_from",
    "experiment.save_every": "save_every_n_steps",
    "experiment.eval_every": "val_every_n_steps",
    "experiment.generate_every": "images_every_n_steps",
    "experiment.log_every": "log_every_n_steps",
    "training.max_train_steps": "total_train_steps",
    "training.seed": "hparams.seed",
    "training.max_grad_norm": "hparams.grad_clip_norm",
    _RATE: "hparams.lr",
    "optimizer.params.discriminator_learning_rate": "model.losses.discriminator_learning_rate",
    "optimizer.params.beta1": "hparams.beta1",
    "optimizer.params.beta2": "hparams.beta2",
    "optimizer.params.weight_decay": "hparams.wd",
    "lr_scheduler.params.warmup_steps": "hparams.warmup",
    "dataset.params.num_workers_per_gpu": "data.num_workers",
    "dataset.preprocessing.resize_shorter_edge": "data.preprocessing.resize_shorter_edge",
    "dataset.preprocessing.crop_size": "data.preprocessing.crop_size",
    "dataset.preprocessing.random_crop": "data.preprocessing.random_crop",
    "dataset.preprocessing.random_flip": "data.preprocessing.random_flip",
    "dataset.params.train_shards_path_or_url": lambda value: {"data.shards": _listed(value)},
    "dataset.params.eval_shards_path_or_url": lambda value: {"data.val_shards": _listed(value)},
    "experiment.output_dir": run_folder,
    "lr_scheduler.scheduler": lambda name: {"hparams.lr_scheduler": _SCHEDULES.get(name, name)},
    "training.mixed_precision": lambda name: {"hparams.precision": _PRECISIONS.get(name, name)},
    "training.use_ema": _averages,
}
# Keys with one possible value: the value, and the reason for the error with others.
_FIXED: Mapping[str, tuple[Any, str]] = {
    "experiment.resume": (True, "a run in the same folder resumes; --overwrite starts it again"),
    "losses.reconstruction_loss": ("l2", "the loss of pixels is their squared error"),
    "optimizer.name": ("adamw", "AdamW is the only optimizer"),
    "training.enable_tf32": (True, "products in float32 use TF32"),
}
# The published reader samples shards with replacement, endlessly.
_NEW_MODEL = {"model.type": "titok", "data.type": "images", "data.allow_multiple_epochs": True}
# Value of a published key; None if it is not set.
Lookup = Callable[[str], Any]


def translate(tree: coerce.Node, below: coerce.Node) -> coerce.Node | None:
    """Converts a tree to our keys; None if it has no keys of a published stage file. Published keys
    without a meaning here stay in the tree and are allowed to be unknown.
    """
    published = _published_sections(tree)
    if not published.value:
        return None
    earlier = _published_sections(below)
    whole = coerce.merge(earlier, published)

    def lookup(key: str) -> Any:
        node = coerce.find(whole, key.split("."))
        return None if node is None else coerce.plain(node)

    _check_supported(whole, lookup)
    is_typed = tree.origin == coerce.TYPED_ORIGIN
    model = coerce.find(published, MODEL.split("."))
    starts_model = not is_typed and coerce.find(earlier, MODEL.split(".")) is None
    converted = coerce.Node({}, published.origin)
    if starts_model and model is not None:
        for key, value in _NEW_MODEL.items():
            converted = coerce.put(converted, key, coerce.from_value(value, model.origin))
    used = [_DECODER_PATCH, *_FIXED]
    for sources, rule in _RULES.items():
        nodes = [coerce.find(published, key.split(".")) for key in sources]
        if starts_model and rule in (_stage, _quantizer):  # with the published defaults
            nodes.append(model)
        origins = [node.origin for node in nodes if node is not None]
        if not origins:
            continue
        used += sources
        for key, value in rule(lookup).items():
            converted = coerce.put(converted, key, coerce.from_value(value, origins[0]))
    for source, key in _KEYS.items():
        node = coerce.find(published, source.split("."))
        value = lookup(source)
        if node is None or value in (None, "", []) or is_reference(value):
            continue
        if isinstance(key, str):
            converted = coerce.put(converted, key, node)
            continue
        for name, made in key(value).items():
            converted = coerce.put(converted, name, coerce.from_value(made, node.origin))
    # The tree without the used keys, and without sections that are empty then.
    used += _KEYS
    left = coerce.Node({}, published.origin)
    for key, _ in coerce.leaf_origins(published):
        if not any(key == name or key.startswith(f"{name}.") for name in used):
            node = coerce.find(published, key.split("."))
            assert node is not None
            left = coerce.put(left, key, node)
    # A typed key is of a published file only where there is one.
    unused = left if is_typed and not earlier.value else coerce.lenient(left)
    rest = tree
    for section in published.value:
        rest = coerce.without(rest, [section] if section != "model" else MODEL.split("."))
    return coerce.merge(coerce.merge(unused, converted), rest)


def _check_supported(tree: coerce.Node, lookup: Lookup) -> None:
    """Raises an error with all values that contradict what runs here."""
    reasons: dict[str, str] = {}
    encoder = lookup(_ENCODER_PATCH) or TitokConfig.model_fields["patch_size"].default
    if lookup(_DECODER_PATCH) not in (None, encoder):
        reasons[_DECODER_PATCH] = (
            f"the decoder always has the patches of the encoder, {_ENCODER_PATCH}"
        )
    if lookup(_MODE) not in (None, *_MODES):
        reasons[_MODE] = f"it is one of {', '.join(_MODES)}"
    for key, (value, reason) in _FIXED.items():
        if lookup(key) not in (None, value) and not is_reference(lookup(key)):
            reasons[key] = reason
    problems: list[Problem] = []
    for key, reason in reasons.items():
        message = f'"{key}" is {lookup(key)!r}, which is not supported: {reason}'
        origin = coerce.nearest_origin(tree, key.split("."))
        problems.append(Problem(key, origin, message, code="config.unsupported"))
    if problems:
        raise config_error(problems, hint=f"set {problems[0].key} to another value")


def _published_sections(tree: coerce.Node) -> coerce.Node:
    """The sections of a tree that only a published file has."""
    if not isinstance(tree.value, dict):
        return coerce.Node({}, tree.origin)
    sections: dict[str, coerce.Node] = {}
    for key, node in tree.value.items():
        if key in _SECTIONS and isinstance(node.value, dict):
            sections[key] = node
    section = coerce.find(tree, MODEL.split("."))
    if section is not None:
        model = tree.value["model"]
        sections["model"] = coerce.Node({"vq_model": section}, model.origin)
    return coerce.Node(sections, tree.origin)


def _stage(lookup: Lookup) -> Mapping[str, Any]:
    """The published defaults of `is_legacy` and `finetune_decoder` are true."""
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
    size = lookup(_BATCH_SIZE)
    repeats = lookup(_REPEATS)
    repeats = 1 if repeats is None else repeats
    sizes = {} if size is None else {"hparams.per_gpu_batch_size": size}
    if isinstance(size, int) and isinstance(repeats, int):
        sizes["hparams.global_batch_size"] = size * repeats * _PROCESSES
    return sizes


def _end_rate(lookup: Lookup) -> Mapping[str, Any]:
    """The published end rate is scaled like the peak rate, if the schedule has another one."""
    end = lookup(_END_RATE)
    rates = (lookup(_RATE), lookup(_SCHEDULED_RATE))
    if isinstance(end, float) and all(isinstance(rate, float) and rate for rate in rates):
        end *= rates[0] / rates[1]  # exactly 1 where they are equal
    return {} if end is None or is_reference(end) else {"hparams.lr_cooldown_end": end}


# What several published keys say together; it applies if a layer sets one of them.
_RULES: Mapping[tuple[str, ...], Callable[[Lookup], Mapping[str, Any]]] = {
    (f"{MODEL}.is_legacy", f"{MODEL}.finetune_decoder", f"{MODEL}.{_HEAD}"): _stage,
    (_MODE, *(f"{MODEL}.{name}" for name in _OF_VQ)): _quantizer,
    (_BATCH_SIZE, _REPEATS): _batch_sizes,
    (_END_RATE, _SCHEDULED_RATE, _RATE): _end_rate,
}


def teacher_section(config: TitokConfig) -> VqganNetworkConfig | None:
    """Returns the sizes of a teacher that is a run; None for a published file or no teacher."""
    if config.teacher is None:
        return None
    origin = WeightsOrigin.find(config.teacher)
    origin.check_type("vqgan", "data.missing")
    section = origin.section
    if section is None:
        return None
    keys = VqganNetworkConfig.model_fields
    with as_config_error(origin):
        return VqganNetworkConfig.model_validate({k: v for k, v in section.items() if k in keys})
