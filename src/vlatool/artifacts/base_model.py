"""A base model's folder as hubs hold it: config.json, weights, tokenizer, processor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlatool.errors import DataError
from vlatool.storage.atomic import write_bytes
from vlatool.storage.documents import read_json
from vlatool.storage.tree import file_names

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
PROCESSOR = "preprocessor_config.json"
_SAFE, _TORCH = "model*.safetensors", "pytorch_model*.bin"
_INDEX = ".index.json"
# Of both towers of CLIP; what its processors write beside them.
_MEAN, _STD = "image_mean", "image_std"


@dataclass(frozen=True)
class ImageMeanStd:
    """What pictures in [0, 1] are moved and divided by, for red, green and blue."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json of a base model.

    Raises:
        DataError: It is missing, broken, or does not name its kind.
    """
    path = folder / CONFIG
    content = _read(path)
    if content is None:
        raise _base_model_error(path, "is missing: no base model is there")
    if not isinstance(content.get("model_type"), str):
        raise _base_model_error(path, "names no model_type")
    return content


def read_image_mean_std(folder: Path, default: ImageMeanStd) -> ImageMeanStd:
    """Means and deviations of preprocessor_config.json, or the default where there is none.

    Raises:
        DataError: It is broken.
    """
    path = folder / PROCESSOR
    content = _read(path) or {}
    try:
        mean = _three_floats(content.get(_MEAN, default.image_mean))
        std = _three_floats(content.get(_STD, default.image_std))
    except (TypeError, ValueError) as error:
        raise _base_model_error(path, f"{_MEAN} or {_STD} are not three numbers: {error}") from None
    return ImageMeanStd(mean, std)


def weight_files(folder: Path) -> list[str]:
    """Names of the files of the weights with their index, safetensors where there are any.

    Raises:
        DataError: There are none.
    """
    names = sorted(file_names(folder))
    for pattern in (_SAFE, _TORCH):
        matches = [name for name in names if Path(name.removesuffix(_INDEX)).match(pattern)]
        if matches:
            return matches
    raise _base_model_error(folder, f"holds no weights: neither {_SAFE} nor {_TORCH}")


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Writes the tokenizer of a base model into a folder.

    Raises:
        DataError: There is none.
    """
    write_bytes(folder / TOKENIZER, read_tokenizer(source).encode())


def read_tokenizer(folder: Path) -> str:
    """The text of tokenizer.json.

    Raises:
        DataError: It is missing or no text.
    """
    path = folder / TOKENIZER
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise _base_model_error(path, "is missing") from None
    except UnicodeDecodeError as error:
        raise _base_model_error(path, str(error)) from None


def read_tokenizer_asset(folder: Path) -> str:
    """The tokenizer that a run keeps of its base model.

    Raises:
        DataError: It is missing or no text.
    """
    try:
        return read_tokenizer(folder)
    except DataError as error:
        raise DataError(
            error.message,
            hint="copy the run again, with all its files",
            code="data.broken_run",
            details=error.details,
        ) from None


def _three_floats(values: Any) -> tuple[float, float, float]:
    first, second, third = map(float, values)
    return first, second, third


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no file."""
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise _base_model_error(path, str(error)) from None
    if not isinstance(content, dict):
        raise _base_model_error(path, "is no JSON object")
    return content


def _base_model_error(path: Path, problem: str) -> DataError:
    return DataError(
        f"{path}: {problem}",
        hint="give a base model as owner/name of the hub, or a folder with its files",
        code="data.base_model",
        details={"path": str(path)},
    )
