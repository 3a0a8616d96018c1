"""The network of the diffusion policy: conditioning and noised actions to velocity or noise.

A new denoiser is a class with `width` (D), `forward(x [B, S, D])` and `blocks()` (units of sharding
and gradient checkpointing). Source: reference/policy 1.2, 1.3, 1.5, 2.1 to 2.4.

Legend of shapes: B batch, R noise draws per observation, N images, M conditioning tokens, C their
width, P proprioception steps, T action steps, A width of an action, K number of noise levels, S
tokens, D width, H heads, F hidden width of the feed-forward layers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.config.base import ConfigModel
from vlatool.models.base import Rng
from vlatool.models.diffusion_policy.backbones import build_backbone
from vlatool.models.diffusion_policy.config import (
    CausalLMConfig,
    DdimConfig,
    DdpmConfig,
    DiffusionPolicyConfig,
    NoiseConfig,
    NormType,
    Solver,
    TransformerConfig,
)
from vlatool.models.pretrained import build_network, load_base, transformers
from vlatool.models.rng import InputNoise

# Constants of the cosine schedule.
# Source: Nichol and Dhariwal, Improved Denoising Diffusion, 2021, eq. 17.
_COSINE_OFFSET = 0.008
_LARGEST_BETA = 0.999

Clamp = tuple[float, float] | None


class ForwardProcess(Protocol):
    """Forward process that adds noise to actions."""

    def noised(self, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Noised actions, the input of the network; all [B, T, A], time int64 [B] in [0, K)."""
        ...

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        """Target of the network, [B, T, A]."""
        ...

    def shares(self, time: int) -> tuple[float, float]:
        """Shares (s, n) of actions and noise at a noise level: `x = s x_0 + n noise`."""
        ...

    def denoised(self, x: Tensor, predicted: Tensor, time: int) -> Tensor:
        """Actions [B, T, A] that a prediction of the network stands for."""
        ...

    def prediction(self, x: Tensor, denoised: Tensor, time: int) -> Tensor:
        """Inverse of `denoised`; not at a noise level whose share of noise is 0."""
        ...


class FlowMatching:
    """Straight lines from data to noise; the network predicts the velocity."""

    def __init__(self, config: NoiseConfig) -> None:
        self._num_timesteps = config.num_timesteps
        self._clamp = config.clamp_range

    def noised(self, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """`x_t = x_0 + (t / K) (noise - x_0)`, clamped."""
        share = (time.float() / self._num_timesteps)[:, None, None]
        return clamped(actions + share * (noise - actions), self._clamp)

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        """`noise - x_0`."""
        return noise - actions

    def shares(self, time: int) -> tuple[float, float]:
        share = time / self._num_timesteps
        return 1 - share, share

    def denoised(self, x: Tensor, predicted: Tensor, time: int) -> Tensor:
        return x - self.shares(time)[1] * predicted

    def prediction(self, x: Tensor, denoised: Tensor, time: int) -> Tensor:
        return (x - denoised) / self.shares(time)[1]


class Diffusion:
    """Variance-preserving diffusion; the network predicts the noise. Noised actions are not
    clamped, because sampling assumes the process without clamping.
    """

    def __init__(self, config: NoiseConfig) -> None:
        self._alphas_cumprod = alphas_cumprod(config).float()

    def noised(self, actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """`sqrt(a_t) x_0 + sqrt(1 - a_t) noise`."""
        self._alphas_cumprod = self._alphas_cumprod.to(time.device)
        share = self._alphas_cumprod[time][:, None, None]
        return share.sqrt() * actions + (1 - share).sqrt() * noise

    def target(self, actions: Tensor, noise: Tensor) -> Tensor:
        return noise

    def shares(self, time: int) -> tuple[float, float]:
        share = float(self._alphas_cumprod[time])
        return share**0.5, (1 - share) ** 0.5

    def denoised(self, x: Tensor, predicted: Tensor, time: int) -> Tensor:
        of_actions, of_noise = self.shares(time)
        return (x - of_noise * predicted) / of_actions

    def prediction(self, x: Tensor, denoised: Tensor, time: int) -> Tensor:
        of_actions, of_noise = self.shares(time)
        return (x - of_actions * denoised) / of_noise


def forward_process(config: NoiseConfig, *, flow: bool) -> ForwardProcess:
    """The forward process: flow matching if `flow`, else diffusion."""
    return FlowMatching(config) if flow else Diffusion(config)


def alphas_cumprod(config: NoiseConfig) -> Tensor:
    """Fraction `a_t` of the variance of the data at each noise level, float64 [K], descending."""
    number = config.num_timesteps
    if config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, number, dtype=torch.float64)
    else:
        steps = torch.arange(number + 1, dtype=torch.float64) / number
        curve = ((steps + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * math.pi / 2).cos() ** 2
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=_LARGEST_BETA)
    return (1 - betas).cumprod(dim=0)


def clamped(x: Tensor, clamp: Clamp) -> Tensor:
    """The tensor clamped to limits; None: no limits."""
    return x if clamp is None else x.clamp(*clamp)


# Function of current actions [B, T, A] and an integer noise level.
Network = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class SamplingSchedule:
    """Settings of a sampling run."""

    noise: NoiseConfig  # the noise section
    steps: int  # number of network evaluations
    # actions [B, T, A] and a mask bool [B, T] of the known ones, which are not sampled
    known: tuple[Tensor, Tensor] | None = None
    rng: Rng | None = None  # random numbers for solvers that add noise

    def clamped(self, x: Tensor) -> Tensor:
        """The tensor clamped to the limits of the noise section."""
        return clamped(x, self.noise.clamp_range)

    def with_known_actions(self, x: Tensor) -> Tensor:
        """The tensor with the known actions filled in."""
        if self.known is None:
            return x
        return torch.where(self.known[1][..., None], self.known[0], x)

    def time_at(self, share: float) -> int:
        """Integer noise level at a fraction in [0, 1] of the way from data to noise."""
        return max(round(self.noise.num_timesteps * share), 1) - 1

    def times(self) -> list[int]:
        """Noise levels of evenly spaced steps, from noise to data.

        A step covers 1 / steps of the way, so that all steps cover exactly 1 for any `steps`; the
        published sampler covers 1.162 with 6 steps of 1000 noise levels.
        """
        return [self.time_at(1 - index / self.steps) for index in range(self.steps)]


def euler(network: Network, start: Tensor, schedule: SamplingSchedule, _: ConfigModel) -> Tensor:
    """Euler solver for flow matching, first order. The network gets clamped actions as in training,
    including the initial noise, which the published sampler does not clamp.
    """
    x = schedule.with_known_actions(start)
    for time in schedule.times():
        velocity = network(schedule.with_known_actions(schedule.clamped(x)), time)
        x = schedule.with_known_actions(schedule.clamped(x - velocity / schedule.steps))
    return x


def heun(network: Network, start: Tensor, schedule: SamplingSchedule, _: ConfigModel) -> Tensor:
    """Heun solver for flow matching, second order. Each interval takes two evaluations; with an odd
    number of steps the last interval takes one.
    """
    intervals = -(-schedule.steps // 2)
    x = schedule.with_known_actions(start)
    for index in range(intervals):
        before = 1 - index / intervals
        after = 1 - (index + 1) / intervals
        first = network(schedule.with_known_actions(schedule.clamped(x)), schedule.time_at(before))
        end = schedule.with_known_actions(schedule.clamped(x - first / intervals))
        if 2 * (index + 1) > schedule.steps:
            return end
        second = network(end, schedule.time_at(after))
        x = schedule.with_known_actions(schedule.clamped(x - (first + second) / (2 * intervals)))
    return x


def ddim(
    network: Network, start: Tensor, schedule: SamplingSchedule, section: DdimConfig
) -> Tensor:
    """DDIM solver for diffusion, equal to DDPM with eta 1 and all steps. Clamps denoised actions.
    Source: Song et al., Denoising Diffusion Implicit Models, 2021, eq. 12 and 16.
    """
    shares = alphas_cumprod(schedule.noise).tolist()
    times = schedule.times()
    x = schedule.with_known_actions(start)
    for index, time in enumerate(times):
        share = shares[time]
        next_share = shares[times[index + 1]] if index + 1 < len(times) else 1.0
        noise = network(x, time)
        clean = schedule.clamped((x - (1 - share) ** 0.5 * noise) / share**0.5)
        noise = (x - share**0.5 * clean) / (1 - share) ** 0.5
        fresh = (
            section.eta * ((1 - next_share) / (1 - share) * max(1 - share / next_share, 0.0)) ** 0.5
        )
        x = next_share**0.5 * clean + max(1 - next_share - fresh**2, 0.0) ** 0.5 * noise
        if fresh > 0:
            assert schedule.rng is not None
            x = x + fresh * schedule.rng.normal(*x.shape[1:]).to(x)
        x = schedule.with_known_actions(x)
    return x


def ddpm(network: Network, start: Tensor, schedule: SamplingSchedule, _: DdpmConfig) -> Tensor:
    """DDPM solver for diffusion, which adds the noise of the exact posterior at every step."""
    return ddim(network, start, schedule, DdimConfig(eta=1.0))


# Largest step that guidance takes, in units of the noise that is left.
_MAX_GUIDANCE = 5.0


def guided(
    network: Network, process: ForwardProcess, actions: Tensor, committed: Tensor
) -> Network:
    """A network whose chunks begin with actions that a robot executes meanwhile.

    At each noise level the denoised actions move toward the committed ones, along the gradient of
    the squared error with respect to the noised actions, so that the later actions follow. Rows do
    not influence each other.
    Source: Black et al., Real-Time Execution of Action Chunking Flow Policies, 2025 (arXiv
    2506.07339), eq. 2 and 3, written for denoised actions, so that it serves diffusion too. Later
    actions of the chunk before do not guide: see `RoboticsPolicy`.

    Args:
        network: Network to guide; differentiable.
        process: Forward process that it was trained with.
        actions: Normalized actions [B, T, A]; any where none is committed.
        committed: bool [B, T], true for committed actions.
    """

    def guided_network(x: Tensor, time: int) -> Tensor:
        of_actions, of_noise = process.shares(time)
        if of_noise == 0:
            return network(x, time)
        with torch.enable_grad():
            noised = x.detach().requires_grad_()
            denoised = process.denoised(noised, network(noised, time), time)
            error = committed[..., None] * (actions - denoised.detach())
            (toward,) = torch.autograd.grad(denoised, noised, error)
        largest = _MAX_GUIDANCE * of_noise
        strength = min(largest, (of_actions**2 + of_noise**2) / max(of_actions, 1e-6))
        return process.prediction(x, denoised.detach() + strength * toward, time)

    return guided_network


SOLVERS: Mapping[str, Any] = {"euler": euler, "heun": heun, "ddim": ddim, "ddpm": ddpm}


def solve(network: Network, start: Tensor, schedule: SamplingSchedule, section: Solver) -> Tensor:
    """Actions [B, T, A] from noise `start`, by the solver that the `type` of a section names."""
    return SOLVERS[section.type](network, start, schedule, section)


_ROTARY_BASE = 10_000.0
_FFN_MULTIPLE = 256


class RotaryPositions(nn.Module):
    """Rotary position embedding of half-split query and key channels."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        self.register_buffer("inv_freq", _ROTARY_BASE**-exponent)

    def cos_sin(self, length: int) -> Tensor:
        """Cosines and sines of positions, [2, length, head_dim]; equal in every layer."""
        positions = torch.arange(length, device=self.inv_freq.device, dtype=torch.float32)
        angle = torch.outer(positions, self.inv_freq.float())
        angle = torch.cat([angle, angle], dim=-1)
        return torch.stack([angle.cos(), angle.sin()])

    def forward(self, x_BHSd: Tensor, cos_sin: Tensor) -> Tensor:
        """Rotates x [B, H, S, D / H] by `cos_sin` [2, S, D / H]."""
        cosines, sines = cos_sin
        first, second = x_BHSd.chunk(2, dim=-1)
        rotated = torch.cat([-second, first], dim=-1)
        return (x_BHSd * cosines + rotated * sines).to(x_BHSd.dtype)


class LowPrecisionLayerNorm(nn.LayerNorm):
    """Layer norm in the autocast precision, for which autocast would use float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - name of torch
        """[..., D] to [..., D]."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        lowered = input if dtype is None else input.to(dtype)
        scale, shift = (
            None if parameter is None else parameter.to(lowered)
            for parameter in (self.weight, self.bias)
        )
        with torch.autocast(device, enabled=False):
            return functional.layer_norm(lowered, self.normalized_shape, scale, shift, self.eps)


def make_norm(kind: NormType, width: int, eps: float) -> nn.Module:
    """The norm layer that `kind` names."""
    norms: Mapping[NormType, Any] = {
        "default_layer_norm": lambda: nn.LayerNorm(width, eps=eps),
        "lp_layer_norm": lambda: LowPrecisionLayerNorm(width, eps=eps),
        "gain_only_layer_norm": lambda: nn.LayerNorm(width, eps=eps, bias=False),
        "gain_only_lp_layer_norm": lambda: LowPrecisionLayerNorm(width, eps=eps, bias=False),
        "no_wb_layer_norm": lambda: nn.LayerNorm(width, eps=eps, elementwise_affine=False),
        "rms_norm": lambda: nn.RMSNorm(width, eps=eps),
    }
    return norms[kind]()


class DenoiserAttention(nn.Module):
    """Self-attention with one fused projection; no biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.n_heads = config.n_heads
        self.is_causal = config.is_causal
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        rotates = config.positional_embedding_type != "none"
        self.pos_embed = RotaryPositions(width // config.n_heads) if rotates else None
        norms = [
            make_norm(config.norm_type, width, config.norm_eps) if config.qk_norm else nn.Identity()
            for _ in range(2)
        ]
        self.q_norm, self.k_norm = norms

    def forward(self, x_BSD: Tensor, cos_sin: Tensor | None) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        query, key, value = self.in_proj(x_BSD).chunk(3, dim=-1)
        query, key, value = map(self._heads, (self.q_norm(query), self.k_norm(key), value))
        if self.pos_embed is not None and cos_sin is not None:
            query = self.pos_embed(query, cos_sin)
            key = self.pos_embed(key, cos_sin)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(x_BSD.shape))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, H, S, D / H]."""
        return x_BSD.unflatten(2, (self.n_heads, -1)).transpose(1, 2)


class SwiGLU(nn.Module):
    """Gated feed-forward layer; F is 8/3 D rounded up to a multiple of 256."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = _FFN_MULTIPLE * math.ceil((8 * width // 3) / _FFN_MULTIPLE)
        self.w12 = nn.Linear(width, 2 * inner, bias=False)
        self.w3 = nn.Linear(inner, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        gate, value = self.w12(x_BSD).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class GeluMLP(nn.Module):
    """Plain feed-forward layer, F = 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, 4 * width, bias=False)
        self.w3 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        return self.w3(functional.gelu(self.w1(x_BSD)))


class DenoiserBlock(nn.Module):
    """Pre-norm block: attention, then feed-forward, each with a residual connection."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.attention = DenoiserAttention(config)
        self.feed_forward = SwiGLU(width) if config.ffn_type == "swiglu" else GeluMLP(width)
        self.attention_norm = make_norm(config.norm_type, width, config.norm_eps)
        self.ffn_norm = make_norm(config.norm_type, width, config.norm_eps)
        self._initialize(width, index)

    def _initialize(self, width: int, index: int) -> None:
        """Initializes matrices; output projections of deeper blocks have a smaller std."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                residual = module is self.attention.out_proj or module is self.feed_forward.w3
                std = width**-0.5 / (math.sqrt(2 * (index + 1)) if residual else 1.0)
                nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x_BSD: Tensor, cos_sin: Tensor | None) -> Tensor:
        """[B, S, D] to [B, S, D]; `cos_sin` is None without position embedding."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), cos_sin)
        return x_BSD + self.feed_forward(self.ffn_norm(x_BSD))


class NativeTransformer(nn.Module):
    """Transformer of pre-norm blocks with rotary position embedding.

    The token embedding, head and final norm of the published module get no gradient in a policy,
    so they are not built; the output is the last hidden state before the final norm.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.width = config.hidden_dim
        self.post_embed_norm = (
            make_norm(config.norm_type, self.width, config.norm_eps)
            if config.post_embed_norm
            else None
        )
        self.layers = nn.ModuleList(
            DenoiserBlock(config, index) for index in range(config.n_layers)
        )

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to the hidden state [B, S, D] after the last block."""
        if self.post_embed_norm is not None:
            x_BSD = self.post_embed_norm(x_BSD)
        length = x_BSD.shape[1]
        rotary = next(
            (module for module in self.modules() if isinstance(module, RotaryPositions)), None
        )
        cos_sin = None if rotary is None else rotary.cos_sin(length)
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos_sin)
        return x_BSD

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)


class CausalLM(nn.Module):
    """A causal language model of transformers; the output is the state after its last norm. Token
    embedding and head get no gradient in a policy, so they are removed.
    """

    def __init__(self, config: CausalLMConfig) -> None:
        super().__init__()
        assert config.architecture is not None
        self._config = config
        self.model = self._build(config.architecture)
        self.width: int = self.model.config.get_text_config().hidden_size
        self.model.set_input_embeddings(nn.Identity())
        self.model.set_output_embeddings(nn.Identity())

    @staticmethod
    def _build(architecture: Mapping[str, Any]) -> Any:
        auto = transformers().AutoModelForCausalLM
        return build_network(architecture, partial(auto.from_config, trust_remote_code=False))

    def load_base(self) -> None:
        full_model = self._build(self.model.config.to_dict())
        load_base(full_model, self._config.base)
        self.model.load_state_dict(full_model.state_dict(), strict=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        decoder = self.model.get_decoder()
        return decoder(inputs_embeds=x_BSD, use_cache=False).last_hidden_state

    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.get_decoder().layers)


DENOISERS: Mapping[str, Any] = {"transformer": NativeTransformer, "transformer_hf": CausalLM}


class Condition(NamedTuple):
    """What a chunk follows from."""

    context: Tensor  # conditioning tokens [B, M, C]
    proprioception: Tensor  # normalized [B, P, d]
    # bool [B, T], true for the first actions of a chunk that are given, and clean; None: none
    given: Tensor | None = None


class DiffusionPolicy(nn.Module):
    """Diffusion policy network; module names as published. Token order: time, text, images,
    proprioception, actions.
    """

    def __init__(self, config: DiffusionPolicyConfig) -> None:
        super().__init__()
        assert config.action_dim is not None
        self.config = config
        self.vision_language_backbone = build_backbone(config.vision_language_backbone)
        context = self.vision_language_backbone.width
        width = config.transformer.width
        self.sinusoidal_position_embeddings = SinusoidalFrequencies(context)
        self.time_encoding = nn.Embedding(config.noise_scheduler.num_timesteps, context)
        self.condition_encode = nn.Linear(context, width)
        self.action_encode = nn.Linear(config.action_dim, width)
        observed = config.proprioception_dim or 0
        self.proprioception_encode = nn.Linear(observed, width) if observed else None
        self.transformer = DENOISERS[config.transformer.type](config.transformer)
        self.output_layer = nn.Linear(width, config.action_dim)
        # The published code adds it in validation too.
        self.input_noise = InputNoise(config.input_noise_std)
        self._initialize()

    def _initialize(self) -> None:
        with torch.no_grad():
            steps = torch.arange(self.time_encoding.num_embeddings)
            self.time_encoding.weight.copy_(self.sinusoidal_position_embeddings(steps))
        nn.init.xavier_uniform_(self.output_layer.weight)
        if self.proprioception_encode is not None:
            nn.init.xavier_uniform_(self.proprioception_encode.weight)
        if self.config.vision_language_backbone.freeze:
            self.vision_language_backbone.requires_grad_(requires_grad=False)
        if self.config.transformer.freeze:
            self.transformer.requires_grad_(requires_grad=False)

    def blocks(self) -> list[nn.Module]:
        return [*self.vision_language_backbone.blocks(), *self.transformer.blocks()]

    def encode(
        self,
        images: Tensor,  # uint8 [B, N, 3, H, W]
        text: Tensor,  # int64 [B, L], token ids + 1, padded with 0
        # bool [B, N], false for padded images, whose tokens become zeros
        image_mask: Tensor | None = None,
        rng: Rng | None = None,  # random numbers of dropout, B rows; None: outside of training
    ) -> Tensor:
        """Converts images and instructions to conditioning tokens [B, M, C]."""
        return self.vision_language_backbone(images, text, image_mask, rng)

    def denoise(
        self,
        condition: Condition,
        actions: Tensor,  # noised actions [B, T, A]; known past actions are clean
        time: Tensor,  # noise level int64 [B] in [0, num_timesteps)
        # random numbers of input noise, B / repeats rows; None: outside of training
        rng: Rng | None = None,
        repeats: int = 1,  # number of successive rows of the same sample
    ) -> Tensor:
        """Predicts the velocity (flow matching) or the noise (diffusion), [B, T, A]."""
        context, proprioception, given = condition
        encoded_time = self.time_encoding(time)[:, None]
        if self.config.diffusion_step_conditioning == "concat":
            context = torch.cat([encoded_time, context], dim=1)
        else:
            context = context + encoded_time
        tokens = [self.condition_encode(context)]
        if self.proprioception_encode is not None:
            encoded = self.proprioception_encode(proprioception)
            tokens.append(self.input_noise(encoded, rng, repeats))
        encoded_actions = self.action_encode(self.input_noise(actions, rng, repeats))
        if given is not None:
            # Their noise level is 0, whatever that of the others is.
            clean = self.condition_encode(self.time_encoding(torch.zeros_like(time)))
            encoded_actions = encoded_actions + given[..., None] * clean[:, None]
        tokens.append(encoded_actions)
        hidden = self.transformer(torch.cat(tokens, dim=1))
        return self.output_layer(hidden[:, -actions.shape[1] :])

    def forward(
        self,
        # that of `encode` (`images`, `text`, perhaps `image_mask`), and `proprioception` [B, P, d]
        observation: Mapping[str, Tensor],
        actions: Tensor,  # [B * R, T, A]
        time: Tensor,  # int64 [B * R]
        rng: Rng | None = None,
        given: Tensor | None = None,  # bool [B * R, T]
    ) -> Tensor:
        """Like `denoise`, for R noised chunks per observation."""
        seen = dict(observation)
        proprioception = seen.pop("proprioception")
        repeats = len(actions) // len(proprioception)
        context = self.encode(**seen, rng=rng).repeat_interleave(repeats, dim=0)
        observed = proprioception.repeat_interleave(repeats, dim=0)
        return self.denoise(Condition(context, observed, given), actions, time, rng, repeats)

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any], *, steps: int, rng: Rng) -> Tensor:
        """Samples normalized actions [B, T, A]; past actions that are not padding stay
        unchanged. The batch may have `given`, bool [B, T], true for the first actions of the chunk
        that are given, or `guidance`, weights [B, T] of actions to continue: 1 for committed ones,
        which guide the chunk, less for those that the end result is blended with.
        """
        actions: Tensor = batch["actions"]
        given = batch.get("given")
        context = self.encode(batch["images"], batch["text"], batch.get("image_mask"))
        condition = Condition(context, batch["proprioception"], given)

        def network(x: Tensor, time: int) -> Tensor:
            times = torch.full((len(x),), time, dtype=torch.int64, device=x.device)
            return self.denoise(condition, x, times)

        is_known = batch["past_mask"] if given is None else batch["past_mask"] | given
        chosen = network
        if "guidance" in batch:
            process = forward_process(self.config.noise_scheduler, flow=self.config.is_flow)
            chosen = guided(network, process, actions, batch["guidance"] == 1)
        noise = rng.normal(*actions.shape[1:]).to(actions)
        schedule = SamplingSchedule(
            self.config.noise_scheduler, steps, known=(actions, is_known), rng=rng
        )
        chunk = solve(chosen, noise, schedule, self.config.chosen_solver)
        if "guidance" in batch:
            chunk = torch.lerp(chunk, actions, batch["guidance"][..., None])
        return chunk


class SinusoidalFrequencies(nn.Module):
    """Sinusoidal embedding that initializes the time encoding."""

    emb: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        steps = torch.arange(half, dtype=torch.float32)
        self.register_buffer("emb", torch.exp(-steps * math.log(10_000) / max(half - 1, 1)))

    def forward(self, steps: Tensor) -> Tensor:
        """Steps int [K] to [K, width]: sines, then cosines."""
        angles = steps[:, None].float() * self.emb
        return torch.cat([angles.sin(), angles.cos()], dim=1)
