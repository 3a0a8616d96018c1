"""What a tokenizer's reconstructions are worth over a set of pictures; sums that add up over ranks.

Legend of shapes: B pictures, S their size, K codes of a picture.
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
from vlatool.loading.images.info import ImagesInfo

if TYPE_CHECKING:
    from vlatool.models.perceptual.networks import PerceptualDistance

# Side in pixels of what a single colour replaces in the baseline: a patch of TiTok.
BLOCK = 16

_NUMBERED = re.compile(r"(.*?)(\d{1,18})\Z")


class Reconstruction(NamedTuple):
    """What a tokenizer makes of pictures.

    Attributes:
        images: uint8 [B, 3, S, S].
        codes: int [B, K]; None where there is no codebook.
    """

    images: Tensor
    codes: Tensor | None


class CodeShape(NamedTuple):
    """Codes of the book, and codes of a picture."""

    codebook_size: int
    codes_per_image: int


class FeatureNetwork(Protocol):
    """What the Frechet distance looks through: `models.perceptual.inception`."""

    width: int

    def __call__(self, images: Tensor, /) -> Tensor:
        """Features [B, width] of uint8 [B, 3, S, S]."""
        ...


@dataclass(frozen=True)
class MetricNetworks:
    """Networks whose weights were given, on the device of the pictures."""

    lpips: "PerceptualDistance | None" = None
    inception: FeatureNetwork | None = None


class ReconstructionSums:
    """Figures of the pictures of one rank.

    Args:
        size: S.
        device: Of the pictures.
        codes: None for a tokenizer without a codebook.
        judges: What else is measured.
    """

    def __init__(
        self, size: int, device: torch.device, codes: CodeShape | None, judges: MetricNetworks
    ) -> None:
        self._judges = judges
        names = ["psnr", "ssim", "error", "block_error"]
        self.scores = ImageScores([*names, *(["lpips"] if judges.lpips else [])], device)
        self._mean = MeanImageBaseline.of_size(size, size, device)
        self._codes = None if codes is None else CodebookUsage.of(*codes, device)
        width = None if judges.inception is None else judges.inception.width
        self._features = [
            FeatureMoments.of_width(width, device) for _ in range(2) if width is not None
        ]

    def add(self, keys: Sequence[str], original: Tensor, made: Reconstruction) -> None:
        """Takes in pictures uint8 [B, 3, S, S] and their reconstructions.

        Raises:
            DataError: A code is out of range, or the pictures are too small to be compared.
        """
        images = made.images
        figures = {
            "psnr": psnr(original, images),
            "ssim": ssim(original, images),
            "error": squared_error(original, images),
            "block_error": squared_error(original, block_means(original, BLOCK)),
        }
        if self._judges.lpips is not None:
            pixels = original.float() / 255, images.float() / 255
            figures["lpips"] = self._judges.lpips.distances(*pixels)
        self.scores.add(keys, figures)
        self._mean.add(original)
        if self._codes is not None and made.codes is not None:
            self._codes.add(made.codes, [frame_index_of(key) for key in keys])
        for moments, one in zip(self._features, (original, images), strict=False):
            assert self._judges.inception is not None
            moments.add(self._judges.inception(one))

    def metrics(self, reduce: Reduce) -> dict[str, float]:
        """Over all pictures of all ranks; every rank calls it. Empty without a picture.

        Returns:
            psnr, ssim and lpips as means over pictures; psnr_of_mean_error, which is to be compared
            with mean_picture_psnr (always the mean of all pictures) and block_psnr (blocks of 16
            pixels with their mean colour); figures of the codes; rfid.
        """
        means = self.scores.means(reduce)
        mean_image = self._mean.psnr(reduce)
        codes = None if self._codes is None else self._codes.reduced(reduce)
        features = [moments.reduced(reduce) for moments in self._features]
        if not means:
            return {}
        error, block_error = (torch.tensor(means.pop(name)) for name in ("error", "block_error"))
        found = {
            **means,
            "psnr_of_mean_error": float(psnr_of_error(error)),
            "mean_picture_psnr": mean_image,
            "block_psnr": float(psnr_of_error(block_error)),
            **({} if codes is None else codes.metrics()),
        }
        return {**found, "rfid": frechet_distance(*features)} if features else found


def frame_index_of(key: str) -> FrameIndex:
    """Where a picture stands, by its name: the number at the end counts frames of the rest."""
    match = _NUMBERED.match(key)
    return FrameIndex(match[1], int(match[2])) if match else FrameIndex(key, 0)


def shards_of_rank(info: ImagesInfo, rank: int, world_size: int) -> ImagesInfo:
    """The shards that one rank measures: whole ones, so that neighbouring frames stay together.

    A rank may be left without any.
    """
    return replace(
        info,
        datasets=tuple(replace(one, shards=one.shards[rank::world_size]) for one in info.datasets),
        shard_bytes=tuple(sizes[rank::world_size] for sizes in info.shard_bytes),
    )
