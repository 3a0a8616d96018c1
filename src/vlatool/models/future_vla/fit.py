"""Fits the model to its data: grid of images, token ids, meaning of numbers. No torch.

Legend: V views (cameras) of a step, P past images in the order of samples: by time, and within a
step by camera. Source: reference/future-vla-model 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from vlatool.config.base import derivation_rules
from vlatool.datasets.base_model import read_tokenizer_asset
from vlatool.datasets.jsonl.layout import Kind
from vlatool.datasets.samples.episode import Conversation, SampleSizes
from vlatool.errors import DataError, UsageError
from vlatool.events import counted
from vlatool.loading.vla.config import VlaDataConfig, VlaShape
from vlatool.loading.vla.info import VlaInfo
from vlatool.loading.vla.reader import sample_key
from vlatool.models.future_vla.config import FutureVlaConfig, NumberDigests
from vlatool.models.future_vla.token_ids import TokenIds

if TYPE_CHECKING:
    from vlatool.models.future_vla.batch import SequenceEncoder


# Sides of the three grids of patches, as divisors of the side of the grid of DINOv3: oldest steps
# first. Source: reference/future-vla-model 2.1.
REDUCTIONS = (4, 2, 1)


@dataclass(frozen=True)
class FrameGrid:
    """Grid of each past image of a sample."""

    views: int  # V
    compress: tuple[int, int, int]  # number of steps of each level, the oldest steps first
    patches: int  # patches per side of an image, before the convolutions
    merge: int  # patches per side that become one token of the language model

    def __post_init__(self) -> None:
        for steps, side in zip(self.compress, self._level_sides(), strict=True):
            if steps and side % self.merge:
                raise ValueError(
                    f"images of {self.patches} x {self.patches} patches are compressed to {side} x "
                    f"{side}, which cannot be merged in squares of {self.merge} x {self.merge}"
                )

    @property
    def images(self) -> int:
        """Number of past images, P."""
        return self.views * sum(self.compress)

    @property
    def patch_sides(self) -> tuple[int, ...]:
        """Patches per side of each of P images, after the convolutions."""
        levels = zip(self.compress, self._level_sides(), strict=True)
        return tuple(side for steps, side in levels for _ in range(steps * self.views))

    @property
    def token_sides(self) -> tuple[int, ...]:
        """Tokens of the language model per side of each of P images."""
        return tuple(side // self.merge for side in self.patch_sides)

    @property
    def tokens(self) -> int:
        """Tokens of all images, without those around each image."""
        return sum(side * side for side in self.token_sides)

    def _level_sides(self) -> Iterator[int]:
        """Patches per side of each level; each halving rounds up, as its convolution does."""
        yield from (-(-self.patches // stride) for stride in REDUCTIONS)


_NAMES = {
    "codes": "codes of another visual tokenizer",
    "actions": "action ids of another action tokenizer",
    "profile": "actions with another normalization",
}
_OTHER_DATA = "build the samples with the tokenizers of the weights, or start from other weights"


def fit_to_data(
    config: FutureVlaConfig, data: VlaDataConfig
) -> tuple[FutureVlaConfig, dict[str, str]]:
    """Fills in the map to token ids, and the digests of the tokenizers behind the numbers. Weights
    that were trained on samples have both already; the data must then agree with them.
    """
    check_grid_of(config, data.shape)
    assert config.special_ids is not None
    tokens = config.tokens or TokenIds.of_ids(config.special_ids, data.sizes)
    if tokens.sizes != data.sizes:
        raise DataError(
            f"the samples have {_sizes_text(data.sizes)}, the weights {_sizes_text(tokens.sizes)}",
            hint=_OTHER_DATA,
            code="data.mismatch",
            details={"samples": list(data.sizes), "weights": list(tokens.sizes)},
        )
    assert config.qwen is not None
    rows = int(config.qwen["text_config"]["vocab_size"])
    if tokens.vocabulary > rows:
        raise DataError(
            f"token ids are up to {tokens.vocabulary - 1}, but the embedding has {rows} rows",
            hint="use tokenizer and weights of the same model",
            code="data.mismatch",
        )
    layers = int(config.qwen["text_config"]["num_hidden_layers"])
    if config.freeze_layers > layers:
        raise UsageError(
            f"model.freeze_layers is {config.freeze_layers}, but the language model has {layers}",
            hint="freeze fewer layers, or all of them with model.freeze_language",
            code="usage.bad_value",
        )
    before = config.numbers.model_dump()
    for key, digest in data.digests.items():
        if before[key] and digest and before[key] != digest:
            raise DataError(
                f"the samples have {_NAMES[key]} than the initial weights",
                hint=_OTHER_DATA,
                code="data.mismatch",
                details={"key": key, "samples": digest, "weights": before[key]},
            )
    known = {key: digest or before[key] for key, digest in data.digests.items()}
    update = {"tokens": tokens, "numbers": NumberDigests(**known)}
    return config.model_copy(update=update), derivation_rules(config, update)


def encoder_of(config: FutureVlaConfig, shape: VlaShape, folder: Path | None) -> "SequenceEncoder":
    """Encoder of conversations; `folder`: folder of a run, or of weights, with tokenizer.json; None
    for a plan of a run that has neither, in which all words are equal.
    """
    from vlatool.models.future_vla.batch import SequenceEncoder

    assert config.tokens is not None
    sides = grid_of(config, shape).token_sides
    tokenizer = None if folder is None else read_tokenizer_asset(folder)
    return SequenceEncoder(tokenizer, config.tokens, sides)


def grid_of(config: FutureVlaConfig, shape: VlaShape) -> FrameGrid:
    """Grid of the past images; raises ValueError if the images are not square or do not fit."""
    assert config.dino is not None
    assert config.qwen is not None
    height, width = shape.image_size
    patch = int(config.dino["patch_size"])
    if height != width or height % patch:
        raise ValueError(
            f"images of {height} x {width} pixels are not squares of whole patches of {patch} x "
            f"{patch}"
        )
    merge = int(config.qwen.get("vision_config", {}).get("spatial_merge_size", 2))
    return FrameGrid(config.views, config.compress, height // patch, merge)


def check_grid_of(config: FutureVlaConfig, shape: VlaShape) -> None:
    """Raises UsageError if the grid of the model does not match the samples."""
    if (config.views, sum(config.compress)) != (len(shape.cameras), shape.past_steps):
        raise UsageError(
            f"model.views {config.views} and model.compress {list(config.compress)} are for "
            f"{sum(config.compress)} past steps of {counted(config.views, 'camera')}, but the "
            f"samples have {shape.past_steps} steps of {len(shape.cameras)} "
            f"({', '.join(shape.cameras)})",
            hint=f"set model.views={len(shape.cameras)} and three numbers in model.compress "
            f"with the sum {shape.past_steps}, or write windows with other steps",
            code="usage.bad_value",
            details={"key": "model.compress"},
        )
    try:
        grid_of(config, shape)
    except ValueError as error:
        raise UsageError(
            f"the samples do not fit the grid of the model: {error}",
            hint="write windows with --resize-images-size of another size, or set model.compress",
            code="usage.bad_value",
            details={"key": "model.compress"},
        ) from None


def check_texts(encoder: "SequenceEncoder", info: VlaInfo, limit: int) -> None:
    """Checks the instructions of all samples and the length of the longest sequence."""
    for task, kind in product(info.tasks, info.kinds):
        ids = (0,) * info.max_action_ids
        try:
            asked = encoder.prompt(task, kind, ids if kind == "wm" else ())
            texts = sum(map(len, encoder.answer_texts(kind)))
            images = info.first.assets.shape.future_images
            codes = info.first.assets.sizes.codes_per_image
            length = len(asked.ids) + (texts + info.max_action_ids + 2 + images * (codes + 2))
            if length > limit:
                raise ValueError(f"has up to {length} tokens, but the limit is {limit}")
        except ValueError as error:
            key = next(_with_task(info, task, kind), "")
            raise DataError(
                f"{key}: the instruction {task!r}: {error}",
                hint="change the instruction in the windows and build the samples again, or "
                "leave out its episodes with `build-dataset --exclude`",
                code="data.broken",
                details={"task": task, "sample": key},
            ) from None


def _with_task(info: VlaInfo, task: str, kind: Kind) -> Iterator[str]:
    for folder in info.folders:
        for number in range(len(folder.samples)):
            talk: Conversation = folder.samples.sample(number).conversation
            if (talk.task, talk.kind) == (task, kind):
                yield sample_key(folder, number)


def _sizes_text(sizes: SampleSizes) -> str:
    return (
        f"{sizes.codes_per_image} codes of {sizes.codebook_size} per image and {sizes.action_ids} "
        "action ids"
    )
