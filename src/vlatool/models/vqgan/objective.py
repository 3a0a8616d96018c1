"""Objective of reconstruction: squared error, perceptual distance, discriminator.

Source: reference/titok 4.2.
Legend of shapes: B images, K codes per image, N codes of the codebook.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.episode import UInt8Array
from vlatool.findings import Finding
from vlatool.models.base import (
    Batch,
    Loss,
    Objective,
    OptimizerSpec,
    ParamGroup,
    Part,
    StepContext,
)
from vlatool.models.codebook import CodeRevival, difference_sums, histogram, usage_metrics
from vlatool.models.images import comparison, psnr, to_float
from vlatool.models.rng import computes_by_global_batch
from vlatool.models.vqgan.config import CodebookAlarmConfig, PixelLossConfig
from vlatool.models.vqgan.discriminator import hinge
from vlatool.models.vqgan.losses import ForegroundRule, lecam_part
from vlatool.models.vqgan.model import VqganOutput

# Weight decay does not apply to parameters with one of these in their name, or with fewer than two
# axes. Source: reference/titok 5.2.
_UNDECAYED = (
    "ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed",
)  # fmt: skip
_RECONSTRUCTION = "reconstruction"
# Name of the part of `CodeRevival`, and of its sums.
REVIVAL, _CANDIDATES = "revival", "candidates"


class PixelObjective(Objective):
    """Reconstruction losses of a model, and a discriminator that starts at a configured step.

    The model is called with pixels and noise, and returns a `VqganOutput`. The running means of the
    discriminator are over all ranks; the published code has separate ones per rank.
    """

    def __init__(
        self,
        losses: PixelLossConfig,
        parts: Mapping[str, Part],  # the parts after placement
        *,
        codebook_size: int,  # number of codes, N; 0 without a codebook
        alarm: CodebookAlarmConfig,  # detection of a collapsed codebook
        noise: tuple[int, ...] = (),  # shape of the noise per image; empty: the model uses no noise
    ) -> None:
        self._losses = losses
        self._foreground = ForegroundRule(losses, parts)
        self._means = lecam_part(parts)
        self._of_step: tuple[Tensor, Tensor] | None = None
        self._revival = RevivalRule(parts)
        self._has_entropy = computes_by_global_batch(parts["model"].module)
        self._size = codebook_size
        self._monitor = CodebookMonitor(alarm)
        self._noise = noise

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """Returns the optimizers of the model and of the discriminator."""
        optimizers = {"main": OptimizerSpec(("model",), published_groups)}
        if self._means is not None:
            optimizers["discriminator"] = OptimizerSpec(
                ("discriminator",),
                published_groups,
                lr=self._losses.discriminator_learning_rate,
                starts_at=self._losses.discriminator_start,
            )
        return optimizers

    def prepare(self, batch: Batch, ctx: StepContext) -> Batch:
        """Adds pixels to the batch."""
        del ctx
        return {**batch, "pixels": to_float(batch["images"])}

    def global_sums(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Soft assignments, if the model has an entropy penalty."""
        return assignment_sums(batch, ctx) if self._has_entropy else {}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """Loss of the model, or of the discriminator on the last reconstruction of the model."""
        if optimizer == "discriminator":
            return self._discriminator_loss(batch["pixels"], batch[_RECONSTRUCTION], ctx)
        output = self._reconstruct(batch, ctx)
        batch[_RECONSTRUCTION] = output.pixels.detach()
        total, sums = self._reconstruction_loss(batch["pixels"], output, ctx)
        sums |= self._revival.sums(output.inputs, ctx)
        sums |= self._foreground.sums(batch["pixels"])
        weight = self._adversarial_weight(ctx.step)
        if weight:
            fake = ctx.parts["discriminator"](output.pixels)
            total = total - weight * fake.mean()
            sums |= _logit_sums(batch["pixels"], fake.detach(), ctx)
        return _per_image(batch["pixels"], total, sums)

    def validate(self, batch: Batch, ctx: StepContext) -> Loss:
        """Loss without the discriminator, so that values of different steps are comparable."""
        output = self._reconstruct(batch, ctx)
        total, sums = self._reconstruction_loss(batch["pixels"], output, ctx)
        return _per_image(batch["pixels"], total, sums)

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        """Updates the mean image, dead codes, and the running means of the discriminator."""
        if optimizer == "main":
            self._revival.update(sums, ok)
            self._foreground.update(sums, ok)
            if _REAL in sums:
                count = sums["pictures"].clamp(min=1)
                self._of_step = ((sums[_REAL] / count).float(), (sums[_FAKE] / count).float())
        if optimizer == "discriminator" and self._means is not None:
            count = sums["pictures"].clamp(min=1)
            self._means.update(sums["logits_real"] / count, sums["logits_fake"] / count, ok)

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        """Means of the loss terms, and metrics of the codebook."""
        return mean_metrics(sums, count)

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        """Reports a collapse of the codebook."""
        return self._monitor(metrics)

    def images(self, batch: Batch, ctx: StepContext) -> Mapping[str, UInt8Array]:
        """Comparisons of originals with their reconstructions."""
        output = self._reconstruct(batch, ctx)
        return {"reconstruction": comparison(batch["pixels"], output.pixels)}

    def _reconstruct(self, batch: Batch, ctx: StepContext) -> VqganOutput:
        noise = ctx.rng.normal(*self._noise) if self._noise and ctx.training else None
        return ctx.parts["model"](batch["pixels"], noise, *mean_assignment(batch))

    def _reconstruction_loss(
        self, pixels: Tensor, output: VqganOutput, ctx: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over images without the discriminator, and the sums of its terms."""
        losses, reconstruction = self._losses, output.pixels.float()
        weights = self._foreground.weights(pixels)
        if weights is None:
            error = functional.mse_loss(reconstruction, pixels)
        else:
            error = (weights * (reconstruction - pixels).square()).mean()
        total = losses.reconstruction_weight * error + losses.quantizer_weight * output.penalty
        terms = {
            "reconstruction_loss": error,
            "quantizer_loss": output.penalty,
            "commitment_loss": output.commitment,
            "psnr": psnr(pixels, reconstruction).mean(),
        }
        if "perceptual" in ctx.parts:
            with torch.autocast(pixels.device.type, enabled=False):
                distance = ctx.parts["perceptual"](pixels, reconstruction)
            total = total + losses.perceptual_weight * distance
            terms["perceptual_loss"] = distance
        sums = {name: value.detach() * len(pixels) for name, value in terms.items()}
        if self._size:
            sums |= code_sums(output.codes, self._size)
        return total, sums

    def _discriminator_loss(self, pixels: Tensor, reconstruction: Tensor, ctx: StepContext) -> Loss:
        assert self._means is not None
        both = torch.cat([pixels, reconstruction.float()])
        real, fake = ctx.parts["discriminator"](both).chunk(2)
        means = real.mean(), fake.mean()
        of_step = self._of_step or (means[0].detach(), means[1].detach())
        lecam = self._means.distance(*means, of_step)
        loss = hinge(real, fake)
        terms = {"logits_real": means[0], "logits_fake": means[1], "lecam_loss": lecam}
        count = loss.new_tensor(float(len(pixels)))
        sums = {name: value.detach() * count for name, value in terms.items()}
        total = loss + self._losses.lecam_regularization_weight * lecam
        return Loss(total * count, count, {**sums, "pictures": count})

    def _adversarial_weight(self, step: int) -> float:
        losses, since = self._losses, step - self._losses.discriminator_start
        if self._means is None or since < 0:
            return 0.0
        ramp = losses.discriminator_ramp
        share = min(1.0, (since + 1) / (ramp + 1)) if ramp else 1.0
        return share * losses.discriminator_weight * losses.discriminator_factor


class RevivalRule:
    """Revival of the dead codes of the part `model`, if there is a part for it."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._part = parts[REVIVAL].module if REVIVAL in parts else None
        self._model: Any = parts["model"].module

    def sums(self, vectors: Tensor, ctx: StepContext) -> dict[str, Tensor]:
        """Sums of a micro-batch that `update` needs, besides those of `code_sums`."""
        if not isinstance(self._part, CodeRevival):
            return {}
        return {_CANDIDATES: self._part.candidates(vectors, ctx.rng)}

    def update(self, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        """Replaces dead codes after a step."""
        if isinstance(self._part, CodeRevival):
            table = self._model.quantize.embedding.weight
            self._part.update(table, sums["codes"], sums[_CANDIDATES], ok)


def revival_part(size: int, after: int) -> dict[str, Part]:
    """Returns the part of the revival of dead codes; none if `after` is 0."""
    return {REVIVAL: Part(CodeRevival(size, after), trained=False, averaged=False)} if after else {}


_ASSIGNMENTS = "assignments"


def assignment_sums(batch: Batch, ctx: StepContext) -> dict[str, Tensor]:
    """Sums of the soft assignments of a micro-batch, for the entropy penalty of the codebook."""
    return {_ASSIGNMENTS: ctx.parts["model"].assignment_sums(batch["pixels"])}


def mean_assignment(batch: Batch) -> tuple[Tensor, ...]:
    """Mean assignment of the global batch; empty if a micro-batch has that of its own."""
    total = batch.get(_ASSIGNMENTS)
    return () if total is None else (total / total.sum().clamp(min=1),)


class CodebookMonitor:
    """Detector of a collapsed codebook.

    A codebook is collapsed if few codes are used, or if all images have the same codes. Metrics
    must be low in several logs in a row, because those of the first steps are always low.
    """

    def __init__(self, config: CodebookAlarmConfig) -> None:
        self._config = config
        self._low = 0

    def __call__(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        names = ("codebook_evenness", "codes_differ")
        values = [metrics[name] for name in names if name in metrics]
        if not values:
            return ()
        self._low = self._low + 1 if min(values) < self._config.below else 0
        if self._low < self._config.windows:
            return ()
        share = metrics.get("codes_differ", 1.0)
        finding = Finding(
            "model.codebook_collapsed",
            "error" if self._config.stops else "warning",
            f"the codebook has collapsed: its perplexity is {metrics['codebook_perplexity']:.1f}, "
            f"{int(metrics['dead_codes'])} codes are not used, {share:.1%} of the codes differ "
            "from image to image",
            action="start a new run with another hparams.lr or a lower losses.quantizer_weight; "
            "model.codebook_alarm has the thresholds of this check",
        )
        return (finding,)


# Sums of the mean logits of the discriminator before its own step.
_REAL, _FAKE = "real_before", "fake_before"
_NOT_REPORTED = ("pictures", "codes_differing", "codes_compared", _REAL, _FAKE)


def _logit_sums(pixels: Tensor, fake: Tensor, ctx: StepContext) -> dict[str, Tensor]:
    """Sums of the mean logits of real and reconstructed images, for the LeCam regularization.

    Its gradient needs the means over the whole step before the first micro-batch of the
    discriminator.
    """
    with torch.no_grad():
        real = ctx.parts["discriminator"](pixels)
    count = fake.new_tensor(float(len(pixels)))
    return {_REAL: real.mean() * count, _FAKE: fake.mean() * count, "pictures": count}


def code_sums(codes: Tensor, size: int) -> dict[str, Tensor]:
    """Sums of codes [B, K] for the metrics of the codebook."""
    return {"codes": histogram(codes, size), **difference_sums(codes)}


def mean_metrics(sums: Mapping[str, Tensor], count: float) -> dict[str, float]:
    """Mean of each scalar sum over the images, and metrics of the codebook."""
    scalars = {name: value for name, value in sums.items() if value.ndim == 0}
    metrics = {
        name: float(value) / max(count, 1.0)
        for name, value in scalars.items()
        if name not in _NOT_REPORTED
    }
    if "codes" in sums:
        metrics |= usage_metrics(sums["codes"])
        if sums["codes_compared"] > 0:
            metrics["codes_differ"] = float(sums["codes_differing"] / sums["codes_compared"])
    return metrics


def published_groups(parts: Mapping[str, nn.Module]) -> Sequence[ParamGroup]:
    """Parameter groups with and without weight decay, by the published rule."""
    named = [pair for part in parts.values() for pair in part.named_parameters()]
    params = [
        (p, p.ndim >= 2 and not any(word in name for word in _UNDECAYED)) for name, p in named
    ]
    return [
        ParamGroup([p for p, decays in params if decays]),
        ParamGroup([p for p, decays in params if not decays], decays=False),
    ]


def _per_image(pixels: Tensor, total: Tensor, sums: Mapping[str, Tensor]) -> Loss:
    """Loss of a micro-batch from its mean over images."""
    count = total.new_tensor(float(len(pixels)))
    return Loss(total * count, count, sums)
