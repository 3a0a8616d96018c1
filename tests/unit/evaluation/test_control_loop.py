"""Control loop: what a policy is shown, and which commands of its plans are executed."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import vlatool
from tests.builders.errors import fails
from tests.builders.serving import LookPolicy, local, look, served
from tests.builders.training import (
    ARM,
    CAMERAS,
    HAND,
    HAND_COMMAND,
    ROT,
    XYZ,
    XYZ_COMMAND,
    tiny_config,
)
from vlatool.config import resolve
from vlatool.episode import Array, CameraView, Episode, Observation, ObservationSpec
from vlatool.errors import ConfigError
from vlatool.evaluation.config import ActionMap, FieldMap, GripperConfig, RolloutConfig
from vlatool.evaluation.control import ChunkJoiner, EpisodeControl, Gripper, ImageSizes, RobotState
from vlatool.evaluation.controllers import PolicyController, control_options
from vlatool.evaluation.environments import LocalEnvironments
from vlatool.evaluation.recorded import replay
from vlatool.evaluation.rollouts import RolloutPlan, RolloutProgress, Rollouts, run_rollouts
from vlatool.events import NullProgress
from vlatool.loading.robotics.kind import RoboticsKind
from vlatool.media.images import decode_rgb, encode_jpeg
from vlatool.models.base import Policy
from vlatool.models.diffusion_policy.batch import PolicyBatcher
from vlatool.models.policy import RoboticsPolicy, example_observation
from vlatool.recordings.detect import detect_source
from vlatool.workflows.preprocess import PreprocessConfig, preprocess
from vlatool.workflows.sample import SampleConfig, sample

FRAMES, HORIZON = 9, 6
ROT_COMMAND = f"robot__action__poses__{ARM}__rot_6d"
# The measured pose relative to itself at the current step, and the command relative to it.
POSES = [
    {"name": "seen", "position_key": XYZ, "rotation_key": ROT},
    {"name": "moved", "position_key": XYZ_COMMAND, "rotation_key": ROT_COMMAND},
]
MOVE, HELD = "robot__action__x", "robot__actual__x"


# what the policy is shown


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "raw"
    keys = {"layout": "spartan", "episodes": 2, "frames": FRAMES, "workers": 1}
    sample(SampleConfig(output=str(folder), **keys))
    return folder


def options_of(seed: int) -> dict[str, Any]:
    """Random options that shape the input of a policy."""
    rng = np.random.default_rng(seed)
    past = int(rng.integers(0, 4))
    offsets = sorted({0, *(-int(step) for step in rng.integers(0, past + 1, 2))})
    return {
        "past_lowdim_steps": past,
        "image_indices": offsets,
        "resize_images_size": [None, [48, 40], [80, 96]][int(rng.integers(3))],
        "camera_rotations": {CAMERAS[0]: int(rng.integers(4))},
        "camera_names": CAMERAS[: int(rng.integers(1, 3))],
        **({"pose_groups": POSES} if seed % 2 else {}),
    }


@pytest.mark.parametrize("seed", range(4))
def test_replayed_episode_shows_the_policy_the_tensors_of_training(
    seed: int, raw: Path, tmp_path: Path
) -> None:
    options = options_of(seed)
    shown: list[Mapping[str, Any]] = []
    policy, trained = policy_and_samples(raw, tmp_path, options, shown)
    sizes = ImageSizes(policy.sees, print)
    source = detect_source(raw, None)
    for ref in source.refs:
        episode = source.reader.read(ref)
        widths = {name: episode.lowdim[name].shape[1] for name in policy.sees.fields}
        assert policy.sees.fields == widths
        for frame, observation in enumerate(observations(episode, policy)):
            again, _ = replay(episode, frame, policy, sizes).observation(observation.instruction)
            policy.act([observation, again], seeds=[0, 0])
            for row in range(2):
                assert_same(shown[-1], row, trained[episode.id, frame], options)
    assert len(shown) == len(trained)


def observations(episode: Episode, policy: RoboticsPolicy) -> Iterator[Observation]:
    """Input of the policy at each frame, if it executes the recorded actions."""
    control = EpisodeControl(policy, 0, ImageSizes(policy.sees, lambda _: None))
    images = {name: episode.cameras[name].read(range(FRAMES)) for name in policy.sees.cameras}
    for frame in range(FRAMES):
        fields = {name: episode.lowdim[name][frame] for name in policy.sees.fields}
        control.observe(RobotState({name: rows[frame] for name, rows in images.items()}, fields))
        yield control.observation(episode.language["original"][0])[0]
        recorded = {name: episode.lowdim[name][frame : frame + 1] for name in policy.actions}
        control.begin(recorded)
        control.execute()


def policy_and_samples(
    raw: Path, root: Path, options: Mapping[str, Any], shown: list[Mapping[str, Any]]
) -> tuple[RoboticsPolicy, dict[tuple[str, int], Mapping[str, Any]]]:
    """A policy that adds its batches to `shown`; batches of training by episode and frame."""
    tree: dict[str, Any] = {"format": "spartan", "sources": [str(raw)], "sink": "lbm"}
    tree |= {"output": str(root / "data"), "workers": 1}
    stored = {key: value for key, value in options.items() if key != "max_delay"}
    tree |= {"future_lowdim_steps": 2, "max_padding_left": 3, "max_padding_right": 2, **stored}
    preprocess(resolve.config_of(PreprocessConfig, tree))
    keys = {"data__image_indices": options["image_indices"]}
    keys["data__max_delay"] = options.get("max_delay", 0)
    if "pose_groups" in options:
        keys["data__proprioception_fields"] = f"{HAND},{XYZ}_relative,{ROT}_relative"
    config: Any = tiny_config(root / "data", root / "run", **keys)
    kind = RoboticsKind()
    info = kind.load_info(config.data)
    data, _ = kind.derive(config.data, info)
    (root / "run").mkdir()
    kind.save_assets(data, info, root / "run")
    assets = kind.load_assets(data, root / "run")
    batcher = PolicyBatcher(config.model, data, assets.normalizer)
    whole = vlatool.open_dataset(root / "data", raw=True, image_indices=options["image_indices"],
                                 proprioception_fields=data.proprioception_fields,
                                 action_fields=data.action_fields)  # fmt: skip
    rows = [whole[number] for number in range(len(whole))]
    frames = [(row.metadata["episode_id"], row.metadata["anchor_timestep"]) for row in rows]

    def sampler(batch: Mapping[str, Any], **_: Any) -> torch.Tensor:
        shown.append(batch)
        return torch.zeros_like(batch["actions"])

    policy = RoboticsPolicy(sampler, batcher, assets)
    return policy, dict(zip(frames, (batcher([row]) for row in rows), strict=True))


def assert_same(
    batch: Mapping[str, Any], row: int, trained: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """A row of a batch equals the batch of one sample, whose images were stored as JPEG."""
    assert (batch["past_mask"][row] == trained["past_mask"][0]).all()
    for name in ("text", "proprioception"):
        np.testing.assert_array_equal(batch[name][row], trained[name][0])
    past = trained["past_mask"][0]
    np.testing.assert_array_equal(batch["actions"][row][past], trained["actions"][0][past])
    images = batch["images"][row].permute(0, 2, 3, 1).numpy()
    stored = np.stack([decode_rgb(encode_jpeg(image, 95)) for image in images])
    np.testing.assert_array_equal(stored, trained["images"][0].permute(0, 2, 3, 1))


class NumberedEnv(gymnasium.Env[dict[str, Any], Array]):
    """Images show the number of the observation, from 1; black ones are not drawn."""

    observation_space = spaces.Dict({"front": spaces.Box(0, 255, (4, 6, 3), np.uint8)})
    action_space: Any = spaces.Box(-1.0, 1.0, (1,), np.float64)
    draws_images = True

    def __init__(self) -> None:
        self.drawn: list[int] = []
        self.number = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.observed(), {}

    def step(self, action: Array) -> Any:
        return self.observed(), 0.0, False, False, {}

    def observed(self) -> dict[str, Any]:
        self.number += 1
        if self.draws_images:
            self.drawn.append(self.number)
        return {"front": np.full((4, 6, 3), self.number if self.draws_images else 0, np.uint8)}


class PastPolicy(Policy):
    """Sees the present image and the one before."""

    sees = ObservationSpec({"front": CameraView((-1, 0), (4, 6))}, instruction=False)
    actions: ClassVar[Mapping[str, int]] = {MOVE: 1}
    fps, horizon = 10.0, HORIZON

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        self.seen += [row.images["front"][:, 0, 0, 0].tolist() for row in observations]
        return {MOVE: np.zeros((len(observations), HORIZON, 1))}


def test_an_environment_draws_only_images_that_a_plan_sees() -> None:
    policy, world = PastPolicy(), NumberedEnv()
    config = RolloutConfig(action=[ActionMap(field=MOVE)], execute_steps=4, batch_size=1)
    plan = RolloutPlan([0], lambda *_: "", "success", max_steps=9)
    with LocalEnvironments() as environments:
        env = environments.info(lambda: world)
        rollouts = Rollouts(
            environments,
            env,
            lambda _: PolicyController(policy, config, ImageSizes(policy.sees, print)),
            plan,
            RolloutProgress(NullProgress()),
        )
        run_rollouts(rollouts)
    assert policy.seen == [[1, 1], [4, 5], [8, 9]]
    assert world.drawn == [1, 4, 5, 8, 9]


# which commands are executed


class CountingPolicy(Policy):
    """Row j of the plan for the observation t is 100 t + j, in both fields."""

    sees = ObservationSpec(fields={HELD: 1}, past=1, instruction=False)
    actions: ClassVar[Mapping[str, int]] = {MOVE: 1}
    fps, horizon = 10.0, HORIZON

    def __init__(self) -> None:
        self.past: list[float | None] = []

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        for row in observations:
            past = row.past_actions
            self.past.append(None if past is None else float(past[MOVE][-1, 0]))
        seen = np.array([row.fields[HELD][-1, 0] for row in observations])
        return {MOVE: (100 * seen[:, None] + np.arange(HORIZON))[..., None]}


def config_of(**keys: Any) -> RolloutConfig:
    mapping = {"fields": {HELD: FieldMap(key="t")}, "action": [ActionMap(field=MOVE)]}
    return RolloutConfig(**{**mapping, "batch_size": 1, **keys})


def executed(steps: int, first: float = 0, policy: Any = None, **keys: Any) -> list[float]:
    """Commands of the first steps; the observation is the number of the step, from `first`."""
    policy = policy or CountingPolicy()
    controller = PolicyController(policy, config_of(**keys), ImageSizes(policy.sees, print))
    seen = (first + np.arange(steps))[:, None]
    return [float(controller.act({0: {"t": row}}, {0: ""})[0][0]) for row in seen]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"execute_steps": 1}, [0, 100, 200]),
        ({"execute_steps": 3}, [0, 1, 2, 300, 301, 302, 600]),
        ({"execute_steps": 6}, [0, 1, 2, 3, 4, 5, 600, 601]),
        ({"execute_steps": 3, "delay_steps": 2}, [0, 1, 2, 3, 4, 302, 303, 304, 602, 603]),
        ({"execute_steps": 2, "delay_steps": 2}, [0, 1, 2, 3, 202, 203, 402, 403]),
        ({"execute_steps": 5, "delay_steps": 1}, [0, 1, 2, 3, 4, 5, 501, 502, 503, 504, 505, 1001]),
    ],
)
def test_a_plan_is_made_every_k_steps_and_takes_effect_after_the_delay(
    keys: Mapping[str, int], expected: list[float]
) -> None:
    assert executed(len(expected), **keys) == expected


@pytest.mark.parametrize(
    ("steps", "planned_at", "lasts"),
    [(1, [0, 1, 2, 3], 1), (2, [1, 2, 3, 4], 1), (4, [3, 6, 9, 12], 3), (6, [5, 10, 15], 5)],
)
def test_the_published_schedule_holds_and_executes_one_step_less(
    steps: int, planned_at: list[int], lasts: int
) -> None:
    # Source: reference/policy 4.1
    held = [7.0] * planned_at[0]
    plans = [100.0 * (7 + step) + row for step in planned_at for row in range(lasts)]
    expected = held + plans
    assert executed(len(expected), first=7, execute_steps=steps, compat=True) == expected


def test_the_history_has_the_executed_commands_or_as_published_those_before_grippers() -> None:
    keys = {"execute_steps": 6, "grippers": [GripperConfig(field=MOVE, closed=0, opened=1000)]}
    ours, published = CountingPolicy(), CountingPolicy()
    assert executed(7, first=9, policy=ours, **keys)[:6] == [1000] * 6
    assert ours.past == [None, 1000]
    assert executed(6, first=9, policy=published, **keys, compat=True)[:5] == [0] * 5
    assert published.past == [9]


def test_an_ensemble_is_the_weighted_mean_of_the_plans_of_a_step() -> None:
    decay = 0.5
    values = executed(4, execute_steps=2, ensemble_decay=decay)
    weights = np.exp(-decay * np.arange(2))
    mixed = [np.dot(weights, pair) / weights.sum() for pair in ([2, 200], [3, 201])]
    np.testing.assert_allclose(values, [0, 1, *mixed])
    # Every plan of six steps counts, the oldest first.
    values = executed(7, execute_steps=1, ensemble_decay=decay)
    weights = np.exp(-decay * np.arange(6))
    plans = [100 * seen + 6 - seen for seen in range(1, 7)]
    np.testing.assert_allclose(values[6], np.dot(weights, plans) / weights.sum())


@pytest.mark.parametrize(
    ("values", "measured", "expected"),
    [
        ([0.5, 0.59, 0.61, 0.5, 0.41, 0.39, 0.5], None, "ccooocc"),
        ([0.5, 0.5], 0.6, "oo"),
        ([0.5, 0.5], 0.4, "cc"),
        ([0.7, 0.3, 0.7], 0.0, "oco"),
    ],
)
@pytest.mark.parametrize(("closed", "opened"), [(0.0, 1.0), (0.1, -0.1)])
def test_a_gripper_changes_at_its_thresholds(
    values: list[float], measured: float | None, expected: str, closed: float, opened: float
) -> None:
    # Source: reference/policy 4.1
    def scaled(share: float) -> float:
        return closed + share * (opened - closed)

    chunks = ChunkJoiner([Gripper(MOVE, 0, closed, opened, 0.4, 0.6)])
    chunks.start({} if measured is None else {HELD: np.array([scaled(measured)])})
    chunks.join({MOVE: np.array([[scaled(value)] for value in values])}, 0, 0)
    commands = chunks.commands[MOVE][:, 0]
    assert commands.tolist() == [opened if letter == "o" else closed for letter in expected]


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_the_state_of_a_gripper_lasts_from_plan_to_plan(delay: int) -> None:
    chunks = ChunkJoiner([Gripper(MOVE, 0, 0.0, 1.0, 0.4, 0.6)])
    chunks.join({MOVE: np.array([[0.9], [0.5], [0.1], [0.1]])}, 0, 0)
    chunks.join({MOVE: np.full((4, 1), 0.5)}, 1, delay)
    assert chunks.commands[MOVE][:, 0].tolist() == ([1, 0, 0, 0] if delay == 2 else [1, 1, 1, 1])
    assert chunks.planned[MOVE][:delay, 0].tolist() == [0.5, 0.1][:delay]


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"execute_steps": 6, "delay_steps": 4}, "usage.bad_value"),  # more than a chunk
    ({"execute_steps": 1, "delay_steps": 2}, "usage.bad_value"),
    ({"delay_steps": HORIZON}, "usage.bad_value"),
    ({"execute_steps": HORIZON + 1}, "usage.bad_value"),
    ({"grippers": [GripperConfig(field="robot")]}, "data.unknown_field"),
    ({"grippers": [GripperConfig(field=MOVE, dimension=1)]}, "data.unknown_field"),
    ({"grippers": [GripperConfig(field=MOVE, closed=0)]}, "data.unknown_field"),
    (
        {"grippers": [GripperConfig(field=MOVE, closed=1, opened=1)]},
        "data.contradicted_declaration",
    ),
]


@pytest.mark.parametrize(("keys", "code"), BAD_OPTIONS)
def test_options_that_do_not_fit_the_policy_are_errors(keys: dict[str, Any], code: str) -> None:
    with fails(code):
        executed(1, **keys)


class Unmeasured(CountingPolicy):
    """Policy with an action that is not measured."""

    actions: ClassVar[Mapping[str, int]] = {"push": 1}


def test_the_published_schedule_needs_measured_values_and_has_no_delay() -> None:
    with fails("data.unknown_field"):
        executed(1, policy=Unmeasured(), compat=True, action=[ActionMap(field="push")])
    with pytest.raises((ConfigError, ValueError), match="published schedule"):
        config_of(compat=True, delay_steps=1)


# a loop for robots


LOOK = RolloutConfig(
    fields={"pose": FieldMap(key="pose")},
    action=[ActionMap(field="move"), ActionMap(field="grip")],
    batch_size=1,
)


@pytest.mark.parametrize(("steps", "delay"), [(1, 0), (4, 0), (2, 2), (3, 2), (3, 1)])
def test_a_loop_for_robots_commands_what_a_rollout_does(steps: int, delay: int) -> None:
    policy: Any = LookPolicy()
    config = LOOK.model_copy(update={"execute_steps": steps, "delay_steps": delay})
    keys = {"execute_steps": steps, "delay_steps": delay}
    with served(LookPolicy()) as url, vlatool.connect(url) as remote:
        for planner in (local(LookPolicy()), remote):
            controller = PolicyController(policy, config, ImageSizes(policy.sees, print))
            with vlatool.ControlLoop(planner, **keys) as loop:
                for number in range(11):
                    expected = controller.act({0: look(number)}, {0: "sing"})[0]
                    commands = loop.step(look(number))
                    actual = np.concatenate([commands["move"], commands["grip"]])
                    np.testing.assert_array_equal(actual, expected)


def test_commands_do_not_depend_on_the_time_that_the_policy_takes() -> None:
    results: list[list[Any]] = []
    for is_slow in (False, True):
        policy, commands, observation = LookPolicy(), [], look(0)
        with vlatool.ControlLoop(local(policy), execute_steps=3, delay_steps=2) as loop:
            for number in range(9):
                if is_slow and number == 3:
                    policy.hold.clear()
                if is_slow and number == 5:  # nobody waited before
                    threading.Timer(0.05, policy.hold.set).start()
                for name in ("front", "pose"):  # cameras write into the same array
                    observation[name][:] = look(number)[name]
                commands.append(loop.step(observation)["move"])
            assert len(policy.sizes) == 3
            assert loop.num_late >= is_slow
        results.append(commands)
    np.testing.assert_array_equal(results[0], results[1])


def test_the_error_of_a_plan_comes_when_it_is_due_and_a_reset_starts_again() -> None:
    policy = LookPolicy()
    with vlatool.ControlLoop(local(policy), execute_steps=2, delay_steps=1) as loop:
        first = loop.step(look(0))
        loop.step(look(1))
        loop.step({**look(2), "pose": np.array([13.0, 0.0])})
        with pytest.raises(RuntimeError, match="the wrong number"):
            loop.step(look(3))
        loop.reset()
        np.testing.assert_array_equal(loop.step(look(0))["move"], first["move"])


def test_after_the_error_of_a_plan_the_loop_goes_on_without_a_reset() -> None:
    policy = LookPolicy()
    with vlatool.ControlLoop(local(policy), execute_steps=3, delay_steps=2) as loop:
        for number in range(3):
            loop.step(look(number))
        loop.step({**look(3), "pose": np.array([13.0, 0.0])})
        loop.step(look(4))
        with pytest.raises(RuntimeError, match="the wrong number"):
            loop.step(look(5))
        for number in range(6, 24):
            assert set(loop.step(look(number))) >= {"move"}


def test_commands_stay_within_the_range_and_the_speed_and_are_counted() -> None:
    limits = {"move": {"low": [-1.0, -np.inf], "high": 1.0, "speed": [np.inf, 2.0]}}
    free: list[Array] = []
    limited: list[Array] = []
    for commands, given in ((free, {}), (limited, limits)):
        with vlatool.ControlLoop(local(LookPolicy()), execute_steps=3, limits=given) as loop:
            for number in range(9):
                commands.append(loop.step(look(number))["move"])
            counts = dict(loop.num_limited)
    within = np.clip(np.stack(free)[:, 0], -1, 1)
    np.testing.assert_array_equal(np.stack(limited)[:, 0], within)
    steps = np.abs(np.diff(np.stack(limited)[:, 1]))
    assert steps.max() == pytest.approx(2.0 / LookPolicy.fps)
    assert counts["move.0 range"] == int((within != np.stack(free)[:, 0]).sum())
    assert counts["move.1 speed"] > 0


def test_the_first_command_moves_at_the_speed_from_where_the_robot_is() -> None:
    limits = {"grip": {"speed": 1.0}}
    with vlatool.ControlLoop(local(LookPolicy()), limits=limits) as loop:
        loop.reset(command={"grip": [500.0]})
        assert abs(loop.step(look(0))["grip"][0] - 500.0) == pytest.approx(1 / LookPolicy.fps)


@pytest.mark.parametrize(
    "keys",
    [
        {"execute_steps": 0},
        {"execute_steps": 6},
        {"execute_steps": 2, "delay_steps": 3},
        {"execute_steps": 4, "delay_steps": 2},
        {"execute_steps": 2, "delay_steps": -1},
        {"max_age_s": 0},
        {"max_age_s": float("nan")},
    ],
)
def test_a_loop_needs_chunks_that_are_long_enough_and_a_deadline_above_0(
    keys: dict[str, Any],
) -> None:
    with fails("usage.bad_value"):
        vlatool.ControlLoop(local(LookPolicy()), **keys)


@pytest.mark.parametrize(
    ("field", "limit", "problem"),
    [
        ("mov", {"low": 0}, "no action 'mov'"),
        ("move", {"low": [0, 1, 2]}, "not 2 numbers"),
        ("move", {"high": [0, np.nan]}, "has NaN"),
        ("move", {"low": 2, "high": 1}, "low is above high"),
        ("move", {"speed": 0}, "not positive"),
        ("move", {"speed": "fast"}, "not a number"),
        ("move", {"max": 1}, "no key 'max'"),
    ],
)
def test_a_limit_that_cannot_be_used_is_named(
    field: str, limit: dict[str, Any], problem: str
) -> None:
    with fails("usage.bad_value") as caught:
        vlatool.ControlLoop(local(LookPolicy()), limits={field: limit})
    assert problem in caught.value.message


@pytest.mark.parametrize(
    "command", [{"mov": 0}, {"move": [1, 2, 3]}, {"move": [0, np.nan]}, {"grip": "open"}]
)
def test_a_place_of_the_robot_that_cannot_be_used_is_an_error(command: dict[str, Any]) -> None:
    with vlatool.ControlLoop(local(LookPolicy()), limits={"move": {"speed": 1}}) as loop:
        with fails("usage.bad_value"):
            loop.reset(command=command)
        assert np.isfinite(loop.step(look(0))["move"]).all()


@pytest.mark.parametrize("delay", [0, 1])
def test_a_plan_that_is_late_is_an_error_and_a_reset_goes_on(delay: int) -> None:
    policy = LookPolicy()
    keys = {"execute_steps": 2, "delay_steps": delay, "max_plan_s": 0.05}
    with vlatool.ControlLoop(local(policy), **keys) as loop:
        first = loop.step(look(0))
        policy.hold.clear()
        with fails("environment.policy_failed"):
            for number in range(1, 5):
                loop.step(look(number))
        policy.hold.set()
        loop.reset()
        np.testing.assert_array_equal(loop.step(look(0))["move"], first["move"])


def test_a_command_from_an_old_observation_is_an_error() -> None:
    with vlatool.ControlLoop(local(LookPolicy()), max_age_s=0.05) as loop:
        loop.step(look(0))
        time.sleep(0.06)
        with fails("environment.policy_failed"):
            loop.step(look(1))


# seams


class SeamPolicy(LookPolicy):
    """Notes the commands that it is told to continue."""

    def __init__(self) -> None:
        super().__init__()
        self.committed: list[tuple[int, Mapping[str, Array] | None]] = []

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        self.committed += [(row.delay, row.committed) for row in observations]
        return super().act(observations, seeds=seeds)


def test_a_policy_is_told_the_commands_that_the_robot_executes_meanwhile() -> None:
    policy = SeamPolicy()
    with vlatool.ControlLoop(local(policy), execute_steps=2, delay_steps=1) as loop:
        commands = [loop.step(look(number)) for number in range(4)]
    assert policy.committed[0] == (0, None)
    delay, committed = policy.committed[1]
    assert delay == 1
    assert committed is not None
    assert committed["move"].shape == (LookPolicy.horizon - 2, 2)
    np.testing.assert_array_equal(committed["move"][0], commands[2]["move"])


def test_without_a_delay_a_policy_is_told_no_command() -> None:
    policy = SeamPolicy()
    with vlatool.ControlLoop(local(policy), execute_steps=2) as loop:
        for number in range(4):
            loop.step(look(number))
    assert policy.committed == [(0, None), (0, None)]


def delayed(observation: Observation, delay: int) -> Observation:
    """The observation with commands of a chunk that is being executed."""
    committed = {XYZ_COMMAND: np.full((3, 3), 0.1), HAND_COMMAND: np.full((3, 1), 0.05)}
    return replace(observation, committed=committed, delay=delay)


@pytest.mark.parametrize(("max_delay", "key"), [(0, "guidance"), (2, "given")])
def test_a_network_gets_the_commands_to_continue_and_other_rows_stay_as_they_are(
    max_delay: int, key: str, raw: Path, tmp_path: Path
) -> None:
    shown: list[Mapping[str, Any]] = []
    options = {"past_lowdim_steps": 1, "image_indices": [0], "max_delay": max_delay}
    policy, _ = policy_and_samples(raw, tmp_path, options, shown)
    plain = example_observation(policy.sees, np.random.default_rng(0))
    shown.clear()
    policy.act([plain, delayed(plain, 2)], seeds=[1, 2])
    alone, continued = shown
    assert key not in alone
    assert alone["past_mask"].sum() == 0
    steps = continued[key][0].float()
    assert steps[:3].tolist() == [0, 1, 1]
    assert bool(0 < steps[3] < 1) == (key == "guidance")
    assert torch.equal(continued["past_mask"], alone["past_mask"])


def test_a_file_without_a_mapping_sets_the_control_of_a_server(tmp_path: Path) -> None:
    map_ = tmp_path / "control.yaml"
    map_.write_text("grippers: [{field: grip, closed: 0, opened: 50}]\nensemble_decay: 0.1\n")
    policy: Any = LookPolicy()
    options = control_options(
        RolloutConfig(grippers=[GripperConfig(field="grip", closed=0, opened=50)],
                      ensemble_decay=0.1), policy)  # fmt: skip
    runner = local(policy, options=options)
    with served(policy, map=str(map_)) as url, vlatool.connect(url) as remote:
        for number in (20, 3, 20):
            actual, expected = remote.act(look(number)), runner.act(look(number))
            np.testing.assert_array_equal(actual["grip"], expected["grip"])
            np.testing.assert_array_equal(actual["move"], expected["move"])
            assert set(np.unique(actual["grip"])) <= {0.0, 50.0}
