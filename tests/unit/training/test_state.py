"""Moving average of weights."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from vlatool.training.config import EmaConfig
from vlatool.training.state import WeightAverage

YES, NO = torch.tensor(True), torch.tensor(False)


class Scalar(nn.Module):
    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(value))
        self.register_buffer("buffer", torch.tensor(0.0))
        self.register_buffer("count", torch.tensor(0))

    def set_value(self, value: float) -> "Scalar":
        with torch.no_grad():
            self.weight.fill_(value)
        return self


def averages(values: Sequence[float], **keys: Any) -> list[float]:
    module = Scalar()
    average = WeightAverage(EmaConfig(**keys), module)
    result = []
    for value in values:
        module.set_value(value)
        average.update(YES)
        result.append(average.weights["weight"].item())
    return result


def decay_after(updates: int, **keys: Any) -> float:
    average = WeightAverage(EmaConfig(**keys), Scalar())
    average.updates = updates
    return average.decay()


def test_smallest_decay_above_the_largest_is_an_error() -> None:
    with pytest.raises(ValidationError, match=r"min_value 0.99 is above max_value 0.9"):
        EmaConfig(min_value=0.99, max_value=0.9)


def test_sequences_golden() -> None:
    adaptive = averages([1, 2, 3, 4, 5])
    assert adaptive == pytest.approx([1, 2, 2.5946035, 3.2111387, 3.8435967], abs=1e-6)
    vanilla = averages([1, 2, 3, 4, 5], type="vanilla", alpha=0.9)
    assert vanilla == pytest.approx([1, 1.1, 1.29, 1.561, 1.9049], abs=1e-6)


# Source: reference/training 4.1: the published average leaves the buffer at 0.
@pytest.mark.parametrize("kind", ["ema", "vanilla"])
def test_buffers_are_the_latest(kind: str) -> None:
    module = Scalar()
    average = WeightAverage(EmaConfig(type=kind), module)
    for value in (7.0, 9.0):
        module.buffer.fill_(value)
        module.count.add_(1)
        average.update(YES)
    assert average.weights["buffer"].item() == 9.0
    assert average.weights["count"].item() == 2
    assert average.weights["count"].dtype == torch.int64


# Source: reference/training 4.1: the published average gives 5.0 after a resume.
def test_vanilla_average_after_a_resume_golden() -> None:
    config = EmaConfig(type="vanilla", alpha=0.99)
    module = Scalar()
    average = WeightAverage(config, module)
    for value in [0.0] + [1.0] * 99:
        module.set_value(value)
        average.update(YES)
    assert average.weights["weight"].item() == pytest.approx(0.6302703, abs=1e-6)
    resumed = WeightAverage(config, module.set_value(5.0))
    resumed.weights, resumed.updates = average.weights, average.updates
    resumed.update(YES)
    assert resumed.weights["weight"].item() == pytest.approx(0.6739677, abs=1e-6)


def test_average_is_a_float32_copy_of_the_weights() -> None:
    module = Scalar(1.0).to(torch.bfloat16)
    average = WeightAverage(EmaConfig(), module)
    module.set_value(2.0)
    assert average.weights["weight"].dtype == torch.float32
    assert average.weights["weight"].item() == 1.0


def test_skipped_step_leaves_the_average_unchanged() -> None:
    module = Scalar(1.0)
    average = WeightAverage(EmaConfig(type="vanilla", alpha=0.5), module)
    average.update(YES)
    module.set_value(7.0).buffer.fill_(3.0)

    average.update(NO)

    assert average.weights["buffer"].item() == 0.0
    module.set_value(3.0)
    average.update(YES)
    assert average.weights["weight"].item() == 2.0


def test_average_parameters_replaces_the_weights_temporarily() -> None:
    module = Scalar(1.0)
    average = WeightAverage(EmaConfig(), module)
    module.set_value(4.0).buffer.fill_(2.0)
    with average.average_parameters():
        assert (module.weight.item(), module.buffer.item()) == (1.0, 0.0)
    assert (module.weight.item(), module.buffer.item()) == (4.0, 2.0)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_share_one_average() -> None:
    module = Tied()
    nn.init.zeros_(module.embed.weight)
    average = WeightAverage(EmaConfig(type="vanilla", alpha=0.5), module)
    average.update(YES)
    nn.init.ones_(module.embed.weight)
    average.update(YES)
    assert list(average.weights) == ["embed.weight"]
    with average.average_parameters():
        assert module.head.weight.unique().tolist() == [0.5]
    assert module.head.weight.unique().tolist() == [1.0]


def test_frozen_weights_are_their_own_average() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    average = WeightAverage(EmaConfig(), module)
    assert average.weights["bias"].data_ptr() == module.bias.data_ptr()
    assert average.weights["weight"].data_ptr() != module.weight.data_ptr()


DELAYED = {"update_after_step": 100, "power": 2 / 3}


SMALLEST = {"min_value": 0.99}


RISING = {"type": "rising", "max_value": 0.999}


# Source: reference/training 4.1
@pytest.mark.parametrize(
    ("keys", "decays"),
    [
        (
            {},
            {
                0: 0,
                1: 0,
                2: 0.405396442,
                3: 0.561308662,
                4: 0.646446609,
                10: 0.822172059,
                100: 0.968377223,
                781: 0.993231199,
                1000: 0.994376587,
                10_000: 0.999,
                100_000: 0.999822172,
                150_000: 0.999868801,
                215_443: 0.9998999998,
                215_444: 0.9999,
            },
        ),
        (
            DELAYED,
            {101: 0, 102: 0.370039475, 103: 0.519250143, 1100: 0.99, 10_000: 0.997831082},
        ),
        (SMALLEST, {0: 0, 1: 0, 2: 0.99, 3: 0.99}),
        (RISING, {0: 0, 1: 2 / 11, 2: 3 / 12, 8_990: 8_991 / 9_000, 8_991: 0.999, 10**6: 0.999}),
    ],
    ids=["adaptive", "delayed", "smallest", "rising"],
)
def test_decay_golden(keys: dict[str, Any], decays: dict[int, float]) -> None:
    actual = {updates: decay_after(updates, **keys) for updates in decays}
    assert actual == pytest.approx(decays, rel=0, abs=1e-9 if keys in ({}, DELAYED) else 1e-12)
