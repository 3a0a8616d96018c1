"""Floating-point operations of a training step, counted without memory."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.builders.future_vla import VOCABULARY, tiny_future_vla
from vlatool.loading.vla.config import VlaShape
from vlatool.models.base import Batch, Part
from vlatool.models.flops import objective_losses, sample_flops
from vlatool.models.future_vla.batch import NO_LABEL
from vlatool.models.future_vla.model import AnswerObjective
from vlatool.models.future_vla.spec import FutureVlaType
from vlatool.models.future_vla.token_ids import TokenIds
from vlatool.models.vqgan.config import VqganConfig
from vlatool.models.vqgan.spec import VqganType


class LineType:
    """A linear layer of 3 inputs and 2 outputs, with the methods that counting needs."""

    def build(self, config: Any) -> dict[str, Part]:
        return {"model": Part(nn.Linear(3, 2)), "fixed": Part(nn.Linear(2, 5), trained=False)}

    def example(self, config: Any, data: Any, size: int) -> Batch:
        return {"x": torch.zeros(size, 3)}


LINE: Any = LineType()


def test_backward_pass_counts_the_gradients_that_are_needed() -> None:
    def losses(parts: Any, batch: Batch) -> Any:
        hidden = parts["model"].module(batch["x"])
        yield parts["fixed"].module(hidden).sum()

    # Forward 3 x 2 and 2 x 5, gradients of the weights 3 x 2 and of the hidden values 5 x 2.
    assert sample_flops(LINE, None, None, losses) == 2 * (6 + 10 + 6 + 10)


def test_network_that_depends_on_values_has_no_count() -> None:
    def losses(parts: Any, batch: Batch) -> Any:
        yield parts["model"].module(batch["x"][batch["x"] > 0]).sum()

    assert sample_flops(LINE, None, None, losses) is None


def test_count_of_an_autoencoder_is_that_of_a_real_step() -> None:
    sizes = {"hidden_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "z_channels": 8}
    config = VqganConfig.model_validate(
        {"image_size": 16, "codebook_size": 16, "norm_groups": 4, **sizes}
    )
    model_type = VqganType()
    parts = model_type.build(config)
    losses = objective_losses(lambda parts: model_type.objective(config, None, None, parts))
    with FlopCounterMode(display=False) as counter:
        for loss in losses(parts, model_type.example(config, None, 1)):
            loss.backward()
    assert model_type.flops(config, None) == counter.get_total_flops() > 0


def test_count_of_future_vla_is_that_of_a_real_step_without_recomputation() -> None:
    names = [name for name in TokenIds.model_fields if name.startswith(("num", "codes", "first"))]
    markers = [name for name in TokenIds.model_fields if name not in names]
    tokens = {name: number for number, name in enumerate(markers, 60)}
    tokens |= {"first_action": 100, "num_actions": 64, "first_code": 200}
    tokens |= {"num_codes": 16, "codes_per_image": 4, "image_pad": VOCABULARY - 1}
    config = tiny_future_vla(tokens=tokens)
    data = SimpleNamespace(shape=VlaShape(("front",), 3, 2, (64, 64), 4, 2))
    model_type = FutureVlaType()
    batch = model_type.example(config, data, 1)
    losses = objective_losses(lambda parts: AnswerObjective(config))
    with FlopCounterMode(display=False) as counter:
        for loss in losses(model_type.build(config), batch):
            loss.backward()
    labels = int((batch["labels"][:, 1:] != NO_LABEL).sum())
    again = 2 * labels * 32 * VOCABULARY  # the head is computed again in the backward pass
    assert model_type.flops(config, data) == counter.get_total_flops() - again
