"""Time of a training step with and without a copy of the run in a slow bucket, in turn.

    python benchmarks/run_sync.py DATA [--preset world-pick] [--steps 100] [--every 20] [--delay 2]

DATA is an output of `vlatool preprocess`. The server, an S3 server of the tests behind a proxy that
takes `--delay` seconds per request, runs at the lowest priority: a real one is another machine.
Processor seconds are those of the command, start and end included; they depend less on other
programs than the time of a step.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import describe
from process_stats import run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.builders.s3_server import CREDENTIALS, faulty_proxy, s3_server

LOWEST_PRIORITY = 19
# Steps during which memory and caches are set up.
WARM_UP = 10


def main(data: str, preset: str, steps: int, every: int, delay: float, runs: int) -> None:
    """Prints ms per step and processor seconds, with and without a copy."""
    results: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    words = ["--preset", preset, "--data", data, "--total-train-steps", str(steps)]
    words += ["--save-every-n-steps", str(every), "--log-every-n-steps", "1"]
    with served(delay) as (endpoint, bucket), tempfile.TemporaryDirectory() as folder:
        os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
        for number in range(runs):
            for is_sent in (False, True):
                output = Path(folder, f"run-{number}-{is_sent}")
                # A location of its own: a run that is there already would be continued.
                sent = ["--remote-sync", f"s3://{bucket}/{number}"] if is_sent else []
                results[is_sent].append(once([*words, "--output", str(output), *sent], output))
    print(describe())
    for is_sent, values in results.items():
        steps_ms, seconds = ([row[index] for row in values] for index in (0, 1))
        extremes = f"{min(steps_ms):.1f} to {max(steps_ms):.1f}"
        print(
            f"{'with' if is_sent else 'without'} a copy: {statistics.median(steps_ms):.1f} ms per "
            f"step ({extremes}), {statistics.median(seconds):.1f} processor seconds"
        )
    ratios = [
        [copy[index] / plain[index] for plain, copy in zip(*results.values(), strict=True)]
        for index in (0, 1)
    ]
    print(
        f"ratio of pairs, median of {runs}: {statistics.median(ratios[0]):.3f} x ms per step, "
        f"{statistics.median(ratios[1]):.3f} x processor seconds"
    )


def once(words: list[str], output: Path) -> tuple[float, float]:
    """Mean ms of a step after the first ones, checkpoints included, and processor seconds."""
    command = [sys.executable, "-m", "vlatool", "train", *words]
    stats = run(command)
    rows = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    times = [row["step_ms"] for row in rows if "step_ms" in row and row["step"] > WARM_UP]
    return statistics.mean(times), stats.cpu_s


@contextmanager
def served(delay: float) -> Iterator[tuple[str, str]]:
    """Endpoint and bucket of a server that another process runs."""
    command = [sys.executable, __file__, "--serve", str(delay)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        endpoint, bucket = process.stdout.readline().split()
        try:
            yield endpoint, bucket
        finally:
            process.terminate()


def serve(delay: float) -> None:
    """Runs the server until this process is terminated."""
    os.nice(LOWEST_PRIORITY)
    with s3_server() as server, faulty_proxy(server.endpoint) as proxy:
        bucket = server.bucket()
        proxy.faults.delay_s = delay
        print(proxy.endpoint, bucket, flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(float(sys.argv[2]))
    parser = argparse.ArgumentParser()
    parser.add_argument("data", help="output of vlatool preprocess")
    parser.add_argument("--preset", default="world-pick")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--delay", type=float, default=2.0, help="seconds per request")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    main(**vars(arguments))
