"""Loss of the answers: labelled positions, in chunks, weighted by segment."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.builders.future_vla import VOCABULARY, tiny_future_vla
from vlatool.models.adapters import merged_weights
from vlatool.models.base import StepContext
from vlatool.models.future_vla import model
from vlatool.models.future_vla.batch import MOVING
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.model import AnswerObjective, FutureVla
from vlatool.models.rng import PerSampleRng
from vlatool.plugins import MODELS

LENGTH = 12


def batch(*, is_text_only: bool = False) -> dict[str, Any]:
    """Two rows of text and all three segments; the second one is padded."""
    ids = torch.arange(2 * LENGTH).reshape(2, LENGTH) * 7 % (VOCABULARY - 1)
    labels, segments = ids.clone(), torch.zeros(2, LENGTH, dtype=torch.uint8)
    labels[:, :4] = labels[1, 10:] = -100
    segments[:, 4:6], segments[:, 6:8], segments[0, 8:], segments[1, 8:10] = 1, 2, 3, 3
    images = torch.zeros(2, 0 if is_text_only else 3, 64, 64, 3, dtype=torch.uint8)
    positions = torch.arange(LENGTH).expand(2, 3, LENGTH)
    return {
        "input_ids": ids,
        "labels": labels,
        "segments": segments,
        "attention_mask": labels >= -100,
        "position_ids": positions,
        "images": images,
    }


def network_of(config: FutureVlaConfig) -> Any:
    torch.manual_seed(0)
    return FutureVla(config)


def loss_of(config: FutureVlaConfig, network: Any, data: dict[str, Any]) -> Any:
    objective = AnswerObjective(config)
    rng = PerSampleRng(lambda _: torch.Generator(), range(2), 2)
    return objective, objective.loss("main", data, StepContext(0, rng, {"model": network}))


def plain_losses(network: Any, data: dict[str, Any]) -> torch.Tensor:
    """Losses of all positions from all logits, 0 without a label."""
    hidden = network(data["input_ids"], data["position_ids"], images=data["images"])
    logits = network.head(hidden)[:, :-1].flatten(0, 1)
    return functional.cross_entropy(logits, data["labels"][:, 1:].flatten(), reduction="none")


def test_chunked_head_has_the_loss_and_the_gradients_of_all_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, data = tiny_future_vla(), batch()
    network = network_of(config)
    monkeypatch.setattr(model, "_LOGITS", 3 * VOCABULARY)  # chunks of three labels, the last of two
    _, loss = loss_of(config, network, data)
    loss.total.backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    expected = plain_losses(network, data).sum()
    expected.backward()
    torch.testing.assert_close(loss.total, expected)
    assert loss.count == 14
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, network.get_parameter(name).grad)


def test_segments_are_weighted_and_measured() -> None:
    weights = {"text": 0.5, "action": 3.0, "future": 0.0}
    config, data = tiny_future_vla(segment_weights=weights), batch()
    network = network_of(config)
    objective, loss = loss_of(config, network, data)
    losses, segments = plain_losses(network, data), data["segments"][:, 1:].flatten()
    means = {name: losses[segments == i].mean().item() for i, name in enumerate(weights, 1)}
    assert loss.count == 0.5 * 4 + 3 * 4
    assert loss.total.item() == pytest.approx(4 * (0.5 * means["text"] + 3 * means["action"]))
    metrics = objective.metrics("main", loss.sums, float(loss.count))
    shares = {name: metrics.pop(f"accuracy/{name}") for name in weights}
    assert metrics == pytest.approx({f"loss/{name}": mean for name, mean in means.items()})
    assert all(0 <= share <= 1 for share in shares.values())


def test_moving_codes_have_a_factor_and_count_as_codes() -> None:
    config, data = tiny_future_vla(segment_weights={"moving": 8.0}), batch()
    plain = loss_of(tiny_future_vla(), network := network_of(config), data)[1]
    data["segments"][0, 8:10] = MOVING
    _, loss = loss_of(config, network, data)
    losses = plain_losses(network, data).reshape(2, -1)[0, 7:9]
    assert loss.count == plain.count + 7 * 2
    torch.testing.assert_close(loss.total, plain.total + 7 * losses.sum())
    assert loss.sums["count"].tolist() == plain.sums["count"].tolist()


@pytest.mark.parametrize("is_text_only", [False, True])
@pytest.mark.parametrize(
    ("key", "frozen"),
    [
        ("freeze_dino", "model.visual.vis_tok."),
        ("freeze_vision", "model.visual.blocks."),
        ("freeze_mergers", "model.visual.deepstack_merger_list."),
        ("freeze_language", "model.language_model."),
        ("freeze_layers", "model.language_model.layers.0."),
    ],
)
def test_every_trained_parameter_has_a_gradient_and_no_frozen_one(
    key: str, frozen: str, is_text_only: bool
) -> None:
    value = 1 if key == "freeze_layers" else True
    config = tiny_future_vla(**{"freeze_dino": False, key: value})
    network = network_of(config)
    loss_of(config, network, batch(is_text_only=is_text_only))[1].total.backward()
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in network.named_parameters() if p.grad is not None}
    assert not any(name.startswith(frozen) for name in trained)
    assert any(name.startswith("model.visual.cnn1.") for name in trained) != (
        key == "freeze_vision"
    )


def test_model_without_trained_parts_is_a_contradiction() -> None:
    keys = ("freeze_dino", "freeze_vision", "freeze_mergers", "freeze_language")
    config = tiny_future_vla(**dict.fromkeys(keys, True))
    assert len(list(MODELS.get("future_vla")().violations(config, None))) == 1
    config = tiny_future_vla(freeze_layers=1, lora={"rank": 2})
    assert len(list(MODELS.get("future_vla")().violations(config, None))) == 1


def test_adapters_train_in_place_of_the_language_model_and_merge_into_it() -> None:
    config = tiny_future_vla(lora={"rank": 2}, freeze_vision=True, freeze_mergers=True)
    plain, adapted, data = network_of(tiny_future_vla()), network_of(config), batch()
    missing = adapted.load_state_dict(plain.state_dict(), strict=False)
    assert all(".adapter." in name for name in missing.missing_keys)
    assert not missing.unexpected_keys
    trained = [p for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trained) == len(missing.missing_keys)  # nothing else is trained

    before = plain_losses(plain, data)
    torch.testing.assert_close(plain_losses(adapted, data), before)  # adapters begin as zero
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(2):  # the first step changes only one of both matrices
        loss_of(config, adapted, data)[1].total.backward()
        optimizer.step()
    after = plain_losses(adapted, data)
    assert not torch.allclose(after, before)
    plain.load_state_dict(merged_weights(adapted.state_dict(), config.lora.rank, config.lora.alpha))
    torch.testing.assert_close(plain_losses(plain, data), after, rtol=1e-4, atol=1e-5)
