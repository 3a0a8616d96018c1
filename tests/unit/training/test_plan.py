from typing import Any

import pytest

from vlatool.errors import DataError, UsageError
from vlatool.loading.robotics.config import RoboticsDataConfig
from vlatool.training.config import HParams, TrainConfig
from vlatool.training.plan import TrainPlan, make_plan


def plan(
    sizes: tuple[int, ...] = (10**9,),
    world_size: int = 1,
    *,
    batch: int = 128,
    per_device: int = 8,
    **keys: Any,
) -> TrainPlan:
    data = RoboticsDataConfig(
        dataset_manifest=[f"m{index}" for index in range(len(sizes))],
        allow_multiple_epochs=keys.pop("repeat", False),
        dataset_weighting=keys.pop("weights", []),
    )
    h = HParams(global_batch_size=batch, per_gpu_batch_size=per_device)
    return make_plan(TrainConfig(data=data, hparams=h, **keys), sizes, world_size)


# Source: lbm-training A.2
@pytest.mark.parametrize(
    ("samples", "batch", "steps", "unused"),
    [
        (100_000, 128, 781, 32),
        (5_000, 128, 39, 8),
        (1_000_000, 1024, 976, 576),
        (614_400_000, 4096, 150_000, 0),
    ],
)
def test_golden_steps_and_what_is_left(samples: int, batch: int, steps: int, unused: int) -> None:
    found = plan(batch=batch, total_train_samples=samples)
    assert (found.total_steps, found.unused_samples) == (steps, unused)


# Source: lbm-training A.2
@pytest.mark.parametrize(("batch", "per_device", "micro"), [(512, 8, 8), (4096, 128, 4)])
def test_golden_accumulation(batch: int, per_device: int, micro: int) -> None:
    found = plan(batch=batch, per_device=per_device, world_size=8, total_train_steps=1)
    assert (found.accumulation, found.micro_batch) == (micro, per_device)


def test_checkpoints_come_at_exact_steps() -> None:
    found = plan(total_train_samples=100_000, num_checkpoints=5)
    assert found.checkpoint_steps == (156, 312, 469, 625, 781)


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
    found = plan((1000, 280), num_epochs=3, repeat=True)
    assert found.total_steps == 3 * 1280 // 128


def test_one_epoch_needs_no_repeating() -> None:
    assert plan((1280,), num_epochs=1).total_steps == 10


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({}, "usage.no_budget"),
        ({"total_train_samples": 127}, "usage.budget_too_small"),
        ({"total_train_steps": 1, "per_device": 128, "world_size": 2}, "usage.batch_size"),
    ],
)
def test_budgets_that_cannot_work_are_refused(keys: dict[str, int], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(**keys)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "keys",
    [
        {"total_train_samples": 1281},
        {"num_epochs": 2},
        {"total_train_steps": 11},
        {"sizes": (1280, 1280), "weights": [3.0, 1.0], "total_train_samples": 2000},
    ],
)
def test_more_than_the_data_is_refused_unless_epochs_may_repeat(keys: dict[str, Any]) -> None:
    keys = {"sizes": (1280,), **keys}
    with pytest.raises(DataError) as caught:
        plan(**keys)
    assert caught.value.code == "data.too_few_samples"
    assert plan(**keys, repeat=True).total_steps > 0
