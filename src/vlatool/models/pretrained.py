"""Base models: where they are, what they are made of, and their weights. Light to import."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.artifacts.base_model import (
    CONFIG,
    ImageMeanStd,
    read_model_config,
    weight_files,
)
from vlatool.artifacts.checkpoint import (
    EMA,
    MODEL,
    PICKLED_SUFFIX,
    WEIGHTS_SUFFIX,
    CheckpointManifest,
)
from vlatool.artifacts.run_dir import find_checkpoint
from vlatool.errors import DataError, missing_package
from vlatool.storage.cache import FileCache, default_cache_folder
from vlatool.storage.uri import is_remote, location, require_existing

if TYPE_CHECKING:
    from torch import nn

CLIP = "clip"
# Of every CLIP of its first authors. Source: the model cards' preprocessor_config.json.
CLIP_COLORS = ImageMeanStd(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
# Of the vision-language models that can be backbones.
VLM_COLORS = ImageMeanStd((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_HUB = "hf://models/"
_REVISION = re.compile(r"(hf://models/[^/@]+/[^/@]+)(@[^/]+)?")
# How kinds of language models call the width of a token.
_WIDTHS = ("hidden_size", "n_embd", "d_model")
# Keys of a config.json that say nothing of the network, or would name code to run.
_NOT_ARCHITECTURE = {"architectures", "auto_map", "transformers_version", "_name_or_path"}


def base_model(name: str, revision: str | None = None) -> Path:
    """The folder of a base model, at the version it has now.

    Args:
        name: A local folder, a location of any scheme, or owner/name[@revision] of the hub.
        revision: Which version of those of the hub; None for the one that the name says.

    Raises:
        DataError: Nothing is there.
        EnvironmentProblem: The hub cannot be asked.
    """
    if not name:
        raise DataError(
            "no base model is named",
            hint="set hf_pretrained to owner/name of the hub, or to a folder",
            code="data.base_model",
        )
    is_hub_name = _HUB_NAME.fullmatch(name) and not location(name).exists()
    text = f"{_HUB}{name}" if is_hub_name else name
    if revision is not None and text.startswith(_HUB):
        text = _REVISION.sub(rf"\g<1>@{revision}", text, count=1)
    return require_existing(text)


def read_architecture(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """What config.json of a base model says of its network.

    Args:
        folder: See `base_model`.
        kind: The model_type that it must have; None for any.

    Raises:
        DataError: It is missing, broken, or of another kind.
    """
    content = read_model_config(folder)
    if kind not in (None, content["model_type"]):
        raise DataError(
            f"{folder}: is a {content['model_type']!r}, not a {kind!r}",
            hint="choose a backbone of the base model's kind, or another base model",
            code="data.base_model",
            details={"path": str(folder), "model_type": content["model_type"]},
        )
    return _without(content, _NOT_ARCHITECTURE)


def text_width(architecture: Mapping[str, Any]) -> int:
    """Width of a language model's tokens; zero where its config.json does not say."""
    section = architecture.get("text_config", architecture)
    return int(next((section[key] for key in _WIDTHS if key in section), 0))


def load_base(network: "nn.Module", folder: Path) -> None:
    """Loads the published weights of a base model into a network of transformers, of its class.

    Raises:
        DataError: They are missing, broken, or do not fit.
    """
    import torch
    from safetensors import SafetensorError

    from vlatool.models.weights import unusable_checkpoint

    if is_remote(folder):
        names = [CONFIG, *weight_files(folder)]
        folder = FileCache(default_cache_folder()).local_copy(folder, names)
    else:
        weight_files(folder)
    try:
        loaded, told = type(network).from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
            folder,
            config=network.config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unusable_checkpoint(folder, error) from None
    if told["missing_keys"]:
        raise unusable_checkpoint(folder, f"it lacks {min(told['missing_keys'])}")
    network.load_state_dict(loaded.state_dict())


def weights_file(text: str) -> Path:
    """The file of weights behind a location: itself, or a run's newest, averaged where it can be.

    Raises:
        DataError: Nothing is there, or no checkpoint is.
    """
    path = require_existing(text)
    if path.suffix in (PICKLED_SUFFIX, WEIGHTS_SUFFIX):
        if not path.is_file():
            raise DataError(
                f"{text}: does not exist",
                hint="give a run, one of its checkpoints, or a published file",
                code="data.no_checkpoint",
                details={"path": text},
            )
        return path
    checkpoint = find_checkpoint(path)[1]
    manifest = CheckpointManifest.read(checkpoint)
    return checkpoint / (EMA if EMA in manifest.files else MODEL)


def transformers() -> Any:
    """The library, without its messages.

    Raises:
        EnvironmentProblem: It is not installed.
    """
    library = _library("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def tokenizers() -> Any:
    """The library that transformers makes its tokenizers with; light.

    Raises:
        EnvironmentProblem: It is not installed.
    """
    return _library("tokenizers")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing_package("transformers") from None


def _without(content: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    """A mapping and those in it without some keys."""
    return {
        key: _without(value, keys) if isinstance(value, Mapping) else value
        for key, value in content.items()
        if key not in keys
    }
