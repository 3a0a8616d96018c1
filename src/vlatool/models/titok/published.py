"""The published configuration of TiTok, read and written; light. Source: reference/titok 7.2.

A configuration of training says more than that of a model: see `published_stage`.
"""

from collections.abc import Mapping
from typing import Any

from vlatool.errors import ConfigError
from vlatool.models.titok.spec import KlConfig, TitokConfig, VitConfig, VqConfig

MODEL = "model.vq_model"
_CROP = "dataset.preprocessing.crop_size"
# Published key to ours of a model, where the value stays as it is.
MODEL_KEYS: Mapping[str, str] = {
    f"{MODEL}.vit_enc_model_size": "encoder",
    f"{MODEL}.vit_dec_model_size": "decoder",
    f"{MODEL}.vit_enc_patch_size": "patch_size",
    f"{MODEL}.num_latent_tokens": "num_latent_tokens",
    f"{MODEL}.pretrained_tokenizer_weight": "teacher",
    f"{MODEL}.vqgan": "vqgan",  # ours: of a teacher that is not the released one
    "experiment.init_weight": "init_weight",
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


def published_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `TitokConfig` from a published configuration of any kind.

    `is_legacy` and `finetune_decoder` are true where they are absent.

    Raises:
        ConfigError: It has no tokenizer.
    """
    section = _at(tree, MODEL)
    if not isinstance(section, Mapping):
        raise ConfigError(
            f"the configuration has no {MODEL}",
            hint="give the config.yaml or config.json of a tokenizer",
            code="config.no_tokenizer",
        )
    found: dict[str, Any] = {"type": "titok", "encoder": "large", "decoder": "large"}
    for key, ours in {**MODEL_KEYS, _CROP: "image_size"}.items():
        value = _at(tree, key)
        if value not in (None, "") and not is_reference(value):
            _set(found, ours, value)
    is_legacy = bool(section.get("is_legacy", True))
    found["stage"] = 2 if is_legacy and bool(section.get("finetune_decoder", True)) else 1
    found["latent_layout"] = "legacy" if is_legacy else "aligned"
    found["decoder_head"] = "proxy" if is_legacy else "pixel"
    found["quantizer"] = _quantizer(section)
    return found


def published_tree(config: TitokConfig) -> dict[str, Any]:
    """The published configuration of a tokenizer.

    Sizes that have no published name stand as ours: this program reads them.
    """
    quantizer = config.quantizer
    section: dict[str, Any] = {
        "quantize_mode": "vq" if isinstance(quantizer, VqConfig) else "vae",
        "token_size": quantizer.token_size,
        "vit_enc_model_size": _size(config.encoder),
        "vit_dec_model_size": _size(config.decoder),
        "vit_enc_patch_size": config.patch_size,
        "vit_dec_patch_size": config.patch_size,
        "num_latent_tokens": config.num_latent_tokens,
        "finetune_decoder": config.stage == 2,
        "is_legacy": config.decoder_head == "proxy",
    }
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
    """`${...}`, which some published files leave unresolved outside the tokenizer's section."""
    return isinstance(value, str) and "${" in value
