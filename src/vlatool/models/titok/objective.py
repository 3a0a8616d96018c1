"""What a tokenizer learns from: the teacher's codes in stage 1, pixels elsewhere.

Source: reference/titok 4.1, 4.2. Legend of shapes: B pictures, G patches along a side, P = G G.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vlatool.episode import UInt8Array
from vlatool.findings import Finding
from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, Part, StepContext
from vlatool.models.images import comparison, to_float
from vlatool.models.titok.model import TitokOutput
from vlatool.models.titok.spec import TitokConfig, VqConfig
from vlatool.models.vqgan.objective import (
    CodebookMonitor,
    PixelObjective,
    code_sums,
    mean_metrics,
    published_groups,
)


def make_objective(config: TitokConfig, parts: Mapping[str, Part]) -> Objective:
    """The losses of a configuration."""
    quantizer = config.quantizer
    is_vq = isinstance(quantizer, VqConfig)
    if not config.predicts_pixels:
        return CodesObjective(config)
    return PixelObjective(
        config.losses,
        parts,
        codebook_size=quantizer.codebook_size if is_vq else 0,
        alarm=config.codebook_alarm,
        noise=() if is_vq else (config.num_latent_tokens, quantizer.token_size),
    )


class CodesObjective(Objective):
    """Cross-entropy of the teacher's codes."""

    def __init__(self, config: TitokConfig) -> None:
        assert isinstance(config.quantizer, VqConfig)
        self._size = config.quantizer.codebook_size
        self._weight = config.losses.quantizer_weight
        self._half = config.teacher_precision == "bfloat16"
        self._watch = CodebookMonitor(config.codebook_alarm)
        self._cache = TeacherCodeCache(config.vqgan.codebook_size)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """One for everything."""
        return {"main": OptimizerSpec(("model",), published_groups)}

    def prepare(self, batch: Batch, ctx: StepContext) -> Batch:
        """Bytes to pixels, and the teacher's codes int64 [B, P]."""
        pixels = to_float(batch["images"])
        teacher, digests = ctx.parts["teacher"].codes, batch.get("digests")
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=self._half):
            targets = self._cache.codes(digests, pixels, teacher) if digests else teacher(pixels)
        return {**batch, "pixels": pixels, "targets": targets}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """Cross-entropy over all patches, and the penalty of the quantizer."""
        del optimizer
        found: TitokOutput = ctx.parts["model"](batch["pixels"])
        targets: Tensor = batch["targets"]
        logits = found.logits.float().flatten(2)
        error = functional.cross_entropy(logits, targets)
        count = error.new_tensor(float(len(targets)))
        right = (logits.argmax(1) == targets).float().mean()
        terms = {
            "reconstruction_loss": error,
            "quantizer_loss": found.penalty,
            "commitment_loss": found.commitment,
            "right_codes": right,
        }
        sums = {name: value.detach() * count for name, value in terms.items()}
        total = (error + self._weight * found.penalty) * count
        return Loss(total, count, {**sums, **code_sums(found.codes, self._size)})

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        """Means of the terms, and how the codebook is used."""
        del phase
        return mean_metrics(sums, count)

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        """Whether the codebook has collapsed."""
        return self._watch(metrics)

    def images(self, batch: Batch, ctx: StepContext) -> Mapping[str, UInt8Array]:
        """Original, what the teacher draws of the likeliest codes, difference."""
        found: TitokOutput = ctx.parts["model"](batch["pixels"])
        made = ctx.parts["teacher"].decode_codes(found.logits.argmax(1))
        return {"reconstruction": comparison(batch["pixels"], made)}


class TeacherCodeCache:
    """The teacher's codes of pictures that were seen before, in memory.

    Args:
        codebook_size: Codes are below it.
    """

    def __init__(self, codebook_size: int) -> None:
        self._dtype = torch.int16 if codebook_size <= 2**15 else torch.int32
        self._known: dict[bytes, Tensor] = {}

    def codes(
        self, digests: Sequence[bytes], pixels: Tensor, teacher: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Codes int64 [B, P]; the teacher is asked where one of the pictures is new.

        Asked for whole batches: what it says of a picture depends, in rounding, on the others.

        Args:
            digests: Of the pictures as they are.
            pixels: float [B, 3, S, S].
            teacher: Pixels to codes int64 [B, P].
        """
        new = [place for place, one in enumerate(digests) if one not in self._known]
        if new:
            found = teacher(pixels).to(self._dtype).cpu()
            self._known |= {digests[place]: found[place].clone() for place in new}
        rows = torch.stack([self._known[one] for one in digests])
        return rows.to(pixels.device).long()
