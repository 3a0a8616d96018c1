"""Delay that a policy server adds, and its throughput, with 1, 8 and 100 clients.

python benchmarks/serving.py [--clients 1,8,100] [--requests 200] [--model-ms 20] [--side 96]

The policy waits for `--model-ms` and returns constants, so all other time is of the server, the
client and the socket. Server and clients are processes of their own.
"""

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import vlatool
from vlatool.episode import Array, CameraView, Observation, ObservationSpec
from vlatool.models.base import Policy
from vlatool.models.published import WeightsOrigin
from vlatool.serving.access import bound_socket, tls_context, url_of
from vlatool.serving.config import ServeConfig
from vlatool.serving.server import PolicyServer, service_of


class SleepingPolicy(Policy):
    """Policy with two cameras that takes a fixed time."""

    actions: ClassVar[Mapping[str, int]] = {"move": 7}
    fps, horizon = 20.0, 16

    def __init__(self, side: int, seconds: float) -> None:
        views = dict.fromkeys(("front", "wrist"), CameraView((0,), (side, side)))
        self.sees = ObservationSpec(views, {"pose": 9}, past=0, instruction=True)
        self._seconds = seconds

    def act(self, observations: Sequence[Observation], *, seeds: Sequence[int]) -> dict[str, Array]:
        """Zeros [B, 16, 7]."""
        del seeds
        time.sleep(self._seconds)
        return {"move": np.zeros((len(observations), self.horizon, 7))}


def serve(options: Any, batch: int, address: Any) -> None:
    """Serves until the process is ended; sends its address."""
    config = ServeConfig(checkpoint="none", port=0, batch_size=batch, max_rate=1e6)
    policy = SleepingPolicy(options.side, options.model_ms / 1000)
    origin = WeightsOrigin("none", Path("none"), weights="raw")
    with bound_socket(config.host, config.port) as bound:
        tls = tls_context(options.chain, None)
        server = PolicyServer(service_of(config, policy, origin, tls=tls))
        url = url_of(bound, has_tls=tls is not None).replace("127.0.0.1", "localhost")
        asyncio.run(server.run(bound, lambda: address.put(url)))


def ask(url: str, side: int, requests: int, together: Any, results: Any) -> None:
    """Sends requests; puts the round trip and the time of the policy of each, in ms."""
    image = np.zeros((side, side, 3), np.uint8)
    seen = {"front": image, "wrist": image, "pose": np.zeros(9), "instruction": "pick the cube"}
    with vlatool.connect(url) as policy:
        policy.act(seen)
        together.wait(600)
        rows: list[tuple[float, float]] = []
        for _ in range(requests):
            started = time.perf_counter()
            policy.act(seen)
            rows.append((1000 * (time.perf_counter() - started), policy.timing["infer_ms"]))
    results.put(rows)


def measure(options: Any, clients: int) -> str:
    """Row of the table for a number of clients."""
    context = multiprocessing.get_context("fork")
    address, results = context.Queue(), context.Queue()
    together = context.Barrier(clients + 1)
    batch = min(8, clients)
    server = context.Process(target=serve, args=(options, batch, address), daemon=True)
    server.start()
    url = address.get()
    count = max(1, options.requests // clients)
    processes = [
        context.Process(target=ask, args=(url, options.side, count, together, results))
        for _ in range(clients)
    ]
    for process in processes:
        process.start()
    together.wait(600)
    started = time.perf_counter()
    rows = np.array([row for _ in processes for row in results.get(timeout=600)])
    seconds = time.perf_counter() - started
    for process in processes:
        process.join()
    server.terminate()
    total = rows[:, 0]
    added = total - rows[:, 1]
    middle, late = np.percentile(total, [50, 99])
    return (
        f"| {clients} | {batch} | {len(rows) / seconds:.1f} | {middle:.1f} | {late:.1f} "
        f"| {np.percentile(added, 50):.2f} |"
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", default="1,8,100")
    parser.add_argument("--requests", type=int, default=200, help="of all clients together")
    parser.add_argument("--model-ms", type=float, default=20.0)
    parser.add_argument("--side", type=int, default=96, help="of the two images, in pixels")
    options = parser.parse_args(namespace=argparse.Namespace(chain=None))
    print("| clients | batch | requests/s | p50 ms | p99 ms | added at p50 ms |")
    print("|---|---|---|---|---|---|")
    for clients in map(int, options.clients.split(",")):
        print(measure(options, clients), flush=True)


if __name__ == "__main__":
    main()
