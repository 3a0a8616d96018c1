"""Parts of the loss: fields and data sets."""

import pytest
import torch

from vlatool.models.diffusion_policy.loss_breakdown import LossBreakdown, dataset_labels

FIELDS = {"xyz": 2, "hand": 1}


def shares(*, training: bool = True) -> tuple[dict[str, float], torch.Tensor, torch.Tensor]:
    """Figures, errors and mask of 3 samples, 2 draws each."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 4, 1, generator=generator) < 0.7
    error = torch.rand(6, 4, 3, generator=generator) * mask
    own = LossBreakdown(FIELDS, ["a/x/shards", "b/x"], ["v"])
    sums = own.sums(error, mask, torch.tensor([1, 0, 1]), training=training)
    return own.metrics(sums, float(mask.sum() * 3), training=training), error, mask


def test_fields_weighted_by_their_widths_are_the_loss() -> None:
    figures, error, mask = shares()

    whole = (2 * figures["action_error/xyz"] + figures["action_error/hand"]) / 3
    assert whole == pytest.approx(float(error.sum() / (mask.sum() * 3)))
    hand = float(error[..., 2].sum() / mask.sum())
    assert figures["action_error/hand"] == pytest.approx(hand)


def test_loss_of_a_data_set_is_that_of_its_samples() -> None:
    figures, error, mask = shares()

    rows = torch.tensor([False, False, True, True, False, False])
    assert figures["loss/a/x"] == pytest.approx(float(error[rows].sum() / (mask[rows].sum() * 3)))
    assert figures["loss/b/x"] == pytest.approx(float(error[~rows].sum() / (mask[~rows].sum() * 3)))


def test_one_data_set_has_no_part() -> None:
    figures, _, _ = shares(training=False)

    assert set(figures) == {"action_error/xyz", "action_error/hand"}


def test_data_set_that_was_not_seen_is_not_told() -> None:
    own = LossBreakdown(FIELDS, ["a", "b"])
    mask = torch.ones(2, 1, 1, dtype=torch.bool)
    sums = own.sums(torch.ones(2, 1, 3), mask, torch.tensor([0, 0]), training=True)

    figures = own.metrics(sums, 6.0, training=True)

    assert (figures["loss/a"], "loss/b" in figures) == (1.0, False)


@pytest.mark.parametrize(
    ("locations", "labels"),
    [
        (["/d/pick/shards/manifest.jsonl", "s3://b/place/"], ["pick", "place"]),
        (["/d/pick/data", "/d/place/data/shards"], ["pick/data", "place/data"]),
        (["/d/pick", "/d/pick"], ["pick#1", "pick#2"]),
    ],
)
def test_label_is_what_tells_data_sets_apart(locations: list[str], labels: list[str]) -> None:
    assert dataset_labels(locations) == labels
