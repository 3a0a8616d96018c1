"""Time that `vlatool.record` takes of a loop with two cameras: `python benchmarks/record.py`."""

import argparse
import sys
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

import vlatool

RATE = 30


def main(form: Any, seconds: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (540, 700, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)))
    taken: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        vlatool.record(f"{folder}/demos", fps=RATE, form=form) as recorder,
    ):
        start = time.perf_counter()
        for step in range(RATE * seconds):
            front = np.ascontiguousarray(scene[step % 60 :][:480, step % 50 :][:, :640])
            wrist = np.ascontiguousarray(front[:, ::-1])
            joints = np.sin(np.arange(6) + step / 9)
            clock = time.perf_counter()
            recorder.add({"front": front, "wrist": wrist}, state=joints, action=joints)
            taken.append(1e3 * (time.perf_counter() - clock))
            time.sleep(max(0.0, start + (step + 1) / RATE - time.perf_counter()))
        clock = time.perf_counter()
        recorder.end_episode(instruction="benchmark")
        end = time.perf_counter() - clock
    half, most = np.percentile(taken, [50, 99])
    sys.stdout.write(f"{form}: add {half:.2f} ms, 99 % below {most:.2f} ms, end {end:.1f} s\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", default="frames", choices=("frames", "lerobot"))
    parser.add_argument("--seconds", type=int, default=60)
    arguments = parser.parse_args()
    main(arguments.form, arguments.seconds)
