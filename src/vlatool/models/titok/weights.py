"""Weights of TiTok: released files, published folders, runs of this program. Source: reference/titok 2, 7.1.

Names are those of the released files, so a state dict is one as it is.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlatool.artifacts.published_tokenizer import write_published_config
from vlatool.errors import DataError
from vlatool.models.foreign import ForeignWeights, as_config_error, find_weights
from vlatool.models.titok.model import Titok
from vlatool.models.titok.published import published_keys, published_tree
from vlatool.models.titok.spec import TitokConfig
from vlatool.models.vqgan.weights import pixel_weights
from vlatool.models.weights import matching_state_dict, read_external_weights
from vlatool.storage.atomic import open_atomic

_PIXELS = "pixel_"
_HEAD_DIM = 64


def load_titok(module: nn.Module, config: TitokConfig, origin: str) -> None:
    """Loads a tokenizer; every name and shape must fit.

    Stage 2 may begin with weights of stage 1: the pixel decoder is the teacher's then.

    Raises:
        DataError: There is none, or it does not fit; says in which sizes.
    """
    found, weights = read_titok(origin)
    if config.stage == 2 and not any(name.startswith(_PIXELS) for name in weights):
        assert config.teacher is not None
        weights = {**weights, **pixel_weights(config.teacher)}
    check_sizes(module, weights, found.location)
    module.load_state_dict(matching_state_dict(module, weights, found.location))


def open_titok(origin: str) -> tuple[TitokConfig, Titok]:
    """A tokenizer as it was trained or released, in eval mode on the CPU.

    Args:
        origin: A run, a checkpoint of one, a published folder, or a file of weights, which tells
            its own sizes.

    Raises:
        DataError: There is none, or weights and configuration do not fit together.
    """
    found, weights = read_titok(origin)
    with as_config_error(found):
        if found.section is not None:
            config = TitokConfig.model_validate(found.section)
        elif found.published is not None:
            config = TitokConfig.model_validate(published_keys(found.published))
        else:
            config = inferred_config(weights, found.location)
    if config.image_size is None:  # published configurations need not say it
        side = inferred_config(weights, found.location).image_size
        config = config.model_copy(update={"image_size": side})
    module = Titok(config)
    check_sizes(module, weights, found.location)
    module.load_state_dict(matching_state_dict(module, weights, found.location))
    return config, module.eval()


def read_titok(origin: str) -> tuple[ForeignWeights, dict[str, Tensor]]:
    """A file of tokenizer weights and its tensors.

    Raises:
        DataError: Nothing is there, it is broken, or of a run of another model type.
    """
    found = find_weights(origin)
    if found.section is not None and found.section.get("type") != "titok":
        raise DataError(
            f"{found.origin}: is a run of the model type {found.section.get('type')!r}, not of a "
            "tokenizer",
            hint="give a run of stage 1 or 2",
            code="data.no_tokenizer",
            details={"path": found.origin},
        )
    return found, read_external_weights(found.path)


def save_published(
    folder: Path,
    config: TitokConfig,
    module: Titok,
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.yaml and pytorch_model.bin, which released code and this program read.

    Args:
        folder: Is there.
        config: Of the module.
        module: Its weights are written as float32.
        preprocessing: How pictures become those that it learned from.
    """
    tree = published_tree(config)
    tree["dataset"]["preprocessing"] |= preprocessing or {}
    where = write_published_config(folder, tree)
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in module.state_dict().items()}
    with open_atomic(where.weights) as file:
        torch.save(tensors, file)


def check_sizes(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """DataError that says which sizes differ; what else differs is told by name elsewhere."""
    found, wanted = sizes_of(weights), sizes_of(module.state_dict())
    told = [
        f"{name} {found[name]}, the configuration has {wanted[name]}"
        for name in wanted
        if found[name] != wanted[name]
    ]
    if told:
        raise DataError(
            f"{path}: is another tokenizer: {'; '.join(told)}",
            hint="use the configuration that it was trained with",
            code="data.checkpoint_mismatch",
            details={"problems": told, "path": str(path)},
        )


def sizes_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes of a state dict tell; None for what is not there."""
    shapes = {name: tuple(one.shape) for name, one in weights.items()}

    def axis(name: str, index: int) -> int | None:
        shape = shapes.get(name, ())
        return shape[index] if -len(shape) <= index < len(shape) else None

    codebook = shapes.get("quantize.embedding.weight")
    rows = axis("encoder.positional_embedding", 0)
    return {
        "bottleneck": "kl" if codebook is None else "vq",
        "codebook": codebook,
        "token size": axis("decoder.decoder_embed.weight", 1),
        "latent tokens": axis("latent_tokens", 0),
        "patches": None if rows is None else rows - 1,
        "patch size": axis("encoder.patch_embed.weight", -1),
        "encoder": (axis("latent_tokens", 1), _blocks(weights, "encoder")),
        "decoder": (axis("decoder.decoder_embed.weight", 0), _blocks(weights, "decoder")),
        "head": "proxy" if "decoder.ffn.2.weight" in shapes else "pixel",
        "stage": 2 if any(name.startswith(_PIXELS) for name in shapes) else 1,
        "teacher's codes": axis("decoder.ffn.2.weight", 0),
    }


def inferred_config(weights: Mapping[str, Tensor], path: Path) -> TitokConfig:
    """The configuration of a released file, of which its shapes and the releases tell all.

    Two-stage models have the legacy layout and unit codes, single-stage ones neither.

    Raises:
        DataError: These are no weights of a tokenizer.
    """
    sizes = sizes_of(weights)
    if any(sizes[name] is None for name in ("latent tokens", "patches", "patch size")):
        raise DataError(
            f"{path}: holds no tokenizer: {', '.join(sorted(weights)[:3])}, ...",
            hint="give the weights of a TiTok",
            code="data.no_tokenizer",
            details={"path": str(path)},
        )
    is_proxy, codebook = sizes["head"] == "proxy", sizes["codebook"]
    quantizer: dict[str, Any] = {"type": sizes["bottleneck"], "token_size": sizes["token size"]}
    if codebook is not None:
        quantizer |= {"codebook_size": codebook[0], "use_l2_norm": is_proxy}
    return TitokConfig.model_validate(
        {
            "stage": sizes["stage"],
            "image_size": round(sizes["patches"] ** 0.5) * sizes["patch size"],
            "patch_size": sizes["patch size"],
            "num_latent_tokens": sizes["latent tokens"],
            "encoder": _vit(*sizes["encoder"]),
            "decoder": _vit(*sizes["decoder"]),
            "quantizer": quantizer,
            "latent_layout": "legacy" if is_proxy else "aligned",
            "decoder_head": sizes["head"],
            "vqgan": {"codebook_size": sizes["teacher's codes"]} if is_proxy else {},
        }
    )


def _vit(width: int, blocks: int) -> dict[str, int]:
    return {
        "hidden_dim": width,
        "n_layers": blocks,
        "n_heads": max(1, width // _HEAD_DIM),
    }


def _blocks(weights: Mapping[str, Tensor], side: str) -> int:
    prefix = f"{side}.transformer."
    names = (name.removeprefix(prefix) for name in weights if name.startswith(prefix))
    return len({name.partition(".")[0] for name in names})
