"""Evaluation of a tokenizer on image shards, by one rank and by several."""

import threading
from pathlib import Path

import pytest
import torch

from tests.builders.blocks import BlocksTokenizer
from tests.builders.errors import fails
from tests.builders.toy_images import image, write_image_shards
from vlatool.evaluation.reconstruction import (
    EvalOptions,
    EvalResult,
    MetricNetworks,
    evaluate_reconstruction,
)
from vlatool.loading.images.config import ImageDataConfig

TOKENIZER = BlocksTokenizer(size=16, edge=8)


def evaluated(
    config: ImageDataConfig,
    options: EvalOptions = EvalOptions(),  # noqa: B008 - frozen
) -> EvalResult:
    run = TOKENIZER.reconstructor()
    return evaluate_reconstruction(TOKENIZER, run, config, options, MetricNetworks())


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageDataConfig:
    """Twelve images in three shards, one of them broken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_image_shards(tmp_path / "shards", change={6: {"png": b"broken"}})
    return ImageDataConfig(
        shards=[str(folder)],
        preprocessing={"crop_size": 16},  # pyright: ignore[reportArgumentType]
    )


def of_ranks(config: ImageDataConfig, count: int) -> list[EvalResult]:
    """Runs ranks as threads that sum tensors with each other."""
    results: dict[int, EvalResult] = {}
    tensors: list[torch.Tensor] = [torch.zeros(())] * count
    barrier = threading.Barrier(count, timeout=60)

    def run(rank: int) -> None:
        def reduce(own: torch.Tensor) -> torch.Tensor:
            tensors[rank] = own
            barrier.wait()
            total = torch.stack(tensors).sum(0)
            barrier.wait()
            return total

        options = EvalOptions(batch_size=2, rank=rank, world_size=count, reduce=reduce)
        results[rank] = evaluated(config, options)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(count)]


def test_every_usable_image_is_evaluated_once(config: ImageDataConfig) -> None:
    result = evaluated(config, EvalOptions(batch_size=4))
    assert result.num_images == len({row.key for row in result.rows}) == 11
    assert result.dropped == {"broken_image": 1}
    assert [drop.reason for drop in result.drops] == ["broken_image"]
    assert result.metrics["psnr"] > 0


@pytest.mark.parametrize("count", [2, 5])
def test_metrics_do_not_depend_on_the_number_of_ranks(config: ImageDataConfig, count: int) -> None:
    single = evaluated(config)
    for rank in of_ranks(config, count):
        assert rank.metrics == pytest.approx(single.metrics)
        assert (rank.num_images, rank.dropped) == (single.num_images, single.dropped)


def test_data_without_a_usable_image_are_an_error(tmp_path: Path, config: ImageDataConfig) -> None:
    change = {number: {"png": image(number, mode="L")} for number in range(2)}
    folder = write_image_shards(tmp_path / "gray", (2,), change)
    with fails("data.no_samples"):
        evaluated(config.model_copy(update={"shards": [str(folder)]}))


def test_preprocessing_to_another_size_is_an_error(config: ImageDataConfig) -> None:
    other = ImageDataConfig(shards=config.shards)
    with fails("data.mismatch"):
        evaluated(other)
