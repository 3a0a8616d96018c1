"""Checks a policy in the ways in which rollouts, `load_policy` and evaluation use it.

Legend of shapes: B observations, T steps, C dimensions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlatool.episode import Observation, ObservationSpec
from vlatool.evaluation.config import OpenLoopConfig
from vlatool.evaluation.control import ImageSizes
from vlatool.evaluation.offline import evaluate_open_loop
from vlatool.evaluation.policy_runner import PolicyRunner
from vlatool.events import NullProgress
from vlatool.loading.base import RecordedPairs
from vlatool.models.base import Policy
from vlatool.models.policy import example_observation, in_batches
from vlatool.models.published import WeightsOrigin

_NUM_OBSERVATIONS = 3


def check_acting(policy: Policy) -> None:
    """Checks the contract of a policy on made-up observations, alone and in a control loop."""
    missing = [
        name
        for name in ("sees", "actions", "fps", "horizon", "act")
        if getattr(policy, name, None) is None
    ]
    assert not missing, f"{type(policy).__name__} is not a Policy: it has no {missing[0]!r}"
    _check_attributes(policy)
    rng = np.random.default_rng(0)
    observations = [example_observation(policy.sees, rng) for _ in range(_NUM_OBSERVATIONS)]
    _check_chunks(policy, observations, dict(policy.actions))
    runner = PolicyRunner(policy, WeightsOrigin("", Path()), 0)
    for observation in observations:
        images = {name: rows[-1] for name, rows in observation.images.items()}
        fields = {name: rows[-1] for name, rows in observation.fields.items()}
        words = {"instruction": observation.instruction} if policy.sees.instruction else {}
        runner.act({**images, **fields, **words})


def check_recorded(policy: Policy, pairs: RecordedPairs) -> None:
    """Checks a policy on recorded observations, alone and in an open-loop evaluation."""
    observations = [
        observation for observation, _ in pairs.read(range(min(_NUM_OBSERVATIONS, len(pairs))))
    ]
    widths = {name: len(field.names) for name, field in pairs.fields.items()}
    _check_chunks(policy, observations, widths)
    config = OpenLoopConfig(max_samples=_NUM_OBSERVATIONS)
    sizes = ImageSizes(policy.sees, lambda _: None)
    evaluate_open_loop(policy, pairs, config, sizes, NullProgress())


def _check_attributes(policy: Policy) -> None:
    sees: Any = policy.sees
    assert isinstance(sees, ObservationSpec), (
        f"sees is a {type(sees).__name__}, not a vlatool.episode.ObservationSpec"
    )
    for name, view in sees.cameras.items():
        is_past = list(view.offsets) == sorted(view.offsets) and max(view.offsets, default=0) <= 0
        assert is_past, f"camera {name!r}: offsets {view.offsets} must be ascending, and at most 0"
    for name, width in {**sees.fields, **policy.actions}.items():
        assert isinstance(width, int), f"{name!r} has the width {width!r}, not an integer"
        assert width > 0, f"{name!r} has the width {width}"
    assert policy.actions, "`actions` is empty, so the policy commands nothing"
    assert policy.fps > 0, f"fps is {policy.fps}"
    assert policy.horizon >= 1, f"horizon is {policy.horizon}"


def _check_chunks(
    policy: Policy, observations: Sequence[Observation], widths: Mapping[str, int]
) -> None:
    """Checks the chunks of a batch, and that they do not depend on other observations in it."""
    seeds = list(range(len(observations)))
    chunks = policy.act(observations, seeds=seeds)
    _check_shapes(chunks, {name: (policy.horizon, width) for name, width in widths.items()})
    again = policy.act(observations, seeds=seeds)
    size = len(observations)
    separate = [
        in_batches(policy.act, [observation], [seed], size)
        for observation, seed in zip(observations, seeds, strict=True)
    ]
    for name in widths:
        assert np.array_equal(chunks[name], again[name]), (
            f"actions {name!r} differ between equal calls: take all random numbers from the seeds"
        )
        for row, chunk in enumerate(separate):
            assert np.array_equal(chunks[name][row], chunk[name][0]), (
                f"actions {name!r} of an observation depend on other observations in its batch"
            )


def _check_shapes(chunks: Any, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Checks actions by field, float [B, T, C] with (T, C) of `shapes`."""
    assert isinstance(chunks, Mapping), (
        f"act returns a {type(chunks).__name__}, not a mapping of fields to actions"
    )
    missing = [name for name in shapes if name not in chunks]
    assert not missing, f"`act` returns no actions for {missing[0]!r}"
    for name, shape in shapes.items():
        actions = chunks[name]
        kind = f"a {type(actions).__name__}"
        if getattr(actions, "requires_grad", False):
            kind = "a tensor with gradients"
        assert isinstance(actions, np.ndarray), (
            f"act returns {kind} for {name!r}, not a numpy array; use "
            "actions.detach().cpu().numpy()"
        )
        assert actions.ndim == 3, f"actions {name!r} have shape {actions.shape}, not [B, T, C]"
        assert actions.shape[1:] == shape, (
            f"actions {name!r} have shape {actions.shape}, not [B, T, C] with (T, C) = {shape}"
        )
        assert np.isfinite(actions).all(), f"actions {name!r} are not finite"
