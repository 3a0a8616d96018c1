"""Requests of one client: its observation, and the control of its episode."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlatool.episode import Array
from vlatool.errors import DataError
from vlatool.evaluation.control import EpisodeControl, as_array
from vlatool.evaluation.key_map import KeyMap
from vlatool.evaluation.policy_runner import PolicyRunner
from vlatool.plugins import did_you_mean
from vlatool.serving.config import ServeConfig
from vlatool.serving.messages import CONTROL

_CONTROLS: Mapping[str, type] = {
    "reset": bool,
    "observe": bool,
    "seed": int,
    "executed": int,
    "delay": int,
}
_INSTRUCTION = "instruction"
# Name of the action of a client whose keys are mapped.
MAPPED_ACTION = "actions"


class Session:
    """Episode of one client."""

    def __init__(
        self,
        runner: PolicyRunner,  # runner of the policy for this client
        # Mapping of the client's keys; None if it uses the names of the policy.
        keys: KeyMap | None,
        execute_steps: int,  # steps that the client executes between two requests, unless it says
        delay_steps: int,  # steps that it executes while it waits for a plan, unless it says
        config: ServeConfig,  # rules for the start of an episode
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._execute_steps = execute_steps
        self._delay_steps = delay_steps
        self._config = config
        self._used_at = time.monotonic()

    @property
    def episode(self) -> EpisodeControl:
        """History of the current episode."""
        return self._runner.episode

    def observe(self, request: Mapping[str, Any]) -> str | None:
        """Adds the observation of a request, if it is more than `reset`; returns the instruction
        for the next chunk; None if the client asks for none.
        """
        control = _control(request)
        observation = {name: value for name, value in request.items() if name != CONTROL}
        is_reset = list(observation) == ["reset"] and observation["reset"] is True
        if is_reset or (control.get("reset") and not observation):
            self._runner.reset(control.get("seed"))
            return None
        is_first = self._is_first(observation)
        if self._keys is not None:
            observation = self._mapped(self._keys, observation)
        if control.get("reset") or is_first:
            self._runner.reset(control.get("seed"))
        default = max(1, min(self._execute_steps, self.episode.num_left))
        self._runner.observe(observation, executed=control.get("executed", default))
        self.episode.delay = max(0, control.get("delay", self._delay_steps))
        return None if control.get("observe") else self._runner.instruction(observation)

    def _is_first(self, observation: dict[str, Any]) -> bool:
        """True if a rule of the server starts a new episode; removes the key of the rule."""
        limit, now = self._config.episode_idle_s, time.monotonic()
        is_late = limit is not None and now - self._used_at > limit
        self._used_at = now
        key = self._config.episode_key
        flag = observation.pop(key, False) if key is not None else False
        return is_late or bool(np.any(as_array(key or "", flag)))

    def actions(self) -> Array:
        """Action chunk as the client gets it, float64 [T, sum of C]."""
        self._used_at = time.monotonic()
        chunk = self.episode.chunk
        if self._keys is not None:
            return self._keys.action(chunk)
        return np.concatenate([chunk[name] for name in self._runner.actions], axis=-1)

    def _mapped(self, keys: KeyMap, observation: Mapping[str, Any]) -> dict[str, Any]:
        state = keys.state(observation)
        mapped = {**state.images, **state.fields}
        if self._runner.has_instruction:
            mapped[_INSTRUCTION] = keys.instruction(observation)
        return mapped


def _control(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checked control of the episode; empty for clients that know nothing of it."""
    control = request.get(CONTROL, {})
    if not isinstance(control, Mapping):
        raise _bad_control(f"{CONTROL!r} is a {type(control).__name__}, not a map")
    for name, value in control.items():
        if name not in _CONTROLS:
            raise _bad_control(
                f"{CONTROL!r} has no key {name!r}", did_you_mean(str(name), list(_CONTROLS))
            )
        if type(value) is not _CONTROLS[name]:
            raise _bad_control(f"{CONTROL}.{name} is {value!r}, not {_CONTROLS[name].__name__}")
    return control


def _bad_control(reason: str, hint: str = "") -> DataError:
    return DataError(
        reason,
        hint=hint or "docs/serving.md describes the requests; is the client of another version?",
        code="data.bad_message",
    )
