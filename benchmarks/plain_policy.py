"""Plain implementation of the training step of the published policy, from its description.

CLIP of transformers, a transformer that computes its vocabulary head and discards the result, AdamW
of torch, gradient clipping, a float32 average of every parameter, one at a time. Legend of shapes:
B batch, N images, L ids, T action steps, P proprioception steps, A width of an action, S tokens,
D width.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TIMESTEPS = 1000
CLAMP = 3.0


class PlainAttention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self._table: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (
            x_part.reshape(shape).transpose(1, 2) for x_part in self.in_proj(x).chunk(3, dim=-1)
        )
        cosines, sines = self._rotation(query)
        query, key = (_rotate(x_part, cosines, sines) for x_part in (query, key))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))

    def _rotation(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [S, D / heads], cached for the next step."""
        if self._table is None:
            length, width = like.shape[-2:]
            exponent = torch.arange(0, width, 2, dtype=torch.float32, device=like.device) / width
            positions = torch.arange(length, dtype=torch.float32, device=like.device)
            angle = torch.outer(positions, 10_000.0**-exponent).repeat(1, 2)
            self._table = angle.cos(), angle.sin()
        return self._table


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


class PlainFeedForward(nn.Module):
    """SwiGLU feed-forward network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 256 * math.ceil((8 * width // 3) / 256)
        self.w12 = nn.Linear(width, 2 * inner, bias=False)
        self.w3 = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(functional.silu(gate) * value)


class PlainBlock(nn.Module):
    """Transformer block with norms first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = PlainAttention(width, heads)
        self.feed_forward = PlainFeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class PlainTransformer(nn.Module):
    """Language model on embeddings that returns all hidden states and logits of all words."""

    def __init__(self, width: int, layers: int, heads: int, words: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(words, width)
        self.post_embed_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(PlainBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[B, S, D] to logits [B, S, words] and the states after each block."""
        x = self.post_embed_norm(x)
        states: list[Tensor] = []
        for layer in self.layers:
            x = layer(x)
            states.append(x)
        return self.output(self.norm(x)), states


class PlainPolicy(nn.Module):
    """CLIP with a frozen text tower, and the denoiser."""

    def __init__(
        self, architecture: Mapping[str, Any], denoiser: tuple[int, int, int, int], action: int
    ) -> None:
        from transformers import AutoConfig, CLIPModel

        super().__init__()
        self.clip: Any = CLIPModel(AutoConfig.for_model(**architecture))
        self.clip.text_model.requires_grad_(requires_grad=False)
        common, width = architecture["projection_dim"], denoiser[0]
        self.time_encoding = nn.Embedding(TIMESTEPS, common)
        self.condition_encode = nn.Linear(common, width)
        self.action_encode = nn.Linear(action, width)
        self.proprioception_encode = nn.Linear(action, width)
        self.transformer = PlainTransformer(*denoiser)
        self.output_layer = nn.Linear(width, action)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads our weights; parameters that ours does not have stay unchanged."""
        prefix = "vision_language_backbone._model.model."
        named = {name.replace(prefix, "clip."): value for name, value in state.items()}
        own = self.state_dict()
        unused = {name for name in named if name.endswith((".inv_freq", "embeddings.emb"))}
        weights = {name: value for name, value in named.items() if name not in unused}
        assert weights.keys() <= own.keys(), weights.keys() - own.keys()
        missing = {name for name in own if name not in weights}
        assert {name.split(".")[0] for name in missing} == {"transformer"}, missing
        self.load_state_dict(weights, strict=False)

    def forward(self, batch: Mapping[str, Tensor], noised: Tensor, time: Tensor) -> Tensor:
        """Velocity [B, T, A]; `pixels` of the batch are float32 [B * N, 3, H, W]."""
        pooled = self.clip.text_model(input_ids=batch["ids"]).pooler_output
        text = self.clip.text_projection(pooled / pooled.norm(dim=-1, keepdim=True))
        features = self.clip.vision_model(pixel_values=batch["pixels"]).pooler_output
        features = self.clip.visual_projection(features)
        images = (features / features.norm(dim=-1, keepdim=True)).reshape(
            len(text), -1, text.shape[-1]
        )
        conditions = [self.time_encoding(time)[:, None], text[:, None], images]
        encoded = [self.condition_encode(condition) for condition in conditions]
        encoded.append(self.proprioception_encode(batch["proprioception"]))
        encoded.append(self.action_encode(noised))
        _, states = self.transformer(torch.cat(encoded, dim=1))
        return self.output_layer(states[-1][:, -noised.shape[1] :])


class PlainStep:
    """Step of the published loop, in one process, with one micro-batch."""

    def __init__(self, policy: PlainPolicy, rate: float, decay: float, limit: float) -> None:
        self.policy, self.limit, self.updates = policy, limit, 0
        named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
        plain = [p for name, p in named if name.endswith(".bias") or "norm" in name.lower()]
        plain_ids = {id(p) for p in plain}
        groups = [
            {"params": plain, "weight_decay": 0.0},
            {"params": [p for _, p in named if id(p) not in plain_ids], "weight_decay": decay},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8)
        self.average = {name: p.detach().clone().float() for name, p in policy.named_parameters()}

    def loss(self, batch: Mapping[str, Tensor], drawn: tuple[Tensor, Tensor] | None) -> Tensor:
        """Masked squared error; noise and time are sampled if they are None."""
        actions, mask = batch["actions"], batch["future_mask"]
        if drawn is None:
            noise = torch.randn_like(actions)
            time = torch.randint(0, TIMESTEPS, (len(actions),)).to(actions.device)
        else:
            noise, time = drawn
        share = (time.float() / TIMESTEPS)[:, None, None]
        noised = (actions + share * (noise - actions)).clamp(-CLAMP, CLAMP)
        noised = torch.where(mask[..., None], noised, actions)
        error = (self.policy(batch, noised, time).float() - (noise - actions)) ** 2
        counted = mask[..., None].expand_as(error)
        return (error * counted).sum() / counted.sum()

    def update(self) -> None:
        """Clips gradients, updates the weights, then the average, one parameter after the other."""
        parameters = [p for p in self.policy.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(parameters, self.limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._average()

    @torch.no_grad()
    def _average(self) -> None:
        step = max(0, self.updates - 1)
        decay = 0.0 if step == 0 else min(1 - (1 + step) ** -0.75, 0.9999)
        for name, parameter in self.policy.named_parameters():
            mean = self.average[name]
            if parameter.requires_grad:
                mean.mul_(decay).add_(parameter.detach().float(), alpha=1 - decay)
            else:
                mean.copy_(parameter)
        self.updates += 1
