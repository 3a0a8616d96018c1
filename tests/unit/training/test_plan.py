"""Steps and learning rates of a run."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.builders.errors import fails
from vlatool.loading.base import DataSet, ShardInfo
from vlatool.training.config import HParams, TrainConfig
from vlatool.training.plan import TrainPlan, learning_rate, make_plan, schedule_violations, to_steps


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


def test_checkpoints_are_at_exact_steps_and_epochs_are_passes_over_all_data_sets() -> None:
    train_plan = plan(total_train_samples=100_000, num_checkpoints=5)
    assert train_plan.checkpoint_steps == (156, 312, 469, 625, 781)
    assert plan((1000, 280), num_epochs=3).total_steps == 3 * 1280 // 128


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


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({}, "usage.missing_key"),
        ({"total_train_samples": 127}, "usage.bad_value"),
        ({"total_train_steps": 1, "per_device": 128, "world_size": 2}, "usage.bad_value"),
        ({"total_train_steps": 1, "per_device": None, "world_size": 3}, "usage.bad_value"),
    ],
)
def test_invalid_budget_is_an_error(keys: dict[str, Any], code: str) -> None:
    with fails(code):
        plan(**keys)


@pytest.mark.parametrize(("world_size", "micro"), [(1, 128), (2, 64), (8, 16)])
def test_without_a_size_per_device_ranks_split_the_batch(world_size: int, micro: int) -> None:
    train_plan = plan(world_size=world_size, per_device=None, total_train_steps=1)
    assert (train_plan.micro_batch, train_plan.accumulation) == (micro, 1)


def test_validation_and_images_are_at_checkpoints_or_every_n_steps() -> None:
    keys = {"total_train_steps": 8, "num_checkpoints": 4}
    assert plan(**keys).validation_steps == ()
    assert plan(**keys, total_val_samples=5).validation_steps == (2, 4, 6, 8)
    every = plan(**keys, total_val_samples=5, val_every_n_checkpoints=2)
    assert every.validation_steps == (4, 8)
    assert plan(**keys, val_every_n_steps=3).validation_steps == (3, 6)
    assert plan(**keys).image_steps == (2, 4, 6, 8)
    assert plan(**keys, images_every_n_steps=3).image_steps == (3, 6)


BELL = {"lr": 5e-4, "lr_cooldown_end": 1e-5, "warmup": 1000}
LBM = {"lr": 5e-5, "lr_cooldown_end": 1e-6, "warmup": 1000}
WCD = {"lr": 1e-3, "lr_scheduler": "warmup_constant_decay"}
FLOOR = {"lr": 1e-3, "lr_cooldown_end": 0, "force_min_lr": 1e-4, "warmup": 10}

# Source: reference/training 3.2; the warm-up values are those of the reference.
GOLDEN = [
    (BELL, 781, {0: 5e-7, 1: 1e-6, 499: 2.5e-4, 780: 3.905e-4}),
    (
        BELL,
        100_000,
        {
            0: 5e-7,
            499: 2.5e-4,
            999: 5e-4,
            1000: 5e-4,
            25_000: 4.323148393e-4,
            50_000: 2.588871611e-4,
            50_500: 2.55e-4,
            99_999: 1.0000000123e-5,
            100_000: 1e-5,
        },
    ),
    (
        LBM,
        150_000,
        {
            0: 5e-8,
            999: 5e-5,
            10_000: 4.956021065e-5,
            37_500: 4.309589164e-5,
            75_000: 2.575828052e-5,
            75_500: 2.55e-5,
            112_500: 8.267441755e-6,
            150_000: 1e-6,
        },
    ),
    ({"lr": 1e-4, "lr_scheduler": "const", "warmup": "0.0"}, 10_000, {0: 1e-4, 9999: 1e-4}),
    (
        {"lr": 1e-4, "lr_scheduler": "cosine", "warmup": 10_000, "lr_cooldown_end": 1e-5},
        1_000_000,
        {4_999: 5.0e-5, 10_000: 1e-4, 500_000: 5.571396837e-5, 1_000_000: 1e-5},
    ),
    (
        {"lr": 1e-4, "lr_scheduler": "const", "warmup": 1000},
        10_000,
        {0: 1e-7, 999: 1e-4, 1000: 1e-4},
    ),
    (
        {**WCD, "lr_cooldown_end": 1e-5, "warmup": 0.1, "decay": 0.3},
        1000,
        {0: 1e-5, 99: 1e-3, 699: 1e-3, 700: 1e-3, 850: 5.05e-4, 999: 1.002714116e-5, 1000: 1e-5},
    ),
    (
        {**WCD, "lr_cooldown_end": 0, "warmup": 0.8, "decay": 0.5},
        100,
        {49: 6.25e-4, 50: 6.375e-4, 79: 1e-3, 80: 3.454915028e-4, 99: 9.866357859e-7},
    ),
    (FLOOR, 1010, {9: 1e-3, 510: 5e-4, 800: 1.049224938e-4, 1009: 1e-4}),
]


@pytest.mark.parametrize(("keys", "total", "expected"), GOLDEN)
def test_golden_rates(keys: dict[str, object], total: int, expected: dict[int, float]) -> None:
    h = HParams(**keys)
    rates = {step: learning_rate(h, step, total) for step in expected}
    assert rates == pytest.approx(expected, rel=1e-9)


def test_warmup_is_one_step_ahead_of_the_published_schedule_of_future_vla() -> None:
    torch = pytest.importorskip("torch")
    schedules = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    published = schedules.get_cosine_schedule_with_warmup(optimizer, 5, 20)
    h = HParams(lr=1e-4, warmup=5, lr_scheduler="cosine", lr_cooldown_end=0)
    theirs: list[float] = []
    for _ in range(20):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        published.step()
    ours = [learning_rate(h, step, 20) for step in range(20)]
    assert theirs[0] == 0
    assert ours[:5] == pytest.approx(theirs[1:6])
    assert ours[5:] == pytest.approx(theirs[5:])


# Source: reference/training 3.2, parser with S = 781
@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1000", 1000),
        ("0.025", 19),
        ("1", 1),
        ("1.0", 1),
        ("1.5", 1),
        ("0.999", 780),
        ("0", 0),
        ("0.0", 0),
        ("2e3", 2000),
    ],
)
def test_warmup_is_steps_or_a_fraction(text: str, steps: int) -> None:
    assert to_steps(HParams(warmup=text).warmup, 781) == steps


@pytest.mark.parametrize("text", ["-5", "abc", "inf"])
@pytest.mark.parametrize("key", ["warmup", "decay"])
def test_invalid_value_is_an_error(text: str, key: str) -> None:
    with pytest.raises(ValidationError):
        HParams(**{key: text})


def test_cosine_without_any_step_after_warmup_ends_at_the_last_rate() -> None:
    h = HParams(lr=1e-3, lr_cooldown_end=1e-5, warmup=10)
    assert learning_rate(h, 10, 10) == pytest.approx(1e-5)


@pytest.mark.parametrize(("warmup", "total"), [(1000, 781), (10, 10)])
def test_warmup_as_long_as_the_run_is_a_violation(warmup: int, total: int) -> None:
    (violation,) = schedule_violations(HParams(warmup=warmup), total)
    assert (violation.keys[0], violation.code) == ("hparams.warmup", "usage.warmup_too_long")
    for steps in (1, 2, total):  # the default fits any run
        assert not [*schedule_violations(HParams(), steps)]
