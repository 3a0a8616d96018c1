"""MaskGIT-VQGAN turns images into a grid of codes and back. Source: reference/titok 1.8, 2.2.

The encoder halves the resolution from level to level, the quantizer (`models/codebook.py`) replaces
each vector by its nearest code, the decoder goes the way back. The functions at the end load
weights of a run or of the published file; TiTok uses them for its teacher.

Names of modules are the published ones. Legend of shapes: B images, H height, W width, h and w size
of the grid of codes, P = h w, C channels, Z width of a code.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.models.codebook import QuantizerOutput, VectorQuantizer
from vlatool.models.published import WeightsOrigin
from vlatool.models.vqgan.config import VqganNetworkConfig
from vlatool.models.weights import build_with, init_state_dict, matching_state_dict

_NORM_EPS = 1e-6


class VqganOutput(NamedTuple):
    """Reconstructed images, with the loss terms of the quantizer."""

    pixels: Tensor  # [B, 3, H, W], not clamped
    codes: Tensor  # int64 [B, K]; [B, 0] without a codebook
    penalty: Tensor  # loss term of the quantizer, scalar
    commitment: Tensor  # commitment loss, a part of `penalty`; detached
    inputs: Tensor  # inputs of the quantizer, [B, K, D]; detached


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut.

    If the number of channels changes, the input of the shortcut is the output of the convolutions,
    not the input of the block: the published weights were trained this way.
    """

    def __init__(self, before: int, after: int, groups: int, *, kernel: int = 3) -> None:
        super().__init__()
        padding = kernel // 2
        self.norm1 = nn.GroupNorm(groups, before, eps=_NORM_EPS)
        self.conv1 = nn.Conv2d(before, after, kernel, padding=padding, bias=False)
        self.norm2 = nn.GroupNorm(groups, after, eps=_NORM_EPS)
        self.conv2 = nn.Conv2d(after, after, kernel, padding=padding, bias=False)
        self.nin_shortcut = None
        if before != after:
            self.nin_shortcut = nn.Conv2d(after, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C', H, W]."""
        residual = self.conv1(functional.silu(self.norm1(x)))
        residual = self.conv2(functional.silu(self.norm2(residual)))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(residual)
        return residual + x


class VqganLevel(nn.Module):
    """The residual blocks of one resolution, with `doubles` followed by an upsampling layer."""

    def __init__(
        self,
        before: int,
        after: int,
        config: VqganNetworkConfig,
        *,
        doubles: bool = False,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList()
        for width in [before] + [after] * (config.num_res_blocks - 1):
            self.block.append(ResidualBlock(width, after, config.norm_groups, kernel=kernel))
        self.upsample_conv = None
        if doubles:
            self.upsample_conv = nn.Conv2d(after, after, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C', H, W], with `doubles` to [B, C', 2 H, 2 W]."""
        for block in self.block:
            x = block(x)
        if self.upsample_conv is not None:
            x = self.upsample_conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class VqganEncoder(nn.Module):
    """Levels from fine to coarse, then two blocks."""

    def __init__(self, config: VqganNetworkConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        width = config.hidden_channels
        coarsest = len(config.channel_mult) - 1
        self.conv_in = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        for index, factor in enumerate(config.channel_mult):
            before = width
            width = config.hidden_channels * factor
            kernel = config.code_kernel if index == coarsest else 3
            self.down.append(VqganLevel(before, width, config, kernel=kernel))
        self.mid = nn.ModuleList(
            ResidualBlock(width, width, groups, kernel=config.code_kernel) for _ in range(2)
        )
        self.norm_out = nn.GroupNorm(groups, width, eps=_NORM_EPS)
        self.conv_out = nn.Conv2d(width, config.z_channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels [B, 3, H, W] in [0, 1] to features [B, Z, h, w]."""
        *_, x = self.levels(pixels)
        for block in self.mid:
            x = block(x)
        return self.conv_out(functional.silu(self.norm_out(x)))

    def levels(self, pixels: Tensor) -> Iterator[Tensor]:
        """Yields the features of each level, from fine to coarse."""
        x = self.conv_in(pixels.contiguous(memory_format=torch.channels_last))
        for index, level in enumerate(self.down):
            if index:
                x = functional.avg_pool2d(x, 2)
            x = level(x)
            yield x


class VqganDecoder(nn.Module):
    """Two blocks, then levels from coarse to fine."""

    def __init__(self, config: VqganNetworkConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        widths = [config.hidden_channels * factor for factor in config.channel_mult]
        coarsest = widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, coarsest, 3, padding=1)
        self.mid = nn.ModuleList(ResidualBlock(coarsest, coarsest, groups) for _ in range(2))
        self.up = nn.ModuleList()  # from fine to coarse, as published
        for index, width in enumerate(widths):
            before = widths[index + 1] if index + 1 < len(widths) else coarsest
            self.up.append(VqganLevel(before, width, config, doubles=index > 0))
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features [B, Z, h, w] to pixels [B, 3, H, W], not clamped."""
        x = self.conv_in(features.contiguous(memory_format=torch.channels_last))
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class Vqgan(nn.Module):
    """Autoencoder of images in [0, 1] with a grid of codes in row-major order."""

    def __init__(self, config: VqganNetworkConfig, *, commitment_cost: float = 0.25) -> None:
        super().__init__()
        self.encoder = VqganEncoder(config)
        self.decoder = VqganDecoder(config)
        self.quantize = VectorQuantizer(
            config.codebook_size, config.z_channels, commitment_cost=commitment_cost
        )

    def forward(self, pixels: Tensor, noise: Tensor | None = None) -> VqganOutput:
        """Encodes and decodes pixels [B, 3, H, W] in [0, 1]; `noise` is not used."""
        features = self.encoder(pixels)
        quantized: QuantizerOutput = self.quantize(features.flatten(2).transpose(1, 2))
        grid = quantized.vectors.transpose(1, 2).reshape(features.shape)
        return VqganOutput(
            self.decoder(grid),
            quantized.codes,
            quantized.penalty,
            quantized.commitment,
            quantized.inputs,
        )

    def codes(self, pixels: Tensor) -> Tensor:
        """Returns the codes int64 [B, P] of pixels [B, 3, H, W]."""
        return self.quantize.codes(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """Returns the input of the quantizer for pixels [B, 3, H, W]: [B, P, Z]."""
        return self.encoder(pixels).flatten(2).transpose(1, 2)

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decodes codes [B, P] of a square grid, or [B, h, w], to pixels [B, 3, H, W] in [0, 1]."""
        side = round(codes[0].numel() ** 0.5)
        rows = codes.shape[1] if codes.ndim == 3 else side
        assert codes[0].numel() % rows == 0, "the number of codes is not a square"
        vectors = self.quantize.lookup(codes.flatten(1))
        grid = vectors.transpose(1, 2).unflatten(2, (rows, -1))
        return self.decoder(grid).float().clamp(0, 1)


_ENCODER = "encoder."


def load_vqgan(module: nn.Module, origin: str, excluded: Sequence[str] = ()) -> None:
    """Loads the weights of a VQGAN; all names and shapes must match, except for some networks."""
    source = WeightsOrigin.find(origin)
    weights = source.read("vqgan")
    module.load_state_dict(init_state_dict(module, weights, source.file, excluded))


def open_vqgan(config: VqganNetworkConfig, origin: str) -> Vqgan:
    """The network of a config with the weights at a location."""
    source = WeightsOrigin.find(origin)
    weights = source.read("vqgan")
    return build_with(lambda: Vqgan(config), lambda network: weights, source.file)


def load_encoder(module: nn.Module, origin: str) -> None:
    """Loads only the encoder of a VQGAN."""
    source = WeightsOrigin.find(origin)
    encoder: dict[str, Tensor] = {}
    for name, value in source.read("vqgan").items():
        if name.startswith(_ENCODER):
            encoder[name.removeprefix(_ENCODER)] = value
    module.load_state_dict(matching_state_dict(module, encoder, source.file))


def pixel_weights(origin: str) -> dict[str, Tensor]:
    """The pixel decoder of TiTok from a VQGAN: all except its encoder, with names `pixel_*`."""
    decoder: dict[str, Tensor] = {}
    for name, value in WeightsOrigin.find(origin).read("vqgan").items():
        if not name.startswith(_ENCODER):
            decoder[f"pixel_{name}"] = value
    return decoder
