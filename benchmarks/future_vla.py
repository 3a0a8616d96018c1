"""Training step of FUTURE-VLA: logits of labelled tokens in chunks against logits of all tokens.

    python benchmarks/future_vla.py [--size small] [--batch 2] [--steps 3]
    python benchmarks/future_vla.py --size 4b --batch 8 --checkpointing   # on a GPU

Both have the same weights, batch and optimizer. First it checks that losses are equal, then it
measures each in a process of its own: seconds of a step, and the largest memory (of the device, or
of the process on a CPU, whose seconds are CPU time: use one thread). On a GPU also tokens/s and the
share of the peak; operations that checkpointing repeats do not count as work. Then it times
decisions: of the images of each, two are new.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from vlatool.datasets.fast.layout import read_fast
from vlatool.loading.base import MicroBatch
from vlatool.loading.vla.config import VlaShape
from vlatool.models.base import Batch, Loss, StepContext
from vlatool.models.future_vla.batch import NO_LABEL, SequenceEncoder, example_batch
from vlatool.models.future_vla.config import FutureVlaConfig
from vlatool.models.future_vla.decoding import ActionGrammar, AnswerDecoder
from vlatool.models.future_vla.frame_cache import FrameCache
from vlatool.models.future_vla.model import AnswerObjective
from vlatool.models.future_vla.token_ids import TokenIds
from vlatool.plugins import MODELS
from vlatool.training.config import HParams, TrainConfig
from vlatool.training.placement import PlacedParts
from vlatool.training.plan import TrainPlan
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState
from vlatool.training.step import TrainStep, build_optimizer

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for tests.builders

PEAK_TFLOPS = 989.0  # dense bfloat16 of an H100 or H200
EQUAL = {"float32": 1e-4, "amp_bfloat16": 2e-2}
COEFFICIENTS = 10  # of a made-up chunk: about as many tokens as a real one
SPECIAL = 64  # ids above codes and action ids, for markers


@dataclass(frozen=True)
class Size:
    """Sizes of a network: (width, layers, heads, width of the MLP) of its transformers.

    Attributes:
        text: Language model, with heads of `head` columns.
        vision: Vision transformer of Qwen3-VL.
        dino: DINOv3.
    """

    vocabulary: int
    text: tuple[int, int, int, int]
    key_heads: int
    head: int
    vision: tuple[int, int, int, int]
    deepstack: tuple[int, ...]
    dino: tuple[int, int, int, int]
    conv: int
    side: int
    codes: tuple[int, int]
    actions: int
    steps: int

    def config(self) -> FutureVlaConfig:
        """Section `model`; the grid is the published one."""
        third = self.head // 2 // 8 * 3
        tower, dino = (
            dict(zip(names, sizes, strict=True))
            for names, sizes in (
                (("hidden_size", "depth", "num_heads", "intermediate_size"), self.vision),
                (
                    (
                        "hidden_size",
                        "num_hidden_layers",
                        "num_attention_heads",
                        "intermediate_size",
                    ),
                    self.dino,
                ),
            )
        )
        text = {
            "vocab_size": self.vocabulary,
            "hidden_size": self.text[0],
            "num_hidden_layers": self.text[1],
            "num_attention_heads": self.text[2],
            "intermediate_size": self.text[3],
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [self.head // 2 - 2 * third, third, third],
            },
        }
        vision = {
            **tower,
            "out_hidden_size": self.text[0],
            "num_position_embeddings": 2304,
            "patch_size": 16,
            "deepstack_visual_indexes": list(self.deepstack),
        }
        qwen = {
            "text_config": text,
            "vision_config": vision,
            "image_token_id": self.tokens().image_pad,
            "tie_word_embeddings": True,
        }
        return FutureVlaConfig(
            qwen=qwen,
            dino={**dino, "patch_size": 16, "key_bias": False},
            compress=(self.steps // 2, self.steps // 2 - 2, 2),
            conv_width=self.conv,
        )

    def tokens(self) -> TokenIds:
        """Ids of all kinds of tokens, at the end of the vocabulary."""
        end = self.vocabulary - SPECIAL
        special = [name for name in TokenIds.model_fields if not name.startswith(("first", "num"))]
        special.remove("codes_per_image")
        return TokenIds(
            **{name: end + number for number, name in enumerate(special)},
            first_action=end - self.actions,
            num_actions=self.actions,
            first_code=end - self.actions - self.codes[1],
            num_codes=self.codes[1],
            codes_per_image=self.codes[0],
        )

    def batch(self, size: int) -> Batch:
        """A made-up batch in the layout of training data."""
        shape = VlaShape(
            ("image", "wrist_image"), self.steps, self.steps, (self.side, self.side), 16, 7
        )
        return example_batch(self.tokens(), self.grid(), shape, size)

    def grid(self) -> tuple[int, ...]:
        """Tokens per side of each image."""
        sides = [self.side // 32 // divisor for divisor in (4, 2, 1)]
        counts = self.config().frames
        return tuple(side for side, count in zip(sides, counts, strict=True) for _ in range(count))


_PUBLISHED: dict[str, Any] = {
    "vocabulary": 151_936,
    "key_heads": 8,
    "head": 128,
    "dino": (768, 12, 12, 3072),
    "conv": 1280,
    "side": 256,
    "codes": (32, 4096),
    "actions": 2048,
    "steps": 16,
}
SIZES = {
    "tiny": Size(
        1024, (64, 2, 2, 96), 1, 32, (64, 2, 2, 96), (0,), (64, 1, 2, 96), 64, 128, (4, 64), 64, 4
    ),
    "small": Size(
        32_768,
        (256, 4, 4, 768),
        2,
        64,
        (128, 2, 4, 512),
        (0,),
        (128, 2, 4, 512),
        128,
        256,
        (32, 4096),
        2048,
        16,
    ),
    "2b": Size(
        text=(2048, 28, 16, 6144), vision=(1024, 24, 16, 4096), deepstack=(5, 11, 17), **_PUBLISHED
    ),
    "4b": Size(
        text=(2560, 36, 32, 9728), vision=(1024, 24, 16, 4096), deepstack=(5, 11, 17), **_PUBLISHED
    ),
}


class AllLogits(AnswerObjective):
    """The same loss from the logits of all tokens, as published code computes it."""

    def loss(self, optimizer: str, batch: Batch, ctx: StepContext) -> Loss:
        """Sum over labelled tokens."""
        del optimizer
        network = ctx.parts["model"]
        hidden = network(batch["input_ids"], batch["position_ids"], images=batch["images"])
        logits = network.head(hidden)[:, :-1].float().flatten(0, 1)
        targets = batch["labels"][:, 1:].flatten()
        total = functional.cross_entropy(logits, targets, ignore_index=NO_LABEL, reduction="sum")
        return Loss(total, (targets != NO_LABEL).sum())


class Step:
    """A step of the trainer without data loading and logging."""

    def __init__(self, size: Size, arguments: argparse.Namespace, *, plain: bool) -> None:
        config = size.config()
        self.h = HParams(
            precision="amp_bfloat16" if torch.cuda.is_available() else "float32",
            global_batch_size=arguments.batch,
            per_gpu_batch_size=arguments.batch,
            grad_checkpointing=arguments.checkpointing,
            grad_clip_norm=1.0,
            wd=0.1,
        )
        self.runtime = Runtime(TrainConfig(hparams=self.h))
        model_type = MODELS.get("future_vla")()
        torch.manual_seed(0)
        with torch.device(self.runtime.device):
            parts = model_type.build(config)
        placement = self.runtime.placement(TrainConfig(hparams=self.h))
        placed = PlacedParts(parts, placement, model_type)
        kind = AllLogits if plain else AnswerObjective
        self.objective = kind(config)
        modules = {name: part.module for name, part in parts.items()}
        spec = self.objective.optimizers()["main"]
        self.state = TrainState(parts, {"main": build_optimizer(spec, modules, self.h)})
        plan = TrainPlan(1000, arguments.batch, arguments.batch, 1, (), 0)
        self._train_step = TrainStep(self.h, plan, self.runtime, placed)
        tensors: Mapping[str, Tensor] = size.batch(arguments.batch)
        self.batch = {name: value.to(self.runtime.device) for name, value in tensors.items()}
        count = arguments.batch
        self._micro_batch = MicroBatch(
            self.batch, samples=("",) * count, positions=tuple(range(count))
        )

    def run(self) -> float:
        """Runs a step; returns the loss before it."""
        (result,), _ = self._train_step(self.state, self.objective, [self._micro_batch])
        values = result.on_host.read(timeout_s=60.0)
        return float(values["total"] / values["count"])

    def operations(self) -> float:
        """Floating point operations of a step: forward, and twice as many backward if trained."""
        network: Any = self.state.modules["model"]
        names = ("input_ids", "position_ids", "labels", "images")
        counts: list[int] = []
        frozen = self.batch["images"].flatten(0, 1)
        calls = (
            lambda: network.answer_losses(**{name: self.batch[name] for name in names}),
            lambda: network.image_features(frozen),
        )
        for call in calls:
            with torch.no_grad(), self.runtime.autocast(), FlopCounterMode(display=False) as flops:
                call()
            counts.append(flops.get_total_flops())
        return 3.0 * counts[0] - 2.0 * counts[1]


def measure(arguments: argparse.Namespace, *, plain: bool) -> dict[str, float]:
    """Losses, seconds and bytes of one kind of step, in a process of its own."""
    step = Step(SIZES[arguments.size], arguments, plain=plain)
    on_gpu = torch.cuda.is_available()
    losses = [step.run()]
    durations: list[float] = []
    for _ in range(arguments.steps):
        started = now()
        losses.append(step.run())
        durations.append(now() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if on_gpu:
        peak = torch.cuda.max_memory_allocated()
    work = 0.0 if plain else step.operations()
    tokens = int(step.batch["attention_mask"].sum())
    parameters = step.state.num_parameters
    return {
        "first": losses[0],
        "last": losses[-1],
        "seconds": statistics.median(durations),
        "bytes": float(peak),
        "tokens": float(tokens),
        "operations": work,
        "parameters": float(parameters),
    }


def decide(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds of a decision on new images, and on images of which two are new; its tokens."""
    from tests.builders.codes import plain_fast

    size = SIZES[arguments.size]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        network: Any = MODELS.get("future_vla")().build(size.config())["model"].module
    encoder = SequenceEncoder(None, size.tokens(), size.grid())
    with tempfile.TemporaryDirectory() as folder:
        grammar = ActionGrammar(read_fast(plain_fast(Path(folder))), COEFFICIENTS, size.actions)
    decoder = AnswerDecoder(network.eval(), encoder, grammar, FrameCache(network))
    images = np.random.default_rng(0).integers(
        0, 256, (1, len(size.grid()), size.side, size.side, 3), np.uint8
    )
    on_gpu = torch.cuda.is_available()
    seconds: list[float] = []
    number = 0
    for _ in range(arguments.steps + 2):
        images = np.roll(images, -2, axis=1)
        images[:, -2:] = 255 - images[:, -2:]
        started = now()
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            number = len(decoder.actions([encoder.prompt("example")], images)[0])
        seconds.append(now() - started)
    return {"new": seconds[0], "later": statistics.median(seconds[2:]), "tokens": float(number)}


def now() -> float:
    """Seconds: wall time after the GPU has finished its work, or CPU time of this process."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main(arguments: argparse.Namespace) -> None:
    """Prints seconds, memory and their ratios."""
    results: list[dict[str, float]] = []
    for plain in (True, False):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            results.append(pool.submit(measure, arguments, plain=plain).result())
    before, after = results
    limit = EQUAL["amp_bfloat16" if torch.cuda.is_available() else "float32"]
    for name in ("first", "last"):
        difference = abs(before[name] - after[name])
        assert difference <= limit * abs(before[name]), f"losses differ: {before} and {after}"
    print(describe(), f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    size, millions = arguments.size, after["parameters"] / 1e6
    print(f"{size}: {millions:.0f} M parameters, batch {arguments.batch}, equal losses")
    for name, result in (("all logits", before), ("labelled, in chunks", after)):
        rate = result["tokens"] / result["seconds"]
        text = f"{name}: {1000 * result['seconds']:.0f} ms, {result['bytes'] / 2**30:.2f} GiB"
        print(f"   {text}, {rate:,.0f} tokens/s")
    ratio = before["seconds"] / after["seconds"], before["bytes"] / after["bytes"]
    print(f"   {ratio[0]:.2f} x as fast, {ratio[1]:.2f} x less memory")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        decided = pool.submit(decide, arguments).result()
    first, later = (1000 * decided[name] for name in ("new", "later"))
    print(
        f"   decision of {decided['tokens']:.0f} tokens: {later:.0f} ms, {first:.0f} ms the first"
    )
    if torch.cuda.is_available():
        teraflops = after["operations"] / after["seconds"] / 1e12
        print(f"   {teraflops:.0f} TFLOP/s, {teraflops / PEAK_TFLOPS:.1%} of {PEAK_TFLOPS:.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    main(parser.parse_args())
