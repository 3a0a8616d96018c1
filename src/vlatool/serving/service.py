"""A policy as it is served: sessions of clients, metadata and limits."""

import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import vlatool
from vlatool.config.resolve import load_config
from vlatool.episode import ObservationSpec
from vlatool.evaluation.config import RolloutConfig
from vlatool.evaluation.control import ResizeLog
from vlatool.evaluation.controllers import control_options, steps_per_chunk
from vlatool.evaluation.key_map import KeyMap, has_mapping
from vlatool.evaluation.policy_runner import PolicyRunner
from vlatool.models.policy import Policy
from vlatool.models.trained import WeightsOrigin
from vlatool.serving.config import ServeConfig
from vlatool.serving.messages import MAX_OBJECTS, PROTOCOL
from vlatool.serving.session import MAPPED_ACTION, Session

_MB = 1_000_000
# Images of a policy that takes any size; bytes of a request besides its arrays.
_LARGEST_IMAGE, _ROOM = (1080, 1920), 64_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """Parts of a server besides its socket."""

    policy: Policy  # policy that acts
    config: ServeConfig  # limits of the server
    metadata: Mapping[str, Any]  # first message for each client
    new_session: Callable[[], Session]  # function that starts the session of a client
    max_bytes: int  # size of a request
    max_objects: int  # number of values in a request besides those of arrays
    key: str | None = None  # key that clients must send; None: no key
    tls: ssl.SSLContext | None = None  # TLS; None: no TLS


def service_of(
    config: ServeConfig,
    policy: Policy,
    origin: WeightsOrigin,
    key: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> Service:
    rollout, keys = RolloutConfig(), None
    if config.map is not None:
        rollout = load_config(RolloutConfig, presets=[config.map]).config
        keys = KeyMap(policy, rollout) if has_mapping(rollout) else None
    if config.execute_steps is not None:
        rollout = rollout.model_copy(update={"execute_steps": config.execute_steps})
    steps_per_chunk(rollout, policy.horizon)
    options = control_options(rollout, policy)
    log = ResizeLog(policy.sees, partial(_log.warning, "%s"))

    def new_runner() -> PolicyRunner:
        return PolicyRunner(policy, origin, config.seed, log, options)

    max_bytes = _max_bytes(policy.sees)
    if config.max_request_mb is not None:
        max_bytes = int(config.max_request_mb * _MB)
    metadata = _metadata(new_runner(), keys) | {
        "execute_steps": rollout.execute_steps,
        "max_request_bytes": max_bytes,
        "new_episode": {
            "request": {"reset": True},
            "idle_s": config.episode_idle_s,
            "key": config.episode_key,
        },
    }
    return Service(
        policy,
        config,
        metadata,
        lambda: Session(new_runner(), keys, rollout.execute_steps, rollout.delay_steps, config),
        max_bytes,
        MAX_OBJECTS + 4 * sum(policy.sees.fields.values()),
        key,
        tls,
    )


def _max_bytes(sees: ObservationSpec) -> int:
    """Size of a request: 1.5 times the arrays of one step, with room for names and text."""
    sizes = [view.size or _LARGEST_IMAGE for view in sees.cameras.values()]
    arrays = sum(3 * height * width for height, width in sizes) + 8 * sum(sees.fields.values())
    return int(1.5 * arrays) + _ROOM


def _metadata(runner: PolicyRunner, keys: KeyMap | None) -> dict[str, Any]:
    """Description of the policy; `cameras` and `fields` only without a mapping."""
    names = {"cameras": list(runner.cameras), "fields": runner.fields}
    return {
        "server": "vlatool",
        "protocol": PROTOCOL,
        "version": vlatool.__version__,
        "observation": runner.names if keys is None else keys.names,
        **(names if keys is None else {}),
        "actions": runner.actions if keys is None else {MAPPED_ACTION: keys.action_width},
        "fps": runner.fps,
        "horizon": runner.horizon,
        "history": runner.history,
        "checkpoint": runner.checkpoint.name,
        "weights": runner.weights,
    }
