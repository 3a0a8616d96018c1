"""Weights of a MaskGIT-VQGAN: the released file, or a run of this program. Source: reference/titok 1.8, 2.2."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlatool.errors import DataError
from vlatool.models.foreign import ForeignWeights, find_weights
from vlatool.models.weights import matching_state_dict, read_external_weights

_ENCODER = "encoder."


def load_vqgan(module: nn.Module, origin: str) -> None:
    """Loads all of a vqgan; every name and shape must fit.

    Raises:
        DataError: There is none, or it does not fit.
    """
    found, weights = read_vqgan(origin)
    module.load_state_dict(matching_state_dict(module, weights, found.location))


def load_encoder(module: nn.Module, origin: str) -> None:
    """Loads the encoder of a vqgan alone.

    Raises:
        DataError: There is none, or it does not fit.
    """
    found, weights = read_vqgan(origin)
    own = {k.removeprefix(_ENCODER): v for k, v in weights.items() if k.startswith(_ENCODER)}
    module.load_state_dict(matching_state_dict(module, own, found.location))


def pixel_weights(origin: str) -> dict[str, Tensor]:
    """What a tokenizer takes of a vqgan to draw pixels: all but the encoder, as `pixel_*`.

    Raises:
        DataError: There is none.
    """
    _, weights = read_vqgan(origin)
    return {f"pixel_{k}": v for k, v in weights.items() if not k.startswith(_ENCODER)}


def read_vqgan(origin: str) -> tuple[ForeignWeights, dict[str, Tensor]]:
    """A file of vqgan weights and its tensors.

    Raises:
        DataError: Nothing is there, it is broken, or of a run of another model type.
    """
    found = find_weights(origin)
    vqgan_section(found)
    return found, read_external_weights(found.path)


def vqgan_section(found: ForeignWeights) -> Mapping[str, Any] | None:
    """The `model` section of the run that weights are of; None for a released file.

    Raises:
        DataError: The run is of another model type.
    """
    section = found.section
    if section is not None and section.get("type") != "vqgan":
        raise DataError(
            f"{found.origin}: is a run of the model type {section.get('type')!r}, not of a vqgan",
            hint="give a run of a vqgan, or the released file",
            code="data.no_vqgan",
            details={"path": found.origin},
        )
    return section
