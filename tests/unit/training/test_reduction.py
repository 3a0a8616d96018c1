"""What ranks add up once per optimizer and step."""

import torch
from torch import Tensor

from vlatool.models.base import Loss
from vlatool.training.config import HParams, TrainConfig
from vlatool.training.reduction import AsyncHostCopy, LossSums, ReducedLoss
from vlatool.training.runtime import Runtime

CPU = torch.device("cpu")


def loss(total: float, count: float = 1.0, **sums: Tensor) -> Loss:
    return Loss(torch.tensor(total), torch.tensor(count), sums)


def reduced(
    *losses: Loss, fakes: tuple[Loss, ...] = (), extra: tuple[float, ...] = ()
) -> ReducedLoss:
    local = LossSums(CPU)
    for one in losses:
        local.add(one, is_dummy=False)
    for one in fakes:
        local.add(one, is_dummy=True)
    return local.reduced(Runtime(TrainConfig(hparams=HParams(precision="float32"))), extra)


def test_sums_of_many_small_numbers_do_not_round() -> None:
    large, one = torch.tensor(2.0**24), torch.tensor(1.0)
    found = reduced(*(loss(1.0, 1.0, n=n) for n in (large, one, one)))
    assert found.packed.dtype == torch.float64
    assert found.sums["n"].item() == 2**24 + 2


def test_each_sum_keeps_its_shape_and_name() -> None:
    table, number = torch.arange(6).reshape(2, 3), torch.tensor(4.0)
    found = reduced(loss(2.0, 3.0, table=table, a=number), loss(1.0, 1.0, table=table, a=number))
    assert found.sums["table"].tolist() == [[0, 2, 4], [6, 8, 10]]
    assert found.sums["a"].item() == 8
    assert (found.packed[0].item(), found.count.item()) == (3, 4)


def test_fake_micro_batch_counts_nothing() -> None:
    found = reduced(loss(2.0, 3.0, n=torch.ones(2)), fakes=(loss(7.0, 5.0, n=torch.ones(2)),))
    assert found.packed[:2].tolist() == [2, 3]
    assert found.sums["n"].tolist() == [1, 1]


def test_numbers_of_a_fake_micro_batch_that_are_not_finite_do_no_harm() -> None:
    bad = loss(float("nan"), float("inf"), n=torch.full((2,), float("nan")))
    found = reduced(loss(2.0, 3.0, n=torch.ones(2)), fakes=(bad,))
    assert not found.is_bad
    assert found.packed.isfinite().all()


def test_loss_that_is_not_finite_is_counted() -> None:
    assert reduced(loss(1.0), loss(float("inf"))).is_bad
    assert not reduced(loss(1.0), loss(2.0)).is_bad


def test_extra_numbers_travel_with_the_sums() -> None:
    found = reduced(loss(1.0, 2.0, n=torch.tensor(5.0)), extra=(1.0, 7.0))
    assert found.packed.tolist() == [1, 2, 0, 1, 7, 5]
    assert found.sums["n"].item() == 5


def test_host_copy_is_of_the_moment() -> None:
    values = torch.ones(2)
    copy = AsyncHostCopy(values)
    values.zero_()
    assert copy.read().tolist() == [1, 1]
