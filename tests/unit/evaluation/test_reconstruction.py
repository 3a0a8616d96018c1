"""Metrics of reconstructions over a set of images, on one rank and on several."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.builders.blocks import BlocksTokenizer
from vlatool.evaluation.image_metrics import FrameIndex
from vlatool.evaluation.reconstruction import (
    MetricNetworks,
    ReconstructionSums,
    frame_index_of,
    shards_of_rank,
)
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.loading.images.kind import ImagesInfo
from vlatool.models.perceptual import perceptual_network

KEYS = [f"episode_{e}/{n:04d}" for e in range(2) for n in range(3)]
CPU = torch.device("cpu")


def make_images(count: int = 6) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 16, 16), np.uint8)
    return torch.from_numpy(pixels)


TOKENIZER = BlocksTokenizer(size=16, edge=8)


class MeanColors:
    width = 3

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


def sums_of(rows: range, networks: MetricNetworks | None = None) -> ReconstructionSums:
    sums = ReconstructionSums(TOKENIZER, CPU, networks or MetricNetworks(None, MeanColors()))
    images = make_images()[rows.start : rows.stop]
    if len(rows):
        sums.add([KEYS[row] for row in rows], images, TOKENIZER.blocks(images))
    return sums


def test_metrics_over_ranks_are_those_of_one_rank() -> None:
    whole = sums_of(range(6)).metrics(_unchanged)
    assert whole["psnr"] >= whole["psnr_of_mean_error"] > whole["block_psnr"] > 0
    assert 0 < whole["codebook_usage"] <= 1
    assert sums_of(range(0)).metrics(_unchanged) == {}
    others: list[list[torch.Tensor]] = [[], []]
    for rank, rows in enumerate((range(3, 6), range(0))):
        sums_of(rows).metrics(lambda tensor, rank=rank: others[rank].append(tensor) or tensor)
    first, second = map(iter, others)
    reduced = sums_of(range(3)).metrics(lambda tensor: tensor + next(first) + next(second))
    assert reduced == pytest.approx(whole)


def test_networks_add_their_metrics() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        values = sums_of(range(2), MetricNetworks(perceptual_network("lpips", None))).metrics(
            _unchanged
        )
    assert values["lpips"] != 0
    assert "rfid" not in values
    assert sums_of(range(6)).metrics(_unchanged)["rfid"] == pytest.approx(0, abs=0.5)


def _unchanged(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@pytest.mark.parametrize(
    ("key", "frame"),
    [
        ("train-episode_000003/00000012", FrameIndex("train-episode_000003/", 12)),
        ("a/episode_7_frame_9", FrameIndex("a/episode_7_frame_", 9)),
        ("a/plain", FrameIndex("a/plain", 0)),
    ],
)
def test_frame_of_an_image_is_read_from_its_name(key: str, frame: FrameIndex) -> None:
    assert frame_index_of(key) == frame


def test_ranks_share_whole_shards() -> None:
    shards = tuple(ShardInfo(Path(f"{number}.tar"), number + 1) for number in range(5))
    info = ImagesInfo((DataSet("a", shards),), (tuple(range(5)),))
    parts = [shards_of_rank(info, rank, 3) for rank in range(3)]
    assert sorted(shard.location for part in parts for shard in part.datasets[0].shards) == [
        shard.location for shard in shards
    ]
    assert parts[1].shard_bytes == ((1, 4),)
    assert sum(part.num_samples for part in parts) == info.num_samples
