"""Turns images into tokens: DINOv3, convolutions, and the vision transformer of Qwen3-VL.

`VisionTower` gets features of DINOv3 in three groups, oldest images first. Convolutions make the
grids of the older images smaller, then one transformer sees the patches of all images, each image
for itself, and a merger turns squares of patches into tokens of the language model.

The state dict has the names of the published weights. Source: reference/future-vla-model 2.1, 2.2.

Legend of shapes: K images, G side of the grid of DINOv3 in patches, S side of a smaller grid, P
patches of all images, C channels, D number of deepstack features. No module has buffers, so that a
network that was built on the meta device lacks nothing but its weights.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTEmbeddings, DINOv3ViTLayer
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLVisionMLP,
    Qwen3VLVisionPatchEmbed,
    Qwen3VLVisionPatchMerger,
    apply_rotary_pos_emb_vision,
)

from vlatool.models.future_vla.fit import REDUCTIONS

# Mean and standard deviation of the colors of ImageNet, RGB in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Dino(nn.Module):
    """DINOv3, without its class and register tokens in the output.

    Nothing in it is random: dropout, and augmentation of positions, are a part of its own training.
    """

    def __init__(self, config: DINOv3ViTConfig) -> None:
        super().__init__()
        if not isinstance(config.patch_size, int):
            raise TypeError(f"patch_size of DINOv3 is {config.patch_size}, not a number")
        self.config = config
        self.patch_size = config.patch_size  # side in pixels
        self.embeddings = DINOv3ViTEmbeddings(config)
        self.layer = nn.ModuleList(DINOv3ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 [K, H, W, 3] to features [K, C, H / patch, W / patch]."""
        rows = images.shape[1] // self.patch_size
        columns = images.shape[2] // self.patch_size
        # float32 [K, 3, H, W] with mean 0 and deviation 1 on ImageNet. Slices instead of a tensor
        # of constants, whose copy to the device would block the host.
        pixels = images.permute(0, 3, 1, 2).float() / 255
        bands: list[Tensor] = []
        for band, mean, std in zip(pixels.unbind(1), _MEAN, _STD, strict=True):
            bands.append((band - mean) / std)
        hidden = self.embeddings(torch.stack(bands, dim=1))
        rotary = self._rotary(rows, columns, hidden)
        for layer in self.layer:
            hidden = layer(hidden, position_embeddings=rotary)
        patches = self.norm(hidden)[:, -rows * columns :]
        return patches.transpose(1, 2).unflatten(2, (rows, columns))

    def _rotary(self, rows: int, columns: int, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [rows * columns, head width] of the centers of patches in [-1, 1]."""
        head = self.config.hidden_size // self.config.num_attention_heads
        options: dict[str, Any] = {"dtype": torch.float32, "device": hidden.device}
        frequencies = 1 / self.config.rope_theta ** torch.arange(0, 1, 4 / head, **options)
        y = 2 * (torch.arange(0.5, rows, **options) / rows) - 1
        x = 2 * (torch.arange(0.5, columns, **options) / columns) - 1
        centers = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * math.pi * centers[:, :, None] * frequencies).flatten(1, 2).tile(2)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)


class QuarterGrid(nn.Module):
    """Features [K, C, G, G] to [K, width, G / 4, G / 4]."""

    def __init__(self, channels: int, between: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, between, kernel_size=3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(between, width, kernel_size=3, stride=2, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return _gelu(self.conv2(_gelu(self.conv1(features))))


class HalfGrid(nn.Module):
    """Features [K, C, G, G] to [K, width, G / 2, G / 2]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return _gelu(self.conv(features))


class FullGrid(nn.Module):
    """Features [K, C, G, G] to [K, width, G, G]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        return _gelu(self.conv(features))


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


class FrameGroup(NamedTuple):
    """Images with grids of one size."""

    images: int
    patches: int  # patches of an image


class FrameAttention(nn.Module):
    """Full attention within each image; images of an equal grid are one dense call."""

    def __init__(self, config: Qwen3VLVisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], groups: Sequence[FrameGroup]
    ) -> Tensor:
        """[P, C] to [P, C]; see `FrameBlock`."""
        query, key, value = self.qkv(hidden).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *rotary)
        mixed: list[Tensor] = []
        start = 0
        for group in groups:
            rows = slice(start, start + group.images * group.patches)
            start = rows.stop
            shape = (group.images, group.patches)
            output = functional.scaled_dot_product_attention(
                query[rows].unflatten(0, shape).transpose(1, 2),
                key[rows].unflatten(0, shape).transpose(1, 2),
                value[rows].unflatten(0, shape).transpose(1, 2),
            )
            mixed.append(output.transpose(1, 2).flatten(0, 1).flatten(1))
        return self.proj(torch.cat(mixed))


class FrameBlock(nn.Module):
    """Block of the vision transformer of Qwen3-VL."""

    def __init__(self, config: Qwen3VLVisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = FrameAttention(config)
        self.mlp = Qwen3VLVisionMLP(config)

    def forward(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], groups: Sequence[FrameGroup]
    ) -> Tensor:
        """Transforms the patches of all images.

        Args:
            hidden: Patches [P, C], ordered by group and image.
            rotary: Cosines and sines of their positions, [P, head width] each.
            groups: The groups, in order.
        """
        hidden = hidden + self.attn(self.norm1(hidden), rotary, groups)
        return hidden + self.mlp(self.norm2(hidden))


class VisionTower(nn.Module):
    """DINOv3 features of images to tokens for the language model."""

    def __init__(
        self,
        config: Qwen3VLVisionConfig,
        dino: DINOv3ViTConfig,
        conv_width: int,
        *,
        in_blocks: bool,
    ) -> None:
        super().__init__()
        if math.isqrt(config.num_position_embeddings) ** 2 != config.num_position_embeddings:
            raise ValueError(f"{config.num_position_embeddings} positions are no square grid")
        if max(config.deepstack_visual_indexes, default=0) >= config.depth:
            raise ValueError(f"deepstack_visual_indexes exceed the {config.depth} blocks")
        self.config = config
        self.in_blocks = in_blocks
        self.patch_embed = Qwen3VLVisionPatchEmbed(config)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(FrameBlock(config) for _ in range(config.depth))
        self.merger = Qwen3VLVisionPatchMerger(config)
        self.deepstack_merger_list = nn.ModuleList(
            Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=True)
            for _ in config.deepstack_visual_indexes
        )
        self.vis_tok = Dino(dino)
        self.cnn3 = FullGrid(dino.hidden_size, config.hidden_size)
        self.cnn2 = HalfGrid(dino.hidden_size, config.hidden_size)
        self.cnn1 = QuarterGrid(dino.hidden_size, conv_width, config.hidden_size)

    @property
    def grids(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The convolutions, in the order of `REDUCTIONS`."""
        return self.cnn1, self.cnn2, self.cnn3

    @property
    def smallest_side(self) -> int:
        """Side in pixels of the smallest image that all convolutions take."""
        return self.vis_tok.patch_size * self.config.spatial_merge_size * max(REDUCTIONS)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns the tokens of images, with a grid of each size.

        Args:
            features: Features of DINOv3 of the images [K, C, G, G], for each of `grids`; K may be 0
                and differ.

        Returns:
            Tokens [K, 1 + D, S * S / 4, width of the language model] for each of `grids`, S being
            the side of the smaller grid: features for the embedding, then deepstack features for
            the first D layers.
        """
        maps: list[Tensor] = []
        groups: list[FrameGroup] = []
        for grid, images in zip(self.grids, features, strict=True):
            if len(images):
                smaller = grid(images)
                maps.append(smaller)
                groups.append(FrameGroup(len(smaller), smaller.shape[-1] ** 2))
        hidden = torch.cat([self._patches(images) for images in maps])
        rotary = self._rotary(maps)
        deepstack_blocks = list(self.config.deepstack_visual_indexes)
        deepstack: list[Tensor | None] = [None] * len(deepstack_blocks)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, rotary, groups)
            if index in deepstack_blocks:
                level = deepstack_blocks.index(index)
                deepstack[level] = self.deepstack_merger_list[level](hidden)
        levels = [self.merger(hidden)]
        levels += [level for level in deepstack if level is not None]
        tokens = torch.stack(levels, dim=1)

        merged = self.config.spatial_merge_size**2
        parts = iter(tokens.split([group.images * group.patches // merged for group in groups]))
        outputs: list[Tensor] = []
        for images in features:
            if len(images):
                outputs.append(next(parts).unflatten(0, (len(images), -1)).transpose(1, 2))
            else:
                outputs.append(tokens.new_zeros(0, tokens.shape[1], 0, tokens.shape[2]))
        return outputs

    def _patches(self, images: Tensor) -> Tensor:
        """Maps [K, C, S, S] to patches with positions [K * S * S, C]."""
        side = images.shape[-1]
        merge = self.config.spatial_merge_size
        grid = images.permute(0, 2, 3, 1)
        patches = _squares(grid, merge) if self.in_blocks else grid.flatten(1, 2)
        # Positions have the order of squares even where patches have that of rows, as published.
        positions = _squares(self._position_embeddings(side), merge)
        return (patches + positions.to(patches.dtype)).flatten(0, 1)

    def _position_embeddings(self, side: int) -> Tensor:
        """Bilinear interpolation of the table to a grid, float32 [S, S, C]."""
        size = math.isqrt(self.config.num_position_embeddings)
        table = self.pos_embed.weight.unflatten(0, (size, size)).float()
        at = torch.linspace(0, size - 1, side, dtype=torch.float32, device=table.device)
        points = torch.arange(size, dtype=torch.float32, device=table.device)
        weights = (1 - (at[:, None] - points).abs()).clamp(min=0)
        # Products of matrices instead of a gather, whose gradient has no fixed order of sums.
        with torch.autocast(table.device.type, enabled=False):
            rows = torch.einsum("ia,abc->ibc", weights, table)
            return torch.einsum("jb,ibc->ijc", weights, rows)

    def _rotary(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Cosines and sines [P, head width] of the positions of all patches."""
        width = self.config.hidden_size // self.config.num_heads // 2
        options: dict[str, Any] = {"dtype": torch.float32, "device": maps[0].device}
        # Older releases of transformers have this number in the code of the encoder.
        parameters: Any = getattr(self.config, "rope_parameters", {"rope_theta": 10_000.0})
        exponents = torch.arange(0, width, 2, **options) / width
        frequencies = 1 / parameters["rope_theta"] ** exponents
        angles: list[Tensor] = []
        for images in maps:
            steps = torch.arange(images.shape[-1], **options)
            grid = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)
            positions = _squares(grid, self.config.spatial_merge_size)
            frame = (positions[:, :, None] * frequencies).flatten(1).tile(2)
            angles.append(frame.repeat(len(images), 1))
        joined = torch.cat(angles)
        return joined.cos(), joined.sin()


def _squares(grid: Tensor, merge: int) -> Tensor:
    """Values [..., S, S, C] in the order of squares of `merge` x `merge`: [..., S * S, C]."""
    side = grid.shape[-2] // merge
    split = grid.unflatten(-3, (side, merge)).unflatten(-2, (side, merge))
    return split.transpose(-4, -3).flatten(-5, -2)
