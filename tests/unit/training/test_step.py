"""Sums of losses over ranks."""

import torch
from torch import Tensor

from vlatool.models.base import Loss
from vlatool.training.config import HParams, TrainConfig
from vlatool.training.runtime import Runtime
from vlatool.training.step import AsyncHostCopy, LossSums, Packed, sums_of

CPU = torch.device("cpu")


def make_loss(total: float, count: float = 1.0, **sums: Tensor) -> Loss:
    return Loss(torch.tensor(total), torch.tensor(count), sums)


def reduced(
    *losses: Loss, dummies: tuple[Loss, ...] = (), extra: tuple[float, ...] = ()
) -> dict[str, Tensor]:
    local = LossSums(CPU)
    for loss in losses:
        local.add(loss, is_dummy=False)
    for loss in dummies:
        local.add(loss, is_dummy=True)
    runtime = Runtime(TrainConfig(hparams=HParams(precision="float32")))
    return local.reduced(runtime, torch.tensor(extra))


def test_sums_of_many_small_numbers_are_exact() -> None:
    large, small = torch.tensor(2.0**24), torch.tensor(1.0)
    total = reduced(*(make_loss(1.0, 1.0, n=n) for n in (large, small, small)))
    assert sums_of(total)["n"].dtype == torch.float64
    assert sums_of(total)["n"].item() == 2**24 + 2


def test_each_sum_keeps_its_shape_and_name() -> None:
    table, number = torch.arange(6).reshape(2, 3), torch.tensor(4.0)
    total = reduced(
        make_loss(2.0, 3.0, table=table, a=number), make_loss(1.0, 1.0, table=table, a=number)
    )
    assert sums_of(total)["table"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert sums_of(total)["a"].item() == 8
    assert (total["total"].item(), total["count"].item()) == (3, 4)


def test_dummy_micro_batch_counts_nothing_and_other_losses_must_be_finite() -> None:
    bad = make_loss(float("nan"), float("inf"), n=torch.full((2,), float("nan")))
    dummies = (make_loss(7.0, 5.0, n=torch.ones(2)), bad)
    total = reduced(make_loss(2.0, 3.0, n=torch.ones(2)), dummies=dummies)
    assert (total["total"].item(), total["count"].item()) == (2, 3)
    assert sums_of(total)["n"].tolist() == [1, 1]
    assert all(value.isfinite().all() for value in total.values())
    assert not total["bad"]
    assert reduced(make_loss(1.0), make_loss(float("inf")))["bad"].item() == 1


def test_extra_numbers_are_reduced_with_the_sums() -> None:
    total = reduced(make_loss(1.0, 2.0, n=torch.tensor(5.0)), extra=(1.0, 7.0))
    assert total["extra"].tolist() == [1, 7]
    assert sums_of(total)["n"].item() == 5


def test_host_copy_does_not_change_later() -> None:
    values = torch.ones(2)
    packed = Packed({"a": values, "b": torch.zeros(1, 1)})
    copy = AsyncHostCopy(packed)
    packed.vector.zero_()
    read = copy.read(1.0)
    assert (read["a"].tolist(), read["b"].tolist()) == ([1, 1], [[0]])
