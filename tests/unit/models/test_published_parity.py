"""The policy equals the published formulas, reimplemented here on plain weights.

Source: reference/policy 1.2, 1.5, 1.6, 2.1, 2.3, 2.4.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.builders.base_models import clip_config
from vlatool.config.resolve import load_config
from vlatool.models.backbones.config import ClipBackboneConfig
from vlatool.models.base import StepContext
from vlatool.models.diffusion_policy.config import (
    DiffusionPolicyConfig,
    NoiseConfig,
    TransformerConfig,
)
from vlatool.models.diffusion_policy.model import DiffusionPolicy
from vlatool.models.diffusion_policy.objective import DenoisingObjective, observation_of
from vlatool.models.diffusion_policy.weights import export_published
from vlatool.training.config import TrainConfig

B, PAST, T, A, D, HEADS, LAYERS, K = 3, 1, 5, 4, 16, 2, 2, 40
State = Mapping[str, Tensor]


def policy(**keys: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    clip = ClipBackboneConfig(
        architecture=clip_config(), image_mean=(0.5, 0.5, 0.5), image_std=(0.3, 0.3, 0.3)
    )
    transformer = {"hidden_dim": D, "n_layers": LAYERS, "n_heads": HEADS, "post_embed_norm": True}
    transformer |= {"vocab_size": 3, **keys.pop("transformer", {})}
    defaults = {
        "vision_language_backbone": clip,
        "transformer": TransformerConfig.model_validate(transformer),
        "noise_scheduler": NoiseConfig(num_timesteps=K, clamp_range=(-9.0, 9.0)),
        "action_dim": A,
        "proprioception_dim": 3,
    }
    return DiffusionPolicy(DiffusionPolicyConfig.model_validate({**defaults, **keys})).eval()


def policy_of(preset: str) -> DiffusionPolicy:
    """A small network with the other values of a preset."""
    torch.manual_seed(0)
    model: Any = load_config(TrainConfig, presets=[preset]).config.model
    colors = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.3, 0.3, 0.3)}
    sizes = {"hidden_dim": D, "n_layers": LAYERS, "n_heads": HEADS, "vocab_size": 3}
    update = {
        "vision_language_backbone": model.vision_language_backbone.model_copy(
            update={"architecture": clip_config(), **colors}
        ),
        "transformer": model.transformer.model_copy(update=sizes),
        "action_dim": A,
        "proprioception_dim": 3,
    }
    return DiffusionPolicy(model.model_copy(update=update)).eval()


def make_batch() -> dict[str, Tensor]:
    """Three samples: within an episode, at its end, at its start."""
    generator = torch.Generator().manual_seed(5)
    future = (torch.arange(T) >= PAST).repeat(B, 1)
    future[1, -2:] = False
    past = (torch.arange(T) < PAST).repeat(B, 1)
    past[2] = False
    return {
        "images": torch.randint(0, 256, (B, 2, 3, 32, 32), generator=generator).byte(),
        "text": torch.tensor([[9, 2, 3, 10, 0], [9, 10, 0, 0, 0], [9, 4, 5, 6, 10]]),
        "proprioception": torch.randn(B, PAST + 1, 3, generator=generator),
        "actions": torch.randn(B, T, A, generator=generator),
        "past_mask": past,
        "future_mask": future,
    }


# the published formulas


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return functional.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def norm(state: State, name: str, x: Tensor) -> Tensor:
    variance = x.var(dim=-1, unbiased=False, keepdim=True)
    centered = (x - x.mean(dim=-1, keepdim=True)) / (variance + 1e-5).sqrt()
    return centered * state[f"{name}.weight"] + state[f"{name}.bias"]


def rotated(x: Tensor) -> Tensor:
    """Rotates half-split pairs, as complex numbers, by position times frequency; [B, S, d]."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    frequencies = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(x.shape[1], dtype=torch.float64), frequencies)
    rotated_pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([rotated_pairs.real, rotated_pairs.imag], dim=-1).float()


def attention(state: State, name: str, x: Tensor, *, causal: bool) -> Tensor:
    query, key, value = linear(state, f"{name}.in_proj", x).split(D, dim=-1)
    size, heads = D // HEADS, []
    hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = rotated(query[..., part]) @ rotated(key[..., part]).transpose(1, 2) / size**0.5
        if causal:
            scores = scores.masked_fill(hidden, float("-inf"))
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    return linear(state, f"{name}.out_proj", torch.cat(heads, dim=-1))


def feed_forward(state: State, name: str, x: Tensor) -> Tensor:
    gate, value = linear(state, f"{name}.w12", x).chunk(2, dim=-1)
    return linear(state, f"{name}.w3", gate * gate.sigmoid() * value)


def velocity(
    config: DiffusionPolicyConfig,
    state: State,
    context: Tensor,
    batch: Mapping[str, Tensor],
    inputs: tuple[Tensor, Tensor],
) -> Tensor:
    """Velocity at noised actions [B, T, A] and times [B]."""
    actions, time = inputs
    denoiser: Any = config.transformer
    encoded = state["time_encoding.weight"][time][:, None]
    if config.diffusion_step_conditioning == "add":
        context = context + encoded
    else:
        context = torch.cat([encoded, context], dim=1)
    x = torch.cat(
        [
            linear(state, "condition_encode", context),
            linear(state, "proprioception_encode", batch["proprioception"]),
            linear(state, "action_encode", actions),
        ],
        dim=1,
    )
    if denoiser.post_embed_norm:
        x = norm(state, "transformer.post_embed_norm", x)
    causal = denoiser.is_causal
    for layer in range(LAYERS):
        name = f"transformer.layers.{layer}"
        normed = norm(state, f"{name}.attention_norm", x)
        x = x + attention(state, f"{name}.attention", normed, causal=causal)
        x = x + feed_forward(state, f"{name}.feed_forward", norm(state, f"{name}.ffn_norm", x))
    return linear(state, "output_layer", x[:, -T:])


def published(network: DiffusionPolicy, batch: Mapping[str, Tensor]) -> Any:
    """The published velocity as a function of actions and times, with the exported weights."""
    state = export_published(network.config, network.state_dict())
    context = network.encode(batch["images"], batch["text"])
    return lambda x, time: velocity(network.config, state, context, batch, (x, time))


@pytest.mark.parametrize(
    "keys", [{}, {"diffusion_step_conditioning": "add"}, {"transformer": {"is_causal": False}}]
)
@torch.no_grad()
def test_velocity_is_the_published_one(keys: dict[str, Any]) -> None:
    network, batch = policy(**keys), make_batch()
    time = torch.tensor([0, 17, K - 1])
    result = network(observation_of(batch), batch["actions"], time)
    expected = published(network, batch)(batch["actions"], time)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


class FixedRng:
    """Random numbers that the test sets."""

    def __init__(self, time: Tensor, noise: Tensor) -> None:
        self.time, self.noise = time, noise

    def integers(self, high: int, *shape: int) -> Tensor:
        assert self.time.max() < high
        return self.time.view(B, *shape)

    def normal(self, *shape: int) -> Tensor:
        return self.noise.view(B, *shape)


@pytest.mark.parametrize(
    "preset",
    [
        "model-diffusion-policy-published",  # not causal
        "diffusion-policy-bellpepper-published",
        "diffusion-policy-lbm1-published",
        "lbm-hparams-4cams-published",
    ],
)
@torch.no_grad()
def test_loss_of_a_published_preset_is_the_published_one(preset: str) -> None:
    network, batch = policy_of(preset), make_batch()
    process = network.config.noise_scheduler
    time = (torch.tensor([0.1, 0.5, 0.99]) * process.num_timesteps).long()
    noise = torch.randn(B, T, A)
    rng: Any = FixedRng(time, noise)
    loss = DenoisingObjective(network.config).loss(
        "main", batch, StepContext(0, rng, {"model": network})
    )
    actions, mask = batch["actions"], batch["future_mask"][..., None]
    mixed = actions + (time / process.num_timesteps)[:, None, None] * (noise - actions)
    assert process.clamp_range is not None
    mixed = mixed.clamp(*process.clamp_range)
    inputs = torch.where(mask, mixed, actions)
    error = (published(network, batch)(inputs, time) - (noise - actions)) ** 2
    expected = (error * mask).sum() / mask.expand_as(error).sum()
    torch.testing.assert_close(loss.total / loss.count, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [4, 8, 20])
@torch.no_grad()
def test_samples_are_the_published_ones_where_steps_divide_the_times(steps: int) -> None:
    network, batch = policy(), make_batch()
    noise = torch.randn(B, T, A, generator=torch.Generator().manual_seed(4))
    rng: Any = FixedRng(torch.zeros(B), noise)
    result = network.sample(batch, steps=steps, rng=rng)
    predict, stride = published(network, batch), K // steps
    past = batch["past_mask"][..., None]
    x = torch.where(past, batch["actions"], noise)
    for time in range(K - 1, 0, -stride):
        x = (x - predict(x, torch.full((B,), time)) * stride / K).clamp(-9, 9)
        x = torch.where(past, batch["actions"], x)
    torch.testing.assert_close(result, x, rtol=1e-4, atol=1e-4)
