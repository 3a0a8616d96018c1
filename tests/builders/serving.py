"""A policy server in a thread, and toy policies for it."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from websockets.sync.client import ClientConnection, connect

from tests.builders.toy_policy import PushPolicy
from vlatool.episode import Array, CameraView, Observation, ObservationSpec
from vlatool.evaluation.control import ControlOptions
from vlatool.evaluation.policy_runner import PolicyRunner
from vlatool.models.base import Policy
from vlatool.models.published import WeightsOrigin
from vlatool.serving.access import bound_socket, read_key, tls_context, url_of
from vlatool.serving.config import ServeConfig
from vlatool.serving.server import PolicyServer, service_of

ORIGIN = WeightsOrigin("toy", Path("toy/model.safetensors"), weights="ema")
BAD_NUMBER = 13.0


class LookPolicy(Policy):
    """Sees a camera at two steps, a pose and an instruction; fails for one number."""

    sees = ObservationSpec(
        {"front": CameraView((-1, 0), (4, 6))}, {"pose": 2}, past=0, instruction=True
    )
    actions: ClassVar[Mapping[str, int]] = {"move": 2, "grip": 1}
    fps, horizon = 20.0, 5

    def __init__(self) -> None:
        self.sizes: list[int] = []  # number of observations of each call
        self.hold = threading.Event()  # event that calls wait for
        self.hold.set()
        self.called = threading.Event()

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        self.sizes.append(len(observations))
        self.called.set()
        assert self.hold.wait(20)
        if any(row.fields["pose"][-1, 0] == BAD_NUMBER for row in observations):
            raise RuntimeError("the wrong number\nsecond line")
        rows = np.stack([self._row(*row) for row in zip(observations, seeds, strict=True)])
        return {"move": rows[..., :2], "grip": rows[..., 2:]}

    def _row(self, observation: Observation, seed: int) -> Array:
        noise = np.random.default_rng(seed).normal(size=(self.horizon, 3))
        images = observation.images["front"].mean(axis=(1, 2, 3))
        pose = observation.fields["pose"][-1]
        return noise + images[0] - 2 * images[1] + pose.sum() + len(observation.instruction)


def look(number: float, instruction: str = "sing") -> dict[str, Any]:
    """Observation of a `LookPolicy`."""
    image = np.random.default_rng(int(number)).integers(0, 256, (4, 6, 3), np.uint8)
    return {"front": image, "pose": np.array([number, 1.0]), "instruction": instruction}


def local(policy: Any, seed: int = 0, options: ControlOptions | None = None) -> PolicyRunner:
    """Runner of a policy in this process, as `load_policy` returns."""
    return PolicyRunner(policy, ORIGIN, seed, options=options)


@contextmanager
def served(policy: Any = None, **options: Any) -> Iterator[str]:
    """Address of a server of a policy; by default that of one number."""
    with server_of(policy, **options) as (url, _):
        yield url


@contextmanager
def server_of(policy: Any = None, **options: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    """Address of a server, and a function that stops it."""
    config = ServeConfig(**{"checkpoint": "toy", "port": 0, **options})
    tls = tls_context(config.certificate, config.private_key)
    key = read_key(config.key_file, config.host)
    server = PolicyServer(service_of(config, policy or PushPolicy(), ORIGIN, key, tls))
    with bound_socket(config.host, config.port) as bound:
        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(server.run(bound, ready.set)))
        thread.start()
        try:
            assert ready.wait(20)
            yield url_of(bound, has_tls=tls is not None), server.stop
        finally:
            server.stop()
            thread.join(20)
        assert not thread.is_alive()


@contextmanager
def raw_client(url: str, **options: Any) -> Iterator[ClientConnection]:
    """Websocket of a client of another program, after the metadata."""
    with connect(url, compression=None, max_size=None, proxy=None, **options) as connection:
        assert isinstance(connection.recv(10), bytes)
        yield connection
