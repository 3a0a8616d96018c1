"""Vector quantization and metrics of the codebook."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn import functional

from vlatool.models.codebook import (
    CodebookTokenizer,
    CodeRevival,
    VectorQuantizer,
    difference_sums,
    entropy_penalty,
    histogram,
    nearest,
    true_float32,
    usage_metrics,
)
from vlatool.models.rng import PerSampleRng

SIZE, WIDTH = 7, 3


def quantizer(*, l2_norm: bool) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(SIZE, WIDTH, l2_norm=l2_norm, commitment_cost=0.25)


@pytest.mark.parametrize("l2_norm", [True, False])
def test_losses_and_gradients_are_those_of_the_formulas(l2_norm: bool) -> None:
    module, z = quantizer(l2_norm=l2_norm), torch.randn(2, 5, WIDTH, requires_grad=True)
    table, vectors = module.embedding.weight, z
    if l2_norm:
        table, vectors = functional.normalize(table, dim=1), functional.normalize(z, dim=2)
    codes = torch.cdist(vectors.detach().flatten(0, 1), table.detach()).argmin(1).view(2, 5)
    q = table[codes]
    commitment = 0.25 * ((q.detach() - vectors) ** 2).mean()
    expected = commitment + ((q - vectors.detach()) ** 2).mean()

    output = module(z)

    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.vectors, q)
    torch.testing.assert_close(output.penalty, expected)
    torch.testing.assert_close(output.commitment, commitment.detach())
    inputs = (z, module.embedding.weight)
    for gradient, expected_gradient in zip(
        torch.autograd.grad(output.penalty, inputs),
        torch.autograd.grad(expected, inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient)


def test_gradient_is_straight_through() -> None:
    module, z = quantizer(l2_norm=False), torch.randn(1, 4, WIDTH, requires_grad=True)

    (gradient,) = torch.autograd.grad((module(z).vectors * 3).sum(), z)

    assert torch.equal(gradient, torch.full_like(z, 3.0))


def test_autocast_does_not_reach_the_quantizer() -> None:
    module, z = quantizer(l2_norm=True), torch.randn(1, 64, WIDTH)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(z)

    assert output.vectors.dtype == torch.float32
    assert torch.equal(output.codes, module.codes(z))


def test_tf32_is_off_inside_and_restored_after() -> None:
    matmul = torch.backends.cuda.matmul
    matmul.allow_tf32 = True
    try:
        with true_float32(torch.device("cpu")):
            assert not matmul.allow_tf32
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = False


def test_nearest_is_the_first_of_equal_rows() -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])

    assert nearest(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), table).tolist() == [0, 1]


def test_near_ties_are_marked() -> None:
    quantizer = VectorQuantizer(2, 2, l2_norm=True)
    quantizer.embedding.weight.data = torch.eye(2)
    features = torch.tensor([[[1.0, 0.1], [1.0, 0.9999999]]])
    codes, is_near = quantizer.near_ties(features, 1e-5)
    assert codes[0, 0] == 0
    assert is_near.tolist() == [[False, True]]


@pytest.mark.parametrize(("distance", "count"), [(1.2e-6, 0), (3e-7, 1)])
def test_images_with_differences_beyond_rounding_are_not_encoded_again(
    distance: float, count: int
) -> None:
    quantizer = VectorQuantizer(2, 1)
    quantizer.embedding.weight.data = torch.tensor([[0.0], [1.0]])
    features = torch.full((1, 1, 1), 0.5 + distance)
    network = SimpleNamespace(quantize=quantizer, features=lambda pixels: features[: len(pixels)])
    tokenizer = CodebookTokenizer(
        network, image_size=1, codes_per_image=1, code_options="", code_weights=()
    )
    codes = tokenizer.encode(torch.zeros(1, 1, 1, 3, dtype=torch.uint8))
    assert (codes.values.item(), codes.num_encoded_alone) == (1, count)


def test_lookup_returns_unit_vectors_with_l2_norm() -> None:
    vectors = quantizer(l2_norm=True).lookup(torch.arange(SIZE))

    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(SIZE))


def test_entropy_penalty_is_lowest_if_all_codes_are_assigned_clearly() -> None:
    table = 10 * torch.eye(4)
    clear, single = entropy_penalty(table, table), entropy_penalty(table[:1].expand(4, -1), table)
    vague = entropy_penalty(torch.zeros(4, 4), table)

    assert float(clear) == pytest.approx(-math.log(4), abs=1e-5)
    assert float(single) == pytest.approx(0, abs=1e-5)
    assert float(vague) == pytest.approx(0, abs=1e-5)


def test_entropy_penalty_of_micro_batches_has_value_and_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    table, vectors = torch.randn(6, 3), torch.randn(12, 3, requires_grad=True)
    network = VectorQuantizer(6, 3)
    network.embedding.weight.data = table
    (expected,) = torch.autograd.grad(entropy_penalty(vectors, table), vectors)
    parts = vectors.split((7, 5))
    sums = sum(network.assignment_sums(part.detach()[None]) for part in parts)
    losses = [len(part) / 12 * entropy_penalty(part, table, sums / 12) for part in parts]
    torch.testing.assert_close(sum(losses), entropy_penalty(vectors, table))
    torch.testing.assert_close(torch.autograd.grad(sum(losses), vectors)[0], expected)


def test_histogram_counts_every_code() -> None:
    assert histogram(torch.tensor([[0, 2], [2, 3]]), 5).tolist() == [1, 0, 2, 1, 0]


def test_codes_are_compared_with_those_of_the_previous_image() -> None:
    sums = difference_sums(torch.tensor([[1, 2], [1, 3], [0, 4]]))

    assert {name: int(value) for name, value in sums.items()} == {
        "codes_differing": 3,
        "codes_compared": 4,
    }


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity", "evenness"),
    [
        ([1, 1, 1, 1], 1.0, 4.0, 1.0),
        ([8, 0, 0, 0], 0.25, 1.0, 0.25),
        ([1, 1, 0, 0], 0.5, 2.0, 1.0),
        ([3, 1, 0, 0], 0.5, math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), None),
    ],
)
def test_usage_of_a_codebook(
    counts: list[float], usage: float, perplexity: float, evenness: float | None
) -> None:
    metrics = usage_metrics(torch.tensor(counts, dtype=torch.float64))

    assert metrics["codebook_usage"] == usage
    assert metrics["dead_codes"] == 4 * (1 - usage)
    assert metrics["codebook_perplexity"] == pytest.approx(perplexity)
    if evenness is not None:
        assert metrics["codebook_evenness"] == pytest.approx(evenness)


@pytest.mark.parametrize(("ok", "expected"), [(True, [9.0, 0.0, 0.0, 0.0]), (False, [0.0] * 4)])
def test_dead_code_with_one_candidate_is_replaced(ok: bool, expected: list[float]) -> None:
    revival, table = CodeRevival(4, after=2), torch.zeros(4, 1)
    counts = torch.tensor([0.0, 0.0, 0.0, 5.0])
    # Vectors of one candidate, of two, of none, and of one for a code in use.
    candidates = torch.tensor([[9.0, 1], [9, 2], [0, 0], [9, 1]], dtype=torch.float64)
    revival.update(table, counts, candidates, torch.tensor(True))
    assert not table.any()

    revival.update(table, counts, candidates, torch.tensor(ok))

    assert table.flatten().tolist() == expected
    assert revival.idle.tolist() == ([0, 2, 2, 0] if ok else [1, 1, 1, 0])


def test_candidates_of_micro_batches_add_up_to_those_of_the_batch() -> None:
    revival, vectors = CodeRevival(SIZE, after=1), torch.randn(6, 5, WIDTH)

    def rng(rows: range) -> PerSampleRng:
        return PerSampleRng(lambda chunk: torch.Generator().manual_seed(chunk), rows, 6)

    parts = [revival.candidates(vectors[r.start : r.stop], rng(r)) for r in (range(4), range(4, 6))]
    assert torch.equal(parts[0] + parts[1], revival.candidates(vectors, rng(range(6))))
    assert parts[0][:, -1].sum() == 4


def test_codes_of_a_sharded_codebook_are_replaced(tmp_path: Path) -> None:
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        table = distribute_tensor(torch.zeros(SIZE, WIDTH), mesh, [Shard(0)])
        candidates = torch.ones(SIZE, WIDTH + 1, dtype=torch.float64)
        counts = torch.arange(SIZE)
        CodeRevival(SIZE, after=1).update(table, counts, candidates, torch.tensor(True))
        assert torch.equal(table.full_tensor().any(1), counts == 0)
    finally:
        torch.distributed.destroy_process_group()
