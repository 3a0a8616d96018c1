"""How a tokenizer's pictures were prepared, as it stands beside its weights."""

from typing import Any

from pydantic import ValidationError

from vlatool.artifacts.provenance import read_preprocessing_config
from vlatool.errors import DataError
from vlatool.loading.images.config import ImagePreprocessing
from vlatool.models.foreign import find_weights


def read_preprocessing(location: str, size: int | None) -> ImagePreprocessing:
    """The rule of a run or a published folder, without chance; of a file the default one.

    Args:
        location: As for `open_tokenizer`.
        size: S; None for that of the rule.

    Raises:
        DataError: Nothing is there, or the rule is broken or for another size.
    """
    return _rule(location, _told(location), size)


def resize_rule(location: str, size: int) -> ImagePreprocessing | None:
    """How pictures of other sizes become those of training; None where nothing says it.

    Raises:
        DataError: As `read_preprocessing`.
    """
    told = _told(location)
    rule = _rule(location, told, size)
    return rule if "resize_shorter_edge" in told else None


def _told(location: str) -> dict[str, Any]:
    """The keys that stand beside the weights."""
    found = find_weights(location)
    told: object = {}
    if found.run is not None:
        told = read_preprocessing_config(found.run)
    elif found.published is not None:
        dataset = found.published.get("dataset")
        told = dataset.get("preprocessing") if isinstance(dataset, dict) else None
    keys = told if isinstance(told, dict) else {}
    return {key: one for key, one in keys.items() if key in ImagePreprocessing.model_fields}


def _rule(location: str, told: dict[str, Any], size: int | None) -> ImagePreprocessing:
    try:
        rule = ImagePreprocessing.model_validate({"crop_size": size, **told})
    except ValidationError as error:
        raise _broken_rule(location, str(error.errors()[0]["msg"])) from None
    if size not in (None, rule.crop_size):
        raise _broken_rule(location, f"crop_size {rule.crop_size}, the tokenizer takes {size}")
    return rule.without_randomness()


def _broken_rule(location: str, reason: str) -> DataError:
    return DataError(
        f"{location}: its rule of preprocessing: {reason}",
        hint="copy it again from where it was trained",
        code="data.broken_config",
        details={"path": location},
    )
