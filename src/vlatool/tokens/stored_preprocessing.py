"""Preprocessing of a tokenizer's images, as stored beside its weights."""

from typing import Any

from pydantic import ValidationError

from vlatool.artifacts.shards.provenance import read_preprocessing_config
from vlatool.errors import DataError
from vlatool.loading.images.config import ImagePreprocessing
from vlatool.models.foreign import find_weights


def read_preprocessing(location: str, size: int | None) -> ImagePreprocessing:
    """Preprocessing of a run or a published folder without its random part; of a file the default.

    Args:
        location: As for `open_tokenizer`.
        size: Image side of the tokenizer in pixels; None: that of the stored preprocessing.

    Raises:
        DataError: There are no weights, or the preprocessing is broken or for another size.
    """
    return _preprocessing(location, _stored_keys(location), size)


def resize_rule(location: str, size: int) -> ImagePreprocessing | None:
    """Preprocessing that resizes images of other sizes; None if no resize is stored.

    Raises:
        DataError: As `read_preprocessing`.
    """
    keys = _stored_keys(location)
    preprocessing = _preprocessing(location, keys, size)
    return preprocessing if "resize_shorter_edge" in keys else None


def _stored_keys(location: str) -> dict[str, Any]:
    """Keys of the preprocessing that is stored beside the weights."""
    weights = find_weights(location)
    stored: object = {}
    if weights.run is not None:
        stored = read_preprocessing_config(weights.run)
    elif weights.published is not None:
        dataset = weights.published.get("dataset")
        stored = dataset.get("preprocessing") if isinstance(dataset, dict) else None
    keys = stored if isinstance(stored, dict) else {}
    return {key: value for key, value in keys.items() if key in ImagePreprocessing.model_fields}


def _preprocessing(location: str, keys: dict[str, Any], size: int | None) -> ImagePreprocessing:
    try:
        preprocessing = ImagePreprocessing.model_validate({"crop_size": size, **keys})
    except ValidationError as error:
        raise _config_error(location, str(error.errors()[0]["msg"])) from None
    crop_size = preprocessing.crop_size
    if size not in (None, crop_size):
        raise _config_error(location, f"crop_size is {crop_size}, the tokenizer takes {size}")
    return preprocessing.without_randomness()


def _config_error(location: str, reason: str) -> DataError:
    return DataError(
        f"{location}: broken stored preprocessing: {reason}",
        hint="copy the preprocessing from the original run or download again",
        code="data.broken_config",
        details={"path": location},
    )
