"""Weights from safetensors files into models, strictly."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vlatool.errors import DataError

_SHOWN = 5


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a safetensors file into a model; every name and shape must fit.

    Raises:
        DataError: The file is missing or broken, or keys or shapes differ; names the first few.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise unusable_checkpoint(path, error) from None
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected.keys() - weights.keys()]
    problems += [f"unexpected {name}" for name in weights.keys() - expected.keys()]
    problems += [
        f"{name} is {list(weights[name].shape)}, the model has {list(value.shape)}"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if problems:
        raise DataError(
            f"{path}: does not fit the model: {'; '.join(sorted(problems)[:_SHOWN])}",
            hint="use the configuration that the checkpoint was trained with",
            code="data.checkpoint_mismatch",
            details={"problems": sorted(problems)},
        )
    model.load_state_dict(weights)


def unusable_checkpoint(path: Path, error: object) -> DataError:
    """The error for a checkpoint file that cannot be read."""
    return DataError(
        f"{path}: cannot be loaded: {error}",
        hint="the checkpoint is damaged or of another model; use an earlier one",
        code="data.broken_checkpoint",
        details={"path": str(path)},
    )
