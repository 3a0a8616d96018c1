"""Networks and losses of the toy model types."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.builders.toys import LENGTH, TOKENS, WIDTH, GanConfig, Row
from vlatool.findings import Finding
from vlatool.models.base import Batch, Loss, Objective, OptimizerSpec, Part, StepContext


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 8)
        self.last = nn.Linear(8, 1)

    def score(self, x: Tensor) -> Tensor:
        return self.last(functional.gelu(self.first(x))).float().sum(-1)

    forward = score


class Means(nn.Module):
    """Running means of the scores of the critic."""

    real: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("real", torch.zeros(()))


def gan_parts() -> dict[str, Part]:
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH))
    critic = Critic()
    return {
        "model": Part(model, blocks=[model[0]]),
        "critic": Part(critic, averaged=False, blocks=[critic.first]),
        "means": Part(Means(), trained=False, averaged=False),
        "teacher": Part(nn.Linear(WIDTH, WIDTH), trained=False, averaged=False, saved=False),
    }


class GanObjective(Objective):
    """Imitates a teacher on noised rows, with a critic that starts later."""

    def __init__(self, config: GanConfig, means: nn.Module) -> None:
        self._start = config.critic_starts_at
        self._means = means

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        critic = OptimizerSpec(("critic",), lr=2e-3, betas=(0.5, 0.9), starts_at=self._start)
        return {"generator": OptimizerSpec(("model",)), "critic": critic}

    def prepare(self, batch: Batch, ctx: StepContext) -> Batch:
        noised = batch["x"] + 0.1 * ctx.rng.normal(WIDTH)
        return {**batch, "noised": noised, "target": ctx.parts["teacher"](batch["x"])}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        x, count = batch["x"], batch["x"].new_tensor(float(len(batch["x"])))
        generated = ctx.parts["model"](batch["noised"])
        if optimizer == "generator":
            error = (generated - batch["target"]).square().sum()
            fooled = ctx.parts["critic"].score(generated).sum() if ctx.step >= self._start else 0.0
            return Loss(error - 0.01 * fooled, count, {"error": error.detach()})
        critic = ctx.parts["critic"]
        real, fake = critic.score(x), critic.score(generated.detach())
        pull = (fake - self._means.real).square().sum()
        total = functional.relu(1 - real).sum() + functional.relu(1 + fake).sum() + 0.1 * pull
        rows = torch.histc(real.detach().float(), 4, -1, 1)
        return Loss(total, count, {"real": real.detach().sum(), "n": count, "rows": rows})

    def update_buffers(self, optimizer: str, sums: Mapping[str, Tensor], ok: Tensor) -> None:
        if optimizer == "critic":
            new = self._means.real.lerp((sums["real"] / sums["n"].clamp(min=1)).float(), 0.1)
            self._means.real.copy_(torch.where(ok, new, self._means.real))

    def metrics(self, phase: str, sums: Mapping[str, Tensor], count: float) -> Mapping[str, float]:
        if phase == "critic":
            return {"real": float(sums["real"] / sums["n"]), "rows": float(sums["rows"].sum())}
        return {"error": float(sums["error"]) / max(count, 1.0)}

    def check_metrics(self, metrics: Mapping[str, float]) -> Sequence[Finding]:
        if metrics.get("critic/real", 0.0) < -0.9:
            return [Finding("toy.critic", "warning", "the critic rejects every sample")]
        return ()

    def images(self, batch: Batch, ctx: StepContext) -> Mapping[str, np.ndarray]:
        generated = ctx.parts["model"](batch["noised"]).float().sigmoid().cpu().numpy()
        return {"made": (255 * generated).astype(np.uint8)[:, None, :, None].repeat(3, axis=3)}


def row_batch(samples: Sequence[Row]) -> Batch:
    return {"x": torch.from_numpy(np.stack([sample.values for sample in samples]))}


class ChunkedHead(nn.Module):
    """Token losses, computed in chunks to save memory."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.project = nn.Linear(8, TOKENS, bias=False)

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        parts = zip(hidden.chunk(self.chunks), targets.chunk(self.chunks), strict=True)
        return torch.cat(
            [functional.cross_entropy(self.project(h), t, reduction="none") for h, t in parts]
        )


class Body(nn.Module):
    """One block with an embedding and a head with tied weights."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, 8)
        self.mix = nn.GRU(8, 8, batch_first=True)
        self.head = ChunkedHead(chunks)
        self.head.project.weight = self.embed.weight

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        hidden = self.mix(self.embed(ids))[0]
        return self.head(hidden.flatten(0, 1), targets.flatten())


class ToyLm(nn.Module):
    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.block = Body(chunks)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.block(ids, targets)


class LmObjective(Objective):
    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return {"main": OptimizerSpec(("model",))}

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        del optimizer
        losses = ctx.parts["model"](batch["ids"][:, :-1], batch["ids"][:, 1:])
        mask = batch["mask"][:, 1:].flatten()
        return Loss((losses * mask).sum(), mask.sum())


def token_batch(samples: Sequence[Row]) -> dict[str, Any]:
    """Token ids [B, LENGTH], derived from the first number of a row, and a mask."""
    starts = torch.tensor([int(abs(float(sample.values[0])) * 100) for sample in samples])
    ids = (starts[:, None] + torch.arange(LENGTH)) % TOKENS
    lengths = 3 + starts % (LENGTH - 2)
    return {"ids": ids, "mask": (torch.arange(LENGTH) < lengths[:, None]).float()}
