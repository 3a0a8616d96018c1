"""A tokenizer over image shards, by one rank and by several."""

import threading
from pathlib import Path

import pytest
import torch

from tests.builders.toy_images import image, write_image_shards
from vlatool.errors import DataError
from vlatool.evaluation.image_quality import block_means
from vlatool.evaluation.measuring import EvalOptions, EvalResult, evaluate_reconstruction
from vlatool.evaluation.reconstruction import CodeShape, MetricNetworks, Reconstruction
from vlatool.loading.images.config import ImageDataConfig


class Blocks:
    """A colour per block of 8 pixels; its codes are coarse reds."""

    size = 16
    codes = CodeShape(8, 4)

    def __call__(self, images: torch.Tensor, /) -> Reconstruction:
        made = block_means(images, 8)
        return Reconstruction(made, made[:, 0, ::8, ::8].flatten(1).long() // 32)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageDataConfig:
    """Of twelve pictures in three shards, one is broken."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_image_shards(tmp_path / "shards", change={6: {"png": b"broken"}})
    return ImageDataConfig(
        shards=[str(folder)],
        preprocessing={"crop_size": 16},  # pyright: ignore[reportArgumentType]
    )


def of_ranks(config: ImageDataConfig, count: int) -> list[EvalResult]:
    """Ranks as threads, which add up their sums together."""
    found: dict[int, EvalResult] = {}
    given: list[torch.Tensor] = [torch.zeros(())] * count
    meeting = threading.Barrier(count, timeout=60)

    def run(rank: int) -> None:
        def reduce(own: torch.Tensor) -> torch.Tensor:
            given[rank] = own
            meeting.wait()
            total = torch.stack(given).sum(0)
            meeting.wait()
            return total

        how = EvalOptions(batch_size=2, rank=rank, world_size=count)
        found[rank] = evaluate_reconstruction(Blocks(), config, how, MetricNetworks(), reduce)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return [found[rank] for rank in range(count)]


def test_every_image_that_can_be_used_is_measured_once(config: ImageDataConfig) -> None:
    found = evaluate_reconstruction(Blocks(), config, EvalOptions(batch_size=4), MetricNetworks())
    assert found.num_images == len({row.key for row in found.rows}) == 11
    assert found.dropped == {"broken_image": 1}
    assert found.metrics["psnr"] > 0


@pytest.mark.parametrize("count", [2, 5])
def test_figures_do_not_depend_on_the_number_of_ranks(config: ImageDataConfig, count: int) -> None:
    alone = evaluate_reconstruction(Blocks(), config, EvalOptions(), MetricNetworks())
    for rank in of_ranks(config, count):
        assert rank.metrics == pytest.approx(alone.metrics)
        assert (rank.num_images, rank.dropped) == (alone.num_images, alone.dropped)


def test_data_without_a_image_are_refused(tmp_path: Path, config: ImageDataConfig) -> None:
    change = {number: {"png": image(number, mode="L")} for number in range(2)}
    folder = write_image_shards(tmp_path / "grey", (2,), change)
    with pytest.raises(DataError) as caught:
        evaluate_reconstruction(
            Blocks(),
            config.model_copy(update={"shards": [str(folder)]}),
            EvalOptions(),
            MetricNetworks(),
        )
    assert caught.value.code == "data.no_samples"


def test_images_of_another_size_are_refused(config: ImageDataConfig) -> None:
    other = ImageDataConfig(shards=config.shards)
    with pytest.raises(DataError) as caught:
        evaluate_reconstruction(Blocks(), other, EvalOptions(), MetricNetworks())
    assert caught.value.code == "data.picture_size"
