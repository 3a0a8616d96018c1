"""Closed-loop rollouts in Gymnasium environments, several of them in lockstep."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np

from vlatool.artifacts.video import VideoEncoder
from vlatool.episode import UInt8Array
from vlatool.evaluation.controllers import Controller, check_action_shape
from vlatool.evaluation.env_processes import (
    Call,
    EnvInfo,
    Environments,
    EnvObservation,
    Reply,
    Start,
)
from vlatool.events import Progress

_VIDEO_CRF, _VIDEO_KEYFRAME_INTERVAL = 23, 20
_DEFAULT_FPS = 10.0

_log = logging.getLogger(__name__)


@dataclass
class Rollout:
    """Rollout of one episode."""

    seed: int  # seed of the initial state
    instruction: str = ""  # instruction that the controller got
    success: bool = False  # True if the environment reported success
    steps: int = 0  # number of executed actions
    # Last info of the environment, JSON values only.
    info: dict[str, Any] = field(default_factory=dict[str, Any])
    # Rendered images uint8 [H, W, 3] for a contact sheet; empty if it is in none.
    frames: list[UInt8Array] = field(default_factory=list[UInt8Array])
    # Exception of the environment that ended the episode; None if it raised none.
    error: str | None = None
    video: bytes = b""  # the mp4 file of the episode; empty without one


@dataclass(frozen=True)
class RolloutPlan:
    """Episodes to run, and when they end and count as success."""

    seeds: Sequence[int]  # seed of each episode; all different
    # Function of (observation, info) that returns the instruction for the controller.
    choose_instruction: Callable[[EnvObservation, Mapping[str, Any]], str]
    success_key: str  # info key of success; if absent, termination with a reward counts as success
    # Maximum number of steps per episode; None: the environment's limit.
    max_steps: int | None = None
    num_rendered: int = 0  # number of episodes of the contact sheet, counted from the first
    num_videos: int = 0  # number of episodes with a video, counted from the first
    parallel: int = 25  # number of environments that step together
    # Function of the seed that returns the options of the environment's reset.
    options: Callable[[int], dict[str, Any] | None] = lambda seed: None
    # Function of (info, instruction) that returns True to end an episode before the environment
    # does.
    is_over: Callable[[Mapping[str, Any], str], bool] = lambda info, instruction: False


class Rollouts:
    """Runner of the episodes of a plan, in groups that reuse the same environments.

    Groups are independent: each has its own controller.
    """

    def __init__(
        self,
        environments: Environments,  # environments of this process or of others
        env: EnvInfo,  # description of the environment
        make_controller: Callable[[Any], Controller],
        plan: RolloutPlan,  # the episodes
        progress: "RolloutProgress",  # progress over episodes
    ) -> None:
        self._environments = environments
        self._env = env
        self._make_controller = make_controller
        self._plan = plan
        self._progress = progress

    @property
    def groups(self) -> list[range]:
        """For each group, indices of its episodes in the plan."""
        size, count = self._plan.parallel, len(self._plan.seeds)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def run(self, group: range) -> list[Rollout]:
        """Runs the episodes of one group."""
        slots = {self._plan.seeds[index]: index - group.start for index in group}
        done: dict[int, Rollout] = {}
        # An episode starts again when another one has ended the process of its environment.
        while left := {seed: slot for seed, slot in slots.items() if seed not in done}:
            lockstep = _Lockstep(self._environments, self._env, self._plan)
            controller = self._make_controller(self._env.action_space)
            for rollout in lockstep.run(left, controller):
                done[rollout.seed] = rollout
                self._progress.add(rollout)
        return [done[seed] for seed in slots]


class RolloutProgress:
    """Progress bar over the episodes of one or several plans."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._num_reported, self._successes = 0, 0

    def add(self, rollout: Rollout) -> None:
        """Advances the bar by an episode that has ended."""
        self._num_reported += 1
        self._successes += rollout.success
        self._bar.advance(1, successes=self._successes)

    def advance_resumed(self, episodes: int) -> None:
        """Advances the bar to `episodes`, which include those that an earlier run finished."""
        if episodes > self._num_reported:
            self._bar.advance(episodes - self._num_reported)


def run_rollouts(rollouts: Rollouts) -> list[Rollout]:
    """Runs all episodes of a plan."""
    return [rollout for group in rollouts.groups for rollout in rollouts.run(group)]


class _Lockstep:
    """Episodes that step together, so that a policy runs on one batch of observations."""

    def __init__(self, environments: Environments, env: EnvInfo, plan: RolloutPlan) -> None:
        self._environments = environments
        self._env = env
        self._plan = plan
        self._running: dict[int, Rollout] = {}
        self._observations: dict[int, EnvObservation] = {}
        self._videos: dict[int, VideoEncoder] = {}

    def run(self, slots: Mapping[int, int], controller: Controller) -> Iterator[Rollout]:
        """Yields the episodes as they end, all but those that have lost their environment; `slots`:
        map from seed to the slot of its environment.
        """
        self._running = {seed: Rollout(seed) for seed in slots}
        starts = {
            seed: Call(slot, Start(self._env.make_env, seed, self._plan.options(seed)))
            for seed, slot in slots.items()
        }
        yield from self._call(starts)
        while self._running:
            instructions = {seed: rollout.instruction for seed, rollout in self._running.items()}
            actions = controller.act(self._observations, instructions)
            steps = {
                seed: Call(slots[seed], action=self._bounded(action))
                for seed, action in actions.items()
            }
            yield from self._call(steps)

    def _call(self, calls: Mapping[int, Call]) -> Iterator[Rollout]:
        """Calls the environments of episodes; yields those that are over."""
        replies = self._environments.call(
            [replace(call, is_rendered=self._is_rendered(seed)) for seed, call in calls.items()]
        )
        for seed, call in calls.items():
            reply, rollout = replies.get(call.slot), self._running[seed]
            if reply is None or self._is_over(rollout, call, reply):
                self._observations.pop(seed, None)
                del self._running[seed]
                if reply is not None:
                    rollout.video = self._videos[seed].finish() if seed in self._videos else b""
                    yield rollout

    def _is_over(self, rollout: Rollout, call: Call, reply: Reply) -> bool:
        """Adds a reply to its episode; returns True if the episode is over."""
        if reply.error is not None:
            step = "the reset" if call.start is not None else f"step {rollout.steps + 1}"
            message = "%s: the episode with seed %s ends at %s: %s\n%s"
            name = getattr(self._env.make_env, "name", "environment")
            _log.warning(message, name, rollout.seed, step, reply.error, reply.traceback)
            rollout.error, rollout.success = reply.error, False
            return True
        self._observations[rollout.seed] = reply.observation
        if reply.frame is not None:
            self._add_frame(rollout, reply.frame)
        if call.start is not None:
            instruction = self._plan.choose_instruction(reply.observation, reply.info)
            rollout.instruction = instruction
            return False
        rollout.steps += 1
        rollout.info = {
            key: _stored(value) for key, value in reply.info.items() if _is_plain(value)
        }
        success = reply.info.get(self._plan.success_key, reply.terminated and reply.reward > 0)
        if _is_nan(success):
            rollout.error = f"{self._plan.success_key!r} of the environment is not a number"
            rollout.success = False
            return True
        rollout.success = rollout.success or bool(np.any(success))
        return self._is_last(rollout, reply)

    def _is_last(self, rollout: Rollout, reply: Reply) -> bool:
        """True if a step was the last one of its episode."""
        limit = self._plan.max_steps
        is_cut = limit is not None and rollout.steps >= limit
        is_over = reply.terminated or reply.truncated or rollout.success or is_cut
        return is_over or self._plan.is_over(reply.info, rollout.instruction)

    def _bounded(self, action: Any) -> Any:
        """Returns the action within the limits of the environment."""
        check_action_shape(self._env, np.shape(action))
        space = self._env.action_space
        return np.clip(action, space.low, space.high).astype(space.dtype)

    def _is_rendered(self, seed: int) -> bool:
        number = self._plan.seeds.index(seed)
        return number < max(self._plan.num_rendered, self._plan.num_videos)

    def _add_frame(self, rollout: Rollout, frame: UInt8Array) -> None:
        """Adds a rendered image to the frames and to the video of its episode."""
        number = self._plan.seeds.index(rollout.seed)
        if number < self._plan.num_rendered:
            rollout.frames.append(frame)
        if number < self._plan.num_videos:
            if rollout.seed not in self._videos:
                self._videos[rollout.seed] = VideoEncoder(
                    Fraction(self._env.fps or _DEFAULT_FPS).limit_denominator(1000),
                    crf=_VIDEO_CRF,
                    keyframe_interval=_VIDEO_KEYFRAME_INTERVAL,
                )
            self._videos[rollout.seed].add(frame)


def _is_nan(value: Any) -> bool:
    array = np.asarray(value)
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def _stored(value: Any) -> Any:
    """Value for JSON: None instead of a number that is not finite."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float)
