"""Weights of a MaskGIT-VQGAN: the published file, or a run of this program.

Source: reference/titok 1.8, 2.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlatool.models.trained import WeightsOrigin, existing_weights
from vlatool.models.vqgan.config import VqganNetworkConfig
from vlatool.models.vqgan.model import Vqgan
from vlatool.models.weights import check_shapes, init_state_dict, matching_state_dict

_ENCODER = "encoder."


def load_vqgan(module: nn.Module, origin: str, excluded: Sequence[str] = ()) -> None:
    """Loads the weights of a VQGAN; all names and shapes must match, but for some networks."""
    source, weights = read_vqgan(origin)
    module.load_state_dict(init_state_dict(module, weights, source.file, excluded))


def open_vqgan(config: VqganNetworkConfig, origin: str) -> Vqgan:
    """Builds a VQGAN with the weights of a file or run."""
    with torch.device("meta"):
        network = Vqgan(config)
    source, weights = read_vqgan(origin)
    check_shapes(network, weights, source.file)
    network = Vqgan(config)
    network.load_state_dict(matching_state_dict(network, weights, source.file))
    return network


def load_encoder(module: nn.Module, origin: str) -> None:
    """Loads only the encoder of a VQGAN."""
    source, weights = read_vqgan(origin)
    encoder = {k.removeprefix(_ENCODER): v for k, v in weights.items() if k.startswith(_ENCODER)}
    module.load_state_dict(matching_state_dict(module, encoder, source.file))


def pixel_weights(origin: str) -> dict[str, Tensor]:
    """Reads the pixel decoder of TiTok from a VQGAN: all but its encoder, with names `pixel_*`."""
    _, weights = read_vqgan(origin)
    return {f"pixel_{k}": v for k, v in weights.items() if not k.startswith(_ENCODER)}


def read_vqgan(origin: str) -> tuple[WeightsOrigin, dict[str, Tensor]]:
    """Finds and reads the weights of a VQGAN."""
    source = existing_weights(origin)
    source.check_type("vqgan", "data.no_vqgan")
    return source, source.read()
