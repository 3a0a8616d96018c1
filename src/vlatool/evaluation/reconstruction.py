"""Metrics of reconstructions over a set of images, from sums that are added over ranks.

Legend of shapes: B images, S side of an image in pixels, K codes of an image.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from vlatool.evaluation.codebook_usage import CodebookUsage, FrameIndex
from vlatool.evaluation.frechet import FeatureMoments, frechet_distance
from vlatool.evaluation.image_quality import (
    ImageScores,
    MeanImageBaseline,
    Reduce,
    block_means,
    psnr,
    psnr_of_error,
    squared_error,
    ssim,
)
from vlatool.loading.images.kind import ImagesInfo

if TYPE_CHECKING:
    from vlatool.models.perceptual.networks import PerceptualDistance

# Side in pixels of a block that the baseline fills with one color: a patch of TiTok.
BLOCK = 16

_NUMBERED = re.compile(r"(.*?)(\d{1,18})\Z")


class Reconstruction(NamedTuple):
    """Reconstructed images and their codes.

    Attributes:
        images: uint8 [B, 3, S, S].
        codes: int [B, K]; None without a codebook.
    """

    images: Tensor
    codes: Tensor | None


class CodeShape(NamedTuple):
    """Codebook size and number of codes of an image."""

    codebook_size: int
    codes_per_image: int


class FeatureNetwork(Protocol):
    """Network whose features the Frechet distance compares, as `models.perceptual.inception`."""

    width: int

    def __call__(self, images: Tensor, /) -> Tensor:
        """Features [B, width] of images uint8 [B, 3, S, S]."""
        ...


@dataclass(frozen=True)
class MetricNetworks:
    """Networks of metrics on the device of the images; None without weights."""

    lpips: "PerceptualDistance | None" = None
    inception: FeatureNetwork | None = None


class ReconstructionSums:
    """Sums of the metrics over the images of one rank.

    Args:
        size: S.
        device: Device of the images.
        codes: Numbers of codes; None for a tokenizer without a codebook.
        networks: Networks of further metrics.
    """

    def __init__(
        self, size: int, device: torch.device, codes: CodeShape | None, networks: MetricNetworks
    ) -> None:
        self._networks = networks
        names = ["psnr", "ssim", "error", "block_error"]
        self.scores = ImageScores([*names, *(["lpips"] if networks.lpips else [])], device)
        self._mean = MeanImageBaseline.of_size(size, size, device)
        self._codes = None if codes is None else CodebookUsage.of(*codes, device)
        width = None if networks.inception is None else networks.inception.width
        self._features = [
            FeatureMoments.of_width(width, device) for _ in range(2) if width is not None
        ]

    def add(self, keys: Sequence[str], original: Tensor, reconstruction: Reconstruction) -> None:
        """Adds images uint8 [B, 3, S, S] and their reconstructions.

        Raises:
            DataError: A code is out of range, or the images are too small for a metric.
        """
        images = reconstruction.images
        metrics = {
            "psnr": psnr(original, images),
            "ssim": ssim(original, images),
            "error": squared_error(original, images),
            "block_error": squared_error(original, block_means(original, BLOCK)),
        }
        if self._networks.lpips is not None:
            pixels = original.float() / 255, images.float() / 255
            metrics["lpips"] = self._networks.lpips.distances(*pixels)
        self.scores.add(keys, metrics)
        self._mean.add(original)
        if self._codes is not None and reconstruction.codes is not None:
            self._codes.add(reconstruction.codes, [frame_index_of(key) for key in keys])
        for moments, batch in zip(self._features, (original, images), strict=False):
            assert self._networks.inception is not None
            moments.add(self._networks.inception(batch))

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """Metrics over all images of all ranks; every rank calls it. Empty without an image.

        Returns:
            psnr, ssim and lpips as means over images; psnr_of_mean_error, to compare with the
            baselines mean_picture_psnr (the mean of all images) and block_psnr (blocks of 16 x 16
            pixels in their mean color); metrics of the codes; rfid.
        """
        means = self.scores.means(reduce)
        mean_image = self._mean.psnr(reduce)
        codes = None if self._codes is None else self._codes.reduced(reduce)
        features = [moments.reduced(reduce) for moments in self._features]
        if not means:
            return {}
        error, block_error = (torch.tensor(means.pop(name)) for name in ("error", "block_error"))
        metrics = {
            **means,
            "psnr_of_mean_error": float(psnr_of_error(error)),
            "mean_picture_psnr": mean_image,
            "block_psnr": float(psnr_of_error(block_error)),
            **({} if codes is None else codes.metrics()),
        }
        return {**metrics, "rfid": frechet_distance(*features)} if features else metrics


def frame_index_of(key: str) -> FrameIndex:
    """Frame of an image by its name: the number at the end is the frame, the rest the sequence."""
    match = _NUMBERED.match(key)
    return FrameIndex(match[1], int(match[2])) if match else FrameIndex(key, 0)


def shards_of_rank(info: ImagesInfo, rank: int, world_size: int) -> ImagesInfo:
    """Info of the shards of one rank: whole shards, so that neighboring frames stay together.

    A rank may have none.
    """
    return replace(
        info,
        datasets=tuple(
            replace(dataset, shards=dataset.shards[rank::world_size]) for dataset in info.datasets
        ),
        shard_bytes=tuple(sizes[rank::world_size] for sizes in info.shard_bytes),
    )
