"""A training step of the diffusion policy against a plain one with the published formulas.

    python benchmarks/policy_step.py [--size small] [--steps 20]
    python benchmarks/policy_step.py --size bellpepper --batch 128 --device cuda [--compile]

Both have the same weights. First it checks that their losses are equal for the same noise. Then
steps run in turn, A B A B ..., in one process: CLIP with a frozen text tower, four cameras at two
times, chunks of 16 actions of 20 numbers, AdamW, clipping, averaged weights. The plain step gets
images as floats from its loader; ours gets bytes and converts them within the step. On a CPU,
milliseconds are CPU time, which other programs disturb least; use one thread.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from machine import describe
from plain_policy import PlainPolicy, PlainStep
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vlatool.config.resolve import Override, load_config
from vlatool.loading.base import MicroBatch
from vlatool.models.diffusion_policy.objective import DenoisingObjective, LossBreakdown
from vlatool.training.config import TrainConfig
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState, WeightAverage
from vlatool.training.step import TrainStep, build_optimizer, update

WORDS, ACTION, CHUNK, IMAGES = 50432, 20, 16, 8
RATE, DECAY, LIMIT = 1e-4, 0.01, 1.0
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
PEAK_TFLOPS = 989.0  # dense bfloat16 of an H100 or H200
EQUAL = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
# Widths of the fields of `denoising_loss/FIELD`.
FIELDS = {"left_xyz": 3, "left_rot_6d": 6, "right_xyz": 3, "right_rot_6d": 6, "grippers": 2}


@dataclass(frozen=True)
class Size:
    """Sizes of a policy: (width, layers, heads) of the towers of CLIP and of the denoiser."""

    vision: tuple[int, int, int]
    text: tuple[int, int, int]
    common: int
    side: int
    patch: int
    denoiser: tuple[int, int, int]
    length: int
    batch: int

    def clip(self) -> dict[str, Any]:
        """Content of config.json of the CLIP."""
        text, vision = (
            {
                "hidden_size": width,
                "intermediate_size": 4 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "projection_dim": self.common,
            }
            for width, layers, heads in (self.text, self.vision)
        )
        special = {"bos_token_id": 49406, "eos_token_id": 49407}
        return {
            "model_type": "clip",
            "projection_dim": self.common,
            "text_config": {**text, **special, "vocab_size": 49408, "max_position_embeddings": 77},
            "vision_config": {**vision, "image_size": self.side, "patch_size": self.patch},
        }


TINY_CLIP = ((256, 4, 4), (256, 4, 4))
SIZES = {
    "small": Size(*TINY_CLIP, 256, 64, 16, (256, 4, 4), 16, 8),
    "denoiser-100m": Size(*TINY_CLIP, 512, 64, 16, (512, 12, 8), 16, 8),
    "bellpepper": Size((768, 12, 12), (512, 12, 8), 512, 224, 32, (512, 12, 8), 40, 128),
}


def main(arguments: argparse.Namespace) -> None:
    """Checks that losses are equal, then prints milliseconds, ratios and parts."""
    size = SIZES[arguments.size]
    batch = arguments.batch or size.batch
    config = configuration(size, batch, arguments)
    ours = Ours(config, size, batch)
    plain = PlainStep(
        PlainPolicy(size.clip(), (*size.denoiser, WORDS), ACTION).to(ours.device),
        RATE,
        DECAY,
        LIMIT,
    )
    plain.policy.load(ours.state.modules["model"].state_dict())
    plain.average = {n: p.detach().clone() for n, p in plain.policy.named_parameters()}
    theirs = Theirs(plain, ours)
    print(describe(), f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{arguments.size}, batch {batch}, {config.hparams.precision} on {ours.device}")
    check_equal(ours, theirs)
    durations = alternate([theirs.step, ours.step], arguments.steps)
    before, after = (1000 * statistics.median(values) for values in durations)
    print(f"step: plain {before:.1f} ms, ours {after:.1f} ms: {before / after:.2f} x")
    for name in ("forward", "backward", "update"):
        before, after = (1000 * statistics.median(values.parts[name]) for values in (theirs, ours))
        print(f"   {name}: plain {before:.1f} ms, ours {after:.1f} ms: {before / after:.2f} x")
    print_rate(ours, batch, statistics.median(durations[1]))


def configuration(size: Size, batch: int, arguments: argparse.Namespace) -> TrainConfig:
    """The recommended configuration in another size; nothing is read from a hub."""
    width, layers, heads = size.denoiser
    backbone, widths = "model.vision_language_backbone", ("action_dim", "proprioception_dim")
    keys = {
        f"{backbone}.architecture": size.clip(),
        f"{backbone}.image_mean": list(MEAN),
        f"{backbone}.image_std": list(STD),
        f"{backbone}.num_images": IMAGES,
        "model.transformer.hidden_dim": width,
        "model.transformer.n_layers": layers,
        "model.transformer.n_heads": heads,
        **{f"{section}.{name}": ACTION for name in widths for section in ("model", "data")},
        "hparams.lr": RATE,
        "hparams.lr_scheduler": "const",
        "hparams.warmup": 0,
        "hparams.wd": DECAY,
        "hparams.grad_clip_norm": LIMIT,
        "hparams.global_batch_size": batch,
        "hparams.per_gpu_batch_size": batch,
        "hparams.precision": "amp_bf16" if arguments.device == "cuda" else "float32",
        "hparams.torchcompile": arguments.compile,
        "ema.enabled": True,
        "total_train_steps": 10_000,
    }
    typed = [Override(key, value, "benchmark") for key, value in keys.items()]
    preset = ["diffusion-policy-bellpepper"]
    return load_config(TrainConfig, presets=preset, overrides=typed).config


class Ours:
    """Step of the trainer.

    Attributes:
        parts: Part to seconds, for every call of `timed_parts`.
    """

    def __init__(self, config: TrainConfig, size: Size, batch: int) -> None:
        torch.manual_seed(0)
        self.config, model_type = config, config.model_type
        self.runtime = Runtime(config)
        self.device = self.runtime.device
        parts = model_type.build(config.model)
        self.placed = PlacedParts(parts, self.runtime.placement(config), model_type)
        self.objective = DenoisingObjective(config.model, LossBreakdown(FIELDS))  # pyright: ignore[reportArgumentType]
        spec = self.objective.optimizers()["main"]
        modules = {name: part.module for name, part in parts.items()}
        self.average = WeightAverage(config.ema, modules["model"])
        self.state = TrainState(
            parts, {"main": build_optimizer(spec, modules, config.hparams)}, {"model": self.average}
        )
        plan = TrainPlan(10_000, batch, batch, 1, (), 0)
        self.train_step = TrainStep(config.hparams, plan, self.runtime, self.placed)
        tensors = example(size, batch)
        self.micro_batch = MicroBatch(
            {name: value.to(self.device) for name, value in tensors.items()},
            samples=("",) * batch,
            positions=tuple(range(batch)),
        )
        self.parts: dict[str, list[float]] = {"forward": [], "backward": [], "update": []}

    def step(self) -> Tensor:
        """Runs a step like the trainer, without data loading and logging; returns its loss sum."""
        (result,), _ = self.train_step(self.state, self.objective, [self.micro_batch])
        return result.totals[0]

    def mean_loss(self) -> float:
        """Runs a step; returns the loss before it."""
        (result,), _ = self.train_step(self.state, self.objective, [self.micro_batch])
        values = result.on_host.read(timeout_s=60.0)
        return float(values["total"] / values["count"])

    def timed_parts(self) -> None:
        """Runs a step in parts and waits for each."""
        optimizer = self.state.optimizers["main"]
        optimizer.zero_grad(set_to_none=True)
        timed = PartTimer(self.parts)
        loss = timed("forward", self.loss)
        timed("backward", (loss.total / loss.count).backward)
        scale, non_finite = (
            torch.ones((), device=self.device),
            torch.zeros((), device=self.device).bool(),
        )
        timed(
            "update",
            lambda: (update(optimizer, scale, LIMIT, non_finite), self.average.update(~non_finite)),
        )

    def loss(self) -> Any:
        """Loss of this step."""
        with self.runtime.autocast():
            return self.objective.loss("main", self.micro_batch.batch, self.context())

    def context(self) -> Any:
        """Context of this step."""
        return self.train_step.contexts.of(self.state.step, self.micro_batch, 0)

    def noise_and_time(self) -> tuple[Tensor, Tensor]:
        """Noise and time of this step."""
        generator = self.context().rng
        time_ = generator.integers(1000, 1).flatten()
        return generator.normal(1, CHUNK, ACTION).flatten(0, 1), time_


class Theirs:
    """Plain step on the same data."""

    def __init__(self, plain: PlainStep, ours: Ours) -> None:
        self.plain, self._ours = plain, ours
        tensors = ours.micro_batch.batch
        shift, scale = (
            torch.tensor(values, device=ours.device)[:, None, None] for values in (MEAN, STD)
        )
        pixels = ((tensors["images"].flatten(0, 1).float() / 255 - shift) / scale).contiguous()
        ids = (tensors["text"] - 1).clamp(min=0)
        self._batch = {**tensors, "ids": ids, "pixels": pixels}
        self.parts: dict[str, list[float]] = {"forward": [], "backward": [], "update": []}

    def step(self, noise_and_time: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Runs a step; returns the loss before it."""
        loss = self.loss(noise_and_time)
        loss.backward()
        self.plain.update()
        return loss.detach()

    def timed_parts(self) -> None:
        """Runs a step in parts and waits for each."""
        timed = PartTimer(self.parts)
        loss = timed("forward", self.loss)
        timed("backward", loss.backward)
        timed("update", self.plain.update)

    def loss(self, noise_and_time: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Loss, under the same autocast as ours."""
        with self._ours.runtime.autocast():
            return self.plain.loss(self._batch, noise_and_time)


class PartTimer:
    """Timer that appends seconds to a list by name."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self._seconds = seconds

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        """Runs one part and waits for its end."""
        started = now()
        result = work()
        self._seconds[name].append(now() - started)
        return result


def example(size: Size, batch: int) -> dict[str, Tensor]:
    """Made-up batch; channels are last in memory, as from the loader."""
    rng = torch.Generator().manual_seed(1)
    shape = (batch, IMAGES, size.side, size.side, 3)
    images = torch.randint(256, shape, generator=rng, dtype=torch.uint8).permute(0, 1, 4, 2, 3)
    text = torch.randint(1, 40_000, (batch, size.length), generator=rng)
    text[:, 0], text[:, -1] = 49407, 49408  # first and last token, plus one
    past = torch.arange(CHUNK) < 1
    return {
        "images": images,
        "text": text,
        "actions": torch.randn(batch, CHUNK, ACTION, generator=rng),
        "proprioception": torch.randn(batch, 2, ACTION, generator=rng),
        "past_mask": past.expand(batch, -1).clone(),
        "future_mask": (~past).expand(batch, -1).clone(),
        "dataset": torch.zeros(batch, dtype=torch.int64),
    }


def check_equal(ours: Ours, theirs: Theirs) -> None:
    """Runs three steps of both with the same noise; checks that losses are equal to rounding."""
    is_low = ours.config.hparams.precision.startswith("amp")
    limit = EQUAL[torch.bfloat16 if is_low else torch.float32]
    for _ in range(3):
        noise_and_time = ours.noise_and_time()
        own, other = ours.mean_loss(), float(theirs.step(noise_and_time))
        assert abs(own - other) <= limit * abs(other), f"losses differ: {own} and {other}"
        print(f"equal losses: {own:.6f} and {other:.6f}")


def alternate(steps: list[Callable[[], Any]], number: int) -> list[list[float]]:
    """Seconds of each step, A B A B ..., after two rounds of warm-up; then times the parts."""
    durations: list[list[float]] = [[] for _ in steps]
    for index in range(number + 2):
        for step, seconds in zip(steps, durations, strict=True):
            started = now()
            step()
            if index > 1:
                seconds.append(now() - started)
    for _ in range(max(number // 2, 3)):
        for step in steps:
            step.__self__.timed_parts()  # pyright: ignore[reportFunctionMemberAccess]
    return durations


def print_rate(ours: Ours, batch: int, seconds: float) -> None:
    """Prints samples per second and, on a GPU, the share of its peak."""
    with FlopCounterMode(display=False) as counter:
        loss = ours.loss()
        (loss.total / loss.count).backward()
    teraflops = counter.get_total_flops() / seconds / 1e12
    text = f"ours: {batch / seconds:.1f} samples/s, {teraflops:.3f} TFLOP/s"
    if ours.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
        text += f", {teraflops / PEAK_TFLOPS:.1%} of {PEAK_TFLOPS:.0f}; {memory:.1f} GiB of both"
    print(text)


def now() -> float:
    """Seconds: wall time after the GPU has finished its work, or CPU time of this process."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(arguments.threads)
    main(arguments)
