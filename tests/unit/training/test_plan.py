from pathlib import Path
from typing import Any

import pytest

from vlatool.errors import UsageError
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.training.config import HParams, TrainConfig
from vlatool.training.plan import TrainPlan, make_plan


def plan(
    sizes: tuple[int, ...] = (10**9,),
    world_size: int = 1,
    *,
    batch: int = 128,
    per_device: int | None = 8,
    **keys: Any,
) -> TrainPlan:
    sets = [DataSet(f"set {n}", (ShardInfo(Path("shard"), size),)) for n, size in enumerate(sizes)]
    h = HParams(global_batch_size=batch, per_gpu_batch_size=per_device)
    return make_plan(TrainConfig.model_validate({"hparams": h, **keys}), sets, world_size)


# Source: reference/training 2.1
@pytest.mark.parametrize(
    ("samples", "batch", "steps", "unused"),
    [
        (100_000, 128, 781, 32),
        (5_000, 128, 39, 8),
        (1_000_000, 1024, 976, 576),
        (614_400_000, 4096, 150_000, 0),
    ],
)
def test_golden_steps_and_unused_samples(samples: int, batch: int, steps: int, unused: int) -> None:
    train_plan = plan(batch=batch, total_train_samples=samples)
    assert (train_plan.total_steps, train_plan.unused_samples) == (steps, unused)


# Source: reference/training 2.2
@pytest.mark.parametrize(("batch", "per_device", "micro"), [(512, 8, 8), (4096, 128, 4)])
def test_golden_accumulation(batch: int, per_device: int, micro: int) -> None:
    train_plan = plan(batch=batch, per_device=per_device, world_size=8, total_train_steps=1)
    assert (train_plan.accumulation, train_plan.micro_batch) == (micro, per_device)


def test_checkpoints_are_at_exact_steps() -> None:
    train_plan = plan(total_train_samples=100_000, num_checkpoints=5)
    assert train_plan.checkpoint_steps == (156, 312, 469, 625, 781)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"num_checkpoints": 1}, (10,)),
        ({"num_checkpoints": 20}, tuple(range(1, 11))),
        ({"save_every_n_steps": 4}, (4, 8, 10)),
        ({"save_every_n_steps": 50}, (10,)),
        ({"save_every_n_steps": 5}, (5, 10)),
    ],
)
def test_last_checkpoint_is_the_last_step(keys: dict[str, int], expected: tuple[int, ...]) -> None:
    assert plan(total_train_steps=10, **keys).checkpoint_steps == expected


def test_epochs_are_passes_over_all_data_sets() -> None:
    train_plan = plan((1000, 280), num_epochs=3)
    assert train_plan.total_steps == 3 * 1280 // 128


def test_one_epoch_needs_no_second_pass() -> None:
    assert plan((1280,), num_epochs=1).total_steps == 10


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({}, "usage.no_budget"),
        ({"total_train_samples": 127}, "usage.budget_too_small"),
        ({"total_train_steps": 1, "per_device": 128, "world_size": 2}, "usage.batch_size"),
    ],
)
def test_invalid_budget_is_an_error(keys: dict[str, int], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**keys)
    assert caught.value.code == code


@pytest.mark.parametrize(("world_size", "micro"), [(1, 128), (2, 64), (8, 16)])
def test_without_a_size_per_device_ranks_split_the_batch(world_size: int, micro: int) -> None:
    train_plan = plan(world_size=world_size, per_device=None, total_train_steps=1)
    assert (train_plan.micro_batch, train_plan.accumulation) == (micro, 1)


def test_batch_that_ranks_cannot_split_is_an_error() -> None:
    with pytest.raises(UsageError) as caught:
        plan(world_size=3, per_device=None, total_train_steps=1)
    assert caught.value.code == "usage.batch_size"


def test_validation_runs_at_checkpoints() -> None:
    keys = {"total_train_steps": 8, "num_checkpoints": 4}
    assert plan(**keys).validation_steps == ()
    assert plan(**keys, total_val_samples=5).validation_steps == (2, 4, 6, 8)
    every = plan(**keys, total_val_samples=5, val_every_n_checkpoints=2)
    assert every.validation_steps == (4, 8)


def test_images_are_logged_at_checkpoints_or_every_n_steps() -> None:
    keys = {"total_train_steps": 8, "num_checkpoints": 2}
    assert plan(**keys).image_steps == (4, 8)
    assert plan(**keys, images_every_n_steps=3).image_steps == (3, 6)
