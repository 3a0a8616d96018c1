"""TiTok networks, which turn images into a sequence of tokens and back, and TiTok as a tokenizer.

Names of modules are the published ones. Source: reference/titok 1, 2.

Legend of shapes: B images, S side of an image in pixels, G patches along a side, P = G G, K latent
tokens or codes, W width of a transformer, L its tokens, D width of a token, N codes of the teacher.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.errors import DataError, UsageError
from vlatool.events import counted
from vlatool.models.base import Reconstruction
from vlatool.models.codebook import CodebookTokenizer, QuantizerOutput, VectorQuantizer
from vlatool.models.titok.config import KlConfig, TitokConfig, VitConfig, VqConfig
from vlatool.models.titok.published import teacher_section
from vlatool.models.vqgan.model import Vqgan, VqganOutput, open_vqgan
from vlatool.models.vqgan.model import VqganDecoder as PixelDecoder

# Standard deviation of initial weights. Narrow networks need a larger one: with the published value
# their codes are the same for all images.
_STD = 0.02
_STD_NARROW = 0.45
_LOG_VARIANCES = (-30.0, 20.0)


class TitokOutput(NamedTuple):
    """Output of stage 1 with the proxy head."""

    logits: Tensor  # logits of the teacher codes, [B, N, G, G]
    codes: Tensor  # int64 [B, K]
    penalty: Tensor  # loss term of the quantizer, scalar
    commitment: Tensor  # commitment loss, a part of `penalty`; detached
    inputs: Tensor  # inputs of the quantizer, [B, K, D]; detached


class TitokAttention(nn.Module):
    """Full self-attention; queries, keys and values have one packed weight."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, queries: slice) -> Tensor:
        """Maps [B, L, W] to [B, Q, W], the outputs of the tokens in `queries`."""
        width = x.shape[-1]
        weight = self.in_proj_weight
        bias = self.in_proj_bias
        if queries == slice(None):
            query, key, value = functional.linear(x, weight, bias).chunk(3, dim=-1)
        else:
            query = functional.linear(x[:, queries], weight[:width], bias[:width])
            key, value = functional.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(
            self._by_head(query), self._by_head(key), self._by_head(value)
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, L, W] to [B, L, W]."""
        return self.c_proj(functional.gelu(self.c_fc(x)))


class TitokBlock(nn.Module):
    """Attention, then MLP, each with a layer norm before it and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = TitokAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, outputs: slice = slice(None)) -> Tensor:
        """Maps [B, L, W] to the outputs of all tokens, or of the tokens in `outputs`."""
        x = x[:, outputs] + self.attn(self.ln_1(x), outputs)
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    """Base class of encoder and decoder; they add input and output layers."""

    def __init__(self, config: VitConfig, patches: int, latents: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.class_embedding = _table(1, width)
        self.positional_embedding = _table(1 + patches, width)
        self.latent_token_positional_embedding = _table(latents, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(
            TitokBlock(width, config.n_heads) for _ in range(config.n_layers)
        )
        self.ln_post = nn.LayerNorm(width)

    def _run(self, patches: Tensor, latents: Tensor, outputs: slice) -> Tensor:
        """Applies all blocks to class token, patches [B, P, W] and latents [B, K, W]. The last
        block computes only the tokens in `outputs`.
        """
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        positions = self.positional_embedding.to(patches.dtype)
        latents = latents + self.latent_token_positional_embedding.to(latents.dtype)
        x = torch.cat([torch.cat([first, patches], dim=1) + positions, latents], dim=1)
        x = self.ln_pre(x)
        for block in self.transformer[:-1]:
            x = block(x)
        return self.ln_post(self.transformer[-1](x, outputs))


class TitokEncoder(_Transformer):
    """Encoder of images to latent tokens."""

    def __init__(self, config: TitokConfig) -> None:
        super().__init__(config.encoder, config.grid**2, config.num_latent_tokens)
        width = config.encoder.hidden_dim
        quantizer = config.quantizer
        channels = quantizer.token_size * (2 if isinstance(quantizer, KlConfig) else 1)
        self.is_legacy = config.latent_layout == "legacy"
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.conv_out = nn.Conv2d(width, channels, 1)

    def forward(self, pixels: Tensor, latents: Tensor) -> Tensor:
        """Maps pixels [B, 3, S, S] in [0, 1] and latents [K, W] to features [B, K, D or 2 D]."""
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        expanded = latents.to(patches.dtype).expand(len(patches), -1, -1)
        tokens = self._run(patches, expanded, slice(-len(latents), None))
        features = self.conv_out(latent_columns(tokens, legacy=self.is_legacy))
        return features.flatten(2).transpose(1, 2)


class TitokDecoder(_Transformer):
    """Decoder of tokens to logits of the teacher codes, or to pixels."""

    def __init__(self, config: TitokConfig) -> None:
        super().__init__(config.decoder, config.grid**2, config.num_latent_tokens)
        width = config.decoder.hidden_dim
        side = config.patch_size
        self.grid = config.grid
        self.patch_size = side
        self.mask_token = _table(1, 1, width)
        self.decoder_embed = nn.Linear(config.quantizer.token_size, width)
        if config.decoder_head == "proxy":
            codes = nn.Conv2d(2 * width, config.vqgan.codebook_size, 1)
            self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), codes)
            self.conv_out = None
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, side * side * 3, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, vectors: Tensor) -> Tensor:
        """Maps tokens [B, K, D] to logits [B, N, G, G] or pixels [B, 3, S, S], not clamped."""
        latents = self.decoder_embed(vectors)
        masks = self.mask_token.to(latents.dtype).expand(len(latents), self.grid**2, -1)
        tokens = self._run(masks, latents, slice(1, 1 + self.grid**2))
        x = self.ffn(tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        return x if self.conv_out is None else self.conv_out(unpatched(x, self.patch_size))


class Titok(nn.Module):
    """The visual tokenizer; in stage 2 with the pixel decoder."""

    def __init__(self, config: TitokConfig) -> None:
        super().__init__()
        self.config = config
        quantizer = config.quantizer
        self.encoder = TitokEncoder(config)
        self.decoder = TitokDecoder(config)
        self.latent_tokens = _table(config.num_latent_tokens, config.encoder.hidden_dim)
        for side, vit in ((self.encoder, config.encoder), (self.decoder, config.decoder)):
            _initialize(side, max(_STD, _STD_NARROW * vit.hidden_dim**-0.5))
        self.quantize = _quantizer(quantizer) if isinstance(quantizer, VqConfig) else None
        if config.stage == 2:
            network = config.vqgan
            self.pixel_quantize = VectorQuantizer(network.codebook_size, network.z_channels)
            self.pixel_decoder = PixelDecoder(network)

    def freeze_tokens(self, *, frozen: bool) -> None:
        """Freezes or unfreezes encoder, latent tokens and codebook, which determine the codes."""
        self.latent_tokens.requires_grad = not frozen
        for module in (self.encoder, self.quantize):
            if module is not None:
                module.requires_grad_(requires_grad=not frozen)

    def forward(
        self, pixels: Tensor, noise: Tensor | None = None, mean_assignment: Tensor | None = None
    ) -> TitokOutput | VqganOutput:
        """Encodes and decodes pixels.

        `pixels`: [B, 3, S, S] in [0, 1]; `noise`: standard normal [B, K, D] to sample continuous
        tokens; None: use their means; returns logits of the teacher codes in stage 1 with the proxy
        head, otherwise pixels; with the loss terms of the quantizer.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.stage == 1):
            tokens = self.encode(pixels, noise, mean_assignment)
        decoded = self.decode(tokens.vectors)
        return (VqganOutput if self.config.predicts_pixels else TitokOutput)(decoded, *tokens[1:])

    def encode(
        self, pixels: Tensor, noise: Tensor | None = None, mean_assignment: Tensor | None = None
    ) -> QuantizerOutput:
        """Encodes pixels [B, 3, S, S] to tokens; other arguments as for `forward`."""
        features = self.features(pixels)
        if self.quantize is None:
            return posterior(features, noise)
        return self.quantize(features, mean_assignment)

    def assignment_sums(self, pixels: Tensor) -> Tensor:
        """Returns the sum of the soft assignments of the tokens of pixels, float64 [N]."""
        assert self.quantize is not None, "continuous tokens have no codebook"
        return self.quantize.assignment_sums(self.features(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """Returns the input of the quantizer for pixels [B, 3, S, S]: [B, K, D or 2 D]."""
        return self.encoder(pixels, self.latent_tokens)

    def codes(self, pixels: Tensor) -> Tensor:
        """Returns the codes int64 [B, K] of pixels; the quantizer computes without TF32."""
        assert self.quantize is not None, "continuous tokens have no codes"
        return self.quantize.codes(self.features(pixels))

    def decode(self, vectors: Tensor) -> Tensor:
        """Decodes tokens [B, K, D] to pixels [B, 3, S, S], not clamped. In stage 1 with the proxy
        head, returns logits [B, N, G, G] instead.
        """
        decoded = self.decoder(vectors)
        if self.config.stage == 1:
            return decoded
        probabilities = decoded.float().softmax(dim=1).to(decoded.dtype)
        table = self.pixel_quantize.embedding.weight
        mixed = functional.linear(probabilities.flatten(2).transpose(1, 2), table.t())
        return self.pixel_decoder(mixed.transpose(1, 2).unflatten(2, decoded.shape[2:]))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Decodes codes int [B, K] or [B, 1, K]; see `decode`."""
        assert self.quantize is not None, "continuous tokens have no codes"
        rows = codes.flatten(1)
        expected = self.config.num_latent_tokens
        if rows.shape[1] != expected:
            raise DataError(
                f"an image has {counted(rows.shape[1], 'code')}, the tokenizer expects {expected}",
                hint="decode with the tokenizer that encoded the images",
                code="data.mismatch",
            )
        return self.decode(self.quantize.lookup(rows))


def latent_columns(tokens: Tensor, *, legacy: bool) -> Tensor:
    """Rearranges latent tokens [B, K, W] to [B, W, 1, K], one column per code.

    The legacy layout reshapes [K, W] to [W, K] instead of transposing it, so each code gets a slice
    of every latent token. Released two-stage weights need it.
    Source: reference/titok 1.3.
    """
    batch, number, width = tokens.shape
    if legacy:
        return tokens.reshape(batch, width, 1, number)
    return tokens.transpose(1, 2).unsqueeze(2)


def unpatched(values: Tensor, side: int) -> Tensor:
    """Rearranges patches [B, side side 3, G, G], channels last, to [B, 3, G side, G side]."""
    batch, _, rows, columns = values.shape
    pixels = values.view(batch, side, side, 3, rows, columns).permute(0, 3, 4, 1, 5, 2)
    return pixels.reshape(batch, 3, rows * side, columns * side)


def posterior(features: Tensor, noise: Tensor | None) -> QuantizerOutput:
    """Samples continuous tokens; the penalty is their KL divergence; `features`: means, then log
    variances, [B, K, 2 D]; `noise`: standard normal [B, K, D]; None: return the means.
    """
    mean, log_variance = features.float().chunk(2, dim=-1)
    log_variance = log_variance.clamp(*_LOG_VARIANCES)
    sampled = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    codes = torch.empty(len(features), 0, dtype=torch.int64, device=features.device)
    zero = mean.new_zeros(())
    penalty = divergence.sum() / max(len(features), 1)
    return QuantizerOutput(sampled, codes, penalty, zero, mean.detach())


def _quantizer(config: VqConfig) -> VectorQuantizer:
    return VectorQuantizer(
        config.codebook_size,
        config.token_size,
        l2_norm=config.use_l2_norm,
        commitment_cost=config.commitment_cost,
        entropy_weight=config.entropy_weight,
    )


def _table(*shape: int) -> nn.Parameter:
    """Learned vectors with their initial values. Source: reference/titok 1.9."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


def _initialize(side: nn.Module, std: float) -> None:
    """Initializes linear and convolutional layers; `std` is the published one for published widths.
    Source: reference/titok 1.9.
    """
    for module in side.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# Prefixes of the names of weights that determine the codes.
_CODE_WEIGHTS = ("encoder.", "latent_tokens", "quantize.")


class TitokTokenizer(CodebookTokenizer):
    """Visual tokenizer of a config and its network; stages 1 and 2 have the same digest."""

    def __init__(self, config: TitokConfig, network: Titok) -> None:
        assert config.image_size is not None
        # Options that determine the codes, as JSON.
        keys = {"patch_size", "num_latent_tokens", "encoder", "latent_layout", "image_size"}
        options: dict[str, Any] = config.model_dump(mode="json", include=keys)
        if isinstance(config.quantizer, VqConfig):
            options["use_l2_norm"] = config.quantizer.use_l2_norm
        super().__init__(
            network,
            image_size=config.image_size,
            codes_per_image=config.num_latent_tokens,
            code_options=json.dumps(options, sort_keys=True),
            code_weights=_CODE_WEIGHTS,
        )
        self.has_decoder = config.predicts_pixels
        self._config = config
        self._teacher: Vqgan | None = None

    def reconstructor(self) -> Callable[[Tensor], Reconstruction]:
        """Function that reconstructs images; the teacher decodes the codes of a first stage."""
        if not self.has_decoder:
            device = self.network.latent_tokens.device
            self._teacher = _open_teacher(self._config).to(device).eval()
        return super().reconstructor()

    def _reconstructed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self._teacher is None:
            return super()._reconstructed(pixels)
        output = self.network(pixels)
        return self._teacher.decode_codes(output.logits.argmax(1)), output.codes


def _open_teacher(config: TitokConfig) -> Vqgan:
    if config.teacher is None:
        raise UsageError(
            "this tokenizer is a first stage: it predicts codes of its teacher, and has no decoder",
            hint="add --teacher LOCATION, or give the run of stage 2",
            code="usage.unsupported",
        )
    network = teacher_section(config) or config.vqgan
    if network.codebook_size != config.vqgan.codebook_size:
        raise DataError.at(
            config.teacher,
            f"has {counted(network.codebook_size, 'code')}, but the tokenizer predicts codes of a "
            f"teacher with {config.vqgan.codebook_size}",
            hint="give the teacher with which the tokenizer was trained",
            code="data.checkpoint_mismatch",
        )
    return open_vqgan(network, config.teacher)
