"""Objectives of TiTok: teacher codes in stage 1, otherwise pixels.

Source: reference/titok 4.1, 4.2. Legend of shapes: B images, G patches along a side, P = G G.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vlatool.episode import UInt8Array
from vlatool.findings import Finding
from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, Part, StepContext
from vlatool.models.images import comparison, to_float
from vlatool.models.rng import computes_by_global_batch
from vlatool.models.titok.config import TitokConfig, VqConfig
from vlatool.models.titok.model import TitokOutput
from vlatool.models.vqgan import objective

# Metric of a teacher in bfloat16, and the share of its codes below which a warning is given.
_AGREEMENT = "teacher_agreement"
_MIN_AGREEMENT = 0.9


def make_objective(config: TitokConfig, parts: Mapping[str, Part]) -> Objective:
    quantizer = config.quantizer
    is_vq = isinstance(quantizer, VqConfig)
    if not config.predicts_pixels:
        return CodesObjective(config, parts)
    return objective.PixelObjective(
        config.losses,
        parts,
        codebook_size=quantizer.codebook_size if is_vq else 0,
        alarm=config.codebook_alarm,
        noise=() if is_vq else (config.num_latent_tokens, quantizer.token_size),
    )


class CodesObjective(Objective):
    """Cross-entropy of the teacher codes. With a teacher in bfloat16, its codes of the first image
    of each micro-batch are compared with those in float32.
    """

    def __init__(self, config: TitokConfig, parts: Mapping[str, Part]) -> None:
        assert isinstance(config.quantizer, VqConfig)
        self._size = config.quantizer.codebook_size
        self._weight = config.losses.quantizer_weight
        self._half = config.teacher_precision == "bfloat16"
        self._monitor = objective.CodebookMonitor(config.codebook_alarm)
        self._revival = objective.RevivalRule(parts)
        self._foreground = objective.ForegroundRule(config.losses, parts)
        self._has_entropy = computes_by_global_batch(parts["model"].module)
        self._cache = TeacherCodeCache(config.vqgan.codebook_size)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",), objective.published_groups)}

    def prepare(self, batch: Batch, ctx: StepContext) -> Batch:
        """Adds pixels and the teacher codes int64 [B, P] to the batch."""
        pixels = to_float(batch["images"])
        teacher = ctx.parts["teacher"].codes
        digests = batch.get("digests")
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=self._half):
            targets = self._cache.codes(digests, pixels, teacher) if digests else teacher(pixels)
        extended = {**batch, "pixels": pixels, "targets": targets}
        if self._half:
            share = (teacher(pixels[:1]) == targets[:1]).float().mean()
            extended[_AGREEMENT] = share.expand(len(pixels))
        return extended

    def global_sums(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Soft assignments, if the model has an entropy penalty."""
        return objective.assignment_sums(batch, ctx) if self._has_entropy else {}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        output: TitokOutput = ctx.parts["model"](
            batch["pixels"], None, *objective.mean_assignment(batch)
        )
        targets: Tensor = batch["targets"]
        logits = output.logits.float().flatten(2)
        weights = self._foreground.weights(batch["pixels"])
        if weights is None:
            error = functional.cross_entropy(logits, targets)
        else:
            grid = output.logits.shape[2], output.logits.shape[3]
            of_patches = functional.adaptive_avg_pool2d(weights, grid).flatten(1)
            terms = functional.cross_entropy(logits, targets, reduction="none")
            error = (of_patches * terms).mean()
        count = error.new_tensor(float(len(targets)))
        accuracy = (logits.argmax(1) == targets).float().mean()
        terms = {
            "reconstruction_loss": error,
            "quantizer_loss": output.penalty,
            "commitment_loss": output.commitment,
            "right_codes": accuracy,
        }
        if _AGREEMENT in batch:
            terms[_AGREEMENT] = batch[_AGREEMENT].mean()
        sums = {name: value.detach() * count for name, value in terms.items()}
        sums |= objective.code_sums(output.codes, self._size)
        if ctx.training:
            sums |= self._revival.sums(output.inputs, ctx)
            sums |= self._foreground.sums(batch["pixels"])
        total = (error + self._weight * output.penalty) * count
        return Loss(total, count, sums)

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        self._revival.update(sums, ok)
        self._foreground.update(sums, ok)

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        """Means of the loss terms, and metrics of the codebook."""
        return objective.mean_metrics(sums, count)

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        """Reports a collapse of the codebook, and a teacher whose codes depend on its precision."""
        share = metrics.get(_AGREEMENT, 1.0)
        if share >= _MIN_AGREEMENT:
            return self._monitor(metrics)
        finding = Finding(
            "model.teacher_precision",
            "warning",
            f"only {share:.1%} of the codes of the teacher in bfloat16 are those in float32",
            action="set model.teacher_precision=float32; model.cache_teacher_ids saves time too",
        )
        return (finding, *self._monitor(metrics))

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

        `pixels`: float [B, 3, S, S]; `teacher`: function from pixels to codes int64 [B, P].

        The teacher always gets the whole batch, because the rounding of the result for one image
        depends on the other images.
        """
        new = [index for index, digest in enumerate(digests) if digest not in self._cached]
        if new:
            codes = teacher(pixels).to(self._dtype).cpu()
            self._cached |= {digests[index]: codes[index].clone() for index in new}
        rows = torch.stack([self._cached[digest] for digest in digests])
        return rows.to(pixels.device).long()
