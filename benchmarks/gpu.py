"""All measurements of a GPU, one after the other, in one JSON; about ten minutes.

    python benchmarks/gpu.py [--output gpu.json] [--limit 120] [--small]

It needs the extra `train`. The step of the published policy, encoding and the steps of TiTok, the
step of FUTURE-VLA 4B, `encode` with all stages, and the loader on recordings of the built-in world.
Each script has `--limit` seconds; what it printed until then stays. With --small, sizes for a CPU.
The same command measures what the JSON does not have yet.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from machine import describe

HERE = Path(__file__).parent
SCRIPTS = {
    "policy step": "policy_step.py --size bellpepper --batch 128 --device cuda --steps 10",
    "titok": "titok.py --variant l32 --batch 8 --repeats 2",
    "future-vla step": "future_vla.py --size 4b --batch 8 --checkpointing --steps 3",
    "encode": "encode.py --variant l32 --images 1024",
    "loader": "loading.py {data} --workers 8 --runs 3",
}
SMALL = {
    "policy step": "policy_step.py --size small --steps 2",
    "titok": "titok.py --variant s128 --batch 1 --repeats 1",
    "future-vla step": "future_vla.py --size small --batch 1 --steps 1",
    "encode": "encode.py --variant s128 --images 2 --batch 2 --workers 1",
    "loader": "loading.py {data} --workers 1 --steps 5 --runs 1",
}
NUMBER = re.compile(r"([\d,]*\.?\d+) (images/s|samples/s|tokens/s|TFLOP/s|ms|GiB)")
SHARE = re.compile(r"TFLOP/s, ([\d.]+)% of ([\d.]+)")


def figures(line: str) -> dict[str, Any]:
    """Numbers of a printed line by their units, and the share of a peak in TFLOP/s."""
    values: dict[str, Any] = {"line": line.strip()}
    for text, unit in NUMBER.findall(line):
        values.setdefault(unit, []).append(float(text.replace(",", "")))
    if share := SHARE.search(line):
        values["share of the peak"], values["peak"] = float(share[1]) / 100, float(share[2])
    return values


def measured(words: list[str], limit: float) -> dict[str, Any]:
    """Figures of a script, its seconds, and why it ended if it failed."""
    started = time.perf_counter()
    try:
        run = subprocess.run(
            [sys.executable, "-u", *words], cwd=HERE, capture_output=True, timeout=limit
        )
        output, problem = run.stdout, run.stderr.decode()[-500:] if run.returncode else ""
    except subprocess.TimeoutExpired as error:
        output, problem = error.stdout or b"", f"not done in {limit:g} s"
    lines = [figures(line) for line in output.decode().splitlines()]
    seconds = round(time.perf_counter() - started, 1)
    failed = {"problem": problem} if problem else {}
    return {"command": shlex.join(words), "seconds": seconds, "figures": lines, **failed}


def recorded(folder: Path) -> Path:
    """Frames of the built-in world, for the loader."""
    windows = ["spartan", folder / "raw", "--preset", "world-windows", "--output", folder / "data"]
    for words in (["sample", "spartan", folder / "raw"], ["preprocess", *windows]):
        subprocess.run([sys.executable, "-m", "vlatool", *map(str, words)], check=True)
    return folder / "data"


def main() -> None:
    """Runs what the JSON does not have, and writes it after each script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--limit", type=float, default=120, help="seconds of each script")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.small):
        parser.error("there is no GPU; --small measures small sizes on the CPU")
    output: Path = arguments.output.resolve()
    results: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    results |= {"machine": describe(), "gpu": gpu, "torch": torch.__version__}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for name, line in (SMALL if arguments.small else SCRIPTS).items():
        if name not in results or "problem" in results[name]:
            data = recorded(output.parent / "gpu-data") if "{data}" in line else ""
            results[name] = measured(shlex.split(line.format(data=data)), arguments.limit)
            output.write_text(json.dumps(results, indent=2))
        print(name, json.dumps(results[name]), flush=True)


if __name__ == "__main__":
    main()
