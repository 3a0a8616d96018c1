"""TiTok: pictures to a row of tokens and back. Source: reference/titok 1, 2.

Module names as published. Legend of shapes: B pictures, S side of a picture, G patches along a
side, P = G G, K latent tokens, W width of a transformer, L its tokens, D width of a token, N codes
of the teacher.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.errors import DataError
from vlatool.models.codebook import QuantizerOutput, VectorQuantizer
from vlatool.models.titok.spec import KlConfig, TitokConfig, VitConfig, VqConfig
from vlatool.models.vqgan.model import Decoder as PixelDecoder
from vlatool.models.vqgan.model import VqganOutput

# Of layers. Narrow networks need more: with the published one they send the same for every picture.
_STD, _STD_NARROW = 0.02, 0.45
_LOG_VARIANCES = (-30.0, 20.0)


class TitokOutput(NamedTuple):
    """What stage 1 gives: logits of the teacher's codes [B, N, G, G], and as `Drawn`."""

    logits: Tensor
    codes: Tensor
    penalty: Tensor
    commitment: Tensor


class Attention(nn.Module):
    """Every token sees every token; queries, keys and values have one packed weight."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, asking: slice) -> Tensor:
        """[B, L, W] to [B, Q, W] for the tokens that ask."""
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if asking == slice(None):
            query, key, value = functional.linear(x, weight, bias).chunk(3, dim=-1)
        else:
            query = functional.linear(x[:, asking], weight[:width], bias[:width])
            key, value = functional.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)
        mixed = functional.scaled_dot_product_attention(
            self._by_head(query), self._by_head(key), self._by_head(value)
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] to [B, L, W]."""
        return self.c_proj(functional.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Attention, then the MLP, each behind a layer norm and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, kept: slice = slice(None)) -> Tensor:
        """[B, L, W] to [B, L, W], or to those tokens alone that are `kept`."""
        x = x[:, kept] + self.attn(self.ln_1(x), kept)
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    """What encoder and decoder have in common; subclasses add what is before and behind."""

    def __init__(self, config: VitConfig, patches: int, latents: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.class_embedding = _table(1, width)
        self.positional_embedding = _table(1 + patches, width)
        self.latent_token_positional_embedding = _table(latents, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(
            Block(width, config.n_heads) for _ in range(config.n_layers)
        )
        self.ln_post = nn.LayerNorm(width)

    def _run(self, patches: Tensor, latents: Tensor, kept: slice) -> Tensor:
        """Class token, patches [B, P, W] and latents [B, K, W] through all blocks.

        The last one computes only what is kept: nobody reads the other tokens behind it.
        """
        first = self.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        positions = self.positional_embedding.to(patches.dtype)
        latents = latents + self.latent_token_positional_embedding.to(latents.dtype)
        x = torch.cat([torch.cat([first, patches], dim=1) + positions, latents], dim=1)
        x = self.ln_pre(x)
        for block in self.transformer[:-1]:
            x = block(x)
        return self.ln_post(self.transformer[-1](x, kept))


class Encoder(_Transformer):
    """Pictures to latent tokens."""

    def __init__(self, config: TitokConfig) -> None:
        super().__init__(config.encoder, config.grid**2, config.num_latent_tokens)
        width, quantizer = config.encoder.hidden_dim, config.quantizer
        channels = quantizer.token_size * (2 if isinstance(quantizer, KlConfig) else 1)
        self.is_legacy = config.latent_layout == "legacy"
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        self.conv_out = nn.Conv2d(width, channels, 1)

    def forward(self, pixels: Tensor, latents: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] in [0, 1] and latents [K, W] to features [B, K, D or 2 D]."""
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        expanded = latents.to(patches.dtype).expand(len(patches), -1, -1)
        found = self._run(patches, expanded, slice(-len(latents), None))
        features = self.conv_out(latent_columns(found, legacy=self.is_legacy))
        return features.flatten(2).transpose(1, 2)


class Decoder(_Transformer):
    """Tokens to logits of the teacher's codes, or to pixels."""

    def __init__(self, config: TitokConfig) -> None:
        super().__init__(config.decoder, config.grid**2, config.num_latent_tokens)
        width, side = config.decoder.hidden_dim, config.patch_size
        self.grid, self.patch_size = config.grid, side
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
        """Tokens [B, K, D] to logits [B, N, G, G] or pixels [B, 3, S, S], not clamped."""
        latents = self.decoder_embed(vectors)
        masks = self.mask_token.to(latents.dtype).expand(len(latents), self.grid**2, -1)
        found = self._run(masks, latents, slice(1, 1 + self.grid**2))
        made = self.ffn(found.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
        return made if self.conv_out is None else self.conv_out(unpatched(made, self.patch_size))


class Titok(nn.Module):
    """The tokenizer, with the pixel decoder in stage 2."""

    def __init__(self, config: TitokConfig) -> None:
        super().__init__()
        self.config = config
        quantizer = config.quantizer
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.latent_tokens = _table(config.num_latent_tokens, config.encoder.hidden_dim)
        for side, vit in ((self.encoder, config.encoder), (self.decoder, config.decoder)):
            _initialize(side, max(_STD, _STD_NARROW * vit.hidden_dim**-0.5))
        self.quantize = _quantizer(quantizer) if isinstance(quantizer, VqConfig) else None
        if config.stage == 2:
            network = config.vqgan
            self.pixel_quantize = VectorQuantizer(network.codebook_size, network.z_channels)
            self.pixel_decoder = PixelDecoder(network)

    def freeze_tokens(self, *, frozen: bool) -> None:
        """What decides the codes learns, or does not."""
        self.latent_tokens.requires_grad = not frozen
        for module in (self.encoder, self.quantize):
            if module is not None:
                module.requires_grad_(requires_grad=not frozen)

    def forward(self, pixels: Tensor, noise: Tensor | None = None) -> TitokOutput | VqganOutput:
        """Pixels [B, 3, S, S] in [0, 1] through their tokens.

        Args:
            pixels: As they are.
            noise: Standard normal [B, K, D], added to continuous tokens; None for their means.

        Returns:
            What a loss needs: logits in stage 1 with a proxy head, else pixels.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.stage == 1):
            found = self.encode(pixels, noise)
        made = self.decode(found.vectors)
        return (VqganOutput if self.config.predicts_pixels else TitokOutput)(made, *found[1:])

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> QuantizerOutput:
        """Tokens of pixels [B, 3, S, S]; `noise` as in `forward`."""
        features = self.encoder(pixels, self.latent_tokens)
        if self.quantize is None:
            return posterior(features, noise)
        return self.quantize(features)

    def codes(self, pixels: Tensor) -> Tensor:
        """Codes int64 [B, K] of pixels; the quantizer computes in true float32."""
        assert self.quantize is not None, "continuous tokens have no codes"
        return self.quantize.codes(self.encoder(pixels, self.latent_tokens))

    def decode(self, vectors: Tensor) -> Tensor:
        """Tokens [B, K, D] to pixels [B, 3, S, S], not clamped; to logits in stage 1 (proxy)."""
        made = self.decoder(vectors)
        if self.config.stage == 1:
            return made
        shares = made.float().softmax(dim=1).to(made.dtype)
        table = self.pixel_quantize.embedding.weight
        mixed = functional.linear(shares.flatten(2).transpose(1, 2), table.t())
        return self.pixel_decoder(mixed.transpose(1, 2).unflatten(2, made.shape[2:]))

    def decode_codes(self, codes: Tensor) -> Tensor:
        """As `decode`, of codes int [B, K] or [B, 1, K].

        Raises:
            DataError: They are out of range, or not K.
        """
        assert self.quantize is not None, "continuous tokens have no codes"
        rows, wanted = codes.flatten(1), self.config.num_latent_tokens
        if rows.shape[1] != wanted:
            raise DataError(
                f"{rows.shape[1]} codes of a picture, the tokenizer has {wanted}",
                hint="decode with the tokenizer that made the codes",
                code="data.number_of_codes",
            )
        return self.decode(self.quantize.lookup(rows))


def latent_columns(tokens: Tensor, *, legacy: bool) -> Tensor:
    """What makes each code, as columns: [B, K, W] to [B, W, 1, K].

    The legacy layout reads the same numbers row by row into [W, K] instead of turning them: each
    code takes a slice of every latent token. Released two-stage weights need it.
    Source: reference/titok 1.3.
    """
    batch, number, width = tokens.shape
    if legacy:
        return tokens.reshape(batch, width, 1, number)
    return tokens.transpose(1, 2).unsqueeze(2)


def unpatched(values: Tensor, side: int) -> Tensor:
    """[B, side side 3, G, G], channels innermost, to pictures [B, 3, G side, G side]."""
    batch, _, rows, columns = values.shape
    pixels = values.view(batch, side, side, 3, rows, columns).permute(0, 3, 4, 1, 5, 2)
    return pixels.reshape(batch, 3, rows * side, columns * side)


def posterior(features: Tensor, noise: Tensor | None) -> QuantizerOutput:
    """Continuous tokens of means and log variances [B, K, 2 D]; the penalty is their divergence.

    Args:
        features: Means, then log variances.
        noise: Standard normal [B, K, D]; None for the means alone.
    """
    mean, log_variance = features.float().chunk(2, dim=-1)
    log_variance = log_variance.clamp(*_LOG_VARIANCES)
    drawn = mean if noise is None else mean + (0.5 * log_variance).exp() * noise
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    codes = torch.empty(len(features), 0, dtype=torch.int64, device=features.device)
    zero = mean.new_zeros(())
    return QuantizerOutput(drawn, codes, divergence.sum() / max(len(features), 1), zero)


def _quantizer(config: VqConfig) -> VectorQuantizer:
    return VectorQuantizer(
        config.codebook_size,
        config.token_size,
        l2_norm=config.use_l2_norm,
        commitment_cost=config.commitment_cost,
        entropy_weight=config.entropy_weight,
    )


def _table(*shape: int) -> nn.Parameter:
    """Learned vectors. Source: reference/titok 1.9."""
    return nn.Parameter(torch.randn(*shape) * shape[-1] ** -0.5)


def _initialize(side: nn.Module, std: float) -> None:
    """Linear and convolutional layers; `std` is the published one for published widths.

    Source: reference/titok 1.9.
    """
    for module in side.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
