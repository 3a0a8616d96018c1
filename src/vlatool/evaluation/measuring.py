"""One pass of a tokenizer over image shards: figures of all ranks, rows and drops of this one."""

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
from vlatool.loading.images.info import ImagesInfo, load_info
from vlatool.loading.images.kind import ImagesKind
from vlatool.loading.images.reader import ImageSample
from vlatool.loading.loader import LoaderPlan, build_loader
from vlatool.loading.order import OrderOptions, SampleOrder


class PixelTokenizer(Protocol):
    """What makes codes of pictures and pictures of codes."""

    @property
    def size(self) -> int:
        """Pixels of a side."""
        ...

    @property
    def codes(self) -> CodeShape | None:
        """None without a codebook."""
        ...

    def __call__(self, images: Tensor, /) -> Reconstruction:
        """Of pictures uint8 [B, 3, size, size], on the device; without gradient."""
        ...


@dataclass(frozen=True)
class EvalOptions:
    """How the pictures are read.

    Attributes:
        batch_size: Pictures at once.
        device: Where the tokenizer is.
        rank: This process.
        world_size: All processes.
        num_workers: Loader processes of this one.
    """

    batch_size: int = 64
    device: torch.device | None = None
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0


@dataclass(frozen=True)
class EvalResult:
    """What came of it.

    Attributes:
        figures: Of the pictures of all ranks; see `ReconstructionSums.figures`.
        pictures: How many those are.
        dropped: Pictures of all ranks that could not be used, by the reason.
        rows: The figures of each picture of this rank.
    """

    metrics: Mapping[str, float]
    pictures: int
    dropped: Mapping[str, int]
    rows: Sequence[ImageScore]


def evaluate_reconstruction(
    tokenizer: PixelTokenizer,
    config: ImageDataConfig,
    options: EvalOptions,
    networks: MetricNetworks,
    reduce: Reduce = lambda one: one,
    reporter: Reporter = NULL,
) -> EvalResult:
    """Draws every picture again and compares; every rank calls it, each reads whole shards.

    Args:
        tokenizer: What is measured.
        config: The pictures, prepared by the rule that belongs to the tokenizer; no chance is left.
        how: How they are read.
        judges: Networks to measure with.
        reduce: Sums a tensor over all ranks.
        reporter: Hears of shards that are scanned first.

    Raises:
        DataError: The data are missing or broken, are prepared for another size than the
            tokenizer's, or no picture could be used.
    """
    if config.preprocessing.crop_size != tokenizer.size:
        raise DataError(
            f"pictures of {config.preprocessing.crop_size} pixels, the tokenizer takes "
            f"{tokenizer.size}",
            hint="prepare them by the rule that is kept beside the tokenizer",
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
                told = f"a picture is left out, further ones are counted: {batch.first_drop}"
                reporter.warn("data.dropped_samples", told)
            dropped.update(dict(zip(ImagesKind.drop_reasons, batch.dropped, strict=True)))
            if not batch.is_dummy:
                images = batch.batch["images"].to(options.device)
                sums.add(batch.samples, images, tokenizer(images))
    return _over_ranks(sums, dropped, reduce, config)


@dataclass(frozen=True)
class ReconstructedImage:
    """A picture and what a tokenizer makes of it: uint8 [S, S, 3]."""

    original: UInt8Array
    reconstruction: UInt8Array


def reconstruct(
    tokenizer: PixelTokenizer, config: ImageDataConfig, options: EvalOptions, keys: Collection[str]
) -> dict[str, ReconstructedImage]:
    """Some pictures by name; by one rank alone, which reads on until it has them all."""
    config = config.model_copy(update={"preprocessing": config.preprocessing.without_randomness()})
    info = load_info(config)
    alone = replace(options, rank=0, world_size=1)
    found: dict[str, ReconstructedImage] = {}
    with torch.inference_mode(), closing(_batches(config, info, alone)) as batches:
        for batch in batches:
            chosen = [] if batch.is_dummy else [i for i, k in enumerate(batch.samples) if k in keys]
            if chosen:
                images = batch.batch["images"][chosen].to(options.device)
                made = tokenizer(images).images
                names = [batch.samples[index] for index in chosen]
                found |= _pairs(names, images, made)
            if len(found) == len(keys):
                break
    return found


def _pairs(names: Sequence[str], images: Tensor, made: Tensor) -> dict[str, ReconstructedImage]:
    sides = (one.permute(0, 2, 3, 1).cpu().numpy() for one in (images, made))
    return {name: ReconstructedImage(*pair) for name, *pair in zip(names, *sides, strict=True)}


def _over_ranks(
    sums: ReconstructionSums, dropped: Counter[str], reduce: Reduce, config: ImageDataConfig
) -> EvalResult:
    counts = [float(dropped[reason]) for reason in ImagesKind.drop_reasons]
    device = sums.scores.device
    own = torch.tensor([len(sums.scores.rows), *counts], dtype=torch.float64, device=device)
    images, *drops = map(int, reduce(own).tolist())
    figures = sums.metrics(reduce)
    told = {reason: n for reason, n in zip(ImagesKind.drop_reasons, drops, strict=True) if n}
    if not images:
        why = ", ".join(f"{count} {reason}" for reason, count in told.items()) or "there are none"
        raise DataError(
            f"{', '.join(config.shards)}: no picture could be used: {why}",
            hint="look at the shards with `vlatool verify`",
            code="data.no_samples",
            details={"dropped": told},
        )
    return EvalResult(figures, images, told, sums.scores.rows)


def _batches(config: ImageDataConfig, part: ImagesInfo, how: EvalOptions) -> Generator[MicroBatch]:
    """The pictures of a rank in stored order."""
    order = SampleOrder(part.datasets, OrderOptions(shuffle=False))
    plan = LoaderPlan(
        batch_size=how.batch_size,
        count=order.size,
        num_workers=how.num_workers,
        drop_reasons=ImagesKind.drop_reasons,
    )
    reader = ImagesKind().reader(config, part)
    with build_loader(plan, order, reader, _stacked, dict) as loader:
        yield from loader


def _stacked(samples: Sequence[Any]) -> Batch:
    """Images uint8 [B, 3, S, S] of samples."""
    found: Sequence[ImageSample] = samples
    stacked = np.stack([one.image for one in found]).transpose(0, 3, 1, 2)
    return {"images": torch.from_numpy(np.ascontiguousarray(stacked))}
