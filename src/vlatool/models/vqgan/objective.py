"""The objective of reconstruction: squared error, perceptual distance, discriminator.

    main            loss = w_r |x' - x|^2 + w_q penalty + w_p distance(x, x') - w_d D(x')
    discriminator   loss = hinge(D(x), D(x')) + w_l LeCam

`x` are the pixels, `x'` the reconstruction of the model, `D` the discriminator, which starts at a
configured step. `losses.py` has the terms. TiTok has the same objective, or one that predicts codes
of a teacher (`titok/objective.py`); `TokenizerObjective` is what both share. Source:
reference/titok 4.2, 4.3.

Legend of shapes: B images, H height, W width, S side of an image, K codes per image, N codes of the
codebook, D width of a code.
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
from vlatool.models.codebook import difference_sums, histogram, usage_metrics
from vlatool.models.images import comparison, psnr, to_float
from vlatool.models.rng import computes_by_global_batch
from vlatool.models.vqgan.config import CodebookAlarmConfig, PixelLossConfig
from vlatool.models.vqgan.losses import hinge
from vlatool.models.vqgan.model import VqganOutput

# Weight decay does not apply to parameters with one of these in their name, or with fewer than two
# axes. Source: reference/titok 5.2.
_UNDECAYED = (
    "ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed",
)  # fmt: skip
# Names in a batch.
_RECONSTRUCTION = "reconstruction"
_ASSIGNMENTS = "assignments"
# Names of sums: what `update_buffers` needs, and the mean logits before the discriminator's step.
_CANDIDATES = "candidates"
_IMAGE_SUM = "image_sum"
_IMAGE_COUNT = "image_count"
_REAL = "real_before"
_FAKE = "fake_before"
_NOT_REPORTED = ("pictures", "codes_differing", "codes_compared", _REAL, _FAKE)


class TokenizerObjective(Objective):
    """What the objectives of visual tokenizers share: metrics and buffers of the codebook."""

    def __init__(
        self, losses: PixelLossConfig, parts: Mapping[str, Part], alarm: CodebookAlarmConfig
    ) -> None:
        modules: dict[str, Any] = {name: part.module for name, part in parts.items()}
        self._losses = losses
        self._model = modules["model"]
        self._revival = modules.get("revival")  # a `CodeRevival`; None: codes are not revived
        self._mean_image = modules.get("background")  # a `MeanImage`; None: all pixels are equal
        self._monitor = CodebookMonitor(alarm)
        self._has_entropy = computes_by_global_batch(self._model)

    def global_sums(self, batch: Batch, ctx: StepContext) -> Mapping[str, Tensor]:
        """Soft assignments, if the model has an entropy penalty."""
        if not self._has_entropy:
            return {}
        return {_ASSIGNMENTS: ctx.parts["model"].assignment_sums(batch["pixels"])}

    def _output_of(self, batch: Batch, noise: Tensor | None, ctx: StepContext) -> Any:
        """Output of the model, with the mean assignment of the global batch, if there is one."""
        if _ASSIGNMENTS not in batch:  # a micro-batch has that of its own
            return ctx.parts["model"](batch["pixels"], noise)
        total = batch[_ASSIGNMENTS]
        return ctx.parts["model"](batch["pixels"], noise, total / total.sum().clamp(min=1))

    def _pixel_weights(self, pixels: Tensor) -> Tensor | None:
        """Weights of pixels by `losses.foreground_weight`, [B, 1, S, S]; None: all are 1."""
        if self._mean_image is None:
            return None
        return 1 + self._losses.foreground_weight * self._mean_image.difference(pixels)

    def _buffer_sums(self, pixels: Tensor, vectors: Tensor, ctx: StepContext) -> dict[str, Tensor]:
        """Sums of a micro-batch that `update_buffers` needs.

        Args:
            pixels: [B, 3, S, S].
            vectors: Inputs of the quantizer, [B, K, D].
            ctx: State of the run.
        """
        sums: dict[str, Tensor] = {}
        if self._revival is not None:
            sums[_CANDIDATES] = self._revival.candidates(vectors, ctx.rng)
        if self._mean_image is not None:
            sums[_IMAGE_SUM] = pixels.sum(0)
            sums[_IMAGE_COUNT] = pixels.new_tensor([float(len(pixels))])
        return sums

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        """Replaces dead codes, and updates the mean image."""
        if optimizer != "main":
            return
        if self._revival is not None:
            table = self._model.quantize.embedding.weight
            self._revival.update(table, sums["codes"], sums[_CANDIDATES], ok)
        if self._mean_image is not None:
            self._mean_image.update(sums[_IMAGE_SUM], sums[_IMAGE_COUNT][0], ok)

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        """Means of the loss terms, and metrics of the codebook."""
        return mean_metrics(sums, count)

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        return self._monitor(metrics)


class PixelObjective(TokenizerObjective):
    """Reconstruction losses of a model, and a discriminator that starts at a configured step.

    The model is called with pixels and noise, and returns a `VqganOutput`. The running means of the
    discriminator are over all ranks; in the published code each rank has its own.
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
        super().__init__(losses, parts, alarm)
        # A `LecamEma`; None without a discriminator
        self._means: Any = parts["lecam"].module if "lecam" in parts else None
        # Mean logits of a step before the discriminator's, of real and reconstructed images
        self._of_step: tuple[Tensor, Tensor] | None = None
        self._codebook_size = codebook_size
        self._noise = noise

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
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
        return {**batch, "pixels": to_float(batch["images"])}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """Loss of the model, or of the discriminator on the last reconstruction of the model."""
        if optimizer == "discriminator":
            return self._discriminator_loss(batch, ctx)
        pixels = batch["pixels"]
        count = float(len(pixels))
        output = self._reconstruct(batch, ctx)
        batch[_RECONSTRUCTION] = output.pixels.detach()
        total, sums = self._reconstruction_loss(pixels, output, ctx)
        sums |= self._buffer_sums(pixels, output.inputs, ctx)
        weight = self._adversarial_weight(ctx.step)
        if weight:
            fake = ctx.parts["discriminator"](output.pixels)
            total = total - weight * fake.mean()
            # For the LeCam regularization: its gradient needs the mean logits over the whole step
            # before the first micro-batch of the discriminator.
            with torch.no_grad():
                real = ctx.parts["discriminator"](pixels)
            sums[_REAL] = real.mean() * count
            sums[_FAKE] = fake.detach().mean() * count
            sums["pictures"] = fake.new_tensor(count)
        return Loss(total * count, total.new_tensor(count), sums)

    def validate(self, batch: Batch, ctx: StepContext) -> Loss:
        """Loss without the discriminator, so that values of different steps can be compared."""
        pixels = batch["pixels"]
        count = float(len(pixels))
        total, sums = self._reconstruction_loss(pixels, self._reconstruct(batch, ctx), ctx)
        return Loss(total * count, total.new_tensor(count), sums)

    def _reconstruct(self, batch: Batch, ctx: StepContext) -> VqganOutput:
        noise = None
        if self._noise and ctx.training:
            noise = ctx.rng.normal(*self._noise)
        return self._output_of(batch, noise, ctx)

    def _reconstruction_loss(
        self, pixels: Tensor, output: VqganOutput, ctx: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over images without the discriminator, and the sums of its terms."""
        losses = self._losses
        reconstruction = output.pixels.float()
        weights = self._pixel_weights(pixels)
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
        if self._codebook_size:
            sums |= code_sums(output.codes, self._codebook_size)
        return total, sums

    def _adversarial_weight(self, step: int) -> float:
        """Weight of the discriminator in the loss of the model; it ramps up from its start."""
        losses = self._losses
        since = step - losses.discriminator_start
        if self._means is None or since < 0:
            return 0.0
        share = 1.0
        if losses.discriminator_ramp:
            share = min(1.0, (since + 1) / (losses.discriminator_ramp + 1))
        return share * losses.discriminator_weight * losses.discriminator_factor

    def _discriminator_loss(self, batch: Batch, ctx: StepContext) -> Loss:
        pixels = batch["pixels"]
        both = torch.cat([pixels, batch[_RECONSTRUCTION].float()])
        real, fake = ctx.parts["discriminator"](both).chunk(2)
        mean_real = real.mean()
        mean_fake = fake.mean()
        of_step = self._of_step or (mean_real.detach(), mean_fake.detach())
        lecam = self._means.distance(mean_real, mean_fake, of_step)
        loss = hinge(real, fake)
        total = loss + self._losses.lecam_regularization_weight * lecam
        count = loss.new_tensor(float(len(pixels)))
        terms = {"logits_real": mean_real, "logits_fake": mean_fake, "lecam_loss": lecam}
        sums = {name: value.detach() * count for name, value in terms.items()}
        return Loss(total * count, count, {**sums, "pictures": count})

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        """Updates dead codes, the mean image, and the running means of the discriminator."""
        super().update_buffers(optimizer, sums, ok)
        if optimizer == "main" and _REAL in sums:
            count = sums["pictures"].clamp(min=1)
            self._of_step = ((sums[_REAL] / count).float(), (sums[_FAKE] / count).float())
        if optimizer == "discriminator":
            count = sums["pictures"].clamp(min=1)
            self._means.update(sums["logits_real"] / count, sums["logits_fake"] / count, ok)

    def images(self, batch: Batch, ctx: StepContext) -> Mapping[str, UInt8Array]:
        output = self._reconstruct(batch, ctx)
        return {"reconstruction": comparison(batch["pixels"], output.pixels)}


class CodebookMonitor:
    """Detects a collapsed codebook.

    A codebook is collapsed if few codes are used, or if all images have the same codes. Metrics
    must be low in several logs in a row, because they are always low in the first steps.
    """

    def __init__(self, config: CodebookAlarmConfig) -> None:
        self._config = config
        self._low = 0

    def __call__(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        names = ("codebook_evenness", "codes_differ")
        values = [metrics[name] for name in names if name in metrics]
        if not values:
            return ()
        self._low += 1
        if min(values) >= self._config.below:
            self._low = 0
        if self._low < self._config.windows:
            return ()
        share = metrics.get("codes_differ", 1.0)
        finding = Finding(
            "model.codebook_collapsed",
            "error" if self._config.stops else "warning",
            f"the codebook has collapsed: its perplexity is {metrics['codebook_perplexity']:.1f}, "
            f"{int(metrics['dead_codes'])} codes are not used, {share:.1%} of the codes differ "
            "from image to image",
            action="start a new run with another hparams.lr or a lower "
            "losses.quantizer_weight; model.codebook_alarm sets when this check warns",
        )
        return (finding,)


def code_sums(codes: Tensor, size: int) -> dict[str, Tensor]:
    """Sums of codes [B, K] for the metrics of the codebook."""
    return {"codes": histogram(codes, size), **difference_sums(codes)}


def mean_metrics(sums: Mapping[str, Tensor], count: float) -> dict[str, float]:
    """Mean of each scalar sum over the images, and metrics of the codebook."""
    metrics: dict[str, float] = {}
    for name, value in sums.items():
        if value.ndim == 0 and name not in _NOT_REPORTED:
            metrics[name] = float(value) / max(count, 1.0)
    if "codes" in sums:
        metrics |= usage_metrics(sums["codes"])
        if sums["codes_compared"] > 0:
            metrics["codes_differ"] = float(sums["codes_differing"] / sums["codes_compared"])
    return metrics


def published_groups(parts: Mapping[str, nn.Module]) -> Sequence[ParamGroup]:
    """Parameter groups with and without weight decay, by the published rule."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for part in parts.values():
        for name, parameter in part.named_parameters():
            is_undecayed = parameter.ndim < 2 or any(word in name for word in _UNDECAYED)
            group = undecayed if is_undecayed else decayed
            group.append(parameter)
    return [ParamGroup(decayed), ParamGroup(undecayed, decays=False)]
