"""Evaluates the reconstructions of a visual tokenizer on one or more ranks, and writes the page.

Legend of shapes: B images, S side of an image in pixels, K codes of an image.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlatool.datasets.base_model import INCEPTION, find_network
from vlatool.episode import UInt8Array
from vlatool.errors import DataError
from vlatool.evaluation import image_metrics
from vlatool.evaluation.facts import command_section
from vlatool.events import NULL, Reporter, counted
from vlatool.jobs.ownership import require_input
from vlatool.loading.base import Batch, DataSet, DroppedSample, MicroBatch
from vlatool.loading.images.config import ImageDataConfig
from vlatool.loading.images.kind import ImageSample, ImagesInfo, ImagesKind, load_info
from vlatool.loading.loader import LoaderPlan, build_loader
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.models.base import Reconstruction, VisualTokenizer
from vlatool.models.images import psnr_of_error, to_uint8
from vlatool.models.inception import inception_network
from vlatool.models.perceptual import perceptual_network
from vlatool.report.facts import Figure, Figures, Part, Section, Table, Text
from vlatool.report.page import page
from vlatool.storage.atomic import write_text

if TYPE_CHECKING:
    from vlatool.models.perceptual import PerceptualDistance

T = TypeVar("T")
ImagePair = tuple[UInt8Array, UInt8Array]  # an image and its reconstruction, uint8 [S, S, 3]
# Images uint8 [B, S, S, 3] to their reconstructions.
Reconstruct = Callable[[Tensor], Reconstruction]

_MISSING = "data.missing"
# Side in pixels of a block that the baseline fills with one color. Source: reference/titok 5.4.
BLOCK = 16

_NUMBERED = re.compile(r"(.*?)(\d{1,18})\Z")


class FeatureNetwork(Protocol):
    """Network whose features the Frechet distance compares: `models.inception`."""

    width: int

    def __call__(self, images: Tensor, /) -> Tensor:
        """Features [B, width] of images uint8 [B, 3, S, S]."""
        ...


@dataclass(frozen=True)
class MetricNetworks:
    """Networks of metrics on the device of the images; None without weights."""

    lpips: "PerceptualDistance | None" = None
    inception: FeatureNetwork | None = None  # network of rFID
    # File name of weights to SHA-256.
    digests: Mapping[str, str] = field(default_factory=dict[str, str])
    # Metric that cannot be computed to the reason.
    missing: Mapping[str, str] = field(default_factory=dict[str, str])


class ReconstructionSums:
    """Sums of the metrics over the images of one rank."""

    def __init__(
        self, tokenizer: VisualTokenizer, device: torch.device, networks: MetricNetworks
    ) -> None:
        self._networks = networks
        names = ["psnr", "ssim", "error", "block_error"]
        if networks.lpips is not None:
            names.append("lpips")
        self.scores = image_metrics.ImageScores(names, device)
        size = tokenizer.image_size
        self._mean = image_metrics.MeanImageBaseline.of_size(size, size, device)
        self._motion = image_metrics.MovingPixels.of(device)
        self._codes: image_metrics.CodebookUsage | None = None  # None for continuous tokens
        if tokenizer.codebook_size:
            self._codes = image_metrics.CodebookUsage.of(
                tokenizer.codebook_size, tokenizer.codes_per_image, device
            )
        # Features of originals and of reconstructions; empty without their network.
        self._features: list[image_metrics.FeatureMoments] = []
        if networks.inception is not None:
            width = networks.inception.width
            for _ in range(2):
                self._features.append(image_metrics.FeatureMoments.of_width(width, device))

    def add(self, keys: Sequence[str], original: Tensor, reconstruction: Reconstruction) -> None:
        """Adds images uint8 [B, 3, S, S] and their reconstructions."""
        images = to_uint8(reconstruction.pixels)
        error = image_metrics.squared_error(original, images)
        blocks = image_metrics.block_means(original, BLOCK)
        metrics = {
            "psnr": psnr_of_error(error),
            "ssim": image_metrics.ssim(original, images),
            "error": error,
            "block_error": image_metrics.squared_error(original, blocks),
        }
        if self._networks.lpips is not None:
            lpips = self._networks.lpips
            metrics["lpips"] = lpips.distances(original.float() / 255, images.float() / 255)
        self.scores.add(keys, metrics)
        self._mean.add(original)
        frames = [frame_index_of(key) for key in keys]
        self._motion.add(original, images, frames)
        if self._codes is not None and reconstruction.codes is not None:
            self._codes.add(reconstruction.codes, frames)
        if self._networks.inception is not None:
            of_originals, of_reconstructions = self._features
            of_originals.add(self._networks.inception(original))
            of_reconstructions.add(self._networks.inception(images))

    def metrics(self, reduce: image_metrics.Reduce) -> dict[str, float]:
        """Metrics over all images of all ranks; every rank must call it. Empty without images.

        Returns psnr, ssim and lpips as means over images; psnr_of_mean_error, to compare with the
        baselines mean_picture_psnr (the mean of all images) and block_psnr (blocks of 16 x 16
        pixels in their mean color); psnr_of_moving_pixels; metrics of the codes; rfid.
        """
        means = self.scores.means(reduce)
        mean_image = self._mean.psnr(reduce)
        motion = self._motion.metrics(reduce)
        codes = None if self._codes is None else self._codes.reduced(reduce)
        features = [moments.reduced(reduce) for moments in self._features]
        if not means:
            return {}
        error = torch.tensor(means.pop("error"))
        block_error = torch.tensor(means.pop("block_error"))
        metrics = dict(means)
        metrics["psnr_of_mean_error"] = float(psnr_of_error(error))
        metrics |= motion
        metrics["mean_picture_psnr"] = mean_image
        metrics["block_psnr"] = float(psnr_of_error(block_error))
        if codes is not None:
            metrics |= codes.metrics()
        if features:
            metrics["rfid"] = image_metrics.frechet_distance(*features)
        return metrics


def frame_index_of(key: str) -> image_metrics.FrameIndex:
    """Frame of an image by its name: the number at the end is the frame, the rest the sequence."""
    match = _NUMBERED.match(key)
    if match is None:
        return image_metrics.FrameIndex(key, 0)
    return image_metrics.FrameIndex(match[1], int(match[2]))


def load_metric_networks(weights: str | None, device: torch.device) -> MetricNetworks:
    """Loads the networks with published files in a folder."""
    if weights is None:
        reason = "no --perceptual-weights"
        return MetricNetworks(missing={"lpips": reason, "rfid": reason})
    folder = require_input(weights)
    digests: dict[str, str] = {}
    missing: dict[str, str] = {}
    lpips = _tried(lambda: perceptual_network("lpips", folder), "lpips", missing)
    inception = _tried(lambda: inception_network(folder), "rfid", missing)
    if lpips is None and inception is None:
        raise DataError.at(
            weights,
            f"no weights of a metric network in this folder: {'; '.join(missing.values())}",
            hint="download the published files into one folder, and give this folder",
            code=_MISSING,
            missing=missing,
        )
    if lpips is not None:
        digests |= lpips.digests
        lpips = lpips.to(device)
    if inception is not None:
        file = find_network(folder, INCEPTION)
        digests[file.path.name] = file.sha256
        inception = inception.to(device)
    return MetricNetworks(lpips, inception, digests, missing)


def _tried(load: Callable[[], T], name: str, missing: dict[str, str]) -> T | None:
    try:
        return load()
    except DataError as error:
        if error.code != _MISSING:
            raise
        missing[name] = f"{Path(str(error.details['file'])).name} is missing"
        return None


@dataclass(frozen=True)
class EvalOptions:
    """Options of an evaluation."""

    batch_size: int = 64  # images of a batch
    # Device of the tokenizer.
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0  # rank of this process
    world_size: int = 1  # number of ranks
    num_workers: int = 0  # loader workers of this process
    reduce: image_metrics.Reduce = lambda tensor: tensor  # sum of a tensor over all ranks


@dataclass(frozen=True)
class EvalResult:
    """Result of an evaluation."""

    # Metrics over the images of all ranks; see `ReconstructionSums.metrics`.
    metrics: Mapping[str, float]
    num_images: int  # number of images of all ranks
    dropped: Mapping[str, int]  # map from drop reason to number of images of all ranks
    rows: Sequence[image_metrics.ImageScore]  # metrics of each image of this rank
    drops: Sequence[DroppedSample] = ()  # dropped images of this rank


def evaluate_reconstruction(
    tokenizer: VisualTokenizer,
    run: Reconstruct,  # its function that reconstructs images
    config: ImageDataConfig,
    options: EvalOptions,  # batch size, device, ranks and workers
    networks: MetricNetworks,  # networks of the metrics that need one
    reporter: Reporter = NULL,  # gets the progress of indexing shards
) -> EvalResult:
    """Reconstructs every image and compares. Every rank must call it; each reads whole shards."""
    if config.preprocessing.crop_size != tokenizer.image_size:
        raise DataError(
            f"preprocessing.crop_size is {config.preprocessing.crop_size}, the tokenizer takes "
            f"images of {tokenizer.image_size} pixels",
            hint="use the preprocessing that is stored beside the tokenizer",
            code="data.mismatch",
        )
    config = config.model_copy(update={"preprocessing": config.preprocessing.without_randomness()})
    part = shards_of_rank(load_info(config, reporter), options.rank, options.world_size)
    sums = ReconstructionSums(tokenizer, options.device, networks)
    drops: list[DroppedSample] = []
    if part.num_samples:
        with torch.inference_mode():
            for batch in _batches(config, part, options):
                if batch.drops and not drops:
                    message = (
                        f"an image is left out; the report lists all: {batch.drops[0].message}"
                    )
                    reporter.warn("data.dropped_samples", message)
                drops += batch.drops
                if not batch.is_dummy:
                    images = batch.batch["images"].to(options.device)
                    sums.add(batch.samples, images, run(images.permute(0, 2, 3, 1)))
    counts = [len(sums.scores.rows)]
    drop_counts = Counter(drop.reason for drop in drops)
    for reason in ImagesKind.drop_reasons:
        counts.append(drop_counts[reason])
    own = torch.tensor(counts, dtype=torch.float64, device=sums.scores.device)
    num_images, *all_drops = map(int, options.reduce(own).tolist())
    metrics = sums.metrics(options.reduce)
    dropped: dict[str, int] = {}
    for reason, count in zip(ImagesKind.drop_reasons, all_drops, strict=True):
        if count:
            dropped[reason] = count
    if not num_images:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise DataError(
            f"{', '.join(config.shards)}: no image could be used: {why or 'there are none'}",
            hint="check the shards with `vlatool verify`",
            code="data.no_samples",
            details={"dropped": dropped},
        )
    return EvalResult(metrics, num_images, dropped, sums.scores.rows, drops)


def reconstruct(
    run: Reconstruct, config: ImageDataConfig, options: EvalOptions, keys: Collection[str]
) -> dict[str, ImagePair]:
    """Reconstructs the images named `keys`. Only one rank calls it; it reads until it has all."""
    config = config.model_copy(update={"preprocessing": config.preprocessing.without_randomness()})
    info = load_info(config)
    single = replace(options, rank=0, world_size=1)
    images: dict[str, ImagePair] = {}
    with torch.inference_mode(), closing(_batches(config, info, single)) as batches:
        for batch in batches:
            names = () if batch.is_dummy else batch.samples
            rows = [row for row, name in enumerate(names) if name in keys]
            if rows:
                originals = batch.batch["images"][rows].to(options.device).permute(0, 2, 3, 1)
                pixels = to_uint8(run(originals).pixels).permute(0, 2, 3, 1).cpu().numpy()
                for position, row in enumerate(rows):
                    images[names[row]] = (originals[position].cpu().numpy(), pixels[position])
            if len(images) == len(keys):
                break
    return images


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


def shards_of_rank(info: ImagesInfo, rank: int, world_size: int) -> ImagesInfo:
    """Whole shards of one rank, so that neighboring frames stay together; may be none."""
    datasets: list[DataSet] = []
    for dataset in info.datasets:
        datasets.append(replace(dataset, shards=[*dataset.shards][rank::world_size]))
    shard_bytes = [sizes[rank::world_size] for sizes in info.shard_bytes]
    return replace(info, datasets=tuple(datasets), shard_bytes=tuple(shard_bytes))


_GENERATOR = "vlatool tokenizer eval"
_GAIN = 2  # factor of differences
_SHOWN_SIZE = 240  # width of an image on the page, in pixels


@dataclass(frozen=True)
class ReconstructionReport:
    """Facts that the page shows above the images."""

    title: str  # title of the page
    command: str  # that gives the same results
    num_images: int  # number of evaluated images
    metrics: Sequence[tuple[str, str]]  # names and values, in order
    notes: Sequence[str] = ()  # notes below the metrics


def write_tokenizer_page(
    path: Path,  # HTML file
    report: ReconstructionReport,  # contents above the images
    groups: Mapping[str, Mapping[str, float]],  # best, median and worst images: name to PSNR in dB
    images: Mapping[str, ImagePair],
) -> None:
    metrics = [Table((), report.metrics), *(Text(note, "note") for note in report.notes)]
    caption = Text(f"differences are shown times {_GAIN}", "quiet")
    sections = [Section("Metrics", metrics), Section("Images", [caption], is_card=False)]
    for name, psnr_of in groups.items():
        rows: list[Part] = []
        for key, psnr in psnr_of.items():
            if key in images:
                rows.append(_row(key, psnr, *images[key]))
        sections.append(Section(name.capitalize(), rows, is_under=True))
    sections.append(command_section(report.command))
    subtitle = f"{counted(report.num_images, 'image')} and their reconstructions"
    write_text(path, page(report.title, subtitle, sections, generator=_GENERATOR))


def _row(key: str, psnr: float, original: UInt8Array, reconstruction: UInt8Array) -> Figures:
    """Original, reconstruction and difference of an image, with its PSNR in dB."""
    difference = np.abs(original.astype(np.int16) - reconstruction)
    images = {
        "original": original,
        "reconstruction": reconstruction,
        "difference": np.minimum(_GAIN * difference, 255).astype(np.uint8),
    }
    figures: list[Figure] = []
    for label, pixels in images.items():
        figures.append(Figure(_enlarged(pixels), label, f"{key}, {label}"))
    return Figures(figures, key, f"{psnr:.1f} dB")


def _enlarged(pixels: UInt8Array) -> Image.Image:
    """A small image enlarged without interpolation, so that JPEG changes it less."""
    image = Image.fromarray(pixels)
    factor = max(1, _SHOWN_SIZE // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
