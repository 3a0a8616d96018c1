"""`vlatool.load_policy`: a policy for the user's own control loop."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import vlatool
from tests.builders.errors import fails
from tests.builders.training import (
    CAMERAS,
    HAND,
    HAND_COMMAND,
    ROT,
    XYZ,
    XYZ_COMMAND,
)
from vlatool.datasets.lbm.layout import (
    read_preprocessing_config,
    write_preprocessing_config,
)
from vlatool.episode import Observation
from vlatool.errors import VlatoolError
from vlatool.evaluation.config import RolloutConfig
from vlatool.evaluation.control import ImageSizes
from vlatool.evaluation.controllers import PolicyController
from vlatool.evaluation.environments import with_mapping
from vlatool.evaluation.policy_runner import PolicyRunner
from vlatool.models.base import Policy
from vlatool.models.trained import open_trained
from vlatool.world.registration import ENVIRONMENT, register_environments

Recorded = tuple[PolicyRunner, list[Observation]]
DOWN = [1.0, 0.0, 0.0, 0.0, -1.0, 0.0]
SEED = 7


@pytest.fixture(scope="module")
def run(trained_policy: Path) -> Path:
    return trained_policy


@pytest.fixture
def policy(run: Path) -> PolicyRunner:
    return vlatool.load_policy(run, seed=SEED)


def observation_of(observation: Mapping[str, Any]) -> dict[str, Any]:
    """Observation of the world in the fields of the policy."""
    proprio = observation["proprio"]
    return {
        **{camera: observation[camera] for camera in CAMERAS},
        XYZ: proprio[:3],
        HAND: proprio[3:],
        ROT: DOWN,
        "instruction": observation["instruction"],
    }


def random_observation(number: int, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    """Random observation with a seed."""
    rng = np.random.default_rng(number)
    images = {camera: rng.integers(0, 256, (*size, 3), np.uint8) for camera in CAMERAS}
    return {**images, XYZ: rng.random(3), HAND: [0.04], ROT: DOWN, "instruction": "sing"}


def assert_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


# attributes and shapes


def test_cameras_fields_and_actions_are_attributes(policy: PolicyRunner) -> None:
    assert policy.cameras == tuple(CAMERAS)
    assert policy.fields == {XYZ: 3, HAND: 1, ROT: 6}
    assert policy.actions == {XYZ_COMMAND: 3, HAND_COMMAND: 1}
    assert (policy.fps, policy.horizon, policy.weights) == (10.0, 7, "ema")
    chunk = policy.act(random_observation(0))
    shapes = {name: values.shape for name, values in chunk.items()}
    assert shapes == {name: (7, width) for name, width in policy.actions.items()}
    assert list(chunk) == list(policy.actions)
    assert all(values.dtype == np.float64 for values in chunk.values())


def test_checkpoint_and_run_folder_give_the_same_policy(run: Path, policy: PolicyRunner) -> None:
    of_checkpoint = vlatool.load_policy(str(policy.checkpoint), seed=SEED)
    assert policy.checkpoint.parent.parent == run
    assert_equal(of_checkpoint.act(random_observation(0)), policy.act(random_observation(0)))


# same actions as an evaluation


@pytest.mark.parametrize("execute", [1, 3, 7])
def test_actions_are_those_of_a_rollout(run: Path, execute: int) -> None:
    """A loop that passes every observation acts like the controller of evaluations."""
    config = with_mapping(
        RolloutConfig(env=ENVIRONMENT, execute_steps=execute, checkpoint=str(run), batch_size=1)
    )
    trained = open_trained(str(run)).policy()
    controller = PolicyController(trained, config, ImageSizes(trained.sees, print))
    policy = vlatool.load_policy(run, seed=SEED)
    register_environments()
    env = gymnasium.make(ENVIRONMENT)
    observation, _ = env.reset(seed=3)
    chunk: dict[str, Any] = {}
    for step in range(9):
        expected = controller.act({SEED: observation}, {SEED: observation["instruction"]})[SEED]
        if step % execute == 0:
            chunk = policy.act(observation_of(observation))
        else:
            policy.observe(observation_of(observation))
        row = step % execute
        action = np.concatenate([chunk[XYZ_COMMAND][row], chunk[HAND_COMMAND][row]])
        np.testing.assert_array_equal(action, expected)
        observation, *_ = env.step(expected)
    env.close()


# history


class RecordingPolicy:
    """Policy that records the observation of every call."""

    def __init__(self, inner: Policy) -> None:
        self.windows: list[Observation] = []
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def act(self, observations: Sequence[Observation], **keys: Any) -> Any:
        self.windows += observations
        return self._inner.act(observations, **keys)


@pytest.fixture
def windows(run: Path) -> Recorded:
    """A policy, and the list of its observations."""
    trained = open_trained(str(run))
    recording: Any = RecordingPolicy(trained.policy())
    return PolicyRunner(recording, trained.origin, SEED), recording.windows


def numbers(window: Observation) -> list[float]:
    """Numbers of the observations that the positions of a window are from."""
    return [float(row[0]) for row in window.fields[XYZ]]


def observation_at(number: int) -> dict[str, Any]:
    return {**random_observation(number), XYZ: [float(number), 0.0, 0.0]}


def test_history_has_the_observed_steps_and_repeats_the_next_for_others(
    windows: Recorded,
) -> None:
    policy, shown = windows
    policy.act(observation_at(1))
    assert numbers(shown[0]) == [1, 1]
    for images in shown[0].images.values():
        np.testing.assert_array_equal(images[0], images[1])
    assert shown[0].past_actions is None
    policy.act(observation_at(4), executed=3)
    assert numbers(shown[1]) == [4, 4]
    policy.observe(observation_at(5), executed=1)
    policy.act(observation_at(6))
    assert numbers(shown[2]) == [5, 6]
    np.testing.assert_array_equal(shown[2].images[CAMERAS[0]][0], observation_at(5)[CAMERAS[0]])


@pytest.mark.parametrize(("observed", "executed"), [(0, 1), (0, 2), (0, 7), (2, 3)])
def test_past_action_is_the_last_executed_one(
    observed: int, executed: int, windows: Recorded
) -> None:
    policy, shown = windows
    chunk = policy.act(observation_at(1))
    if observed:
        policy.observe(observation_at(2), executed=observed)
    policy.act(observation_at(3), executed=executed)
    past = shown[1].past_actions
    assert past is not None
    for name in (HAND_COMMAND, XYZ_COMMAND):
        np.testing.assert_array_equal(past[name], chunk[name][observed + executed - 1][None])


LOST: Any = object()  # in place of a value: its name is missing


def test_arrays_changed_by_the_caller_do_not_change_the_history(windows: Recorded) -> None:
    policy, shown = windows
    first, second = observation_at(1), observation_at(2)
    before = first[CAMERAS[0]].copy()
    chunk = policy.act(first)
    expected = chunk[HAND_COMMAND][0].copy()
    chunk[HAND_COMMAND][:] = 99
    first[CAMERAS[0]][:] = second[CAMERAS[0]]
    policy.act({**second, CAMERAS[0]: first[CAMERAS[0]]})
    np.testing.assert_array_equal(shown[1].images[CAMERAS[0]][0], before)
    past = shown[1].past_actions
    assert past is not None
    np.testing.assert_array_equal(past[HAND_COMMAND][0], expected)


def test_reset_clears_the_history_and_the_noise(policy: PolicyRunner) -> None:
    first = [policy.act(observation_at(n)) for n in range(3)]
    policy.reset()
    again = [policy.act(observation_at(n)) for n in range(3)]
    for before, after in zip(first, again, strict=True):
        assert_equal(before, after)
    policy.reset(seed=SEED + 1)
    assert not np.array_equal(policy.act(observation_at(0))[HAND_COMMAND], first[0][HAND_COMMAND])


def test_invalid_observation_does_not_change_the_history(policy: PolicyRunner) -> None:
    policy.act(observation_at(0))
    expected = policy.act(observation_at(1))
    policy.reset()
    policy.act(observation_at(0))
    with pytest.raises(VlatoolError):
        policy.act({**observation_at(2), CAMERAS[1]: np.zeros((64, 64, 3))})
    assert_equal(policy.act(observation_at(1)), expected)


def test_a_chunk_that_fails_leaves_the_history_as_it_was(
    policy: PolicyRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.act(observation_at(0))
    expected = policy.act(observation_at(1), executed=2)
    policy.reset()
    policy.act(observation_at(0))
    with monkeypatch.context() as patch:
        patch.setattr(policy._policy, "decide", lambda *_, **__: 1 / 0)
        patch.setattr(policy._policy, "act", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            policy.act(observation_at(3), executed=3)
    assert_equal(policy.act(observation_at(1), executed=2), expected)


# images


def test_image_gets_the_size_of_the_training_data(run: Path) -> None:
    """A smooth image, twice as large and with a wider field of view, gives nearly the same."""
    transform = open_trained(str(run)).assets.images
    rows, columns = np.mgrid[0:64, 0:64]
    small = np.stack([4 * rows, 4 * columns, rows + columns], -1).astype(np.uint8)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    wide = np.pad(large, ((0, 0), (32, 32), (0, 0)))
    fitted = transform.apply(CAMERAS[0], wide)
    np.testing.assert_array_equal(transform.apply(CAMERAS[1], small), small)
    inner = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(fitted[inner].astype(int), small[inner].astype(int), atol=4)


def test_another_size_is_logged_once_per_camera(
    policy: PolicyRunner, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        policy.act(
            {
                **random_observation(number, (80, 80)),
                CAMERAS[1]: random_observation(number)[CAMERAS[1]],
            }
        )
    policy.reset()
    policy.act(random_observation(0, (80, 80)))
    texts = [record.getMessage() for record in caplog.records]
    messages = [text for text in texts if "80 x 80" in text]
    assert len(messages) == 2
    assert all(camera in text for camera, text in zip(CAMERAS, messages, strict=True))
    assert all("64 x 64" in text for text in messages)


def changed_options(run: Path, target: Path, **options: Any) -> Path:
    """Copies a run and changes the options that its data were made with."""
    shutil.copytree(run, target)
    write_preprocessing_config(target, {**read_preprocessing_config(run), **options})
    return target


def test_image_is_rotated_as_the_training_data_were(run: Path, tmp_path: Path) -> None:
    rotated = changed_options(run, tmp_path / "run", camera_rotations={CAMERAS[0]: 2})
    policy = vlatool.load_policy(rotated, seed=SEED)
    upright = vlatool.load_policy(run, seed=SEED)
    observation = random_observation(0)
    flipped = {**observation, CAMERAS[0]: observation[CAMERAS[0]][::-1, ::-1]}
    assert_equal(policy.act(observation), upright.act(flipped))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"resize_images_size": [48, 32]}, (32, 48)),  # written as width, height
        ({"image_size": [32, 48]}, (32, 48)),
        ({"image_size": None}, None),  # a run of an earlier version
    ],
)
def test_size_of_images_is_that_stored_in_the_run(
    options: dict[str, Any], size: tuple[int, int] | None, run: Path, tmp_path: Path
) -> None:
    changed = changed_options(run, tmp_path / "run", **options)
    assert open_trained(str(changed)).assets.images.size == size


@pytest.mark.parametrize(
    "options",
    [
        {"image_resizing_filter": "thumb"},
        {"image_size": 64},
        {"resize_images_size": "large"},
        {"camera_rotations": [1]},
        {"camera_rotations": {"front": "left"}},
        {"pose_groups": [{"colour": "red"}]},
        {"fps": "fast"},
    ],
)
def test_invalid_stored_options_are_an_error(
    options: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    with fails("data.broken", 3):
        vlatool.load_policy(changed_options(run, tmp_path / "run", **options))


def test_images_of_two_sizes_are_an_error_if_the_size_is_unknown(run: Path, tmp_path: Path) -> None:
    policy = vlatool.load_policy(changed_options(run, tmp_path / "run", image_size=None))
    policy.act(random_observation(0, (32, 48)))
    for wrong in (
        random_observation(1),
        {**random_observation(1, (32, 48)), CAMERAS[1]: random_observation(1)[CAMERAS[1]]},
    ):
        with fails("data.mismatch"):
            policy.act(wrong)
    policy.act(random_observation(1, (32, 48)))


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (CAMERAS[1], LOST, "data.bad_request"),
        (ROT, LOST, "data.bad_request"),
        ("instruction", LOST, "data.bad_request"),
        ("scene_rigth_0", 1, "data.bad_request"),
        (3, 1, "data.bad_request"),
        ("instruction", b"sing", "data.bad_request"),
        (CAMERAS[0], np.zeros((64, 64, 3)), "data.bad_request"),
        (CAMERAS[0], np.zeros((2, 64, 64), np.uint8), "data.bad_request"),
        (CAMERAS[0], np.zeros((64, 64, 4), np.uint8), "data.bad_request"),
        (CAMERAS[0], np.zeros((0, 64, 3), np.uint8), "data.bad_request"),
        (CAMERAS[0], None, "data.bad_request"),
        (CAMERAS[0], [[1], [2, 3]], "data.missing"),
        (XYZ, [1.0, 2.0], "data.mismatch"),
        (XYZ, [[1.0, 2.0, 3.0]], "data.mismatch"),
        (XYZ, "up", "data.mismatch"),
        (XYZ, [True, False, True], "data.mismatch"),
        (XYZ, [1.0, float("nan"), 3.0], "data.not_finite"),
        (XYZ, [[1.0], [2.0, 3.0]], "data.missing"),
        (XYZ, [[b"long" * 1000, b""], [b"", b""]], "data.missing"),
        (XYZ, torch.zeros(3, requires_grad=True), "data.missing"),
    ],
)
def test_invalid_observation_is_an_error(
    name: Any, value: Any, code: str, policy: PolicyRunner
) -> None:
    observation = {**random_observation(0), name: value}
    if value is LOST:
        del observation[name]
    with fails(code, 3) as caught:
        policy.act(observation)
    assert "scene_right_0" in caught.value.hint or name != "scene_rigth_0"


@pytest.mark.parametrize("observation", [None, [("instruction", "sing")], "front"])
def test_observation_that_is_no_mapping_is_an_error(observation: Any, policy: PolicyRunner) -> None:
    with fails("data.bad_request", 3):
        policy.act(observation)


@pytest.mark.parametrize("executed", [0, 8, "1", 1.5, None, True])
def test_more_steps_than_the_chunk_has_are_an_error(executed: Any, policy: PolicyRunner) -> None:
    policy.act(random_observation(0))
    with fails("usage.bad_value", 2):
        policy.act(random_observation(1), executed=executed)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"weights": "best"}, "usage.bad_value"),
        ({"inference_steps": 0}, "usage.bad_value"),
        ({"inference_steps": "8"}, "usage.bad_value"),
        ({"seed": "x"}, "usage.bad_value"),
        ({"seed": -1}, "usage.bad_value"),
        ({"seed": 2**64}, "usage.bad_value"),
        ({"checkpoint": 5}, "usage.bad_value"),
        ({"checkpoint": "nowhere"}, "data.no_source"),
        ({"checkpoint": ""}, "usage.missing_key"),
    ],
)
def test_invalid_argument_of_load_policy_is_an_error(
    keys: dict[str, Any], code: str, run: Path
) -> None:
    with fails(code):
        vlatool.load_policy(**{"checkpoint": run, **keys})


@pytest.mark.parametrize("max_deviation", [-1, float("nan"), "5"])
def test_invalid_deviation_is_an_error(max_deviation: Any, run: Path) -> None:
    with fails("usage.bad_value"):
        vlatool.load_policy(run, max_deviation=max_deviation)


def test_state_in_other_units_is_refused_by_the_range_of_the_training_data(run: Path) -> None:
    policy = vlatool.load_policy(run, max_deviation=5)
    policy.act(random_observation(0))
    millimeters = random_observation(1)
    millimeters[XYZ] = 1000 * millimeters[XYZ]
    with fails("data.mismatch", 3) as refused:
        policy.act(millimeters)
    assert refused.value.details["field"] == XYZ


def test_invalid_seed_does_not_change_the_policy(policy: PolicyRunner) -> None:
    policy.act(random_observation(0))
    for seed in ("x", 1.5, -1, [1]):
        with fails("usage.bad_value", 2):
            policy.reset(seed=seed)  # pyright: ignore[reportArgumentType]
    policy.act(random_observation(1), executed=2)
