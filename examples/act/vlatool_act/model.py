"""The networks of ACT: ResNet-18, transformer, and the encoder of the latent.

Zhao et al., Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware, 2023 (arXiv
2304.13705). Modules and weights have the names of LeRobot's ACT, so its files fit.

Legend of shapes: B observations, N images, T steps of a chunk, A numbers of an action, S measured
numbers, L width of the latent, D width of a token, K tokens.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.weights import matching_state_dict, read_weights

if TYPE_CHECKING:
    from vlatool_act.spec import ActConfig

# Mean and deviation of the images of ImageNet: red, green, blue, between 0 and 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BLOCKS = 2  # in each of the four stages of a ResNet-18


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics: batches of a policy are too small to measure new ones."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, images: Tensor) -> Tensor:
        values: Any = self
        scale = values.weight * (values.running_var + 1e-5).rsqrt()
        offset = values.bias - values.running_mean * scale
        return images * scale[:, None, None] + offset[:, None, None]


class BasicBlock(nn.Module):
    """Two convolutions, beside which the input passes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = FrozenBatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = FrozenBatchNorm2d(width)
        self.downsample = None
        if stride > 1:
            shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, FrozenBatchNorm2d(width))

    def forward(self, images: Tensor) -> Tensor:
        skip = images if self.downsample is None else self.downsample(images)
        hidden = functional.relu(self.bn1(self.conv1(images)))
        return functional.relu(self.bn2(self.conv2(hidden)) + skip)


class ResNet18(nn.Module):
    """A ResNet-18 without its classifier: images [B, 3, H, W] to features [B, 8 W0, H/32, W/32]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(width, width, stride=1)
        self.layer2 = self._stage(width, 2 * width, stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, stride=2)
        self.layer4 = self._stage(4 * width, 8 * width, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, BasicBlock):
                # Without batch norm that measures, a block begins as its shortcut: else the
                # features grow with every block.
                nn.init.zeros_(module.conv2.weight)

    def _stage(self, width_in: int, width: int, stride: int) -> nn.Sequential:
        blocks = [BasicBlock(width_in, width, stride)]
        for _ in range(_BLOCKS - 1):
            blocks.append(BasicBlock(width, width, stride=1))
        return nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        hidden = self.layer1(hidden)
        hidden = self.layer2(hidden)
        hidden = self.layer3(hidden)
        return self.layer4(hidden)


def _activation(config: "ActConfig") -> nn.Module:
    return nn.ReLU() if config.feedforward_activation == "relu" else nn.GELU()


def _attention(config: "ActConfig") -> nn.MultiheadAttention:
    return nn.MultiheadAttention(config.dim_model, config.n_heads, config.dropout, batch_first=True)


class EncoderLayer(nn.Module):
    """Attention between tokens, then a layer on each of them. Positions are added to queries and
    keys in every layer.
    """

    def __init__(self, config: "ActConfig") -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = _attention(config)
        self.linear1 = nn.Linear(config.dim_model, config.dim_feedforward)
        self.activation = _activation(config)
        self.linear2 = nn.Linear(config.dim_feedforward, config.dim_model)
        self.norm1 = nn.LayerNorm(config.dim_model)
        self.norm2 = nn.LayerNorm(config.dim_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, positions: Tensor, is_pad: Tensor | None = None) -> Tensor:
        """Tokens [B, K, D] with positions [1, K, D]; `is_pad` bool [B, K] hides some of them."""
        if self.pre_norm:
            tokens = tokens + self._attend(self.norm1(tokens), positions, is_pad)
            return tokens + self._feed(self.norm2(tokens))
        tokens = self.norm1(tokens + self._attend(tokens, positions, is_pad))
        return self.norm2(tokens + self._feed(tokens))

    def _attend(self, tokens: Tensor, positions: Tensor, is_pad: Tensor | None) -> Tensor:
        placed = tokens + positions
        mixed, _ = self.self_attn(
            placed, placed, tokens, key_padding_mask=is_pad, need_weights=False
        )
        return self.dropout(mixed)

    def _feed(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(tokens)))
        return self.dropout(self.linear2(hidden))


class DecoderLayer(nn.Module):
    """Attention between the steps of a chunk, attention to the observation, a layer on each."""

    def __init__(self, config: "ActConfig") -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = _attention(config)
        self.multihead_attn = _attention(config)
        self.linear1 = nn.Linear(config.dim_model, config.dim_feedforward)
        self.activation = _activation(config)
        self.linear2 = nn.Linear(config.dim_feedforward, config.dim_model)
        self.norm1 = nn.LayerNorm(config.dim_model)
        self.norm2 = nn.LayerNorm(config.dim_model)
        self.norm3 = nn.LayerNorm(config.dim_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, steps: Tensor, places: Tensor, seen: Tensor, seen_places: Tensor) -> Tensor:
        """Steps [B, T, D] with places [1, T, D], tokens of the encoder [B, K, D] with theirs."""
        if self.pre_norm:
            steps = steps + self._attend(self.norm1(steps), places)
            steps = steps + self._look(self.norm2(steps), places, seen, seen_places)
            return steps + self._feed(self.norm3(steps))
        steps = self.norm1(steps + self._attend(steps, places))
        steps = self.norm2(steps + self._look(steps, places, seen, seen_places))
        return self.norm3(steps + self._feed(steps))

    def _attend(self, steps: Tensor, places: Tensor) -> Tensor:
        placed = steps + places
        mixed, _ = self.self_attn(placed, placed, steps, need_weights=False)
        return self.dropout(mixed)

    def _look(self, steps: Tensor, places: Tensor, seen: Tensor, seen_places: Tensor) -> Tensor:
        mixed, _ = self.multihead_attn(steps + places, seen + seen_places, seen, need_weights=False)
        return self.dropout(mixed)

    def _feed(self, steps: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(steps)))
        return self.dropout(self.linear2(hidden))


class Encoder(nn.Module):
    """Layers of an encoder."""

    def __init__(self, config: "ActConfig", num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([EncoderLayer(config) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(config.dim_model) if config.pre_norm else nn.Identity()

    def forward(self, tokens: Tensor, positions: Tensor, is_pad: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, positions, is_pad)
        return self.norm(tokens)


class Decoder(nn.Module):
    """Layers of the decoder."""

    def __init__(self, config: "ActConfig") -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.n_decoder_layers)])
        self.norm = nn.LayerNorm(config.dim_model)

    def forward(self, steps: Tensor, places: Tensor, seen: Tensor, seen_places: Tensor) -> Tensor:
        for layer in self.layers:
            steps = layer(steps, places, seen, seen_places)
        return self.norm(steps)


class Act(nn.Module):
    """Images and measured values to a chunk of actions."""

    def __init__(self, config: "ActConfig") -> None:
        super().__init__()
        assert config.chunk_size is not None
        assert config.action_dim is not None
        assert config.state_dim is not None
        assert config.num_images is not None
        width = config.dim_model
        self.chunk_size = config.chunk_size
        self.latent_dim = config.latent_dim
        self.has_state = config.state_dim > 0

        # The latent: a style that the recorded actions have and the observation does not tell.
        self.vae_encoder = None
        if config.use_vae:
            self.vae_encoder = Encoder(config, config.n_vae_encoder_layers)
            self.vae_encoder_cls_embed = nn.Embedding(1, width)
            if self.has_state:
                self.vae_encoder_robot_state_input_proj = nn.Linear(config.state_dim, width)
            self.vae_encoder_action_input_proj = nn.Linear(config.action_dim, width)
            self.vae_encoder_latent_output_proj = nn.Linear(width, 2 * config.latent_dim)
            count = 1 + self.has_state + config.chunk_size
            self.register_buffer("vae_encoder_pos_enc", sine_table(count, width)[None])

        # The observation: one token for the latent, one for the state, one per image region.
        self.register_buffer("image_mean", torch.tensor([IMAGENET_MEAN] * config.num_images))
        self.register_buffer("image_std", torch.tensor([IMAGENET_STD] * config.num_images))
        self.backbone = ResNet18(config.backbone_width)
        self.encoder_img_feat_input_proj = nn.Conv2d(8 * config.backbone_width, width, 1)
        self.encoder_latent_input_proj = nn.Linear(config.latent_dim, width)
        if self.has_state:
            self.encoder_robot_state_input_proj = nn.Linear(config.state_dim, width)
        self.encoder_1d_feature_pos_embed = nn.Embedding(1 + self.has_state, width)
        self.encoder = Encoder(config, config.n_encoder_layers)

        # The chunk: one query per step.
        self.decoder_pos_embed = nn.Embedding(config.chunk_size, width)
        self.decoder = Decoder(config)
        self.action_head = nn.Linear(width, config.action_dim)
        for parameter in [*self.encoder.parameters(), *self.decoder.parameters()]:
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.action_head.weight.device

    def blocks(self) -> list[nn.Module]:
        """Units of sharding and of gradient checkpointing."""
        found: list[nn.Module] = []
        for module in self.modules():
            if isinstance(module, BasicBlock | EncoderLayer | DecoderLayer):
                found.append(module)
        return found

    def forward(
        self,
        images: Tensor,  # uint8 [B, N, 3, H, W]
        state: Tensor,  # normalized [B, S]
        actions: Tensor | None = None,  # recorded chunk, normalized [B, T, A]; None: latent of 0
        is_real: Tensor | None = None,  # bool [B, T], False after the end of the episode
        noise: Tensor | None = None,  # standard normal [B, L], with `actions`
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """A chunk of normalized actions [B, T, A], and mean and log of the variance of the latent
        [B, L], which are None without `actions`.
        """
        mean = None
        log_variance = None
        latent = torch.zeros(len(images), self.latent_dim, device=images.device)
        if actions is not None and self.vae_encoder is not None:
            assert is_real is not None
            assert noise is not None
            mean, log_variance = self._latent_of(state, actions, is_real)
            latent = mean + (log_variance / 2).exp() * noise
        tokens, positions = self._observation_tokens(images, state, latent)
        seen = self.encoder(tokens, positions)
        places = self.decoder_pos_embed.weight[None]
        steps = torch.zeros_like(places).expand(len(images), -1, -1)
        chunk = self.action_head(self.decoder(steps, places, seen, positions))
        return chunk, mean, log_variance

    def _latent_of(self, state: Tensor, actions: Tensor, is_real: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the variance of the latent of recorded actions, [B, L] each."""
        assert self.vae_encoder is not None
        rows = [self.vae_encoder_cls_embed.weight[None].expand(len(actions), -1, -1)]
        if self.has_state:
            rows.append(self.vae_encoder_robot_state_input_proj(state)[:, None])
        is_pad = torch.zeros(len(actions), len(rows), dtype=torch.bool, device=actions.device)
        rows.append(self.vae_encoder_action_input_proj(actions))
        is_pad = torch.cat([is_pad, ~is_real], dim=1)
        positions: Any = self.vae_encoder_pos_enc
        encoded = self.vae_encoder(torch.cat(rows, dim=1), positions, is_pad)
        values = self.vae_encoder_latent_output_proj(encoded[:, 0]).float()
        mean, log_variance = values.chunk(2, dim=-1)
        return mean, log_variance

    def _observation_tokens(
        self, images: Tensor, state: Tensor, latent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens of an observation [B, K, D], and their positions [1, K, D]."""
        rows = [self.encoder_latent_input_proj(latent)[:, None]]
        if self.has_state:
            rows.append(self.encoder_robot_state_input_proj(state)[:, None])
        places = [self.encoder_1d_feature_pos_embed.weight[None]]
        values: Any = self
        scaled = images.float() / 255 - values.image_mean[..., None, None]
        scaled = scaled / values.image_std[..., None, None]
        features = self.encoder_img_feat_input_proj(self.backbone(scaled.flatten(0, 1)))
        _, width, height, columns = features.shape
        regions = features.flatten(2).transpose(1, 2)  # [B * N, height * columns, D]
        rows.append(regions.reshape(len(images), -1, width))
        grid = sine_grid(height, columns, width, features.device).to(features.dtype)
        places.append(grid.flatten(0, 1).repeat(images.shape[1], 1)[None])
        return torch.cat(rows, dim=1), torch.cat(places, dim=1)


def sine_table(count: int, width: int) -> Tensor:
    """Positions of a sequence as sines and cosines, float32 [count, width]."""
    index = torch.arange(width, dtype=torch.float64) // 2
    angles = torch.arange(count, dtype=torch.float64)[:, None] / 10000 ** (2 * index / width)
    table = torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())
    return table.float()


def sine_grid(height: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Positions of the regions of an image as sines and cosines, float32 [height, columns, width].
    The first half tells the row, the second the column: 0 to 2 pi, from the first region on.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=device) // 2
    periods = 10000 ** (2 * index / half)
    is_sine = torch.arange(half, device=device) % 2 == 0
    parts: list[Tensor] = []
    for count in (height, columns):
        steps = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        angles = (steps / (count + 1e-6) * 2 * math.pi)[:, None] / periods
        parts.append(torch.where(is_sine, angles.sin(), angles.cos()))
    rows = parts[0][:, None].expand(-1, columns, -1)
    across = parts[1][None].expand(height, -1, -1)
    return torch.cat([rows, across], dim=-1)


def load_backbone(backbone: ResNet18, path: Path) -> None:
    """Loads the weights of a ResNet-18 by the names of torchvision, without its classifier."""
    weights = read_weights(path)
    for name in [*weights]:
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            del weights[name]
    backbone.load_state_dict(matching_state_dict(backbone, weights, path))
