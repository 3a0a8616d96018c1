"""Toy policy that sees one number and no image, its model type, and an environment for it."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from pydantic import Field

from tests.builders.toys import LmConfig, LmType
from vlatool.config.base import ConfigModel
from vlatool.episode import Array, Observation, ObservationSpec
from vlatool.models.base import Policy

LINE = "toys/Line-v0"
# Seeds of episodes that end with an exception at the reset, with one at the third step, and with
# their process at the second step.
BROKEN_RESET, BROKEN_STEP, KILLED = 101, 103, 102


class PushPolicy(Policy):
    """Moves a number half of the way to 0, with a little noise; reads its last command too."""

    sees = ObservationSpec(fields={"x": 1}, past=1, instruction=False)
    actions: ClassVar[Mapping[str, int]] = {"push": 1}
    fps, horizon = 10.0, 3

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        rows = [self._row(*row) for row in zip(observations, seeds, strict=True)]
        return {"push": np.stack(rows)[..., None]}

    def _row(self, observation: Observation, seed: int) -> Array:
        noise = np.random.default_rng(seed).normal(scale=0.01, size=self.horizon)
        last = 0.0 if observation.past_actions is None else observation.past_actions["push"][-1, 0]
        steps = 0.5 ** np.arange(1, self.horizon + 1)
        return -observation.fields["x"][-1, 0] * steps + 0.01 * last + noise


class PushConfig(LmConfig):
    type: Literal["toy_push"] = Field(default="toy_push", description="Model type.")  # pyright: ignore[reportIncompatibleVariableOverride]


class PushType(LmType):
    name: ClassVar[str] = "toy_push"
    Config: ClassVar[type[ConfigModel]] = PushConfig

    def policy(self, config: Any, parts: Any, assets: Any, folder: Path) -> PushPolicy:
        del config, parts, assets, folder
        return PushPolicy()


class LineEnv(gymnasium.Env[Any, Any]):
    """A number that actions are added to; the goal is 0. Observations may have an instruction."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
    observation_space = spaces.Dict({"x": spaces.Box(-9.0, 9.0, (1,), np.float64)})
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}

    def __init__(
        self,
        render_mode: str | None = None,
        broken: Sequence[int] = (),
        words: str | None = None,
        goals: Sequence[bool] = (),
    ) -> None:
        self.render_mode = render_mode
        self.broken = broken
        self.goals = goals
        self.task = {} if words is None else {"task": {"words": words}}
        if words is not None:
            task = spaces.Dict({"words": spaces.Text(99, charset=frozenset(words))})
            self.observation_space = spaces.Dict({**self.observation_space, "task": task})

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        if seed == BROKEN_RESET and seed in self.broken:
            raise ValueError("no start\nsecond line")
        self.x = self.np_random.uniform(1, 3, 1)
        return {"x": self.x.copy(), **self.task}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.seed == KILLED and self.seed in self.broken and self.steps == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.seed == BROKEN_STEP and self.seed in self.broken and self.steps == 3:
            raise RuntimeError("the motor is hot")
        self.x = self.x + action
        success = bool(abs(self.x[0]) < 0.05)
        info: dict[str, Any] = {"success": success, "x": float(self.x[0])}
        if self.goals:
            info["goals"] = list(self.goals)
        return {"x": self.x.copy(), **self.task}, float(success), success, self.steps >= 40, info

    def render(self) -> Any:
        return np.full((32, 32, 3), int(20 * abs(self.x[0])) % 256, np.uint8)


def register_line() -> None:
    """Registers the environment in Gymnasium."""
    if LINE not in gymnasium.registry:
        gymnasium.register(LINE, LineEnv)
