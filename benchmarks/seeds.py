"""Commands with their durations, and figures over several seeds."""

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from scipy.stats import t


def run(*arguments: str) -> dict[str, Any]:
    """Runs a command of vlatool, prints its duration, and returns its JSON."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "vlatool", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = sum(getattr(after, key) - getattr(before, key) for key in ("ru_utime", "ru_stime"))
    seconds = time.perf_counter() - started
    print(f"{' '.join(arguments[:2]):<18} {seconds:7.1f} s, {used:7.1f} CPU s", flush=True)
    return json.loads(done.stdout)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean of the seeds and half of its 95 % interval."""
    half = t.ppf(0.975, len(values) - 1) if len(values) > 1 else float("nan")
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.mean(values), float(half) * std / len(values) ** 0.5
