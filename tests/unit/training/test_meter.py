"""Memory of computations on fake tensors."""

import torch
from torch import nn
from torch.nn import functional

from vlatool.training.memory import AllocationMeter
from vlatool.training.state import replace_tensors

CPU = torch.device("cpu")
FLOAT = 4


def meter_of(network: nn.Module) -> AllocationMeter:
    """A meter, after the tensors of a network became fake."""
    meter = AllocationMeter(CPU)
    replace_tensors(network, meter.resident)
    return meter


def test_peak_has_activations_and_gradients_but_no_weights() -> None:
    network = nn.Sequential(nn.Linear(8, 64, bias=False), nn.Linear(64, 2, bias=False))
    meter = meter_of(network)
    with meter:
        loss = network(torch.empty(16, 8)).sum()
    # The batch, the hidden layer and the sum; the output is not needed any more.
    assert meter.live == FLOAT * (16 * 8 + 16 * 64 + 1)
    with meter:
        loss.backward()
    gradients = FLOAT * (8 * 64 + 64 * 2)
    assert meter.peak >= gradients + FLOAT * 16 * 8


def test_freed_tensors_are_not_live() -> None:
    meter = AllocationMeter(CPU)
    with meter:
        first = torch.empty(1000)
        del first
        second = torch.empty(500)
    assert meter.live == 500 * FLOAT == second.nbytes
    assert meter.peak == 1000 * FLOAT


def test_nothing_is_allocated() -> None:
    meter = AllocationMeter(CPU)
    with meter:
        huge = torch.empty(10**13) * 2
    assert meter.peak == 2 * 10**13 * FLOAT
    assert huge.shape == (10**13,)


def test_rows_are_selected_by_the_values_of_a_batch() -> None:
    labels = torch.tensor([[-100, 3, 7, -100], [-100, -100, 1, -100]])
    network = nn.Linear(4, 10)
    meter = meter_of(network)
    with meter:
        known = meter.copied(labels)
        chosen = network(torch.empty(2, 4, 4))[known != -100]
        loss = functional.cross_entropy(chosen, known[known != -100], reduction="sum")
        loss.backward()
        total = int(known.sum())
    assert chosen.shape == (3, 10)
    assert total == labels.sum()


def test_convolution_counts_the_copies_of_its_kernel() -> None:
    network = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    meter = meter_of(network)
    with meter, torch.no_grad():
        network(torch.empty(1, 3, 32, 32))
    inputs, outputs = (FLOAT * channels * 32 * 32 for channels in (3, 4))
    assert meter.peak == inputs + outputs + outputs
