"""Whether what a model type lets act does so where evaluation uses it: see `testing`.

Legend of shapes: B observations, T steps, C channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from vlatool.evaluation.acting import PolicyRunner
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.evaluation.history import ImageFit
from vlatool.evaluation.offline import evaluate_open_loop
from vlatool.evaluation.trained_policy import TrainedPolicy
from vlatool.events import NullProgress
from vlatool.loading.order import OrderOptions, SampleOrder
from vlatool.loading.robotics.decode import DecodedSample
from vlatool.loading.robotics.info import RoboticsInfo
from vlatool.loading.robotics.reader import RoboticsReader
from vlatool.models.policy import Observation, RoboticsPolicy

_SEEN = 2
_STEPS = 3


def check_acting(trained: TrainedPolicy, info: RoboticsInfo) -> None:
    """A policy of robotics data acts on samples, in a control loop and in an evaluation."""
    policy = trained.policy
    assert isinstance(policy, RoboticsPolicy), (
        f"policy gives a {type(policy).__name__}; for robotics data it is a vlatool.models.policy."
        "Policy, or None for what does not act"
    )
    samples = _samples(policy, info)
    seen = [_observation(policy, sample) for sample in samples]
    predicted = [
        policy.predict(seen, steps=_STEPS, rng=torch.Generator().manual_seed(1)) for _ in range(2)
    ]
    widths = {name: samples[0].fields[name].shape[-1] for name in policy.data.action_fields}
    for one in predicted:
        _check_chunks("predict", one, {name: (policy.length, n) for name, n in widths.items()})
    for name in policy.data.action_fields:
        same = np.array_equal(predicted[0][name], predicted[1][name])
        assert same, f"actions {name!r} draw randomness from elsewhere than rng"
    left = policy.length - policy.past
    commands = policy.act(seen, steps=_STEPS, rng=torch.Generator().manual_seed(1))
    _check_chunks("act", commands, {name: (left, n) for name, n in policy.actions.items()})
    _check_uses(trained, info, samples)


def _check_uses(
    trained: TrainedPolicy, info: RoboticsInfo, samples: Sequence[DecodedSample]
) -> None:
    """What `load_policy` and `eval open-loop` do with it."""
    acting = PolicyRunner(trained, _STEPS, 0)
    for sample in samples:
        images = sample.images[-len(acting.cameras) :]
        moment = dict(zip(acting.cameras, images, strict=True))
        fields = {name: sample.fields[name][trained.policy.past] for name in acting.fields}
        acting.act({**moment, **fields, "instruction": sample.instruction})
    config = OpenLoopConfig(max_samples=_SEEN, inference_steps=_STEPS)
    fit = ImageFit(trained.policy.images, lambda _: None)
    evaluate_open_loop(trained, info, config, fit, NullProgress())


def _samples(policy: RoboticsPolicy, info: RoboticsInfo) -> list[DecodedSample]:
    """A few, with the measured poses that actions are relative to."""
    changes = {"proprioception_fields": list(policy.fields)}
    data = policy.data.model_copy(
        update={**changes, "augmentation": policy.data.augmentation.without_randomness()}
    )
    order = SampleOrder(info.datasets, OrderOptions(shuffle=False))
    rngs = [np.random.default_rng(0) for _ in range(_SEEN)]
    read = RoboticsReader(data, info).read(order.refs(range(_SEEN)), rngs)
    samples = [one for one in read if isinstance(one, DecodedSample)]
    assert samples, "no sample of the data can be read"
    return samples


def _observation(policy: RoboticsPolicy, sample: DecodedSample) -> Observation:
    seen = {name: sample.fields[name][: policy.past + 1] for name in policy.fields}
    return Observation(sample.images, seen, sample.instruction)


def _check_chunks(what: str, given: Any, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Actions by field, float [B, T, C] of `shapes` (T, C)."""
    assert isinstance(given, Mapping), (
        f"{what} gives a {type(given).__name__}, not field to actions"
    )
    missing = [name for name in shapes if name not in given]
    assert not missing, f"{what} gives no actions for {missing[0]!r}"
    for name, shape in shapes.items():
        actions = given[name]
        keeps = isinstance(actions, torch.Tensor) and actions.requires_grad
        what_it_is = "a tensor that keeps gradients" if keeps else f"a {type(actions).__name__}"
        assert isinstance(actions, np.ndarray), (
            f"{what} gives {what_it_is} for {name!r}, not a numpy array: "
            "actions.detach().cpu().numpy()"
        )
        fits = actions.ndim == 3 and actions.shape[1:] == shape
        assert fits, f"actions {name!r} are {actions.shape}, not [B, T, C] with T, C of {shape}"
        assert np.isfinite(actions).all(), f"actions {name!r} are not finite"
