"""Published layout of TiTok models: a configuration and a flat file of weights; light.

Two forms: config.yaml with pytorch_model.bin, as training writes it, and config.json with
model.safetensors, as on the hub. `published_stage` converts the other sections of a published
training configuration. Source: reference/titok 7.1, 7.2.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vlatool.artifacts.base_model import CONFIG as HUB_CONFIG
from vlatool.artifacts.base_model import WEIGHTS as HUB_WEIGHTS
from vlatool.errors import ConfigError, DataError
from vlatool.models.published import PublishedFiles
from vlatool.models.titok.config import KlConfig, TitokConfig, VitConfig, VqConfig
from vlatool.storage.atomic import write_text
from vlatool.storage.documents import read_json, read_yaml

CONFIG, WEIGHTS = "config.yaml", "pytorch_model.bin"
MODEL = "model.vq_model"
_CROP = "dataset.preprocessing.crop_size"
# Our key of a head that does not follow from `is_legacy`, and the heads that do.
_HEAD = "decoder_head"
_HEADS = {True: "proxy", False: "pixel"}
_ENCODER_PATCH, _DECODER_PATCH = f"{MODEL}.vit_enc_patch_size", f"{MODEL}.vit_dec_patch_size"
_MODE = f"{MODEL}.quantize_mode"
_MODES = ("vq", "vae")
# Published key to our key of a model, for values that stay the same.
MODEL_KEYS: Mapping[str, str] = {
    f"{MODEL}.vit_enc_model_size": "encoder",
    f"{MODEL}.vit_dec_model_size": "decoder",
    _ENCODER_PATCH: "patch_size",
    f"{MODEL}.num_latent_tokens": "num_latent_tokens",
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
            is_tokenizer = config == CONFIG or not _is_base_model(folder)
            return files if is_tokenizer and location in (folder, files.weights) else None
    return None


def _is_base_model(folder: Path) -> bool:
    """True for a model of transformers, whose files have the same names."""
    try:
        content = read_json(folder / HUB_CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "model_type" in content


def read_published_config(path: Path) -> dict[str, Any]:
    """Tree of a published configuration."""
    try:
        content = (read_json if path.suffix == ".json" else read_yaml)(path)
    except (OSError, ValueError) as error:
        raise _broken(path, error) from None
    if not isinstance(content, dict):
        raise _broken(path, "not a mapping")
    return content


def _broken(path: Path, reason: object) -> DataError:
    return DataError.at(path, reason, hint="copy the folder again", code="data.broken_config")


def write_published_config(folder: Path, tree: Mapping[str, Any]) -> None:
    """Writes config.yaml into an existing folder."""
    write_text(folder / CONFIG, yaml.safe_dump(dict(tree), sort_keys=False))


def published_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the published configuration of a model or of a training stage to `TitokConfig` keys.

    The published defaults of `is_legacy` and `finetune_decoder` are true.
    """
    section = _at(tree, MODEL)
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"the configuration has no {MODEL}",
            hint="use the config.yaml or config.json of a tokenizer",
            code="config.no_tokenizer",
        )
    for key, reason in model_contradictions(lambda name: _at(tree, name)):
        raise ConfigError(
            f"{key} is {_at(tree, key)!r}, which is not supported: {reason}",
            hint="use a tokenizer of the published sizes",
            code="config.refused",
        )
    config: dict[str, Any] = {"type": "titok", "encoder": "large", "decoder": "large"}
    for key, our_key in {**MODEL_KEYS, _CROP: "image_size"}.items():
        value = _at(tree, key)
        if value not in (None, "") and not is_reference(value):
            _set(config, our_key, value)
    is_legacy = bool(section.get("is_legacy", True))
    head = section.get(_HEAD, _HEADS[is_legacy])
    config["stage"] = 2 if head == "proxy" and bool(section.get("finetune_decoder", True)) else 1
    config["latent_layout"] = "legacy" if is_legacy else "aligned"
    config["decoder_head"] = head
    config["quantizer"] = _quantizer(section)
    return config


def model_contradictions(lookup: Callable[[str], Any]) -> Iterator[tuple[str, str]]:
    """Published keys of a model with values that it cannot have here, and the reasons; `lookup`:
    returns the value of a published key; None if it is not set.
    """
    encoder = lookup(_ENCODER_PATCH) or TitokConfig.model_fields["patch_size"].default
    if lookup(_DECODER_PATCH) not in (None, encoder):
        yield _DECODER_PATCH, f"the decoder has the patches of the encoder, {_ENCODER_PATCH}"
    if lookup(_MODE) not in (None, *_MODES):
        yield _MODE, f"it is one of {', '.join(_MODES)}"


def published_tree(config: TitokConfig) -> dict[str, Any]:
    """Converts a config to the published configuration of a tokenizer.

    Sizes without a published key have our keys, which only this program reads. `is_legacy` is that
    of the layout of the latent tokens; another head than it implies has our key. The published
    program then builds the other head, whose weights do not match, and rejects the file: it cannot
    run the tokenizer with another layout.
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


def _quantizer(section: Mapping[str, Any]) -> dict[str, Any]:
    is_vae = section.get("quantize_mode", "vq") == "vae"
    kind = KlConfig if is_vae else VqConfig
    names = [name for name in kind.model_fields if name != "type" and name in section]
    return {"type": "kl" if is_vae else "vq", **{name: section[name] for name in names}}


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
