"""Objective of reconstruction: squared error, perceptual distance, discriminator.

Source: reference/titok 4.2, 4.3. Legend of shapes: B images, H height, W width, K codes per image,
N codes of the codebook.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlatool.episode import UInt8Array
from vlatool.findings import Finding
from vlatool.jobs.ownership import require_input
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
from vlatool.models.vqgan.config import (
    FEATURES,
    GRADIENTS,
    NOTHING,
    CodebookAlarmConfig,
    PixelLossConfig,
    VqganNetworkConfig,
)
from vlatool.models.vqgan.model import VqganEncoder, VqganOutput, load_encoder

_STAGES = 3
_GRID = 16
_SLOPE = 0.1
_GROUPS = 32


class BlurDown(nn.Module):
    """Fixed blur with stride 2."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        square = torch.outer(line, line)
        self.register_buffer("kernel", (square / square.sum())[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C, H / 2, W / 2]."""
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, 1, -1, -1)
        return functional.conv2d(x, kernel, stride=2, padding=1, groups=channels)


class Discriminator(nn.Module):
    """Maps images to one logit per cell of a 16 x 16 grid, in float32. Names of modules are the
    published ones.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        widths = [channels * 2 ** max(index - 1, 0) for index in range(_STAGES + 1)]
        self.block_in = nn.Sequential(nn.Conv2d(3, channels, 5, padding=2), nn.LeakyReLU(_SLOPE))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1),
                BlurDown(),
                nn.GroupNorm(_GROUPS, after),
                nn.LeakyReLU(_SLOPE),
            )
            for before, after in pairwise(widths)
        )
        last = widths[-1]
        self.to_logits = nn.Sequential(
            nn.Conv2d(last, last, 1), nn.LeakyReLU(_SLOPE), nn.Conv2d(last, 1, 5, padding=2)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Maps pixels [B, 3, H, W] in [0, 1] to logits float32 [B, 1, 16, 16]. For images smaller
        than 128 pixels the grid is H / 8 x W / 8.
        """
        with torch.autocast(pixels.device.type, enabled=False):
            x = self.block_in(pixels.float().contiguous(memory_format=torch.channels_last))
            for block in self.blocks:
                x = block(x)
            grid = [min(_GRID, side) for side in x.shape[2:]]
            return self.to_logits(functional.adaptive_max_pool2d(x, grid))


class LecamEma(nn.Module):
    """LeCam regularization: running means of the logits of real and reconstructed images."""

    real: Tensor
    fake: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(1))
        self.register_buffer("fake", torch.zeros(1))

    def distance(self, real: Tensor, fake: Tensor, of_step: tuple[Tensor, Tensor]) -> Tensor:
        """Regularization term of the mean logits of a step, relative to the running means.

        `of_step`: both means over all micro-batches and ranks of the step, without gradient.

        The mean over the micro-batches of a step has the value and the gradient of the term of the
        whole step: it is linear in the means of a micro-batch.
        """
        all_real, all_fake = of_step
        above = functional.relu(all_real - self.fake)
        below = functional.relu(self.real - all_fake)
        linear = above * (real - all_real) + below * (all_fake - fake)
        return (above.square() + below.square() + 2 * linear).sum()

    def update(self, real: Tensor, fake: Tensor, ok: Tensor) -> None:
        """Updates the running means with those of a step over all ranks, if `ok` is True."""
        for name, value in (("real", real), ("fake", fake)):
            old: Tensor = getattr(self, name)
            new = old.lerp(value.to(old.dtype).reshape(1), 1 - self.decay)
            old.copy_(torch.where(ok, new, old))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the logits of real and reconstructed images; scalar."""
    return 0.5 * (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean())


_SCALES = 4
# Name of the part of the mean image, and of its sums.
_BACKGROUND = "background"
_SUM = "image_sum"
_COUNT = "image_count"


class MeanImage(nn.Module):
    """Mean of the training images so far, as the background of their foreground."""

    total: Tensor  # float64 [3, S, S]
    count: Tensor  # float64 scalar

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(3, size, size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def difference(self, pixels: Tensor) -> Tensor:
        """Mean absolute difference of pixels [B, 3, S, S] over the channels, float32 [B, 1, S, S].
        It is 0 before the first update.
        """
        mean = (self.total / self.count.clamp(min=1)).float()
        return (pixels.float() - mean).abs().mean(1, keepdim=True) * (self.count > 0)

    def update(self, total: Tensor, count: Tensor, ok: Tensor) -> None:
        """Adds the images of a step over all ranks, if `ok` is True."""
        for buffer, value in ((self.total, total), (self.count, count)):
            buffer.copy_(torch.where(ok, buffer + value, buffer))


class ForegroundRule:
    """Weights of pixels by `losses.foreground_weight`; all 1 without a part for them."""

    def __init__(self, losses: PixelLossConfig, parts: Mapping[str, Part]) -> None:
        self._weight = losses.foreground_weight
        self._part = parts[_BACKGROUND].module if _BACKGROUND in parts else None

    def weights(self, pixels: Tensor) -> Tensor | None:
        """Weights of pixels [B, 3, S, S]: float32 [B, 1, S, S]; None: all are 1."""
        if not isinstance(self._part, MeanImage):
            return None
        return 1 + self._weight * self._part.difference(pixels)

    def sums(self, pixels: Tensor) -> dict[str, Tensor]:
        """Sums of a micro-batch that `update` needs."""
        if self._part is None:
            return {}
        return {_SUM: pixels.sum(0), _COUNT: pixels.new_tensor([float(len(pixels))])}

    def update(self, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        if isinstance(self._part, MeanImage):
            self._part.update(sums[_SUM], sums[_COUNT][0], ok)


def background_part(losses: PixelLossConfig, size: int | None) -> dict[str, Part]:
    """Returns the part of the mean image; none if `losses.foreground_weight` is 0."""
    if not losses.foreground_weight:
        return {}
    assert size is not None, "image_size is derived from the data"
    return {_BACKGROUND: Part(MeanImage(size), trained=False, averaged=False)}


class GradientDistance(nn.Module):
    """Mean absolute difference of image gradients at several scales; needs no weights."""

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of pixels [B, 3, H, W]; scalar."""
        difference = reconstruction.float() - original.float()
        total = difference.new_zeros(())
        for _ in range(_SCALES):
            if min(difference.shape[2:]) < 2:
                break
            rows = difference[:, :, 1:] - difference[:, :, :-1]
            columns = difference[..., 1:] - difference[..., :-1]
            total = total + rows.abs().mean() + columns.abs().mean()
            difference = functional.avg_pool2d(difference, 2, ceil_mode=True)
        return total


class FeatureDistance(nn.Module):
    """Squared distance of the features of the encoder of a VQGAN, at all its levels. Features are
    normalized to unit length over the channels.
    """

    def __init__(self, config: VqganNetworkConfig) -> None:
        super().__init__()
        self.encoder = VqganEncoder(config)

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of pixels [B, 3, H, W]; scalar."""
        with torch.no_grad():
            targets = [functional.normalize(x.float()) for x in self.encoder.levels(original)]
        features = [functional.normalize(x.float()) for x in self.encoder.levels(reconstruction)]
        pairs = zip(targets, features, strict=True)
        terms = [(a - b).square().sum(1).mean() for a, b in pairs]
        return torch.stack(terms).mean()


def loss_parts(losses: PixelLossConfig, network: VqganNetworkConfig) -> dict[str, Part]:
    """Returns the parts that the losses use: discriminator, its running means, perceptual
    network.
    """
    parts: dict[str, Part] = {}
    if losses.adversarial:
        discriminator = Discriminator(losses.discriminator_channels)
        means = LecamEma(losses.lecam_ema_decay)
        parts["discriminator"] = Part(discriminator, averaged=False)
        parts["lecam"] = Part(means, trained=False, averaged=False)
    if losses.perceptual_loss not in (None, NOTHING) and losses.perceptual_weight:
        module = _perceptual(losses.perceptual_loss, network)
        parts["perceptual"] = Part(module, trained=False, averaged=False, saved=False)
    return parts


def _perceptual(name: str, network: VqganNetworkConfig) -> nn.Module:
    if name == GRADIENTS:
        return GradientDistance()
    if name == FEATURES:
        return FeatureDistance(network)
    from vlatool.models.perceptual import perceptual_network

    return perceptual_network(name, None)


def load_perceptual(losses: PixelLossConfig, module: nn.Module, teacher: str | None) -> None:
    if isinstance(module, FeatureDistance):
        assert teacher is not None
        load_encoder(module.encoder, teacher)
    elif losses.perceptual_weights is not None and not isinstance(module, GradientDistance):
        from vlatool.models.perceptual import perceptual_network

        assert losses.perceptual_loss is not None
        loaded = perceptual_network(
            losses.perceptual_loss, require_input(losses.perceptual_weights)
        )
        module.load_state_dict(loaded.state_dict())


# Weight decay does not apply to parameters with one of these in their name, or with fewer than two
# axes. Source: reference/titok 5.2.
_UNDECAYED = (
    "ln", "bias", "latent_tokens", "mask_token", "embedding", "norm", "gamma", "embed",
)  # fmt: skip
_RECONSTRUCTION = "reconstruction"
# Name of the part of `CodeRevival`, and of its sums.
REVIVAL = "revival"
_CANDIDATES = "candidates"


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
        # Running means of the discriminator; None without a discriminator
        means = parts["lecam"].module if "lecam" in parts else None
        assert means is None or isinstance(means, LecamEma)
        self._means = means
        self._of_step: tuple[Tensor, Tensor] | None = None
        self._revival = RevivalRule(parts)
        self._has_entropy = computes_by_global_batch(parts["model"].module)
        self._size = codebook_size
        self._monitor = CodebookMonitor(alarm)
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
            # For the LeCam regularization: its gradient needs the mean logits over the whole step
            # before the first micro-batch of the discriminator.
            with torch.no_grad():
                real = ctx.parts["discriminator"](batch["pixels"])
            count = fake.new_tensor(float(len(real)))
            sums |= {_REAL: real.mean() * count, _FAKE: fake.detach().mean() * count}
            sums["pictures"] = count
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
        return self._monitor(metrics)

    def images(self, batch: Batch, ctx: StepContext) -> Mapping[str, UInt8Array]:
        output = self._reconstruct(batch, ctx)
        return {"reconstruction": comparison(batch["pixels"], output.pixels)}

    def _reconstruct(self, batch: Batch, ctx: StepContext) -> VqganOutput:
        noise = ctx.rng.normal(*self._noise) if self._noise and ctx.training else None
        return ctx.parts["model"](batch["pixels"], noise, *mean_assignment(batch))

    def _reconstruction_loss(
        self, pixels: Tensor, output: VqganOutput, ctx: StepContext
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over images without the discriminator, and the sums of its terms."""
        losses = self._losses
        reconstruction = output.pixels.float()
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
        losses = self._losses
        since = step - self._losses.discriminator_start
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
_REAL = "real_before"
_FAKE = "fake_before"
_NOT_REPORTED = ("pictures", "codes_differing", "codes_compared", _REAL, _FAKE)


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
    count = total.new_tensor(float(len(pixels)))
    return Loss(total * count, count, sums)
