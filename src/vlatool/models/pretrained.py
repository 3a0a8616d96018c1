"""Finds base models, and reads their architecture and weights. Light to import."""

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlatool.datasets.base_model import (
    CONFIG,
    PICKLE_SUFFIX,
    ImageMeanStd,
    read_model_config,
    weight_files,
)
from vlatool.errors import DataError, EnvironmentProblem, missing_package
from vlatool.jobs.ownership import require_input
from vlatool.models.base import MAX_LAYERS, MAX_ROWS
from vlatool.storage.cache import local_copy
from vlatool.storage.uri import location

if TYPE_CHECKING:
    from torch import nn

CLIP = "clip"
# Image mean and std of all OpenAI CLIP models. Source: reference/policy 1.4.
CLIP_MEAN_STD = ImageMeanStd(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
# Image mean and std of the supported vision-language models.
VLM_MEAN_STD = ImageMeanStd((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_HUB = "hf://models/"
_REVISION = re.compile(r"(hf://models/[^/@]+/[^/@]+)(@[^/]+)?")
# Keys of config.json for the hidden size of a language model.
_WIDTHS = ("hidden_size", "n_embd", "d_model")
# Keys of config.json that do not describe the network, or that point to code.
_NOT_ARCHITECTURE = {"architectures", "auto_map", "transformers_version", "_name_or_path"}
# Names of keys with a number of layers.
_DEPTH = re.compile("(layers?|depths?|blocks?|experts)$")
_MAX_LIST = 10_000
_OTHER_BASE_MODEL = "another base model"


def base_model(name: str, revision: str | None = None) -> Path:
    """Returns the folder of a base model; a hub name is resolved to its current commit.

    `name`: A local folder, a location of any scheme, or owner/name[@revision] on the Hugging Face
    hub; `revision`: revision of a model on the hub; None: the one in `name`.
    """
    if not name:
        raise DataError(
            "the base model is not set",
            hint="set hf_pretrained to owner/name[@revision] on the Hugging Face hub, or to a "
            "folder",
            code="data.missing",
        )
    is_hub_name = _HUB_NAME.fullmatch(name) and not location(name).exists()
    text = f"{_HUB}{name}" if is_hub_name else str(location(name))
    if revision is not None and text.startswith(_HUB):
        text = _REVISION.sub(rf"\g<1>@{revision}", text, count=1)
    return require_input(text)


def read_architecture(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Reads the keys of config.json that describe the network of a base model; `kind`: expected
    model_type; None: any.
    """
    content = read_model_config(folder)
    if kind not in (None, content["model_type"]):
        raise DataError.at(
            folder,
            f"model_type is {content['model_type']!r}, not {kind!r}",
            hint=f"use {_OTHER_BASE_MODEL}, or a type of backbone that fits this one",
            code="data.missing",
            model_type=content["model_type"],
        )
    if problem := architecture_problem(content):
        raise DataError.at(folder, problem, hint=_OTHER_BASE_MODEL, code="data.missing")
    return _without(content, _NOT_ARCHITECTURE)


def architecture_problem(content: object, key: str = "") -> str:
    """Reason why the network of a configuration cannot be built; empty if it can. Networks and
    tables are built before their sizes are compared with the weights.
    """
    if isinstance(content, Mapping):
        problems = (architecture_problem(value, str(name)) for name, value in content.items())
    elif isinstance(content, list):
        if len(content) > _MAX_LIST:
            return f"{key} has {len(content):,} entries, but at most {_MAX_LIST:,} are possible"
        problems = (architecture_problem(value, key) for value in content)
    else:
        limit = MAX_LAYERS if _DEPTH.search(key) else MAX_ROWS
        is_too_large = isinstance(content, int) and abs(content) > limit
        return f"{key} is {content:.3g}, but at most {limit:,} is possible" if is_too_large else ""
    return next(filter(None, problems), "")


def build_network(architecture: Mapping[str, Any], build: Callable[[Any], Any]) -> Any:
    """Builds the network of an architecture, with random weights."""
    try:
        return build(transformers().AutoConfig.for_model(**architecture))
    except (EnvironmentProblem, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - classes of transformers raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"a base model of the family {architecture.get('model_type')!r} does not fit the "
            f"section of model: {reason}",
            hint="set the type of that section to clip_backbone for CLIP, vlm_backbone for another "
            "model of images and text, transformer_hf for a language model as denoiser; if it is, "
            "copy the base model again",
            code="data.missing",
        ) from None


def text_width(architecture: Mapping[str, Any]) -> int:
    """Hidden size of a language model; 0 if its config.json does not say it."""
    section = architecture.get("text_config", architecture)
    return int(next((section[key] for key in _WIDTHS if key in section), 0))


def load_base(network: "nn.Module", folder: Path) -> None:
    """Loads the weights of a base model into a network of the same `transformers` class."""
    import torch
    from safetensors import SafetensorError

    from vlatool.models.weights import read_external_weights, unusable_checkpoint

    names = weight_files(folder)
    folder = local_copy(folder, [CONFIG, *names])
    for name in names:
        if name.endswith(PICKLE_SUFFIX):  # transformers raises any error for a damaged one
            read_external_weights(folder / name)
    try:
        loaded, report = type(network).from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
            folder,
            config=network.config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unusable_checkpoint(folder, error) from None
    if report["missing_keys"]:
        raise unusable_checkpoint(folder, f"the tensor {min(report['missing_keys'])} is missing")
    network.load_state_dict(loaded.state_dict())


def transformers() -> Any:
    """Imports the library `transformers`, with its warnings and progress bars disabled."""
    library = _library("transformers")
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    return library


def tokenizers() -> Any:
    """Imports the library `tokenizers`, which is light, unlike transformers."""
    return _library("tokenizers")


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise missing_package("transformers") from None


def _without(content: Mapping[str, Any], keys: set[str]) -> dict[str, Any]:
    """Returns a mapping, and its nested mappings, without some keys."""
    rest: dict[str, Any] = {}
    for key, value in content.items():
        if key not in keys:
            rest[key] = _without(value, keys) if isinstance(value, Mapping) else value
    return rest
