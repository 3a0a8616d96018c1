"""Weights of a MaskGIT-VQGAN: the published file, or a run of this program.

Source: reference/titok 1.8, 2.2.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlatool.errors import DataError
from vlatool.models.foreign import ForeignWeights, find_weights
from vlatool.models.weights import matching_state_dict, read_external_weights

_ENCODER = "encoder."


def load_vqgan(module: nn.Module, origin: str) -> None:
    """Loads the weights of a VQGAN; all names and shapes must match.

    Raises:
        DataError: The weights are missing or broken, or do not match.
    """
    source, weights = read_vqgan(origin)
    module.load_state_dict(matching_state_dict(module, weights, source.location))


def load_encoder(module: nn.Module, origin: str) -> None:
    """Loads only the encoder of a VQGAN.

    Raises:
        DataError: The weights are missing or broken, or do not match.
    """
    source, weights = read_vqgan(origin)
    encoder = {k.removeprefix(_ENCODER): v for k, v in weights.items() if k.startswith(_ENCODER)}
    module.load_state_dict(matching_state_dict(module, encoder, source.location))


def pixel_weights(origin: str) -> dict[str, Tensor]:
    """Reads the pixel decoder of TiTok from a VQGAN: all but its encoder, with names `pixel_*`.

    Raises:
        DataError: The weights are missing or broken.
    """
    _, weights = read_vqgan(origin)
    return {f"pixel_{k}": v for k, v in weights.items() if not k.startswith(_ENCODER)}


def read_vqgan(origin: str) -> tuple[ForeignWeights, dict[str, Tensor]]:
    """Finds and reads the weights of a VQGAN.

    Raises:
        DataError: The weights are missing or broken, or those of a run of another model type.
    """
    source = find_weights(origin)
    vqgan_section(source)
    return source, read_external_weights(source.path)


def vqgan_section(source: ForeignWeights) -> Mapping[str, Any] | None:
    """Returns the section `model` of the run of some weights; None for a published file.

    Raises:
        DataError: The run has another model type.
    """
    section = source.section
    if section is not None and section.get("type") != "vqgan":
        raise DataError(
            f"{source.origin}: the run has model type {section.get('type')!r}, expected vqgan",
            hint="use a run of model type vqgan, or the published file",
            code="data.no_vqgan",
            details={"path": source.origin},
        )
    return section
