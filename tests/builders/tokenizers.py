"""Tiny visual tokenizers: data, teacher, stage 1; and a plain implementation of TiTok."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tests.builders.toy_images import write_image_shards
from vlatool.models.titok.config import TitokConfig
from vlatool.models.titok.model import Titok
from vlatool.models.trained import open_trained
from vlatool.models.vqgan.config import VqganNetworkConfig
from vlatool.models.vqgan.model import Vqgan

SIDE = 16
NETWORK: dict[str, Any] = {
    "hidden_channels": 16,
    "channel_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "z_channels": 8,
    "codebook_size": 32,
    "norm_groups": 8,
}
LOSSES: dict[str, Any] = {"discriminator_start": 3, "discriminator_channels": 32}
VIT = {"hidden_dim": 32, "n_layers": 2, "n_heads": 2}
QUANTIZER: dict[str, Any] = {"type": "vq", "codebook_size": 64, "token_size": 6}
SIZES: dict[str, Any] = {
    "patch_size": 4,
    "num_latent_tokens": 8,
    "encoder": VIT,
    "decoder": VIT,
    "quantizer": QUANTIZER,
}
PIXELS: dict[str, Any] = {**SIZES, "decoder_head": "pixel", "latent_layout": "aligned"}


def image_data(folder: Path) -> dict[str, Any]:
    """Writes shards of twelve images; returns the section `data`."""
    shards = write_image_shards(folder / "shards")
    return {"type": "images", "shards": [str(shards)], "preprocessing": {"crop_size": SIDE}}


def tiny_titok(**keys: Any) -> TitokConfig:
    """A derived config."""
    return TitokConfig.model_validate(
        {"image_size": SIDE, **SIZES, "vqgan": NETWORK, "teacher": "teacher", **keys}
    )


def open_titok(location: str) -> tuple[TitokConfig, Titok]:
    """Opens a TiTok on the CPU."""
    trained = open_trained(location, device="cpu")
    return trained.config.model, trained.parts["model"]  # pyright: ignore[reportReturnType]


def write_teacher(folder: Path, seed: int = 1) -> str:
    """Writes a file of weights of a tiny VQGAN; returns its path."""
    torch.manual_seed(seed)
    path = folder / "teacher.safetensors"
    save_file(Vqgan(VqganNetworkConfig.model_validate(NETWORK)).state_dict(), path)
    return str(path)


def write_stage_1(folder: Path, seed: int = 2, **keys: Any) -> str:
    """Writes a file of weights of stage 1; returns its path."""
    torch.manual_seed(seed)
    path = folder / "stage1.safetensors"
    save_file(Titok(tiny_titok(**keys)).state_dict(), path)
    return str(path)


class PlainBlock(nn.Module):
    """Transformer block with the attention of torch, sequence first, computing all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class PlainTitok(nn.Module):
    """Plain implementation of the formulas, with the weights of a `Titok` of stage 1."""

    def __init__(self, model: Titok) -> None:
        super().__init__()
        self.model = model
        self.encoder = _plain(model.encoder)
        self.decoder = _plain(model.decoder)

    def codes(self, pixels: Tensor) -> Tensor:
        """Returns the codes [B, K]."""
        return self.unit_features(pixels)[1]

    def unit_features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the normalized features [B, K, D] and the codes [B, K]."""
        model, side = self.model, self.model.encoder
        patches = side.patch_embed(pixels).flatten(2).transpose(1, 2)
        latents = model.latent_tokens.expand(len(pixels), -1, -1)
        x = self._run(side, self.encoder, patches, latents)[:, -len(model.latent_tokens) :]
        x = side.ln_post(x)
        batch, number, width = x.shape
        columns = x.reshape(batch, width, number, 1) if side.is_legacy else x.mT.unsqueeze(3)
        z = functional.normalize(side.conv_out(columns).flatten(2).transpose(1, 2), dim=-1)
        table = functional.normalize(model.quantize.embedding.weight, dim=-1)
        return z, torch.cdist(z.flatten(0, 1), table).argmin(1).view(batch, number)

    def logits(self, pixels: Tensor) -> Tensor:
        """Returns the logits [B, N, G, G] of a proxy head, with straight-through gradients."""
        model, side = self.model, self.model.decoder
        z, codes = self.unit_features(pixels)
        table = functional.normalize(model.quantize.embedding.weight, dim=-1)
        latents = side.decoder_embed(z + (table[codes] - z).detach())
        masks = side.mask_token.expand(len(pixels), side.grid**2, -1)
        x = self._run(side, self.decoder, masks, latents)[:, 1 : 1 + side.grid**2]
        return side.ffn(side.ln_post(x).transpose(1, 2).unflatten(2, (side.grid, side.grid)))

    def _run(self, side: Any, blocks: nn.ModuleList, patches: Tensor, latents: Tensor) -> Any:
        first = side.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([first, patches], dim=1) + side.positional_embedding
        x = torch.cat([x, latents + side.latent_token_positional_embedding], dim=1)
        x = side.ln_pre(x).transpose(0, 1)
        for block in blocks:
            x = block(x)
        return x.transpose(0, 1)


def _plain(side: Any) -> nn.ModuleList:
    width, heads = side.class_embedding.shape[-1], side.transformer[0].attn.heads
    blocks = nn.ModuleList(PlainBlock(width, heads) for _ in side.transformer)
    blocks.load_state_dict(side.transformer.state_dict())
    return blocks
