"""What an objective shows while it trains, as one PNG per name."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from vlatool.artifacts.run_dir import RunDir
from vlatool.episode import UInt8Array
from vlatool.loading.base import MicroBatch
from vlatool.models.base import Objective
from vlatool.storage.atomic import open_atomic
from vlatool.training.runtime import Runtime
from vlatool.training.state import TrainState
from vlatool.training.step import StepContexts

_COLUMNS = 8


@dataclass(frozen=True)
class ImageLogger:
    """Writes an objective's pictures of a micro-batch; every process calls it.

    They are those of the averaged weights, where there are any: these are what is used later.

    Attributes:
        run: The run folder.
        objective: Makes them.
        runtime: The processes; the first one writes.
        contexts: What the objective may know.
    """

    run: RunDir
    objective: Objective
    runtime: Runtime
    contexts: StepContexts

    @torch.no_grad()
    def __call__(self, state: TrainState, one: MicroBatch) -> None:
        """Parts are in eval mode."""
        ctx = self.contexts.of(state.step, one, "images")
        with ExitStack() as stack:
            for average in state.averages.values():
                stack.enter_context(average.average_parameters())
            stack.enter_context(self.runtime.autocast())
            images = self.objective.images(one.batch, ctx)
        if self.runtime.is_main:
            save_image_grid(self.run, state.step, images)


def save_image_grid(run: RunDir, step: int, pictures: Mapping[str, UInt8Array]) -> None:
    """Writes each name's uint8 [N, H, W, 3] as one sheet, in rows of eight."""
    for name, images in pictures.items():
        if not len(images):
            continue
        rows = [images[at : at + _COLUMNS] for at in range(0, len(images), _COLUMNS)]
        width = max(len(row) for row in rows)
        sheet = np.concatenate([_row(row, width) for row in rows])
        path = run.image(step, name.replace("/", "_"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(path) as file:
            Image.fromarray(sheet).save(file, format="PNG")


def _row(images: UInt8Array, width: int) -> UInt8Array:
    missing = np.zeros((width - len(images), *images.shape[1:]), np.uint8)
    return np.concatenate([*images, *missing], axis=1)
