"""Loads weights of TiTok from published files, published folders and runs.

A state dict has the names of the published files. Source: reference/titok 2, 7.1.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from vlatool.errors import DataError
from vlatool.events import Reporter
from vlatool.loading.images.config import ImagePreprocessing
from vlatool.loading.images.kind import ImagesAssets
from vlatool.models import published
from vlatool.models import weights as model_weights
from vlatool.models.titok.config import TitokConfig
from vlatool.models.titok.model import Titok
from vlatool.models.titok.published import (
    CONFIG,
    WEIGHTS,
    published_keys,
    published_tree,
    read_published_config,
)
from vlatool.models.vqgan.model import pixel_weights
from vlatool.storage.atomic import write_text
from vlatool.storage.tree import sha256_of

_PIXELS = "pixel_"


def load_titok(
    module: nn.Module, config: TitokConfig, origin: str, excluded: Sequence[str] = ()
) -> None:
    """Loads the weights of a tokenizer; all names and shapes must match, except for some networks.
    If stage 2 starts from stage 1, the teacher gives the pixel decoder.
    """
    source = published.WeightsOrigin.find(origin)
    weights = source.read("titok")
    if config.stage == 2 and not any(name.startswith(_PIXELS) for name in weights):
        assert config.teacher is not None
        weights = {**weights, **pixel_weights(config.teacher)}
    module.load_state_dict(model_weights.init_state_dict(module, weights, source.file, excluded))


def open_published(files: published.PublishedFiles, path: Path) -> published.PublishedModel:
    """Opens a published tokenizer on the CPU; see `Layout.open`."""
    if files.config is None:
        raise DataError.at(
            files.weights,
            f"has no {CONFIG} beside it, which says what the tokenizer is",
            hint=f"put the published {CONFIG} and these weights, named {WEIGHTS}, into one folder",
            code="data.missing",
        )
    weights = model_weights.read_external_weights(path)
    tree = read_published_config(files.config)
    config = TitokConfig.model_validate(published_keys(tree))
    if config.image_size is None:  # optional in a published configuration
        positions = weights.get("encoder.positional_embedding", torch.empty(1))
        side = round((positions.shape[:1].numel() - 1) ** 0.5)
        config = config.model_copy(update={"image_size": side * config.patch_size})
    module = model_weights.build_with(lambda: Titok(config), lambda _: weights, files.weights)
    # Preprocessing of a published configuration; by default without a resize
    dataset = tree.get("dataset")
    stored = dataset.get("preprocessing") if isinstance(dataset, dict) else None
    keys = stored if isinstance(stored, dict) else {}
    known = {key: value for key, value in keys.items() if key in ImagePreprocessing.model_fields}
    assets = ImagesAssets(
        ImagePreprocessing.model_validate({"crop_size": config.image_size, **known})
    )
    return published.PublishedModel(config, {"model": module}, assets)


def prepare_export(trained: published.Trained, reporter: Reporter) -> published.Exported:
    config: Any = trained.config.model
    network: Any = trained.parts["model"]
    preprocessing = trained.assets.preprocessing.without_randomness().model_dump(mode="json")

    def write(folder: Path) -> Mapping[str, Any]:
        save_published(folder, config, network, preprocessing)
        return {"stage": config.stage, "sha256": sha256_of(folder / WEIGHTS)}

    if not config.predicts_pixels:
        reporter.note("a stage-1 tokenizer predicts codes of its teacher and has no pixel decoder")
    if (config.latent_layout == "legacy") != (config.decoder_head == "proxy"):
        reporter.warn(
            "export.other_layout",
            f"only vlatool can read a {config.decoder_head} head with the {config.latent_layout} "
            "layout; for the published program, train with model.latent_layout=legacy.",
        )
    return published.Exported(
        files=(CONFIG, WEIGHTS),
        weights=(WEIGHTS,),
        parameters=sum(tensor.numel() for tensor in network.state_dict().values()),
        summary=f"{CONFIG} and {WEIGHTS} of stage {config.stage}",
        write=write,
    )


def save_published(
    folder: Path,  # existing folder
    config: TitokConfig,
    module: Titok,  # the tokenizer; its weights are written as float32
    preprocessing: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.yaml and pytorch_model.bin, which the published code and this program read."""
    tree = published_tree(config)
    tree["dataset"]["preprocessing"] |= preprocessing or {}
    write_text(folder / CONFIG, yaml.safe_dump(tree, sort_keys=False))
    tensors = {k: v.detach().float().cpu().contiguous() for k, v in module.state_dict().items()}
    model_weights.write_pickled_weights(folder / WEIGHTS, tensors)
