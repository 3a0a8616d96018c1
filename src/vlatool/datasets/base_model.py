"""Folder of a base model in the layout of the Hugging Face hub.

It holds config.json, weights, tokenizer and processor.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlatool.errors import DataError
from vlatool.storage.atomic import write_bytes
from vlatool.storage.byte_ranges import open_file, read_file
from vlatool.storage.documents import read_json
from vlatool.storage.tree import file_names, sha256_of

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
PROCESSOR = "preprocessor_config.json"
WEIGHTS = "model.safetensors"
PICKLE_SUFFIX = ".bin"
_SAFE = "model*.safetensors"
_TORCH = f"pytorch_model*{PICKLE_SUFFIX}"
_INDEX = ".index.json"
# Keys of the processor config of CLIP.
_MEAN = "image_mean"
_STD = "image_std"


@dataclass(frozen=True)
class ImageMeanStd:
    """Mean and standard deviation per color channel (RGB) of images in [0, 1]."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


def read_model_config(folder: Path) -> dict[str, Any]:
    """Content of config.json of a base model."""
    path = folder / CONFIG
    content = _read(path)
    if content is None:
        raise _base_model_error(path, "is missing, so the folder is no base model")
    if not isinstance(content.get("model_type"), str):
        raise _base_model_error(path, "has no model_type")
    return content


def read_image_mean_std(folder: Path, default: ImageMeanStd) -> ImageMeanStd:
    """Mean and standard deviation of preprocessor_config.json, or the default if it is missing."""
    path = folder / PROCESSOR
    content = _read(path) or {}
    try:
        mean = _three_floats(content.get(_MEAN, default.image_mean))
        std = _three_floats(content.get(_STD, default.image_std))
    except (TypeError, ValueError) as error:
        raise _base_model_error(path, f"{_MEAN} or {_STD} must be three numbers: {error}") from None
    return ImageMeanStd(mean, std)


def weight_files(folder: Path) -> list[str]:
    """Names of the weight files and their index, preferably safetensors."""
    names = sorted(file_names(folder))
    for pattern in (_SAFE, _TORCH):
        matches = [name for name in names if Path(name.removesuffix(_INDEX)).match(pattern)]
        if matches:
            return matches
    raise _base_model_error(folder, f"holds no weights: neither {_SAFE} nor {_TORCH}")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the text tokenizer of a base model into a folder."""
    write_bytes(folder / TOKENIZER, read_tokenizer(source).encode())


def read_tokenizer(folder: Path) -> str:
    """Content of tokenizer.json."""
    path = folder / TOKENIZER
    try:
        return read_file(path).decode()
    except (FileNotFoundError, NotADirectoryError):
        raise _base_model_error(path, "is missing") from None
    except UnicodeDecodeError as error:
        raise _base_model_error(path, str(error)) from None


def read_tokenizer_asset(folder: Path) -> str:
    """Content of tokenizer.json among the assets of a run."""
    try:
        return read_tokenizer(folder)
    except DataError as error:
        raise DataError(
            error.message,
            hint="copy the run again, with all its files",
            code="data.broken",
            details=error.details,
        ) from None


def _three_floats(values: Any) -> tuple[float, float, float]:
    first, second, third = map(float, values)
    return first, second, third


def _read(path: Path) -> dict[str, Any] | None:
    """JSON object of a file; None if the file does not exist."""
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _base_model_error(path, str(error)) from None
    if not isinstance(content, dict):
        raise _base_model_error(path, "is not a JSON object")
    return content


_base_model_error = partial(
    DataError.at,
    hint="give a base model on the Hugging Face hub (owner/name), or a folder with its files",
    code="data.missing",
)


@dataclass(frozen=True)
class PublishedFile:
    name: str
    sha256: str = ""  # first digits of its SHA-256; empty if only `md5` is known
    md5: str = ""


CONVNEXT_S = PublishedFile("convnext_small-0c510722.pth", sha256="0c510722")
VGG16 = PublishedFile("vgg16-397923af.pth", sha256="397923af")
LPIPS_HEADS = PublishedFile("vgg.pth", md5="d507d7349b931f0638a25a48a722f98a")
INCEPTION = PublishedFile("pt_inception-2015-12-05-6726825d.pth", sha256="6726825d")


@dataclass(frozen=True)
class NetworkFile:
    path: Path
    sha256: str  # SHA-256 of its bytes


def find_network(weights: Path, published: PublishedFile) -> NetworkFile:
    """Weight file of a network: `weights` itself, or the published name in that folder.

    In a folder `NAME.safetensors` is accepted too.
    """
    stem = published.name.rpartition(".")[0]
    names = (published.name, f"{stem}.safetensors")
    candidates = [weights / name for name in names] if weights.is_dir() else [weights]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise DataError.at(
            weights,
            f"{published.name} does not exist",
            hint="give that file, or a folder that holds it; weights are not downloaded",
            code="data.missing",
            file=published.name,
        )
    network = NetworkFile(path, sha256_of(path))
    if path.name == published.name and not _is_as_published(network, published):
        raise DataError.at(
            path,
            "differs from the file published under this name",
            hint="copy or download it again, or rename the file if the weights are your own",
            code="data.mismatch",
            sha256=network.sha256,
        )
    return network


def _is_as_published(network: NetworkFile, published: PublishedFile) -> bool:
    if published.md5:
        with open_file(network.path) as file:
            return (
                hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
                == published.md5
            )
    return network.sha256.startswith(published.sha256)
