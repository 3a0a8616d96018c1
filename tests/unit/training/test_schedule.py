import pytest
from pydantic import ValidationError

from vlatool.training.config import HParams
from vlatool.training.schedule import learning_rate, schedule_violations, to_steps

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


def test_default_warmup_fits_any_run() -> None:
    for total in (1, 2, 10, 781):
        assert not [*schedule_violations(HParams(), total)]
