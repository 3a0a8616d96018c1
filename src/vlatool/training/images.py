"""Images that an objective logs during training, one PNG per name."""

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
    """Writes the images of an objective for a micro-batch. Collective.

    They are made with the averaged weights if there are any, because these are used for inference.

    Attributes:
        run: The run folder.
        objective: Makes the images.
        runtime: The ranks of the run; rank 0 writes.
        contexts: Makes the context of a micro-batch.
    """

    run: RunDir
    objective: Objective
    runtime: Runtime
    contexts: StepContexts

    @torch.no_grad()
    def __call__(self, state: TrainState, micro_batch: MicroBatch) -> None:
        """Writes the images of a micro-batch; expects the parts in eval mode."""
        ctx = self.contexts.of(state.step, micro_batch, "images")
        with ExitStack() as stack:
            for average in state.averages.values():
                stack.enter_context(average.average_parameters())
            stack.enter_context(self.runtime.autocast())
            images = self.objective.images(micro_batch.batch, ctx)
        if self.runtime.is_main:
            save_image_grid(self.run, state.step, images)


def save_image_grid(run: RunDir, step: int, images_by_name: Mapping[str, UInt8Array]) -> None:
    """Writes the images uint8 [N, H, W, 3] of each name as one PNG, in rows of eight."""
    for name, images in images_by_name.items():
        if not len(images):
            continue
        rows = [images[start : start + _COLUMNS] for start in range(0, len(images), _COLUMNS)]
        width = max(len(row) for row in rows)
        grid = np.concatenate([_row(row, width) for row in rows])
        path = run.image(step, name.replace("/", "_"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_atomic(path) as file:
            Image.fromarray(grid).save(file, format="PNG")


def _row(images: UInt8Array, width: int) -> UInt8Array:
    padding = np.zeros((width - len(images), *images.shape[1:]), np.uint8)
    return np.concatenate([*images, *padding], axis=1)
