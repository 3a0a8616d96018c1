"""The network of the diffusion policy: conditioning and noised actions to velocity or noise.

The backbone (`models/backbones`) turns images and language to tokens. `DiffusionPolicy` puts them
in a row with tokens of the noise level, of proprioception and of the noised actions, and the
denoiser, a transformer, predicts what `noise.py` says. Names of modules are the published ones, so
that weights of the published program fit.

A new denoiser is a class with `width` (D), `forward(x [B, S, D])` and `blocks()` (units of sharding
and gradient checkpointing). Source: reference/policy 1.2, 1.3, 1.5.

Legend of shapes: B batch, R noise draws per observation, N images, M conditioning tokens, C their
width, P proprioception steps, d their width, T action steps, A width of an action, S tokens, D
width, H heads.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.backbones.build import build_backbone
from vlatool.models.base import Rng
from vlatool.models.diffusion_policy.config import (
    CausalLMConfig,
    DiffusionPolicyConfig,
    NormType,
    TransformerConfig,
)
from vlatool.models.diffusion_policy.noise import (
    Diffusion,
    FlowMatching,
    ForwardProcess,
    SamplingSchedule,
    guided,
    solve,
)
from vlatool.models.pretrained import build_network, load_base, transformers
from vlatool.models.rng import InputNoise

_ROTARY_BASE = 10_000.0
_FFN_MULTIPLE = 256


class Condition(NamedTuple):
    """What a chunk is computed from: conditioning tokens and proprioception."""

    context: Tensor  # conditioning tokens [B, M, C]
    proprioception: Tensor  # normalized [B, P, d]
    # bool [B, T], true for the first actions of a chunk that are given, and clean; None: none
    given: Tensor | None = None


class DiffusionPolicy(nn.Module):
    """The network. Token order: time, text, images, proprioception, actions."""

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
        self.proprioception_encode = None
        if config.proprioception_dim:
            self.proprioception_encode = nn.Linear(config.proprioception_dim, width)
        self.transformer = build_denoiser(config.transformer)
        self.output_layer = nn.Linear(width, config.action_dim)
        # The published code adds it in validation too.
        self.input_noise = InputNoise(config.input_noise_std)
        with torch.no_grad():
            steps = torch.arange(self.time_encoding.num_embeddings)
            self.time_encoding.weight.copy_(self.sinusoidal_position_embeddings(steps))
        nn.init.xavier_uniform_(self.output_layer.weight)
        if self.proprioception_encode is not None:
            nn.init.xavier_uniform_(self.proprioception_encode.weight)
        if config.vision_language_backbone.freeze:
            self.vision_language_backbone.requires_grad_(requires_grad=False)
        if config.transformer.freeze:
            self.transformer.requires_grad_(requires_grad=False)

    def blocks(self) -> list[nn.Module]:
        return [*self.vision_language_backbone.blocks(), *self.transformer.blocks()]

    def forward(
        self,
        # images, text, perhaps image_mask as `encode` takes them; proprioception [B, P, d]
        observation: Mapping[str, Tensor],
        actions: Tensor,  # noised actions [B * R, T, A], R successive rows of each sample
        time: Tensor,  # noise levels int64 [B * R] in [0, num_timesteps)
        # random numbers of dropout and input noise, B rows; None: outside of training
        rng: Rng | None = None,
        given: Tensor | None = None,  # bool [B * R, T], see `Condition`
    ) -> Tensor:
        """Predicts the velocity (flow matching) or the noise (diffusion), [B * R, T, A].

        The images are encoded once for all R chunks of a sample.
        """
        images = observation["images"]
        context = self.encode(images, observation["text"], observation.get("image_mask"), rng)
        repeats = len(actions) // len(images)
        context = context.repeat_interleave(repeats, dim=0)
        proprioception = observation["proprioception"].repeat_interleave(repeats, dim=0)
        condition = Condition(context, proprioception, given)
        return self.denoise(condition, actions, time, rng, repeats)

    def encode(
        self,
        images: Tensor,  # uint8 [B, N, 3, H, W]
        text: Tensor,  # int64 [B, L], token ids + 1, padded with 0
        # bool [B, N], false for padded images, whose tokens become zeros
        image_mask: Tensor | None = None,
        rng: Rng | None = None,  # random numbers of dropout, B rows; None: outside of training
    ) -> Tensor:
        """Images and instructions to conditioning tokens [B, M, C]."""
        return self.vision_language_backbone(images, text, image_mask, rng)

    def denoise(
        self,
        condition: Condition,
        actions: Tensor,  # noised actions [B, T, A]; known past actions are clean
        time: Tensor,  # noise levels int64 [B]
        rng: Rng | None = None,  # random numbers of input noise, B / repeats rows
        repeats: int = 1,  # number of successive rows of the same sample
    ) -> Tensor:
        """Like `forward`, after `encode`, [B, T, A]."""
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

    @torch.no_grad()
    def sample(self, batch: Mapping[str, Any], *, steps: int, rng: Rng) -> Tensor:
        """Samples normalized actions [B, T, A]; past actions that are not padding stay unchanged.

        Args:
            batch: Batch of `PolicyBatcher`. It may have `given`, bool [B, T], True for the first
                actions of the chunk if they are given, or `guidance`, weights [B, T] of actions to
                continue: 1 for committed actions, which guide the chunk; less for actions with
                which the end result is blended.
            steps: Number of evaluations of the network.
            rng: Random numbers of the initial noise, and of solvers that add noise.
        """
        actions: Tensor = batch["actions"]
        is_known: Tensor = batch["past_mask"]
        given: Tensor | None = batch.get("given")
        guidance: Tensor | None = batch.get("guidance")
        if given is not None:
            is_known = is_known | given
        context = self.encode(batch["images"], batch["text"], batch.get("image_mask"))
        condition = Condition(context, batch["proprioception"], given)

        def predict(x: Tensor, time: int) -> Tensor:
            times = torch.full((len(x),), time, dtype=torch.int64, device=x.device)
            return self.denoise(condition, x, times)

        network = predict
        if guidance is not None:
            network = guided(predict, forward_process(self.config), actions, guidance == 1)
        noise = rng.normal(*actions.shape[1:]).to(actions)
        schedule = SamplingSchedule(self.config.noise_scheduler, steps, actions, is_known, rng)
        chunk = solve(network, noise, schedule, self.config.chosen_solver)
        if guidance is not None:
            chunk = torch.lerp(chunk, actions, guidance[..., None])
        return chunk


def forward_process(config: DiffusionPolicyConfig) -> ForwardProcess:
    """The process that adds noise to actions, as the config says."""
    if config.is_flow:
        return FlowMatching(config.noise_scheduler)
    return Diffusion(config.noise_scheduler)


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


def build_denoiser(config: TransformerConfig | CausalLMConfig) -> "NativeTransformer | CausalLM":
    if isinstance(config, CausalLMConfig):
        return CausalLM(config)
    return NativeTransformer(config)


class NativeTransformer(nn.Module):
    """Transformer of pre-norm blocks with rotary position embedding.

    The token embedding, head and final norm of the published module get no gradient in a policy,
    so they are not built; the output is the last hidden state before the final norm.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.width = config.hidden_dim
        self.post_embed_norm = None
        if config.post_embed_norm:
            self.post_embed_norm = make_norm(config.norm_type, self.width, config.norm_eps)
        self.layers = nn.ModuleList(
            DenoiserBlock(config, index) for index in range(config.n_layers)
        )

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to the hidden state [B, S, D] after the last block."""
        if self.post_embed_norm is not None:
            x_BSD = self.post_embed_norm(x_BSD)
        cos_sin = None
        for module in self.modules():
            if isinstance(module, RotaryPositions):  # equal in every layer
                cos_sin = module.cos_sin(x_BSD.shape[1])
                break
        for layer in self.layers:
            x_BSD = layer(x_BSD, cos_sin)
        return x_BSD

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)


class DenoiserBlock(nn.Module):
    """Pre-norm block: attention, then feed-forward, each with a residual connection."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.attention = DenoiserAttention(config)
        self.feed_forward = SwiGLU(width) if config.ffn_type == "swiglu" else GeluMLP(width)
        self.attention_norm = make_norm(config.norm_type, width, config.norm_eps)
        self.ffn_norm = make_norm(config.norm_type, width, config.norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = width**-0.5
                if module in (self.attention.out_proj, self.feed_forward.w3):
                    # Output projections of deeper blocks start smaller.
                    std = std / math.sqrt(2 * (index + 1))
                nn.init.trunc_normal_(module.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x_BSD: Tensor, cos_sin: Tensor | None) -> Tensor:
        """[B, S, D] to [B, S, D]; `cos_sin` is None without position embedding."""
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), cos_sin)
        return x_BSD + self.feed_forward(self.ffn_norm(x_BSD))


class DenoiserAttention(nn.Module):
    """Self-attention with one fused projection; no biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.n_heads = config.n_heads
        self.is_causal = config.is_causal
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.pos_embed = None
        if config.positional_embedding_type != "none":
            self.pos_embed = RotaryPositions(width // config.n_heads)
        self.q_norm = nn.Identity()
        self.k_norm = nn.Identity()
        if config.qk_norm:
            self.q_norm = make_norm(config.norm_type, width, config.norm_eps)
            self.k_norm = make_norm(config.norm_type, width, config.norm_eps)

    def forward(self, x_BSD: Tensor, cos_sin: Tensor | None) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        query, key, value = self.in_proj(x_BSD).chunk(3, dim=-1)
        query = self._heads(self.q_norm(query))
        key = self._heads(self.k_norm(key))
        value = self._heads(value)
        if self.pos_embed is not None and cos_sin is not None:
            query = self.pos_embed(query, cos_sin)
            key = self.pos_embed(key, cos_sin)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        return self.out_proj(mixed.transpose(1, 2).reshape(x_BSD.shape))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, H, S, D / H]."""
        return x_BSD.unflatten(2, (self.n_heads, -1)).transpose(1, 2)


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
    """Plain feed-forward layer of inner width 4 D."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, 4 * width, bias=False)
        self.w3 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        return self.w3(functional.gelu(self.w1(x_BSD)))


def make_norm(kind: NormType, width: int, eps: float) -> nn.Module:
    """The norm layer that `kind` names."""
    if kind == "rms_norm":
        return nn.RMSNorm(width, eps=eps)
    if kind == "no_wb_layer_norm":
        return nn.LayerNorm(width, eps=eps, elementwise_affine=False)
    has_bias = kind in ("default_layer_norm", "lp_layer_norm")
    if kind in ("lp_layer_norm", "gain_only_lp_layer_norm"):
        return LowPrecisionLayerNorm(width, eps=eps, bias=has_bias)
    return nn.LayerNorm(width, eps=eps, bias=has_bias)


class LowPrecisionLayerNorm(nn.LayerNorm):
    """Layer norm in the autocast precision, for which autocast would use float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - name of torch
        """[..., D] to [..., D]."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))  # noqa: A001 - name of torch
        scale = self.weight.to(input)
        shift = None
        if self.bias is not None:
            shift = self.bias.to(input)
        with torch.autocast(device, enabled=False):
            return functional.layer_norm(input, self.normalized_shape, scale, shift, self.eps)


class CausalLM(nn.Module):
    """A causal language model of transformers; the output is the state after its last norm.

    Token embedding and head get no gradient in a policy, so they are removed.
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

    def blocks(self) -> list[nn.Module]:
        return list(self.model.get_decoder().layers)
