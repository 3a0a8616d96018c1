"""Action chunks that FAST encodes and decodes per second of one processor.

    python benchmarks/action_codes.py [--chunks 20000] [--runs 5]
    python benchmarks/action_codes.py --fast DIR

Chunks of 16 x 7 are normalized sums of slow waves. Without --fast, a tokenizer is fitted on some of
them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import describe

from vlatool.datasets.fast.layout import read_fast
from vlatool.transforms.action_tokenizer import (
    ActionTokenizer,
    byte_characters,
    coefficient_range,
    fit_tokenizer,
)

STEPS, WIDTH = 16, 7
FITTED_ON = 3000


def chunks(count: int) -> np.ndarray:
    """Chunks: float32 [count, 16, 7], normalized."""
    rng = np.random.default_rng(0)
    time_ = np.linspace(0, 1, STEPS)[:, None]
    shape = (count, 1, WIDTH)
    waves = (
        rng.normal(size=shape) * np.sin(rate * time_ + rng.normal(size=shape)) for rate in (2, 5)
    )
    values = sum(waves, start=np.zeros((count, STEPS, WIDTH)))
    values[..., -1] = np.where(time_[:, 0] < rng.uniform(0, 3, (count, 1)), -1, 1)
    return values.astype(np.float32)


def median(work: Callable[[], object], runs: int) -> float:
    seconds: list[float] = []
    for _ in range(runs):
        started = time.process_time()  # other work on the machine does not count
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--fast", type=Path)
    options = parser.parse_args()
    data = chunks(options.chunks)
    lowest, _ = coefficient_range(10.0, data)

    def fit() -> ActionTokenizer:
        return fit_tokenizer(
            data[:FITTED_ON], scale=10.0, vocab_size=1024, lowest=lowest, alphabet=byte_characters()
        )

    print(describe())
    tokenizer = read_fast(options.fast) if options.fast else fit()
    ids = tokenizer.encode(data)
    print(f"ids per chunk: {sum(map(len, ids)) / len(ids):.1f}")
    if not options.fast:
        print(f"fit on {FITTED_ON} chunks: {median(fit, options.runs):.2f} s")
    for name, work in (
        ("coefficients", lambda: tokenizer.coefficients(data)),
        ("encode", lambda: tokenizer.encode(data)),
        ("decode", lambda: tokenizer.decode(ids, STEPS, WIDTH)),
    ):
        print(f"{name}: {len(data) / median(work, options.runs):,.0f} chunks/s")


if __name__ == "__main__":
    main()
