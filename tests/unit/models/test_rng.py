"""Random numbers that do not depend on how the global batch is split."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from vlatool.models.rng import (
    CHUNK,
    PerSampleRng,
    SampleDropout,
    draws_by_micro_batch,
)

TOTAL = 2 * CHUNK + 12
CALLS: dict[str, Callable[[PerSampleRng], Tensor]] = {
    "normal": lambda rng: rng.normal(2, 3),
    "uniform": lambda rng: rng.uniform(3),
    "integers": lambda rng: rng.integers(50, 2),
}


def rows_of(rows: Sequence[int], call: Callable[[PerSampleRng], Tensor], *, nth: int = 1) -> Tensor:
    rng = PerSampleRng(lambda chunk: torch.Generator().manual_seed(5 + chunk), rows, TOTAL)
    return [call(rng) for _ in range(nth)][-1]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "rows",
    [
        range(4),
        range(CHUNK - 2, CHUNK + 3),
        range(1, TOTAL, 8),
        [3],
        [0, 4, 5, TOTAL - 1],
    ],
)
def test_rows_are_those_of_the_whole_batch(
    rows: Sequence[int], call: Callable[[PerSampleRng], Tensor]
) -> None:
    whole = rows_of(range(TOTAL), call)
    assert torch.equal(rows_of(rows, call), whole[list(rows)])


def test_chunks_and_calls_differ_and_have_the_same_rows() -> None:
    first, second = (rows_of(range(TOTAL), CALLS["normal"], nth=nth) for nth in (1, 2))
    assert not torch.equal(first[:4], first[CHUNK : CHUNK + 4])
    assert not torch.equal(first, second)
    assert torch.equal(rows_of([2, 7], CALLS["normal"], nth=2), second[[2, 7]])


def test_rows_beyond_the_batch_wrap_around() -> None:
    later = rows_of(range(3 * TOTAL + 2, 3 * TOTAL + 5), CALLS["uniform"])
    assert torch.equal(later, rows_of(range(2, 5), CALLS["uniform"]))
    rows = rows_of(range(TOTAL + 2), CALLS["uniform"])
    assert torch.equal(rows[TOTAL:], rows[:2])
    assert rows_of([], CALLS["normal"]).shape == (0, 2, 3)


def test_shapes_dtypes_and_ranges() -> None:
    uniform, integers = (rows_of(range(2), CALLS[name]) for name in ("uniform", "integers"))
    assert (uniform.shape, uniform.dtype) == ((2, 3), torch.float32)
    assert (integers.shape, integers.dtype) == ((2, 2), torch.int64)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert integers.min() >= 0
    assert integers.max() < 50


def test_dropout_keeps_the_mean_and_changes_nothing_in_eval_mode() -> None:
    dropout, values = SampleDropout(0.25), torch.ones(8, 4000)
    rng = PerSampleRng(lambda _: torch.Generator().manual_seed(3), range(4), 4)
    dropped = dropout(values, dropout.mask(values, rng, repeats=2))
    assert dropped.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    torch.testing.assert_close(dropped.mean(1), torch.ones(8), rtol=0.05, atol=0)
    dropout.eval()
    assert dropout(values, dropout.mask(values, None)) is values


class Attention(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.attention_dropout = share


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (SampleDropout(0.1), False),
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (Attention(0.1), True),
        (Attention(0.0), False),
    ],
)
def test_draws_of_a_network_by_micro_batch_are_found(module: nn.Module, expected: bool) -> None:
    assert draws_by_micro_batch(nn.Sequential(module)) == expected
