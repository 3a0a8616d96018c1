"""Objectives of TiTok: teacher codes in stage 1, otherwise pixels.

Source: reference/titok 4.1, 4.2. Legend of shapes: B images, G patches along a side, P = G G.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vlatool.episode import UInt8Array
from vlatool.findings import Finding
from vlatool.models.base import Batch, Loss, OptimizerSpec, Part, StepContext
from vlatool.models.images import comparison, to_float
from vlatool.models.titok.config import TitokConfig, VqConfig
from vlatool.models.titok.model import TitokOutput
from vlatool.models.vqgan.objective import (
    PixelObjective,
    TokenizerObjective,
    code_sums,
    published_groups,
)

# Metric of a teacher in bfloat16, and the share of its codes below which a warning is given.
_AGREEMENT = "teacher_agreement"
_MIN_AGREEMENT = 0.9


def make_objective(config: TitokConfig, parts: Mapping[str, Part]) -> TokenizerObjective:
    """The objective of a config; `parts`: the parts after placement."""
    if not config.predicts_pixels:
        return CodesObjective(config, parts)
    codebook_size = 0
    noise = (config.num_latent_tokens, config.quantizer.token_size)
    if isinstance(config.quantizer, VqConfig):
        codebook_size = config.quantizer.codebook_size
        noise = ()
    return PixelObjective(
        config.losses,
        parts,
        codebook_size=codebook_size,
        alarm=config.codebook_alarm,
        noise=noise,
    )


class CodesObjective(TokenizerObjective):
    """Cross-entropy of the teacher codes.

    If the teacher computes in bfloat16, its codes of the first image of each micro-batch are
    compared with its codes in float32.
    """

    def __init__(self, config: TitokConfig, parts: Mapping[str, Part]) -> None:
        assert isinstance(config.quantizer, VqConfig)
        super().__init__(config.losses, parts, config.codebook_alarm)
        self._codebook_size = config.quantizer.codebook_size
        self._is_half = config.teacher_precision == "bfloat16"
        self._cache = TeacherCodeCache(config.vqgan.codebook_size)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",), published_groups)}

    def prepare(self, batch: Batch, ctx: StepContext) -> Batch:
        """Adds pixels and the teacher codes int64 [B, P] to the batch."""
        pixels = to_float(batch["images"])
        teacher = ctx.parts["teacher"].codes
        digests = batch.get("digests")
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=self._is_half):
            if digests:
                targets = self._cache.codes(digests, pixels, teacher)
            else:
                targets = teacher(pixels)
        prepared = {**batch, "pixels": pixels, "targets": targets}
        if self._is_half:
            share = (teacher(pixels[:1]) == targets[:1]).float().mean()
            prepared[_AGREEMENT] = share.expand(len(pixels))
        return prepared

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        pixels = batch["pixels"]
        targets: Tensor = batch["targets"]
        output: TitokOutput = self._output_of(batch, None, ctx)
        logits = output.logits.float().flatten(2)
        weights = self._pixel_weights(pixels)
        if weights is None:
            error = functional.cross_entropy(logits, targets)
        else:
            grid = (output.logits.shape[2], output.logits.shape[3])
            of_patches = functional.adaptive_avg_pool2d(weights, grid).flatten(1)
            errors = functional.cross_entropy(logits, targets, reduction="none")
            error = (of_patches * errors).mean()
        terms = {
            "reconstruction_loss": error,
            "quantizer_loss": output.penalty,
            "commitment_loss": output.commitment,
            "right_codes": (logits.argmax(1) == targets).float().mean(),
        }
        if _AGREEMENT in batch:
            terms[_AGREEMENT] = batch[_AGREEMENT].mean()
        count = error.new_tensor(float(len(targets)))
        sums = {name: value.detach() * count for name, value in terms.items()}
        sums |= code_sums(output.codes, self._codebook_size)
        if ctx.training:
            sums |= self._buffer_sums(pixels, output.inputs, ctx)
        total = (error + self._losses.quantizer_weight * output.penalty) * count
        return Loss(total, count, sums)

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        """Reports a collapse of the codebook, and a teacher whose codes depend on its precision."""
        findings = super().check_metrics(metrics)
        share = metrics.get(_AGREEMENT, 1.0)
        if share >= _MIN_AGREEMENT:
            return findings
        finding = Finding(
            "model.teacher_precision",
            "warning",
            f"only {share:.1%} of the codes of the teacher in bfloat16 are the same in float32",
            action="set model.teacher_precision=float32; model.cache_teacher_ids then saves time",
        )
        return (finding, *findings)

    def images(self, batch: Batch, ctx: StepContext) -> Mapping[str, UInt8Array]:
        output: TitokOutput = ctx.parts["model"](batch["pixels"])
        reconstruction = ctx.parts["teacher"].decode_codes(output.logits.argmax(1))
        return {"reconstruction": comparison(batch["pixels"], reconstruction)}


class TeacherCodeCache:
    """Cache of teacher codes by image, in memory."""

    def __init__(self, codebook_size: int) -> None:
        self._dtype = torch.int16 if codebook_size <= 2**15 else torch.int32
        self._cached: dict[bytes, Tensor] = {}

    def codes(
        self, digests: Sequence[bytes], pixels: Tensor, teacher: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Returns the codes int64 [B, P] of a batch; calls the teacher if an image is new.

        The teacher always gets the whole batch, because the rounding of the result for one image
        depends on the other images.

        Args:
            digests: 16 bytes per image, by its content.
            pixels: float [B, 3, S, S].
            teacher: Function from pixels to codes int64 [B, P].
        """
        is_new = [digest not in self._cached for digest in digests]
        if any(is_new):
            codes = teacher(pixels).to(self._dtype).cpu()
            for index, digest in enumerate(digests):
                if is_new[index]:
                    self._cached[digest] = codes[index].clone()
        rows = torch.stack([self._cached[digest] for digest in digests])
        return rows.to(pixels.device).long()
