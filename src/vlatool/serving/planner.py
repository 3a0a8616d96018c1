"""Computes action chunks for several clients in one thread, in batches of a fixed size."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from vlatool.errors import EnvironmentProblem, VlatoolError
from vlatool.evaluation.control import EpisodeControl, begin_chunks
from vlatool.models.base import Policy
from vlatool.models.policy import example_observation, in_batches
from vlatool.serving.config import ServeConfig

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanRequest:
    """Request for the next chunk of an episode."""

    episode: EpisodeControl  # episode that gets the chunk
    instruction: str  # instruction for the policy
    # Function that returns False if nobody waits for the chunk any more.
    is_open: Callable[[], bool]
    done: "asyncio.Future[float]"  # result: seconds of the computation


class ChunkBatcher:
    """Computes chunks of all clients in batches of one size, so that no chunk depends on others."""

    def __init__(self, policy: Policy, config: ServeConfig, num_clients: Callable[[], int]) -> None:
        self._policy = policy
        self._batch_size = config.batch_size
        self._wait_s = config.batch_wait_ms / 1000
        self._num_clients = num_clients
        self._queue: asyncio.Queue[PlanRequest] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "planner")

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, warm_up, self._policy, self._batch_size)
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def num_waiting(self) -> int:
        return self._queue.qsize()

    async def plan(
        self, episode: EpisodeControl, instruction: str, is_open: Callable[[], bool]
    ) -> float:
        """Begins the next chunk of an episode; returns the seconds of the computation."""
        done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(PlanRequest(episode, instruction, is_open, done))
        return await done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            requests: list[PlanRequest] = []
            for request in await self._batch():
                if request.is_open():
                    requests.append(request)
                elif not request.done.done():
                    request.done.set_exception(
                        EnvironmentProblem(
                            "the client left before its request was computed",
                            code="environment.server_unreachable",
                        )
                    )
            if not requests:
                continue
            outcomes = await loop.run_in_executor(self._thread, self._compute, requests)
            for request, outcome in zip(requests, outcomes, strict=True):
                if request.done.done():  # cancelled by a timeout
                    continue
                if isinstance(outcome, VlatoolError):
                    request.done.set_exception(outcome)
                else:
                    request.done.set_result(outcome)

    async def _batch(self) -> list[PlanRequest]:
        """The next requests, at least one; waits a short time for requests of other clients."""
        batch = [await self._queue.get()]
        deadline = time.perf_counter() + self._wait_s
        while len(batch) < min(self._batch_size, self._num_clients()):
            if self._queue.empty() and (seconds := deadline - time.perf_counter()) > 0:
                try:
                    batch.append(await asyncio.wait_for(self._queue.get(), seconds))
                except TimeoutError:
                    break
            elif self._queue.empty():
                break
            else:
                batch.append(self._queue.get_nowait())
        return batch

    def _compute(self, requests: Sequence[PlanRequest]) -> list[float | VlatoolError]:
        """Seconds or the error of each request. If a batch fails, each request is computed on its
        own.
        """
        started = time.perf_counter()
        episodes = [request.episode for request in requests]
        instructions = [request.instruction for request in requests]
        try:
            begin_chunks(self._policy, episodes, instructions, self._batch_size)
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            if len(requests) > 1:
                return [self._compute([request])[0] for request in requests]
            return [_model_error(error)]
        return [time.perf_counter() - started] * len(requests)


def warm_up(policy: Policy, batch_size: int) -> None:
    """Computes two made-up batches: the first call of a device or of compiled code is slow."""
    for number in range(2):
        observation = example_observation(policy.sees, np.random.default_rng(number))
        in_batches(policy.act, [observation], [number], batch_size)


def _model_error(error: Exception) -> VlatoolError:
    if isinstance(error, VlatoolError):
        return error
    _log.warning("the policy fails for a request: %r", error, exc_info=True)
    reason = str(error).partition("\n")[0]
    return EnvironmentProblem(
        f"the policy failed for this request: {type(error).__name__} {reason}",
        hint="the log of the server has the details",
        code="environment.policy_failed",
    )
