"""`vlatool.load_policy`: a policy for a control loop of one's own."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import vlatool
from tests.builders.training import (
    CAMERAS,
    HAND,
    HAND_COMMAND,
    ROT,
    XYZ,
    XYZ_COMMAND,
    tiny_config,
    world_shards,
)
from vlatool.artifacts.provenance import read_preprocessing_config, write_preprocessing_config
from vlatool.errors import VlatoolError
from vlatool.evaluation.acting import PolicyRunner
from vlatool.evaluation.config import RolloutConfig
from vlatool.evaluation.controllers import PolicyController
from vlatool.evaluation.history import ImageFit
from vlatool.evaluation.trained_policy import load_trained
from vlatool.models.policy import Observation, RoboticsPolicy
from vlatool.workflows.evaluate import with_world_mapping
from vlatool.workflows.train import train
from vlatool.world.registration import ENVIRONMENT, register_environments

Shown = tuple[PolicyRunner, list[Observation]]
DOWN = [1.0, 0.0, 0.0, 0.0, -1.0, 0.0]
SEED = 7


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = world_shards(tmp_path_factory.mktemp("world"))
    folder = tmp_path_factory.mktemp("runs") / "policy"
    train(tiny_config(data, folder, total_train_steps=3))
    return folder


@pytest.fixture
def policy(run: Path) -> PolicyRunner:
    return vlatool.load_policy(run, seed=SEED)


def seen(observation: Mapping[str, Any]) -> dict[str, Any]:
    """The world's observation as that of a robot."""
    proprio = observation["proprio"]
    return {
        **{camera: observation[camera] for camera in CAMERAS},
        XYZ: proprio[:3],
        HAND: proprio[3:],
        ROT: DOWN,
        "instruction": observation["instruction"],
    }


def made_up(number: int, size: tuple[int, int] = (64, 64)) -> dict[str, Any]:
    """A moment unlike any other."""
    rng = np.random.default_rng(number)
    images = {camera: rng.integers(0, 256, (*size, 3), np.uint8) for camera in CAMERAS}
    return {**images, XYZ: rng.random(3), HAND: [0.04], ROT: DOWN, "instruction": "sing"}


def assert_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


# what it is


def test_says_what_it_sees_and_commands(policy: PolicyRunner) -> None:
    assert policy.cameras == tuple(CAMERAS)
    assert policy.fields == {XYZ: 3, HAND: 1, ROT: 6}
    assert policy.actions == {XYZ_COMMAND: 3, HAND_COMMAND: 1}
    assert (policy.fps, policy.horizon, policy.weights) == (10.0, 7, "ema")


def test_plan_has_a_row_per_step_of_each_action(policy: PolicyRunner) -> None:
    plan = policy.act(made_up(0))
    assert {name: values.shape for name, values in plan.items()} == {
        XYZ_COMMAND: (7, 3),
        HAND_COMMAND: (7, 1),
    }
    assert list(plan) == list(policy.actions)
    assert all(values.dtype == np.float64 for values in plan.values())


def test_checkpoint_and_run_folder_are_both_taken(run: Path, policy: PolicyRunner) -> None:
    of_checkpoint = vlatool.load_policy(str(policy.checkpoint), seed=SEED)
    assert policy.checkpoint.parent.parent == run
    assert_equal(of_checkpoint.act(made_up(0)), policy.act(made_up(0)))


# it does what an evaluation does


@pytest.mark.parametrize("execute", [1, 3, 7])
def test_commands_are_those_of_a_rollout(run: Path, execute: int) -> None:
    """A loop that shows every moment, beside the controller that evaluations use."""
    config = with_world_mapping(
        RolloutConfig(env=ENVIRONMENT, seed=SEED, execute_steps=execute, checkpoint=str(run))
    )
    trained = load_trained(str(run), "auto").policy
    controller = PolicyController(trained, config, ImageFit(trained.images, print))
    policy = vlatool.load_policy(run, seed=SEED)
    register_environments()
    env = gymnasium.make(ENVIRONMENT)
    observation, _ = env.reset(seed=3)
    plan: dict[str, Any] = {}
    for step in range(9):
        wanted = controller.act({0: observation}, {0: observation["instruction"]})[0]
        if step % execute == 0:
            plan = policy.act(seen(observation))
        else:
            policy.observe(seen(observation))
        row = step % execute
        command = np.concatenate([plan[XYZ_COMMAND][row], plan[HAND_COMMAND][row]])
        np.testing.assert_array_equal(command, wanted)
        observation, *_ = env.step(wanted)
    env.close()


def test_relative_actions_come_back_absolute(run: Path) -> None:
    """The same pictures and noise elsewhere: the chunk is that of `predict`, moved and turned."""
    policy = vlatool.load_policy(run, seed=SEED)
    moment = made_up(0)
    inner = load_trained(str(run), "auto").policy
    window = Observation(
        images=np.stack([moment[camera] for camera in CAMERAS] * 2),
        fields={name: np.stack([np.asarray(moment[name], float)] * 2) for name in (XYZ, HAND)},
        instruction="sing",
    )
    rng = torch.Generator().manual_seed(SEED)
    relative = inner.predict([window], steps=8, rng=rng)[f"{XYZ_COMMAND}_relative"][0, 1:]
    # The hand points down: x stays, y and z are turned round.
    expected = relative * [1.0, -1.0, -1.0] + moment[XYZ]
    np.testing.assert_allclose(policy.act(moment)[XYZ_COMMAND], expected, atol=1e-12)


# memory


class Watched:
    """A policy that keeps the window of every call."""

    def __init__(self, inner: RoboticsPolicy) -> None:
        self.windows: list[Observation] = []
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def act(self, observations: Sequence[Observation], **keys: Any) -> Any:
        self.windows += observations
        return self._inner.act(observations, **keys)


@pytest.fixture
def windows(run: Path) -> Shown:
    """A policy, and what it was shown."""
    trained = load_trained(str(run), "auto")
    watched: Any = Watched(trained.policy)
    return PolicyRunner(replace(trained, policy=watched), 8, SEED), watched.windows


def numbers(window: Observation) -> list[float]:
    """Which moments the positions of a window came from."""
    return [float(row[0]) for row in window.fields[XYZ]]


def moment(number: int) -> dict[str, Any]:
    return {**made_up(number), XYZ: [float(number), 0.0, 0.0]}


def test_before_the_first_moment_everything_looks_like_it(windows: Shown) -> None:
    policy, shown = windows
    policy.act(moment(1))
    window = shown[0]
    assert numbers(window) == [1, 1]
    np.testing.assert_array_equal(window.images[:2], window.images[2:])
    assert window.past_actions is None


def test_moment_that_was_not_shown_looks_like_the_next(windows: Shown) -> None:
    policy, shown = windows
    policy.act(moment(1))
    policy.act(moment(4), executed=3)
    assert numbers(shown[1]) == [4, 4]


def test_moment_that_was_shown_is_remembered(windows: Shown) -> None:
    policy, shown = windows
    policy.act(moment(1))
    policy.observe(moment(2), executed=1)
    policy.act(moment(3))
    assert numbers(shown[1]) == [2, 3]
    np.testing.assert_array_equal(shown[1].images[0], moment(2)[CAMERAS[0]])


def test_camera_may_fill_the_same_buffer_again(windows: Shown) -> None:
    policy, shown = windows
    first, second = moment(1), moment(2)
    before = first[CAMERAS[0]].copy()
    policy.act(first)
    first[CAMERAS[0]][:] = second[CAMERAS[0]]
    policy.act({**second, CAMERAS[0]: first[CAMERAS[0]]})
    np.testing.assert_array_equal(shown[1].images[0], before)


@pytest.mark.parametrize("executed", [1, 2, 7])
def test_past_action_is_the_last_that_was_carried_out(executed: int, windows: Shown) -> None:
    policy, shown = windows
    plan = policy.act(moment(1))
    policy.act(moment(2), executed=executed)
    known = shown[1].past_actions
    assert known is not None
    np.testing.assert_array_equal(known[HAND_COMMAND], plan[HAND_COMMAND][executed - 1][None])
    from_here = plan[XYZ_COMMAND][executed - 1] - [2.0, 0.0, 0.0]
    turned = from_here * [1.0, -1.0, -1.0]
    np.testing.assert_allclose(known[f"{XYZ_COMMAND}_relative"][0], turned, atol=1e-12)


def test_steps_of_see_and_act_add_up(windows: Shown) -> None:
    policy, shown = windows
    plan = policy.act(moment(1))
    policy.observe(moment(2), executed=2)
    policy.act(moment(3), executed=3)
    known = shown[1].past_actions
    assert known is not None
    np.testing.assert_array_equal(known[HAND_COMMAND], plan[HAND_COMMAND][4][None])


def test_plan_that_the_caller_changes_is_remembered_as_it_was(windows: Shown) -> None:
    policy, shown = windows
    plan = policy.act(moment(1))
    wanted = plan[HAND_COMMAND][0].copy()
    plan[HAND_COMMAND][:] = 99
    policy.act(moment(2))
    known = shown[1].past_actions
    assert known is not None
    np.testing.assert_array_equal(known[HAND_COMMAND][0], wanted)


def test_reset_forgets_and_repeats(policy: PolicyRunner) -> None:
    first = [policy.act(moment(n)) for n in range(3)]
    policy.reset()
    again = [policy.act(moment(n)) for n in range(3)]
    for one, other in zip(first, again, strict=True):
        assert_equal(one, other)
    policy.reset(seed=SEED + 1)
    assert not np.array_equal(policy.act(moment(0))[HAND_COMMAND], first[0][HAND_COMMAND])


def test_refused_moment_leaves_no_trace(policy: PolicyRunner) -> None:
    policy.act(moment(0))
    wanted = policy.act(moment(1))
    policy.reset()
    policy.act(moment(0))
    with pytest.raises(VlatoolError):
        policy.act({**moment(2), CAMERAS[1]: np.zeros((64, 64, 3))})
    assert_equal(policy.act(moment(1)), wanted)


# pictures


def test_image_gets_the_size_of_the_training_data(windows: Shown) -> None:
    """A smooth picture twice as large and cut wider gives nearly the same."""
    policy, shown = windows
    rows, columns = np.mgrid[0:64, 0:64]
    small = np.stack([4 * rows, 4 * columns, rows + columns], -1).astype(np.uint8)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    wide = np.pad(large, ((0, 0), (32, 32), (0, 0)))
    policy.act({**moment(1), CAMERAS[0]: wide, CAMERAS[1]: small})
    images = shown[0].images
    assert images.shape == (4, 64, 64, 3)
    np.testing.assert_array_equal(images[1], small)
    inner = np.s_[4:-4, 4:-4]
    np.testing.assert_allclose(images[0][inner].astype(int), small[inner].astype(int), atol=4)


def test_another_size_is_told_once_per_camera(
    policy: PolicyRunner, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        policy.act({**made_up(number, (96, 80)), CAMERAS[1]: made_up(number)[CAMERAS[1]]})
    policy.reset()
    policy.act(made_up(0, (96, 80)))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert all(camera in text for camera, text in zip(CAMERAS, told, strict=True))
    assert all("80 x 96" in text and "64 x 64" in text for text in told)


def changed_options(run: Path, target: Path, **options: Any) -> Path:
    """A copy of a run whose data were made with other options."""
    shutil.copytree(run, target)
    write_preprocessing_config(target, {**read_preprocessing_config(run), **options})
    return target


def test_image_is_turned_as_its_recordings_were(run: Path, tmp_path: Path) -> None:
    turned = changed_options(run, tmp_path / "run", camera_rotations={CAMERAS[0]: 2})
    policy = vlatool.load_policy(turned, seed=SEED)
    upright = vlatool.load_policy(run, seed=SEED)
    given = made_up(0)
    flipped = {**given, CAMERAS[0]: given[CAMERAS[0]][::-1, ::-1]}
    assert_equal(policy.act(given), upright.act(flipped))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"resize_images_size": [48, 32]}, (32, 48)),  # written as width, height
        ({"image_size": [32, 48]}, (32, 48)),
        ({"image_size": None}, None),  # a run of an earlier version
    ],
)
def test_size_of_images_comes_from_what_the_run_kept(
    options: dict[str, Any], size: tuple[int, int] | None, run: Path, tmp_path: Path
) -> None:
    changed = changed_options(run, tmp_path / "run", **options)
    assert load_trained(str(changed), "auto").assets.images.size == size


@pytest.mark.parametrize(
    "options",
    [
        {"image_resizing_filter": "thumb"},
        {"image_resizing_method": "stretch"},
        {"image_size": 64},
        {"resize_images_size": "large"},
        {"camera_rotations": [1]},
        {"camera_rotations": {"front": "left"}},
        {"pose_groups": [{"colour": "red"}]},
        {"fps": "fast"},
    ],
)
def test_options_that_no_preprocessing_writes_are_refused(
    options: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    with pytest.raises(VlatoolError) as caught:
        vlatool.load_policy(changed_options(run, tmp_path / "run", **options))
    assert (caught.value.code, caught.value.exit_code) == ("data.broken_config", 3)


def test_images_of_two_sizes_are_refused_where_none_is_known(run: Path, tmp_path: Path) -> None:
    policy = vlatool.load_policy(changed_options(run, tmp_path / "run", image_size=None))
    policy.act(made_up(0, (32, 48)))
    for wrong in (made_up(1), {**made_up(1, (32, 48)), CAMERAS[1]: made_up(1)[CAMERAS[1]]}):
        with pytest.raises(VlatoolError) as caught:
            policy.act(wrong)
        assert caught.value.code == "data.image_sizes_differ"
    policy.act(made_up(1, (32, 48)))


# what it refuses


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda given: {key: value for key, value in given.items() if key != name}


def with_(name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda given: {**given, name: value}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (without(CAMERAS[1]), "data.missing_observation"),
        (without(ROT), "data.missing_observation"),
        (without("instruction"), "data.missing_observation"),
        (with_("scene_rigth_0", 1), "data.unknown_observation"),
        (with_("instruction", b"sing"), "data.no_instruction"),
        (with_(CAMERAS[0], np.zeros((64, 64, 3))), "data.no_picture"),
        (with_(CAMERAS[0], np.zeros((3, 64, 64), np.uint8)), "data.no_picture"),
        (with_(CAMERAS[0], np.zeros((64, 64, 4), np.uint8)), "data.no_picture"),
        (with_(CAMERAS[0], np.zeros((0, 64, 3), np.uint8)), "data.no_picture"),
        (with_(CAMERAS[0], "front.png"), "data.no_picture"),
        (with_(XYZ, [1.0, 2.0]), "data.field_shape"),
        (with_(XYZ, [[1.0, 2.0, 3.0]]), "data.field_shape"),
        (with_(XYZ, "up"), "data.field_shape"),
        (with_(XYZ, [1.0, float("nan"), 3.0]), "data.field_not_finite"),
        (with_(XYZ, None), "data.field_shape"),
        (with_(XYZ, {"x": 1.0}), "data.field_shape"),
        (with_(XYZ, [True, False, True]), "data.field_shape"),
        (with_(XYZ, [[1.0], [2.0, 3.0]]), "data.no_array"),
        (with_(XYZ, torch.zeros(3, requires_grad=True)), "data.no_array"),
        (with_(CAMERAS[0], None), "data.no_picture"),
        (with_(CAMERAS[0], [[1], [2, 3]]), "data.no_array"),
        (with_("instruction", None), "data.no_instruction"),
        (lambda given: {**given, 3: 1}, "data.unknown_observation"),
        (lambda _: None, "data.no_observation"),
        (lambda given: list(given.items()), "data.no_observation"),
        (lambda _: "front", "data.no_observation"),
    ],
)
def test_observation_that_cannot_be_one_is_refused(
    change: Callable[[dict[str, Any]], Any], code: str, policy: PolicyRunner
) -> None:
    with pytest.raises(VlatoolError) as caught:
        policy.act(change(made_up(0)))
    assert (caught.value.code, caught.value.exit_code) == (code, 3)


def test_misspelt_camera_gets_the_nearest_name(policy: PolicyRunner) -> None:
    with pytest.raises(VlatoolError) as caught:
        policy.act({**made_up(0), "scene_rigth_0": 1})
    assert "scene_right_0" in (caught.value.hint or "")


@pytest.mark.parametrize("executed", [0, 8, "1", 1.5, None, True])
def test_steps_that_the_plan_has_not_are_refused(executed: Any, policy: PolicyRunner) -> None:
    policy.act(made_up(0))
    with pytest.raises(VlatoolError) as caught:
        policy.act(made_up(1), executed=executed)
    assert (caught.value.code, caught.value.exit_code) == ("usage.executed_steps", 2)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"weights": "best"}, "usage.bad_value"),
        ({"weights": None}, "usage.bad_value"),
        ({"inference_steps": 0}, "usage.bad_value"),
        ({"inference_steps": "8"}, "usage.bad_value"),
        ({"inference_steps": 2.5}, "usage.bad_value"),
        ({"seed": "x"}, "usage.bad_value"),
        ({"seed": -1}, "usage.bad_value"),
        ({"seed": 2**64}, "usage.bad_value"),
        ({"checkpoint": 5}, "usage.bad_value"),
        ({"checkpoint": None}, "usage.bad_value"),
        ({"checkpoint": "nowhere"}, "data.no_checkpoint"),
        ({"checkpoint": ""}, "usage.missing_key"),
    ],
)
def test_checkpoint_that_cannot_be_loaded_is_refused(
    keys: dict[str, Any], code: str, run: Path
) -> None:
    with pytest.raises(VlatoolError) as caught:
        vlatool.load_policy(**{"checkpoint": run, **keys})
    assert caught.value.code == code


@pytest.mark.parametrize("seed", ["x", 1.5, -1, [1]])
def test_seed_that_is_none_leaves_the_policy_as_it_was(seed: Any, policy: PolicyRunner) -> None:
    policy.act(made_up(0))
    with pytest.raises(VlatoolError) as caught:
        policy.reset(seed=seed)
    assert (caught.value.code, caught.value.exit_code) == ("usage.bad_value", 2)
    policy.act(made_up(1), executed=2)
