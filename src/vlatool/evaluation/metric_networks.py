"""Networks that reconstructions are judged by, as far as their weights are there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from vlatool.artifacts.published_networks import INCEPTION, find_network
from vlatool.errors import DataError
from vlatool.evaluation.reconstruction import MetricNetworks
from vlatool.models.perceptual.networks import inception_network, perceptual_network
from vlatool.storage.uri import require_existing

T = TypeVar("T")

_MISSING = "data.no_network_weights"


@dataclass(frozen=True)
class LoadedMetricNetworks:
    """What is there.

    Attributes:
        judges: On the device.
        digests: SHA-256 of each file of weights, by its name.
        missing: What cannot be measured, and why.
    """

    networks: MetricNetworks
    digests: Mapping[str, str]
    missing: Mapping[str, str]


def load_metric_networks(weights: str | None, device: torch.device) -> LoadedMetricNetworks:
    """The networks whose published files lie in a folder.

    Raises:
        DataError: The folder holds none of them, or a file is not what was published.
    """
    if weights is None:
        why = "no --perceptual-weights"
        return LoadedMetricNetworks(MetricNetworks(), {}, {"lpips": why, "rfid": why})
    folder = require_existing(weights)
    digests: dict[str, str] = {}
    missing: dict[str, str] = {}
    lpips = _tried(lambda: perceptual_network("lpips", folder), "lpips", missing)
    inception = _tried(lambda: inception_network(folder), "rfid", missing)
    if lpips is None and inception is None:
        raise DataError(
            f"{weights}: holds no weights that figures could be measured with: "
            f"{'; '.join(missing.values())}",
            hint="give the folder with the published files; nothing is downloaded",
            code=_MISSING,
            details={"path": weights, "missing": missing},
        )
    if lpips is not None:
        digests |= lpips.digests
        lpips = lpips.to(device)
    if inception is not None:
        found = find_network(folder, INCEPTION)
        digests[found.path.name] = found.sha256
        inception = inception.to(device)
    return LoadedMetricNetworks(MetricNetworks(lpips, inception), digests, missing)


def _tried(load: Callable[[], T], name: str, missing: dict[str, str]) -> T | None:
    try:
        return load()
    except DataError as error:
        if error.code != _MISSING:
            raise
        missing[name] = f"{Path(str(error.details['file'])).name} is not there"
        return None
