from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlatool.models.backbones.config import (
    ByteTextConfig,
    KeypointBackboneConfig,
    ViTBackboneConfig,
)
from vlatool.models.base import Loss, StepContext
from vlatool.models.diffusion_policy.config import (
    DiffusionPolicyConfig,
    NoiseConfig,
    TransformerConfig,
)
from vlatool.models.diffusion_policy.model import Condition, DiffusionPolicy
from vlatool.models.diffusion_policy.objective import DenoisingObjective, observation_of
from vlatool.models.rng import PerSampleRng

B, T, A, P, D = 3, 5, 4, 2, 6
VIT_WITH_DROPOUT = ViTBackboneConfig(
    hidden_dim=16, inter_dim=32, img_size=32, n_heads=2, n_layers=2, dropout=0.5
)


def config(**keys: Any) -> DiffusionPolicyConfig:
    backbone = KeypointBackboneConfig(
        hidden_dim=16,
        channels=(4, 8),
        num_keypoints=4,
        text_encoder=ByteTextConfig(hidden_dim=8),
        num_cameras=1,
        num_times=2,
    )
    defaults = {
        "vision_language_backbone": backbone,
        "transformer": TransformerConfig(hidden_dim=32, n_layers=2, n_heads=2),
        "noise_scheduler": NoiseConfig(num_timesteps=50, clamp_range=None),
        "action_dim": A,
        "proprioception_dim": D,
    }
    return DiffusionPolicyConfig(**{**defaults, **keys})


def policy(**keys: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(config(**keys))


def make_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    future = torch.ones(B, T, dtype=torch.bool)
    future[:, 0] = False
    future[1, -2:] = False
    return {
        "images": torch.randint(0, 256, (B, 2, 3, 32, 32), generator=generator).byte(),
        "text": torch.randint(1, 257, (B, 32), generator=generator),
        "actions": torch.randn(B, T, A, generator=generator),
        "proprioception": torch.randn(B, P, D, generator=generator),
        "past_mask": ~future & (torch.arange(T) == 0),
        "future_mask": future,
    }


def rng_of(rows: Sequence[int], total: int = B, seed: int = 0) -> PerSampleRng:
    """Generators of some rows of a global batch of `total` rows."""
    return PerSampleRng(lambda _: torch.Generator().manual_seed(seed), rows, total)


def loss_of(
    model: Any,
    batch: dict[str, Tensor],
    settings: DiffusionPolicyConfig | None = None,
    rows: Sequence[int] | None = None,
) -> Loss:
    """The loss of a network, with its own config by default; `rows` of a global batch of B."""
    settings = settings or model.config
    size = len(batch["actions"])
    rng = rng_of(range(size), size) if rows is None else rng_of(rows)
    ctx = StepContext(0, rng, {"model": model})
    return DenoisingObjective(settings).loss("main", batch, ctx)


def test_padded_dimensions_count_nothing_and_have_no_gradient() -> None:
    batch = make_batch()
    batch["action_mask"] = torch.ones(B, A, dtype=torch.bool)
    batch["action_mask"][1, 1:] = False
    model = policy()
    outputs: list[Tensor] = []
    model.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    whole = loss_of(model, {**batch, "action_mask": torch.ones(B, A, dtype=torch.bool)})
    loss = loss_of(model, batch)
    steps = int(batch["future_mask"][1].sum())
    assert int(whole.count) == int(batch["future_mask"].sum()) * A
    (gradient,) = torch.autograd.grad(loss.total, outputs[-1])
    repeats = len(gradient) // B
    assert int(whole.count - loss.count) == steps * (A - 1) * repeats
    assert not gradient[repeats : 2 * repeats, :, 1:].any()
    assert gradient[repeats : 2 * repeats, 1, :1].any()


# network


def test_time_table_starts_as_sines_then_cosines() -> None:
    table = policy().time_encoding.weight
    steps, half = torch.arange(50).float()[:, None], 16 // 2
    frequencies = torch.exp(-torch.arange(half) * torch.log(torch.tensor(1e4)) / (half - 1))
    expected = torch.cat([(steps * frequencies).sin(), (steps * frequencies).cos()], dim=1)
    torch.testing.assert_close(table.detach(), expected, rtol=0, atol=1e-5)


# Source: formats/published-runs 4.1; the dead vocabulary weights are not built.
def test_state_dict_names_and_shapes_are_the_published_ones() -> None:
    state = policy(
        transformer=TransformerConfig(
            hidden_dim=64, n_layers=2, n_heads=2, ffn_type="swiglu", post_embed_norm=True
        )
    ).state_dict()
    layer = {
        "attention.in_proj.weight": [192, 64],
        "attention.out_proj.weight": [64, 64],
        "attention.pos_embed.inv_freq": [16],
        "feed_forward.w12.weight": [512, 64],
        "feed_forward.w3.weight": [64, 256],
        **{f"{name}.{kind}": [64] for name in ("attention_norm", "ffn_norm") for kind in KINDS},
    }
    expected = {
        **{f"transformer.layers.{i}.{key}": shape for i in (0, 1) for key, shape in layer.items()},
        **{f"transformer.post_embed_norm.{kind}": [64] for kind in KINDS},
        "time_encoding.weight": [50, 16],
        "sinusoidal_position_embeddings.emb": [8],
        "condition_encode.weight": [64, 16],
        "condition_encode.bias": [64],
        "action_encode.weight": [64, A],
        "action_encode.bias": [64],
        "proprioception_encode.weight": [64, D],
        "proprioception_encode.bias": [64],
        "output_layer.weight": [A, 64],
        "output_layer.bias": [A],
    }
    shapes = {
        name: list(value.shape)
        for name, value in state.items()
        if not name.startswith("vision_language_backbone.")
    }
    assert shapes == expected


KINDS = ("weight", "bias")


@pytest.mark.parametrize("conditioning", ["concat", "add"])
def test_velocity_has_the_shape_of_actions(conditioning: str) -> None:
    model, batch = policy(diffusion_step_conditioning=conditioning), make_batch()
    inputs = (observation_of(batch), batch["actions"])
    first = model(*inputs, torch.tensor([0, 10, 20]))
    second = model(*inputs, torch.tensor([30, 10, 20]))
    assert first.shape == (B, T, A)
    assert not torch.equal(first[0], second[0])
    torch.testing.assert_close(first[1:], second[1:])


def test_no_proprioception_needs_no_encoder() -> None:
    model, batch = policy(proprioception_dim=0), make_batch()
    assert model.proprioception_encode is None
    time = torch.zeros(B, dtype=torch.int64)
    empty = observation_of(batch) | {"proprioception": torch.zeros(B, P, 0)}
    assert model(empty, batch["actions"], time).shape == (B, T, A)


def test_language_changes_the_velocity() -> None:
    model, batch = policy(), make_batch()
    time = torch.full((B,), 25)
    observed = observation_of(batch)
    other = observed | {"text": batch["text"].flip(1)}
    first, second = (model(seen, batch["actions"], time) for seen in (observed, other))
    assert (first - second).abs().max() > 1e-6


def test_input_noise_is_added_only_while_training() -> None:
    model, batch = policy(input_noise_std=0.5), make_batch()
    inputs = (observation_of(batch), batch["actions"], torch.full((B,), 25))
    first, second = (model(*inputs, rng_of(range(B), seed=seed)) for seed in (1, 2))
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(*inputs), model(*inputs))


@pytest.mark.parametrize("repeats", [None, 2])
@pytest.mark.parametrize(
    "keys", [{"input_noise_std": 0.5}, {"vision_language_backbone": VIT_WITH_DROPOUT}]
)
def test_draws_of_a_sample_do_not_depend_on_the_micro_batch(
    keys: dict[str, Any], repeats: int | None
) -> None:
    model, batch = policy(num_action_head_repeats=repeats, **keys), make_batch()
    whole = loss_of(model, batch).total
    parts = [
        loss_of(model, {name: value[rows] for name, value in batch.items()}, rows=rows).total
        for rows in ([0, 2], [1])
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)
    model.eval()
    assert not torch.isclose(loss_of(model, batch).total, whole)


# loss


class Oracle(nn.Module):
    """Network that knows the velocity of zero actions and adds a fixed error."""

    def __init__(self, error: Tensor, num_timesteps: int) -> None:
        super().__init__()
        self.error = error
        self.num_timesteps = num_timesteps

    def forward(self, observation: Any, x: Tensor, time: Tensor, rng: Any) -> Tensor:
        del observation, rng
        return x * self.num_timesteps / time.clamp(min=1)[:, None, None] + self.error


# Source: reference/policy 2.3
@pytest.mark.parametrize(("real", "mean", "count"), [(True, 7.5, 4), (False, 2.5, 2)])
def test_masked_loss_golden(real: bool, mean: float, count: int) -> None:
    error = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    batch = {name: value[:1] for name, value in make_batch().items()}
    batch |= {"actions": torch.zeros(1, 2, 2), "future_mask": torch.tensor([[True, real]])}
    batch |= {"past_mask": torch.zeros(1, 2, dtype=torch.bool)}
    loss = loss_of(Oracle(error, 50), batch, config(action_dim=2))
    assert int(loss.count) == count
    assert (loss.total / loss.count).item() == pytest.approx(mean, rel=1e-5)


def test_padded_steps_at_the_end_do_not_change_the_loss_of_a_causal_denoiser() -> None:
    model, batch = policy(), make_batch()
    changed = batch["actions"].clone()
    changed[1, -2:] += 100.0
    loss = loss_of(model, batch)
    other = loss_of(model, {**batch, "actions": changed})
    torch.testing.assert_close(other.total, loss.total)
    assert int(loss.count) == int(batch["future_mask"].sum()) * A


def test_model_gets_clean_actions_only_where_they_are_real_and_past() -> None:
    inputs: list[Tensor] = []

    class RecordingNetwork(nn.Module):
        def forward(self, observation: Any, x: Tensor, time: Any, rng: Any) -> Tensor:
            inputs.append(x)
            return x

    batch = make_batch()
    batch["past_mask"][2, 0] = False
    loss_of(RecordingNetwork(), batch, config())
    is_clean = (inputs[0] == batch["actions"]).all(dim=2)
    assert torch.equal(is_clean, batch["past_mask"])
    assert is_clean.sum() == 2


def test_repeats_encode_once_and_draw_noise_for_each_copy() -> None:
    model, batch = policy(num_action_head_repeats=4), make_batch()
    encoded: list[int] = []
    chunks: list[Tensor] = []
    model.vision_language_backbone.register_forward_hook(
        lambda module, inputs, out: encoded.append(len(out))
    )
    model.action_encode.register_forward_hook(lambda module, inputs, out: chunks.append(inputs[0]))
    loss = loss_of(model, batch)
    assert encoded == [B]
    assert chunks[0].shape == (4 * B, T, A)
    assert len({chunk[1].sum().item() for chunk in chunks[0][:4]}) == 4
    assert int(loss.count) == 4 * int(batch["future_mask"].sum()) * A


def test_repeats_give_the_loss_of_separate_draws() -> None:
    model, batch = policy(num_action_head_repeats=2).eval(), make_batch()
    repeated = loss_of(model, batch)
    doubled = {name: value.repeat_interleave(2, 0) for name, value in batch.items()}
    separate = loss_of(model, doubled, config())
    torch.testing.assert_close(repeated.total, separate.total)
    assert int(repeated.count) == int(separate.count)


# delay in training


def delayed_loss(batch: dict[str, Tensor], *, training: bool = True) -> tuple[Loss, Tensor]:
    """Loss with a delay of up to 2 steps, and the mask of the given actions [B, T]."""
    seen: list[Tensor] = []

    class RecordingNetwork(nn.Module):
        def forward(
            self, observation: Any, x: Tensor, time: Any, rng: Any, given: Tensor | None = None
        ) -> Tensor:
            del observation, time, rng
            seen.append(torch.zeros(x.shape[:2], dtype=torch.bool) if given is None else given)
            torch.testing.assert_close(x[seen[0]], batch["actions"][seen[0]])
            return torch.zeros_like(x)

    ctx = StepContext(0, rng_of(range(B)), {"model": RecordingNetwork()}, training=training)
    objective = DenoisingObjective(config(), max_delay=2, past_steps=1)
    return objective.loss("main", batch, ctx), seen[0]


def test_the_first_actions_of_a_random_delay_are_given_and_not_counted() -> None:
    batch = make_batch()
    loss, given = delayed_loss(batch)
    assert int(loss.count) == int((batch["future_mask"] & ~given).sum()) * A
    delays = given.sum(dim=1)
    assert 0 < delays.max() <= 2
    for row, delay in enumerate(delays.tolist()):
        assert given[row, 1 : 1 + delay].all()


def test_validation_gives_no_action() -> None:
    batch = make_batch()
    assert int(delayed_loss(batch, training=False)[0].count) == int(batch["future_mask"].sum()) * A


def test_a_given_action_reaches_the_network_as_clean() -> None:
    model = policy()
    model.eval()
    batch = make_batch()
    context = model.encode(batch["images"], batch["text"])
    time = torch.full((B,), 40)

    def predicted(given: Tensor | None) -> Tensor:
        condition = Condition(context, batch["proprioception"], given)
        return model.denoise(condition, batch["actions"], time)

    none = torch.zeros(B, T, dtype=torch.bool)
    torch.testing.assert_close(predicted(none), predicted(None))
    some = none.clone()
    some[:, 1] = True
    assert not torch.allclose(predicted(some), predicted(None))
