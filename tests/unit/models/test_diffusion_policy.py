from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlatool.models.base import Loss, StepContext
from vlatool.models.diffusion_policy.config import (
    ByteTextConfig,
    KeypointBackboneConfig,
    NoiseConfig,
    TransformerConfig,
)
from vlatool.models.diffusion_policy.model import DiffusionPolicy
from vlatool.models.diffusion_policy.objective import DenoisingObjective
from vlatool.models.diffusion_policy.spec import DiffusionPolicyConfig
from vlatool.models.rng import PerSampleRng

B, T, A, P, D = 3, 5, 4, 2, 6


def config(**keys: Any) -> DiffusionPolicyConfig:
    backbone = KeypointBackboneConfig(
        hidden_dim=16,
        channels=(4, 8),
        num_keypoints=4,
        text_encoder=ByteTextConfig(hidden_dim=8),
        num_cameras=1,
        num_times=2,
    )
    given = {
        "vision_language_backbone": backbone,
        "transformer": TransformerConfig(hidden_dim=32, n_layers=2, n_heads=2),
        "noise_scheduler": NoiseConfig(num_timesteps=50, clamp_range=None),
        "action_dim": A,
        "proprioception_dim": D,
    }
    return DiffusionPolicyConfig(**{**given, **keys})


def policy(**keys: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    return DiffusionPolicy(config(**keys))


def batch() -> dict[str, Tensor]:
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


def loss_of(
    model: Any, given: dict[str, Tensor], settings: DiffusionPolicyConfig | None = None
) -> Loss:
    """The loss of a network, of its own config where no other is given."""
    settings = settings or model.config
    size = len(given["actions"])
    draws = PerSampleRng(torch.Generator().manual_seed, range(size), size)
    ctx = StepContext(0, draws, {"model": model})
    return DenoisingObjective(settings).loss("main", given, ctx)


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
    found = {
        name: list(value.shape)
        for name, value in state.items()
        if not name.startswith("vision_language_backbone.")
    }
    assert found == expected


KINDS = ("weight", "bias")


@pytest.mark.parametrize("conditioning", ["concat", "add"])
def test_velocity_has_the_shape_of_actions(conditioning: str) -> None:
    model, given = policy(diffusion_step_conditioning=conditioning), batch()
    inputs = (given["images"], given["text"], given["proprioception"], given["actions"])
    first = model(*inputs, torch.tensor([0, 10, 20]))
    second = model(*inputs, torch.tensor([30, 10, 20]))
    assert first.shape == (B, T, A)
    assert not torch.equal(first[0], second[0])
    torch.testing.assert_close(first[1:], second[1:])


def test_no_proprioception_needs_no_encoder() -> None:
    model, given = policy(proprioception_dim=0), batch()
    assert model.proprioception_encode is None
    time = torch.zeros(B, dtype=torch.int64)
    empty = torch.zeros(B, P, 0)
    assert model(given["images"], given["text"], empty, given["actions"], time).shape == (B, T, A)


def test_language_changes_the_velocity() -> None:
    model, given = policy(), batch()
    time = torch.full((B,), 25)
    rest = (given["proprioception"], given["actions"], time)
    first = model(given["images"], given["text"], *rest)
    second = model(given["images"], given["text"].flip(1), *rest)
    assert (first - second).abs().max() > 1e-6


def test_input_noise_is_added_only_while_training() -> None:
    model, given = policy(input_noise_std=0.5), batch()
    inputs = (given["images"], given["text"], given["proprioception"], given["actions"])
    time = torch.full((B,), 25)
    assert not torch.equal(model(*inputs, time), model(*inputs, time))
    model.eval()
    assert torch.equal(model(*inputs, time), model(*inputs, time))


# loss


class Oracle(nn.Module):
    """Knows the velocity of zero actions, and errs by a fixed amount."""

    def __init__(self, error: Tensor, num_timesteps: int) -> None:
        super().__init__()
        self.error = error
        self.num_timesteps = num_timesteps

    def forward(self, images: Tensor, text: Tensor, state: Tensor, x: Tensor, time: Tensor) -> Any:
        del images, text, state
        return x * self.num_timesteps / time.clamp(min=1)[:, None, None] + self.error


# Source: reference/policy 2.3
@pytest.mark.parametrize(("real", "mean", "count"), [(True, 7.5, 4), (False, 2.5, 2)])
def test_masked_loss_golden(real: bool, mean: float, count: int) -> None:
    error = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    given = {name: value[:1] for name, value in batch().items()}
    given |= {"actions": torch.zeros(1, 2, 2), "future_mask": torch.tensor([[True, real]])}
    given |= {"past_mask": torch.zeros(1, 2, dtype=torch.bool)}
    loss = loss_of(Oracle(error, 50), given, config(action_dim=2))
    assert int(loss.count) == count
    assert (loss.total / loss.count).item() == pytest.approx(mean, rel=1e-5)


def test_padded_steps_at_the_end_do_not_change_the_loss_of_a_causal_denoiser() -> None:
    model, given = policy(), batch()
    changed = given["actions"].clone()
    changed[1, -2:] += 100.0
    loss = loss_of(model, given)
    other = loss_of(model, {**given, "actions": changed})
    torch.testing.assert_close(other.total, loss.total)
    assert int(loss.count) == int(given["future_mask"].sum()) * A


def test_model_gets_clean_actions_only_where_they_are_real_and_past() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, images: Any, text: Any, state: Any, x: Tensor, time: Any) -> Tensor:
            seen.append(x)
            return x

    given = batch()
    given["past_mask"][2, 0] = False
    loss_of(Spy(), given, config())
    same = (seen[0] == given["actions"]).all(dim=2)
    assert torch.equal(same, given["past_mask"])
    assert same.sum() == 2


def test_repeats_encode_once_and_draw_noise_for_each_copy() -> None:
    model, given = policy(num_action_head_repeats=4), batch()
    encoded: list[int] = []
    chunks: list[Tensor] = []
    model.vision_language_backbone.register_forward_hook(
        lambda module, inputs, out: encoded.append(len(out))
    )
    model.action_encode.register_forward_hook(lambda module, inputs, out: chunks.append(inputs[0]))
    loss = loss_of(model, given)
    assert encoded == [B]
    assert chunks[0].shape == (4 * B, T, A)
    assert len({chunk[1].sum().item() for chunk in chunks[0][:4]}) == 4
    assert int(loss.count) == 4 * int(given["future_mask"].sum()) * A


def test_repeats_give_the_loss_of_separate_draws() -> None:
    model, given = policy(num_action_head_repeats=2).eval(), batch()
    repeated = loss_of(model, given)
    doubled = {name: value.repeat_interleave(2, 0) for name, value in given.items()}
    separate = loss_of(model, doubled, config())
    torch.testing.assert_close(repeated.total, separate.total)
    assert int(repeated.count) == int(separate.count)
