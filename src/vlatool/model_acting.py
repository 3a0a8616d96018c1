"""Contract checks of the policy of a model type, as evaluation uses it; see `testing`.

Legend of shapes: B observations, T steps, C dimensions.
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

_NUM_SAMPLES = 2
_STEPS = 3


def check_robot_policy(trained: TrainedPolicy, info: RoboticsInfo) -> None:
    """Checks a policy for robotics data on samples, in a control loop and in an evaluation."""
    policy = trained.policy
    assert isinstance(policy, RoboticsPolicy), (
        f"policy returns a {type(policy).__name__}; for robotics data it must return a "
        "vlatool.models.policy.RoboticsPolicy, or None if the model has no policy"
    )
    samples = _samples(policy, info)
    observations = [_observation(policy, sample) for sample in samples]
    predicted = [
        policy.predict(observations, steps=_STEPS, rng=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    widths = {name: samples[0].fields[name].shape[-1] for name in policy.data.action_fields}
    for chunks in predicted:
        _check_chunks("predict", chunks, {name: (policy.length, n) for name, n in widths.items()})
    for name in policy.data.action_fields:
        same = np.array_equal(predicted[0][name], predicted[1][name])
        assert same, f"actions {name!r} use randomness that is not from rng"
    left = policy.length - policy.past
    commands = policy.act(observations, steps=_STEPS, rng=torch.Generator().manual_seed(1))
    _check_chunks("act", commands, {name: (left, n) for name, n in policy.actions.items()})
    _check_uses(trained, info, samples)


def _check_uses(
    trained: TrainedPolicy, info: RoboticsInfo, samples: Sequence[DecodedSample]
) -> None:
    """Uses the policy as `load_policy` and `eval open-loop` do."""
    runner = PolicyRunner(trained, _STEPS, 0)
    for sample in samples:
        images = sample.images[-len(runner.cameras) :]
        images_by_camera = dict(zip(runner.cameras, images, strict=True))
        fields = {name: sample.fields[name][trained.policy.past] for name in runner.fields}
        runner.act({**images_by_camera, **fields, "instruction": sample.instruction})
    config = OpenLoopConfig(max_samples=_NUM_SAMPLES, inference_steps=_STEPS)
    fit = ImageFit(trained.policy.images, lambda _: None)
    evaluate_open_loop(trained, info, config, fit, NullProgress())


def _samples(policy: RoboticsPolicy, info: RoboticsInfo) -> list[DecodedSample]:
    """A few samples, with the measured poses that actions are relative to."""
    changes = {"proprioception_fields": list(policy.fields)}
    data = policy.data.model_copy(
        update={**changes, "augmentation": policy.data.augmentation.without_randomness()}
    )
    order = SampleOrder(info.datasets, OrderOptions(shuffle=False))
    rngs = [np.random.default_rng(0) for _ in range(_NUM_SAMPLES)]
    read = RoboticsReader(data, info).read(order.refs(range(_NUM_SAMPLES)), rngs)
    samples = [sample for sample in read if isinstance(sample, DecodedSample)]
    assert samples, "no sample of the data can be read"
    return samples


def _observation(policy: RoboticsPolicy, sample: DecodedSample) -> Observation:
    fields = {name: sample.fields[name][: policy.past + 1] for name in policy.fields}
    return Observation(sample.images, fields, sample.instruction)


def _check_chunks(label: str, chunks: Any, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Checks actions by field, float [B, T, C] with (T, C) of `shapes`."""
    assert isinstance(chunks, Mapping), (
        f"{label} returns a {type(chunks).__name__}, not a mapping of fields to actions"
    )
    missing = [name for name in shapes if name not in chunks]
    assert not missing, f"{label} returns no actions for {missing[0]!r}"
    for name, shape in shapes.items():
        actions = chunks[name]
        has_gradients = isinstance(actions, torch.Tensor) and actions.requires_grad
        kind = "a tensor with gradients" if has_gradients else f"a {type(actions).__name__}"
        assert isinstance(actions, np.ndarray), (
            f"{label} returns {kind} for {name!r}, not a numpy array; use "
            "actions.detach().cpu().numpy()"
        )
        fits = actions.ndim == 3 and actions.shape[1:] == shape
        assert fits, (
            f"actions {name!r} have shape {actions.shape}, not [B, T, C] with (T, C) = {shape}"
        )
        assert np.isfinite(actions).all(), f"actions {name!r} are not finite"
