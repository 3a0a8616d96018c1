"""Networks of the metrics LPIPS and rFID, loaded from their published weights."""

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
    """Loaded networks and the metrics that cannot be computed.

    Attributes:
        networks: Networks on the device.
        digests: File name of weights to SHA-256.
        missing: Metric that cannot be computed to the reason.
    """

    networks: MetricNetworks
    digests: Mapping[str, str]
    missing: Mapping[str, str]


def load_metric_networks(weights: str | None, device: torch.device) -> LoadedMetricNetworks:
    """Loads the networks whose published files are in a folder.

    Raises:
        DataError: The folder has none of the files, or a file differs from the published one.
    """
    if weights is None:
        reason = "no --perceptual-weights"
        return LoadedMetricNetworks(MetricNetworks(), {}, {"lpips": reason, "rfid": reason})
    folder = require_existing(weights)
    digests: dict[str, str] = {}
    missing: dict[str, str] = {}
    lpips = _tried(lambda: perceptual_network("lpips", folder), "lpips", missing)
    inception = _tried(lambda: inception_network(folder), "rfid", missing)
    if lpips is None and inception is None:
        raise DataError(
            f"{weights}: no weights of a metric network here: {'; '.join(missing.values())}",
            hint="give the folder with the published files; they are not downloaded",
            code=_MISSING,
            details={"path": weights, "missing": missing},
        )
    if lpips is not None:
        digests |= lpips.digests
        lpips = lpips.to(device)
    if inception is not None:
        file = find_network(folder, INCEPTION)
        digests[file.path.name] = file.sha256
        inception = inception.to(device)
    return LoadedMetricNetworks(MetricNetworks(lpips, inception), digests, missing)


def _tried(load: Callable[[], T], name: str, missing: dict[str, str]) -> T | None:
    try:
        return load()
    except DataError as error:
        if error.code != _MISSING:
            raise
        missing[name] = f"{Path(str(error.details['file'])).name} is missing"
        return None
