"""The network of FUTURE-VLA: Qwen3-VL with another vision front end, adapters, and its loss.

`FutureVla` puts tokens of past images (`vision.py`) in place of the image tokens of a prompt and
reads them with the language model. `AnswerObjective` compares the answer token by token.

The state dict has the names of the published weights; weights of layers with adapters of low rank
(LoRA, arXiv 2106.09685) keep their names, so that checkpoints of a model without adapters fit. The
loss is the cross entropy of the answer, by segment. Source: reference/future-vla-model 2, 3.1.

Legend of shapes: B samples, N images of a sample, H and W pixels, L tokens of a sequence, M
labelled tokens, T image tokens of a sample, D number of deepstack features, V size of the
vocabulary, C width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache
from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTEmbeddings
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig, Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRMSNorm,
)

from vlatool.errors import DataError
from vlatool.models.adapters import add_adapters
from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, StepContext
from vlatool.models.future_vla.batch import (
    FUTURE,
    NO_LABEL,
    SEGMENTS,
    moving_codes,
    with_futures,
)
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.vision import VisionTower

# Number of logits that are in memory at once, 0.5 GB in float32.
_LOGITS = 2**27
_NOT_RANDOM = {"attention_dropout": 0.0, "drop_path_rate": 0.0}


class LanguageModel(nn.Module):
    """Decoder of Qwen3-VL; the first layers add deepstack features at image tokens."""

    def __init__(self, config: Qwen3VLTextConfig) -> None:
        super().__init__()
        parameters: Any = config.rope_parameters
        if parameters.get("rope_type") != "default" or "mrope_section" not in parameters:
            raise ValueError(f"rope_parameters {parameters} differ from Qwen3-VL")
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Qwen3VLTextDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = Qwen3VLTextRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: Tensor,  # embeddings
        position_ids: Tensor,  # positions by time, row and column, int64 [B, 3, L]
        mask: Tensor | None,  # keys that each token sees, bool [B, 1, L, keys]; None: all before it
        deepstack: Sequence[Tensor],  # summands [B, L, C] after each of the first layers
        cache: Cache | None,  # keys and values of earlier tokens, which gets those of these tokens
    ) -> Tensor:
        """Embeddings [B, L, C] to hidden states [B, L, C]."""
        # Cosines and sines [B, L, head width]; frequencies of the three axes are interleaved
        parameters: Any = self.config.rope_parameters
        width = self.config.head_dim
        exponents = torch.arange(0, width, 2, dtype=torch.float32, device=hidden.device) / width
        frequencies = 1 / parameters["rope_theta"] ** exponents
        angles = position_ids.unsqueeze(-1).float() * frequencies
        mixed = angles[:, 0].clone()
        for axis in (1, 2):
            chosen = slice(axis, 3 * parameters["mrope_section"][axis], 3)
            mixed[..., chosen] = angles[:, axis, :, chosen]
        mixed = torch.cat([mixed, mixed], dim=-1)
        rotary = mixed.cos().to(hidden.dtype), mixed.sin().to(hidden.dtype)
        for index, layer in enumerate(self.layers):
            # By position, as releases of transformers name the cache differently
            hidden = layer(hidden, rotary, mask, None, cache)
            if index < len(deepstack):
                hidden = hidden + deepstack[index]
        return self.norm(hidden)


class FutureVla(nn.Module):
    """The network; forward returns hidden states, `head` logits."""

    def __init__(self, config: FutureVlaConfig) -> None:
        super().__init__()
        options: dict[str, Any] = {"attn_implementation": "sdpa"}
        qwen = Qwen3VLConfig(**{**(config.qwen or {}), **options})
        dino = DINOv3ViTConfig(**{**(config.dino or {}), **_NOT_RANDOM, **options})
        self.config = config
        self.image_id = qwen.image_token_id
        vision: Any = qwen.vision_config
        text: Any = qwen.text_config
        tower = VisionTower(
            vision, dino, config.conv_width, in_blocks=config.patch_order == "block"
        )
        self.model = nn.ModuleDict({"visual": tower, "language_model": LanguageModel(text)})
        if not qwen.tie_word_embeddings:
            self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        # Draws random weights: normal with `std`, biases 0, norms 1
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.Embedding):
                nn.init.normal_(module.weight, std=text.initializer_range)
                bias = getattr(module, "bias", None)
                if bias is not None:
                    nn.init.zeros_(bias)
            elif isinstance(module, DINOv3ViTEmbeddings):
                nn.init.normal_(module.cls_token, std=text.initializer_range)
                nn.init.normal_(module.register_tokens, std=text.initializer_range)
        self._freeze()
        if config.lora.rank:
            add_adapters(self.language_model, config.lora.rank, config.lora.alpha)

    @property
    def visual(self) -> VisionTower:
        tower = self.model["visual"]
        assert isinstance(tower, VisionTower)
        return tower

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return self.language_model.embed_tokens.num_embeddings

    @property
    def language_model(self) -> LanguageModel:
        decoder = self.model["language_model"]
        assert isinstance(decoder, LanguageModel)
        return decoder

    def forward(
        self,
        # token ids int64 [B, L]; a row has as many image tokens as its images give, or none
        input_ids: Tensor,
        position_ids: Tensor,  # positions by time, row and column, int64 [B, 3, L]
        # True for keys that later tokens see, bool [B, L + tokens of the cache]. None: all of them,
        # which is right (and fastest) for rows that are padded at their end, where the results of
        # padding are meaningless
        attention_mask: Tensor | None = None,
        images: Tensor | None = None,  # images uint8 [B, N, H, W, 3], oldest step first
        features: Tensor | None = None,  # result of `embed_images`, instead of images
        cache: Cache | None = None,
    ) -> Tensor:
        """Returns the hidden states [B, L, C] of a batch.

        Without images, features and cache, the vision tower runs on an image that does not change
        the result, so that each of its blocks is called equally often in all processes.
        """
        hidden = self.language_model.embed_tokens(input_ids)
        deepstack: list[Tensor] = []
        if features is None and images is not None and images.shape[1]:
            features = self.embed_images(images)
        if features is not None:
            is_image = input_ids == self.image_id
            # The i-th image token of a row gets the i-th feature. No size depends on values, which
            # would make the host wait for the device.
            index = (is_image.cumsum(dim=1) - 1).clamp(min=0)[..., None]
            placed: list[Tensor] = []
            for level in features.unbind(1):
                placed.append(torch.take_along_dim(level.to(hidden.dtype), index, dim=1))
            is_image = is_image[..., None]
            hidden = torch.where(is_image, placed[0], hidden)
            deepstack = [level * is_image for level in placed[1:]]
        elif cache is None:
            hidden = hidden + 0 * self._dummy_features().sum()
        mask = _mask(attention_mask, input_ids, 0 if cache is None else cache.get_seq_length())
        return self.language_model(hidden, position_ids, mask, deepstack, cache)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., C] to logits [..., V]."""
        return functional.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """Weight of the head [V, C]; it may be the embedding itself."""
        if hasattr(self, "lm_head"):
            return self.lm_head.weight
        return self.language_model.embed_tokens.weight

    def answer_losses(
        self,
        input_ids: Tensor,  # as for `forward`
        position_ids: Tensor,  # as for `forward`
        labels: Tensor,  # int64 [B, L], the id where it is to be predicted, else -100
        images: Tensor | None = None,  # as for `forward`
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy of each labelled token, and if its logit is the largest.

        Returns losses float32 [M] with gradient and hits float32 [M], in the order of the M labels.

        Logits are computed only at labelled positions, a few at a time, and again in the backward
        pass: logits of all positions would take more memory than the weights.
        """
        # Not `self(...)`: within a method of a sharded module its weights are gathered already.
        hidden = self.forward(input_ids, position_ids, images=images)
        is_labelled = labels[:, 1:] != NO_LABEL
        chosen = hidden[:, :-1][is_labelled]
        targets = labels[:, 1:][is_labelled]
        size = max(1, _LOGITS // self.vocabulary)
        losses: list[Tensor] = []
        hits: list[Tensor] = []
        for rows, ids in zip(chosen.split(size), targets.split(size), strict=True):
            chunk_losses, chunk_hits = checkpoint(
                self._chunk_losses, rows, ids, use_reentrant=False
            )
            losses.append(chunk_losses)
            hits.append(chunk_hits)
        return torch.cat(losses), torch.cat(hits)

    def _chunk_losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(hidden).float()
        losses = functional.cross_entropy(logits, targets, reduction="none")
        return losses, (logits.argmax(dim=-1) == targets).float()

    def embed_images(self, images: Tensor) -> Tensor:
        """Tokens of the images of samples: uint8 [B, N, H, W, 3] to [B, 1 + D, T, C]."""
        batch, count = images.shape[:2]
        if count != self.config.images:
            raise ValueError(
                f"{count} images in a sample, but the model expects {self.config.images}"
            )
        features = self.image_features(images.flatten(0, 1)).unflatten(0, (batch, count))
        groups = [group.flatten(0, 1) for group in features.split(self.config.frames, dim=1)]
        tokens: list[Tensor] = []
        for group, frames in zip(self.visual(groups), self.config.frames, strict=True):
            if frames:
                # [B * K, 1 + D, t, C] to [B, 1 + D, K * t, C]
                group = group.unflatten(0, (batch, frames)).transpose(1, 2).flatten(2, 3)
                tokens.append(group)
        return torch.cat(tokens, dim=2)

    def image_features(self, images: Tensor) -> Tensor:
        """Features of DINOv3, [K, C of DINOv3, G, G], of images uint8 [K, H, W, 3]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_dino):
            return self.visual.vis_tok(images)

    def _dummy_features(self) -> Tensor:
        side = self.visual.smallest_side
        device = self.language_model.embed_tokens.weight.device
        image = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=device)
        features = self.image_features(image)
        grids = [features if count else features[:0] for count in self.config.compress]
        return torch.cat([tokens.flatten() for tokens in self.visual(grids)])

    def _freeze(self) -> None:
        """Freezes what the config says, and parameters that no result depends on."""
        tower = self.visual
        config = self.config
        for part in (tower.pos_embed, tower.blocks, *tower.grids):
            part.requires_grad_(requires_grad=not config.freeze_vision)
        for part in (tower.merger, tower.deepstack_merger_list):
            part.requires_grad_(requires_grad=not config.freeze_mergers)
        self.language_model.requires_grad_(requires_grad=not config.freeze_language)
        if config.freeze_layers:
            self.language_model.embed_tokens.requires_grad_(requires_grad=False)
            self.language_model.layers[: config.freeze_layers].requires_grad_(requires_grad=False)
        if hasattr(self, "lm_head"):
            is_frozen = config.freeze_language or bool(config.lora.rank)
            self.lm_head.requires_grad_(requires_grad=not is_frozen)
        tower.vis_tok.requires_grad_(requires_grad=not config.freeze_dino)
        tower.vis_tok.embeddings.mask_token.requires_grad = False
        tower.patch_embed.requires_grad_(requires_grad=False)  # published, without a use
        for grid, count in zip(tower.grids, config.compress, strict=True):
            if not count:
                grid.requires_grad_(requires_grad=False)

    def blocks(self) -> list[nn.Module]:
        tower = self.visual
        return [*tower.vis_tok.layer, *tower.blocks, *self.language_model.layers]


def _mask(attention_mask: Tensor | None, input_ids: Tensor, cached: int) -> Tensor | None:
    """Keys that each token sees, bool [B, 1, L, keys]; None: all up to itself."""
    length = input_ids.shape[1]
    if attention_mask is None and (length == 1 or not cached):
        return None
    at = cached + torch.arange(length, device=input_ids.device)[:, None]
    keys = torch.arange(cached + length, device=input_ids.device)
    mask = (keys <= at)[None, None]
    if attention_mask is not None:
        # A token always sees itself: the softmax of no key is not a number.
        mask = (mask & attention_mask[:, None, None]) | (keys == at)
    return mask


def build_network(config: FutureVlaConfig) -> FutureVla:
    """The network of a config, with random weights."""
    try:
        return FutureVla(config)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - classes of transformers raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"model.qwen and model.dino describe no network of FUTURE-VLA: {reason}",
            hint="use the published config.json of Qwen3-VL and of DINOv3 ViT",
            code="data.missing",
        ) from None


_INPUTS = ("input_ids", "position_ids", "images")


class AnswerObjective(Objective):
    """Cross entropy of each token of the answer, weighted by its segment."""

    def __init__(self, config: FutureVlaConfig) -> None:
        self._config = config
        weights = config.segment_weights
        by_segment = [getattr(weights, name) for name in SEGMENTS.values()]
        self._weights = [0.0, *by_segment, weights.moving * weights.future]

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",))}

    def prepare(self, batch: Batch, ctx: StepContext) -> Batch:
        """Marks the codes that move, and keeps a share of the future images, drawn anew for each
        sample of a step.
        """
        share = self._config.future_share
        tokens = self._config.tokens
        if self._config.segment_weights.moving != 1:
            assert tokens is not None
            per_step = self._config.views * (tokens.codes_per_image + 2)
            batch = {**batch, "segments": moving_codes(batch, per_step)}
        if not ctx.training or share == 1:
            return batch
        assert tokens is not None
        is_start = (batch["segments"] == FUTURE) & (batch["input_ids"] == tokens.future_start)
        images = int(is_start.sum(dim=1).max())
        if not images:
            return batch
        # As many as the share says, over all steps
        before = math.ceil(ctx.step * images * share)
        after = math.ceil((ctx.step + 1) * images * share)
        order = ctx.rng.uniform(images).argsort(dim=1).argsort(dim=1)
        return with_futures(batch, tokens.future_start, order < after - before)

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """The weighted sum over labelled tokens; the count is the sum of their weights."""
        inputs = {name: batch[name] for name in _INPUTS if name in batch}
        losses, hits = ctx.parts["model"].answer_losses(**inputs, labels=batch["labels"])
        segments = batch["segments"][:, 1:][batch["labels"][:, 1:] != NO_LABEL].long()
        weights = losses.new_tensor(self._weights)[segments]
        segments = segments.clamp(max=FUTURE)
        return Loss(
            total=(losses * weights).sum(),
            count=weights.sum(),
            sums={
                "loss": _by_segment(losses.detach(), segments),
                "hits": _by_segment(hits, segments),
                "count": _by_segment(torch.ones_like(hits), segments),
            },
        )

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        metrics: dict[str, float] = {}
        for index, name in enumerate(SEGMENTS.values()):
            number = float(sums["count"][index])
            if number:
                metrics[f"loss/{name}"] = float(sums["loss"][index]) / number
                metrics[f"accuracy/{name}"] = float(sums["hits"][index]) / number
        return metrics


def _by_segment(values: Tensor, segments: Tensor) -> Tensor:
    """Sums [3] of values [M] over the tokens of each segment."""
    sums = torch.zeros(1 + len(SEGMENTS), dtype=torch.float64, device=values.device)
    return sums.index_add(0, segments, values.double())[1:]
