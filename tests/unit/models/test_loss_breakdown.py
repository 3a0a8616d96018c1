"""Breakdown of the loss by field and data set."""

import pytest
import torch

from vlatool.models.diffusion_policy.objective import LossBreakdown, dataset_labels

FIELDS = {"xyz": 2, "hand": 1}


def compute_metrics(
    *, training: bool = True
) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    """Metrics, errors and mask of 3 samples with 2 noise draws each."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 4, 1, generator=generator) < 0.7
    error = torch.rand(6, 4, 3, generator=generator) * mask
    breakdown = LossBreakdown(FIELDS, ["a/x/shards", "b/x"], ["v"])
    sums = breakdown.sums(error, mask, torch.tensor([1, 0, 1]), training=training)
    return breakdown.metrics(sums, float(mask.sum() * 3), training=training), error, mask


def test_fields_weighted_by_their_widths_are_the_loss_and_data_sets_have_their_own() -> None:
    metrics, error, mask = compute_metrics()

    whole = (2 * metrics["denoising_loss/xyz"] + metrics["denoising_loss/hand"]) / 3
    assert whole == pytest.approx(float(error.sum() / (mask.sum() * 3)))
    hand = float(error[..., 2].sum() / mask.sum())
    assert metrics["denoising_loss/hand"] == pytest.approx(hand)
    rows = torch.tensor([False, False, True, True, False, False])
    assert metrics["loss/a/x"] == pytest.approx(float(error[rows].sum() / (mask[rows].sum() * 3)))
    assert metrics["loss/b/x"] == pytest.approx(float(error[~rows].sum() / (mask[~rows].sum() * 3)))
    metrics, _, _ = compute_metrics(training=False)  # a single data set
    assert set(metrics) == {"denoising_loss/xyz", "denoising_loss/hand"}


def test_padded_fields_have_means_over_what_is_real() -> None:
    mask = torch.ones(2, 4, 3, dtype=torch.bool)
    mask[1, :, 2] = False
    error = torch.rand(2, 4, 3) * mask
    breakdown = LossBreakdown(FIELDS, ["a", "b"])
    sums = breakdown.sums(error, mask, torch.tensor([0, 1]), training=True)
    metrics = breakdown.metrics(sums, float(mask.sum()), training=True)
    assert metrics["denoising_loss/hand"] == pytest.approx(float(error[0, :, 2].mean()))
    assert metrics["loss/b"] == pytest.approx(float(error[1, :, :2].mean()))


def test_data_set_without_samples_is_not_reported() -> None:
    breakdown = LossBreakdown(FIELDS, ["a", "b"])
    mask = torch.ones(2, 1, 1, dtype=torch.bool)
    sums = breakdown.sums(torch.ones(2, 1, 3), mask, torch.tensor([0, 0]), training=True)

    metrics = breakdown.metrics(sums, 6.0, training=True)

    assert (metrics["loss/a"], "loss/b" in metrics) == (1.0, False)


@pytest.mark.parametrize(
    ("locations", "labels"),
    [
        (["/d/pick/shards/manifest.jsonl", "s3://b/place/"], ["pick", "place"]),
        (["/d/pick/data", "/d/place/data/shards"], ["pick/data", "place/data"]),
        (["/d/pick", "/d/pick"], ["pick#1", "pick#2"]),
    ],
)
def test_label_distinguishes_data_sets(locations: list[str], labels: list[str]) -> None:
    assert dataset_labels(locations) == labels
