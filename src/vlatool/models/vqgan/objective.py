"""Drawing pictures again: squared error, perceptual distance, a discriminator. Source: reference/titok 4.2.

Legend of shapes: B pictures, K codes of a picture, N codes of the codebook.
"""

from collections.abc import Mapping, Sequence

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
from vlatool.models.vqgan.discriminator import hinge
from vlatool.models.vqgan.losses import lecam_part
from vlatool.models.vqgan.model import VqganOutput
from vlatool.models.vqgan.spec import CodebookAlarmConfig, PixelLossConfig

# Parameters with these in their names do not decay, nor does what has fewer than two axes.
# Source: reference/titok 5.2.
_UNDECAYED = (
    "ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed",
)  # fmt: skip
_DRAWN = "drawn"


class PixelObjective(Objective):
    """A model that takes pixels and noise and gives `Drawn`, and a discriminator that starts late.

    The means of `settle` are those of all processes; the published code keeps them per process.
    """

    def __init__(
        self,
        losses: PixelLossConfig,
        parts: Mapping[str, Part],
        *,
        codebook_size: int,
        alarm: CodebookAlarmConfig,
        noise: tuple[int, ...] = (),
    ) -> None:
        """Prepares losses.

        Args:
            losses: Weights.
            parts: As placed.
            codebook_size: N; 0 where there is no codebook.
            alarm: When the codebook counts as collapsed.
            noise: Shape of what the model draws per picture; empty for nothing.
        """
        self._losses = losses
        self._means = lecam_part(parts)
        self._size = codebook_size
        self._watch = CodebookMonitor(alarm)
        self._noise = noise

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """Of the model, and of the discriminator."""
        found = {"main": OptimizerSpec(("model",), published_groups)}
        if self._means is not None:
            found["discriminator"] = OptimizerSpec(
                ("discriminator",),
                published_groups,
                lr=self._losses.discriminator_learning_rate,
                starts_at=self._losses.discriminator_start,
            )
        return found

    def prepare(self, batch: Batch, ctx: StepContext) -> Batch:
        """Bytes to pixels."""
        del ctx
        return {**batch, "pixels": to_float(batch["images"])}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """Of the model; or of the discriminator, on what the model has just drawn."""
        if optimizer == "discriminator":
            return self._discrimination(batch["pixels"], batch[_DRAWN], ctx)
        drawn = self._draw(batch["pixels"], ctx)
        batch[_DRAWN] = drawn.pixels.detach()
        total, sums = self._reconstruction(batch["pixels"], drawn, ctx)
        weight = self._adversarial_weight(ctx.step)
        if weight:
            fooled = ctx.parts["discriminator"](drawn.pixels).mean()
            total = total - weight * fooled
        return _of_images(batch["pixels"], total, sums)

    def validate(self, batch: Batch, ctx: StepContext) -> Loss:
        """Without the discriminator, whose opinion changes."""
        drawn = self._draw(batch["pixels"], ctx)
        total, sums = self._reconstruction(batch["pixels"], drawn, ctx)
        return _of_images(batch["pixels"], total, sums)

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        """Running means of the discriminator's answers."""
        if optimizer == "discriminator" and self._means is not None:
            count = sums["pictures"].clamp(min=1)
            self._means.update(sums["logits_real"] / count, sums["logits_fake"] / count, ok)

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        """Means of the terms, and how the codebook is used."""
        return mean_metrics(sums, count)

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        """Whether the codebook has collapsed."""
        return self._watch(metrics)

    def images(self, batch: Batch, ctx: StepContext) -> Mapping[str, UInt8Array]:
        """Original, reconstruction, difference."""
        drawn = self._draw(batch["pixels"], ctx)
        return {"reconstruction": comparison(batch["pixels"], drawn.pixels)}

    def _draw(self, pixels: Tensor, ctx: StepContext) -> VqganOutput:
        noise = ctx.rng.normal(*self._noise) if self._noise and ctx.training else None
        return ctx.parts["model"](pixels, noise)

    def _reconstruction(
        self, pixels: Tensor, drawn: VqganOutput, ctx: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Everything but the discriminator: the mean over pictures, and its terms."""
        losses, made = self._losses, drawn.pixels.float()
        error = functional.mse_loss(made, pixels)
        total = losses.reconstruction_weight * error + losses.quantizer_weight * drawn.penalty
        terms = {
            "reconstruction_loss": error,
            "quantizer_loss": drawn.penalty,
            "commitment_loss": drawn.commitment,
            "psnr": psnr(pixels, made).mean(),
        }
        if "perceptual" in ctx.parts:
            with torch.autocast(pixels.device.type, enabled=False):
                distance = ctx.parts["perceptual"](pixels, made)
            total = total + losses.perceptual_weight * distance
            terms["perceptual_loss"] = distance
        sums = {name: value.detach() * len(pixels) for name, value in terms.items()}
        if self._size:
            sums |= code_sums(drawn.codes, self._size)
        return total, sums

    def _discrimination(self, pixels: Tensor, made: Tensor, ctx: StepContext) -> Loss:
        assert self._means is not None
        real, fake = ctx.parts["discriminator"](torch.cat([pixels, made.float()])).chunk(2)
        lecam = self._means.distance(real.mean(), fake.mean())
        loss = hinge(real, fake)
        terms = {"logits_real": real.mean(), "logits_fake": fake.mean(), "lecam_loss": lecam}
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


class CodebookMonitor:
    """Notices a collapse, several reports in a row: early ones are always bad.

    Either few codes are used, or every picture has the same ones, each in its place.
    """

    def __init__(self, config: CodebookAlarmConfig) -> None:
        self._config = config
        self._low = 0

    def __call__(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        """What is alarming about a report's figures."""
        found = [metrics[name] for name in ("codebook_evenness", "codes_differ") if name in metrics]
        if not found:
            return ()
        self._low = self._low + 1 if min(found) < self._config.below else 0
        if self._low < self._config.windows:
            return ()
        share = metrics.get("codes_differ", 1.0)
        finding = Finding(
            "model.codebook_collapsed",
            "error" if self._config.stops else "warning",
            f"the codebook has collapsed: its perplexity is {metrics['codebook_perplexity']:.1f}, "
            f"{int(metrics['dead_codes'])} codes are not used, {share:.1%} of the codes differ "
            "from picture to picture",
            action="begin anew with another hparams.lr or a lower losses.quantizer_weight; "
            "model.codebook_alarm says when this is told",
        )
        return (finding,)


_NOT_REPORTED = ("pictures", "codes_differing", "codes_compared")


def code_sums(codes: Tensor, size: int) -> dict[str, Tensor]:
    """What figures of a codebook rest on, of codes [B, K]."""
    return {"codes": histogram(codes, size), **difference_sums(codes)}


def mean_metrics(sums: Mapping[str, Tensor], count: float) -> dict[str, float]:
    """Scalars over the counted pictures, and the figures of the codebook."""
    scalars = {name: one for name, one in sums.items() if one.ndim == 0}
    found = {
        name: float(one) / max(count, 1.0)
        for name, one in scalars.items()
        if name not in _NOT_REPORTED
    }
    if "codes" in sums:
        found |= usage_metrics(sums["codes"])
        if sums["codes_compared"] > 0:
            found["codes_differ"] = float(sums["codes_differing"] / sums["codes_compared"])
    return found


def published_groups(parts: Mapping[str, nn.Module]) -> Sequence[ParamGroup]:
    """Weights that decay, and those that do not, by their names."""
    named = [pair for part in parts.values() for pair in part.named_parameters()]
    chosen = [
        (p, p.ndim >= 2 and not any(word in name for word in _UNDECAYED)) for name, p in named
    ]
    return [
        ParamGroup([p for p, decays in chosen if decays]),
        ParamGroup([p for p, decays in chosen if not decays], decays=False),
    ]


def _of_images(pixels: Tensor, total: Tensor, sums: Mapping[str, Tensor]) -> Loss:
    """The loss of a micro-batch from its mean over pictures."""
    count = total.new_tensor(float(len(pixels)))
    return Loss(total * count, count, sums)
