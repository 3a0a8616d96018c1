"""Evaluation of a visual tokenizer on image shards, by one rank or several.

Legend of shapes: B images, S side of an image in pixels.
"""

from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.evaluation.image_quality import ImageScore, Reduce
from vlatool.evaluation.reconstruction import (
    CodeShape,
    MetricNetworks,
    Reconstruction,
    ReconstructionSums,
    shards_of_rank,
)
from vlatool.events import NULL, Reporter
from vlatool.loading.base import Batch, MicroBatch
from vlatool.loading.images.config import ImageDataConfig
from vlatool.loading.images.kind import ImageSample, ImagesInfo, ImagesKind, load_info
from vlatool.loading.loader import LoaderPlan, build_loader
from vlatool.loading.order import OrderOptions, SampleOrder


class PixelTokenizer(Protocol):
    """Visual tokenizer that reconstructs images."""

    @property
    def size(self) -> int:
        """S."""
        ...

    @property
    def codes(self) -> CodeShape | None:
        """Numbers of codes; None without a codebook."""
        ...

    def __call__(self, images: Tensor, /) -> Reconstruction:
        """Reconstructs images uint8 [B, 3, S, S] on the device, without gradients."""
        ...


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation.

    Attributes:
        batch_size: Images of a batch.
        device: Device of the tokenizer.
        rank: Rank of this process.
        world_size: Number of ranks.
        num_workers: Loader workers of this process.
    """

    batch_size: int = 64
    device: torch.device | None = None
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0


@dataclass(frozen=True)
class EvalResult:
    """Result of an evaluation.

    Attributes:
        metrics: Metrics over the images of all ranks; see `ReconstructionSums.metrics`.
        num_images: Number of images of all ranks.
        dropped: Map from drop reason to number of images of all ranks.
        rows: Metrics of each image of this rank.
    """

    metrics: Mapping[str, float]
    num_images: int
    dropped: Mapping[str, int]
    rows: Sequence[ImageScore]


def evaluate_reconstruction(
    tokenizer: PixelTokenizer,
    config: ImageDataConfig,
    options: EvalOptions,
    networks: MetricNetworks,
    reduce: Reduce = lambda tensor: tensor,
    reporter: Reporter = NULL,
) -> EvalResult:
    """Reconstructs every image and compares. Every rank calls it; each reads whole shards.

    Args:
        tokenizer: Tokenizer to evaluate.
        config: Image shards, with the preprocessing of the tokenizer; its random part is disabled.
        options: Batch size, device, ranks and workers.
        networks: Networks of the metrics that need one.
        reduce: Function that sums a tensor over all ranks.
        reporter: Gets the progress of indexing shards.

    Raises:
        DataError: The data are missing or broken, their preprocessing is for another size than the
            tokenizer's, or no image could be used.
    """
    if config.preprocessing.crop_size != tokenizer.size:
        raise DataError(
            f"preprocessing.crop_size is {config.preprocessing.crop_size}, the tokenizer takes "
            f"images of {tokenizer.size} pixels",
            hint="use the preprocessing that is stored beside the tokenizer",
            code="data.picture_size",
        )
    config = config.model_copy(update={"preprocessing": config.preprocessing.without_randomness()})
    part = shards_of_rank(load_info(config, reporter), options.rank, options.world_size)
    sums = ReconstructionSums(
        tokenizer.size, options.device or torch.device("cpu"), tokenizer.codes, networks
    )
    dropped = Counter[str]()
    with torch.inference_mode():
        for batch in _batches(config, part, options) if part.num_samples else ():
            if batch.first_drop and not dropped.total():
                message = f"an image is dropped, further ones are only counted: {batch.first_drop}"
                reporter.warn("data.dropped_samples", message)
            dropped.update(dict(zip(ImagesKind.drop_reasons, batch.dropped, strict=True)))
            if not batch.is_dummy:
                images = batch.batch["images"].to(options.device)
                sums.add(batch.samples, images, tokenizer(images))
    return _over_ranks(sums, dropped, reduce, config)


@dataclass(frozen=True)
class ReconstructedImage:
    """Image and its reconstruction: uint8 [S, S, 3]."""

    original: UInt8Array
    reconstruction: UInt8Array


def reconstruct(
    tokenizer: PixelTokenizer, config: ImageDataConfig, options: EvalOptions, keys: Collection[str]
) -> dict[str, ReconstructedImage]:
    """Reconstructs the images named `keys`. Only one rank calls it; it reads until it has all."""
    config = config.model_copy(update={"preprocessing": config.preprocessing.without_randomness()})
    info = load_info(config)
    single = replace(options, rank=0, world_size=1)
    images: dict[str, ReconstructedImage] = {}
    with torch.inference_mode(), closing(_batches(config, info, single)) as batches:
        for batch in batches:
            chosen = [] if batch.is_dummy else [i for i, k in enumerate(batch.samples) if k in keys]
            if chosen:
                originals = batch.batch["images"][chosen].to(options.device)
                reconstructions = tokenizer(originals).images
                names = [batch.samples[index] for index in chosen]
                images |= _pairs(names, originals, reconstructions)
            if len(images) == len(keys):
                break
    return images


def _pairs(
    names: Sequence[str], originals: Tensor, reconstructions: Tensor
) -> dict[str, ReconstructedImage]:
    sides = (images.permute(0, 2, 3, 1).cpu().numpy() for images in (originals, reconstructions))
    return {name: ReconstructedImage(*pair) for name, *pair in zip(names, *sides, strict=True)}


def _over_ranks(
    sums: ReconstructionSums, dropped: Counter[str], reduce: Reduce, config: ImageDataConfig
) -> EvalResult:
    counts = [float(dropped[reason]) for reason in ImagesKind.drop_reasons]
    device = sums.scores.device
    own = torch.tensor([len(sums.scores.rows), *counts], dtype=torch.float64, device=device)
    images, *drops = map(int, reduce(own).tolist())
    metrics = sums.metrics(reduce)
    total = {reason: n for reason, n in zip(ImagesKind.drop_reasons, drops, strict=True) if n}
    if not images:
        why = ", ".join(f"{count} {reason}" for reason, count in total.items()) or "there are none"
        raise DataError(
            f"{', '.join(config.shards)}: no image could be used: {why}",
            hint="check the shards with `vlatool verify`",
            code="data.no_samples",
            details={"dropped": total},
        )
    return EvalResult(metrics, images, total, sums.scores.rows)


def _batches(
    config: ImageDataConfig, part: ImagesInfo, options: EvalOptions
) -> Generator[MicroBatch]:
    """Yields the images of a rank in stored order."""
    order = SampleOrder(part.datasets, OrderOptions(shuffle=False))
    plan = LoaderPlan(
        batch_size=options.batch_size,
        count=order.size,
        num_workers=options.num_workers,
        drop_reasons=ImagesKind.drop_reasons,
    )
    reader = ImagesKind().reader(config, part)
    with build_loader(plan, order, reader, _stacked, dict) as loader:
        yield from loader


def _stacked(samples: Sequence[Any]) -> Batch:
    """Images of samples, stacked: uint8 [B, 3, S, S]."""
    typed: Sequence[ImageSample] = samples
    stacked = np.stack([sample.image for sample in typed]).transpose(0, 3, 1, 2)
    return {"images": torch.from_numpy(np.ascontiguousarray(stacked))}
