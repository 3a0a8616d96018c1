"""All measurements of a GPU, one after the other, in one JSON; at most nine minutes.

    python benchmarks/gpu.py [--output gpu.json] [--seconds 540] [--limit 120] [--small]

It needs the extra `train`. First `vlatool train` with the preset `policy-small`, with and without
compiled networks: samples and arithmetic per second, the share of the time that steps wait for
data, memory. Then `encode` with all stages, the step of the published policy, TiTok, the step of
FUTURE-VLA 4B, and the loader. Each part has `--limit` seconds, and none starts after `--seconds`.
A part is printed and written as soon as it ends; on SIGTERM the JSON has what was measured until
then. The same command measures what the JSON does not have yet. With --small, sizes for a CPU.
"""

import argparse
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import describe

from vlatool.checkpoints.layout import RunDir, read_metrics
from vlatool.training.placement import peak_tflops

HERE = Path(__file__).parent
VLATOOL = [sys.executable, "-m", "vlatool"]
LEAST = 20  # seconds in which no part gets far
# {data} are windows of the built-in world, {run} is a new folder.
TRAIN = "train --preset policy-small --data {data} --output {run} --hparams.torchcompile"
STEPS = "--total-train-steps 120 --log-every-n-steps 20 --data.num-workers 8"
FEW_STEPS = (
    "--total-train-steps 4 --log-every-n-steps 1 --data.num-workers 1 --hparams.global-batch-size 2"
    " --model.vision-language-backbone.n-layers 1 --model.transformer.n-layers 1"
    " --distributed.device-tflops 1"
)
RUNS = {"policy-small": f"{TRAIN} false", "policy-small, compiled": f"{TRAIN} true"}
SCRIPTS = {
    "encode": "encode.py --variant l32 --images 1024",
    "policy step": "policy_step.py --size bellpepper --batch 128 --device cuda --steps 10",
    "titok": "titok.py --variant l32 --batch 8 --repeats 2",
    "future-vla step": "future_vla.py --size 4b --batch 8 --checkpointing --steps 3",
    "loader": "loading.py {data} --workers 8 --runs 3",
}
SMALL = {
    "encode": "encode.py --variant s128 --images 2 --batch 2 --workers 1",
    "policy step": "policy_step.py --size small --steps 2",
    "titok": "titok.py --variant s128 --batch 1 --repeats 1",
    "future-vla step": "future_vla.py --size small --batch 1 --steps 1",
    "loader": "loading.py {data} --workers 1 --steps 5 --runs 1",
}
MEASURES = ("samples_per_second", "step_ms", "data_wait", "memory_gb", "mfu")
NUMBER = re.compile(r"([\d,]*\.?\d+) (images/s|samples/s|tokens/s|TFLOP/s|ms|GiB)")
SHARE = re.compile(r"TFLOP/s, ([\d.]+)% of ([\d.]+)")


def figures(line: str) -> dict[str, Any]:
    """Numbers of a printed line by their units, and the share of a peak in TFLOP/s."""
    values: dict[str, Any] = {"line": line.strip()}
    for text, unit in NUMBER.findall(line):
        values.setdefault(unit, []).append(float(text.replace(",", "")))
    if share := SHARE.search(line):
        values["share of the peak"] = float(share[1]) / 100
        values["peak"] = float(share[2])
    return values


def train_figures(run: Path, peak: float | None) -> dict[str, float]:
    """Medians of the metrics of a run, without the first, which has the warm-up and compilation.

    Args:
        run: Folder of the run; it may have ended early.
        peak: TFLOP/s of the device, of which `mfu` is a share; None if it is unknown.
    """
    path = RunDir(run).metrics
    rows = read_metrics(path)[1:] if path.exists() else []
    values: dict[str, float] = {}
    for name in MEASURES:
        found = [row[name] for row in rows if row.get(name) is not None]
        if found:
            values[name] = statistics.median(found)
    if peak is not None and "mfu" in values:
        values["tflops"] = values["mfu"] * peak
        values["peak"] = peak
    return values


def finished(words: Sequence[str], limit: float) -> tuple[list[str], dict[str, Any]]:
    """Lines that a command printed, and its seconds; `problem` if it failed or took too long."""
    started = time.perf_counter()
    problem = ""
    try:
        done = subprocess.run(words, cwd=HERE, capture_output=True, timeout=limit)
        output = done.stdout
        if done.returncode:
            problem = done.stderr.decode(errors="replace")[-500:]
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        problem = f"not done in {limit:.0f} s"
    result: dict[str, Any] = {"command": shlex.join(words)}
    result["seconds"] = round(time.perf_counter() - started, 1)
    if problem:
        result["problem"] = problem
    return output.decode(errors="replace").splitlines(), result


def recorded(folder: Path, episodes: int) -> Path:
    """Windows of the built-in world at the size of the preset, made once."""
    if not (folder / "data").exists():
        sample = ["sample", "spartan", folder / "raw", "--episodes", episodes, "--frames", 60]
        windows = ["preprocess", "spartan", folder / "raw", "--preset", "policy-small-data"]
        for words in (sample, [*windows, "--output", folder / "data"]):
            words = [*VLATOOL, *map(str, words), "-q"]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return folder / "data"


def measured(name: str, folder: Path, limit: float, *, small: bool) -> dict[str, Any]:
    """Result of a part: its command, seconds and figures."""
    line = RUNS.get(name) or (SMALL if small else SCRIPTS)[name]
    places: dict[str, Path] = {}
    if "{data}" in line:
        places["data"] = recorded(folder, episodes=4 if small else 40)
    if name not in RUNS:
        words = [sys.executable, "-u", *shlex.split(line.format(**places))]
        lines, result = finished(words, limit)
        return result | {"figures": [figures(line) for line in lines]}
    run = folder / f"{name}-{time.time_ns()}".replace(", ", "-")
    steps = FEW_STEPS if small else STEPS
    words = shlex.split(f"{line.format(run=run, **places)} {steps}")
    _, result = finished([*VLATOOL, *words], limit)
    peak = 1.0 if small else peak_tflops(torch.device("cuda"), mixed=True)
    return result | {"figures": train_figures(run, peak)}


def stop(*_: object) -> None:
    """Ends the program on SIGTERM; `subprocess.run` ends its command."""
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Runs what the JSON does not have, and writes it after each part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=540, help="seconds of all parts")
    parser.add_argument("--limit", type=float, default=120, help="seconds of each part")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.small):
        parser.error("there is no GPU; --small measures small sizes on the CPU")
    signal.signal(signal.SIGTERM, stop)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    deadline = time.monotonic() + arguments.seconds

    output: Path = arguments.output.resolve()
    folder = output.with_name(f"{output.stem}-data")
    results: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    results |= {"machine": describe(), "gpu": gpu, "torch": torch.__version__}
    for name in (*RUNS, *SCRIPTS):
        if name in results and "problem" not in results[name]:
            print(name, json.dumps(results[name]), flush=True)
            continue
        remaining = deadline - time.monotonic()
        if remaining < LEAST:
            print(f"{name}: not measured, the time is over; run the same command again")
            continue
        limit = min(arguments.limit, remaining)
        results[name] = measured(name, folder, limit, small=arguments.small)
        partial = output.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=2))
        partial.replace(output)
        print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
