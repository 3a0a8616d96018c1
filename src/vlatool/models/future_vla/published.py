"""Folders of weights: the layout of Qwen3-VL on the hub, with the weights of DINOv3; no torch.

Source: formats/future-vla.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError

from vlatool.config.base import ConfigModel
from vlatool.datasets.base_model import CONFIG, read_tokenizer, weight_files
from vlatool.errors import DataError
from vlatool.loading.vla.config import VlaDataConfig
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.token_ids import parse_tokenizer, special_ids
from vlatool.models.pretrained import read_architecture
from vlatool.models.published import PublishedFiles
from vlatool.storage.cache import local_copy
from vlatool.storage.documents import read_json
from vlatool.storage.manifest import ManifestType

T = TypeVar("T", bound=ConfigModel)

FAMILY = "qwen3_vl"
DINO_FAMILY = "dinov3_vit"
INDEX = "model.safetensors.index.json"
MANIFEST_NAME = "future_vla.json"
# Files of Qwen3-VL besides weights and config.json; a run has copies of those that there are.
ASSETS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
)
# DINOv3 of published folders, which do not describe it.
PUBLISHED_DINO: Mapping[str, Any] = {
    "model_type": DINO_FAMILY,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "num_register_tokens": 4,
    "patch_size": 16,
    "key_bias": False,
    "rope_theta": 100.0,
}
# Keys of the section `model` that follow from weights, where they are not set.
FROM_WEIGHTS = (
    *("qwen", "dino", "special_ids", "tokens", "numbers"),
    *("views", "compress", "conv_width", "patch_order"),
)
# A tensor that a stock Qwen3-VL does not have.
_OWN_TENSOR = "model.visual.cnn3.conv.weight"


@dataclass(frozen=True)
class FolderManifest:
    """Content of the manifest: facts that the layout of Qwen3-VL has no place for."""

    model: dict[str, Any]  # section `model` without `qwen`, which config.json has
    # SHA-256 of the files that a composed folder was made of, by `qwen` or `dino` and name; empty
    # for an export
    sources: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    # section `data` of the run without locations; empty for a composed folder
    data: dict[str, Any] = field(default_factory=dict[str, Any])


MANIFEST = ManifestType(
    name=MANIFEST_NAME,
    format="vlatool-future-vla",
    version=1,
    content=FolderManifest,
    hint="compose or export the folder again",
    optional=("sources", "data"),
    code="data.broken",
)


def find_published(location: Path) -> PublishedFiles | None:
    """Files of a folder of weights of Qwen3-VL, stock or not, or of a file in it."""
    folder = location.parent if location.is_file() else location
    try:
        content = read_json(folder / CONFIG)
        names = weight_files(folder) if isinstance(content, dict) else []
    except (OSError, ValueError, DataError):
        return None
    if not names or content.get("model_type") != FAMILY:
        return None
    if location not in (folder, *(folder / name for name in names)):
        return None
    weights = INDEX if INDEX in names else names[0]
    return PublishedFiles(folder / weights, folder / CONFIG)


def read_section(folder: Path) -> FutureVlaConfig:
    """Section `model` of a folder."""
    manifest = MANIFEST.read(folder)
    if manifest is None:
        check_not_stock(folder)
    model = {"dino": dict(PUBLISHED_DINO)} if manifest is None else manifest.model
    derived = {
        "qwen": read_architecture(folder, FAMILY),
        "special_ids": special_ids(parse_tokenizer(read_tokenizer(folder))),
    }
    return _validated(FutureVlaConfig, {**model, **derived}, folder, "model")


def config_json(config: FutureVlaConfig) -> dict[str, Any]:
    fixed = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": FAMILY}
    return {**fixed, **(config.qwen or {})}


def read_data(folder: Path) -> VlaDataConfig | None:
    """Section `data` of the run that a folder was exported from; None for other folders."""
    manifest = MANIFEST.read(folder)
    if manifest is None or not manifest.data:
        return None
    return _validated(VlaDataConfig, manifest.data, folder, "data")


def _validated(section: type[T], values: Mapping[str, Any], folder: Path, name: str) -> T:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, [name, *first['loc']]))}: {first['msg']}"
        raise MANIFEST.error(folder, reason) from None


def check_not_stock(folder: Path) -> None:
    """Raises DataError for a plain Qwen3-VL, which has neither DINOv3 nor convolutions."""
    if _OWN_TENSOR not in tensor_names(folder):
        raise DataError.at(
            folder,
            "is a plain Qwen3-VL, without DINOv3 and the convolutions",
            hint=f"compose them: vlatool compose --qwen {folder} --dino DINOV3 --output COMPOSED, "
            "then use COMPOSED",
            code="data.mismatch",
        )


def tensor_names(folder: Path) -> frozenset[str]:
    """Names of the tensors of a folder, from its index or its only file of weights."""
    from safetensors import SafetensorError, safe_open

    names = weight_files(folder)
    path = folder / (INDEX if INDEX in names else names[0])
    try:
        if path.name == INDEX:
            return frozenset(weight_map(path))
        with safe_open(local_copy(folder, names) / path.name, framework="np") as file:
            return frozenset(file.keys())
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from None


def weight_map(index: Path) -> dict[str, str]:
    """Name of the file of each tensor, from an index."""
    try:
        content = read_json(index)["weight_map"]
        files = {name: PurePosixPath(file).name for name, file in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(index, f"is not an index of weights: {error!r}") from None
    return files


def _broken(path: Path, reason: object) -> DataError:
    return DataError.at(path, reason, hint="copy it again", code="data.broken")
