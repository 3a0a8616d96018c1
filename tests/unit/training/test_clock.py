"""Checkpoints by the clock."""

from types import SimpleNamespace
from typing import Any

import pytest

from vlatool.training.config import TrainConfig
from vlatool.training.run import _Checkpoints


@pytest.mark.parametrize(("save_s", "is_due"), [(0.0, True), (3600.0, False)])
def test_slow_saves_are_further_apart(save_s: float, is_due: bool) -> None:
    config = SimpleNamespace(save_every_minutes=1e-9)
    run: Any = SimpleNamespace(config=config, runtime=SimpleNamespace(is_main=True), lock=None)
    assert _Checkpoints(run, _save_s=save_s).is_due() == is_due


def test_runs_save_every_five_minutes() -> None:
    assert TrainConfig.model_fields["save_every_minutes"].default == 5
