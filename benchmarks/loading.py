"""Samples/s and start time of the training loader, from disk and from object storage.

    python benchmarks/loading.py DATA [--workers 1] [--batch 16] [--steps 100] [--runs 5]
    python benchmarks/loading.py DATA --before ../vlatool-before
    python benchmarks/loading.py DATA --remote [--delay-ms 20] [--by-sample]
    python benchmarks/loading.py DATA --against FRAMES [--remote]

DATA is an output of `vlatool preprocess`, such as demo/data. With --before, two checkouts run in
turn, A B A B ...; with --remote, DATA is copied to a local S3 server behind a proxy that delays
each request. The server and the proxy use the same processors as the loader. With --by-sample,
nothing is cached on disk: each sample is a request. With --crop and --jitter, images are augmented
as published.
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe

HERE = Path(__file__).resolve().parents[1]
FAR = 1_000_000
# Package of the modules of robotics data in old checkouts.
OLD_PACKAGE = "vlatool.loading"
# Module with `stack_rows`, now and in old checkouts; older ones copy the arrays that they stack.
SHARED_MEMORY = ("vlatool.loading.shared_memory", "vlatool.loading.loader")


def stack(samples: Sequence[Any]) -> dict[str, Any]:
    """Stacks images and fields to tensors, like every batcher."""
    stack_arrays = np.stack
    for name in SHARED_MEMORY:
        if importlib.util.find_spec(name):
            stack_arrays = importlib.import_module(name).stack_rows
            break
    names = list(samples[0].fields)
    return {
        "images": torch.from_numpy(stack_arrays([sample.images for sample in samples])),
        **{
            name: torch.from_numpy(np.stack([sample.fields[name] for sample in samples]))
            for name in names
        },
    }


def empty_batch() -> dict[str, Any]:
    """Replacement for a micro-batch of broken samples; the data have none."""
    return {}


def batches_now(arguments: argparse.Namespace) -> Iterator[Any]:
    """Micro-batches of the loader of this checkout."""
    from vlatool.loading.loader import LoaderPlan, build_loader
    from vlatool.loading.order import OrderOptions, SampleOrder
    from vlatool.loading.robotics.kind import RoboticsKind

    kind = RoboticsKind()
    cache = {"enabled": False if arguments.by_sample else None}
    image = {
        "crop": {"enabled": bool(arguments.crop)},
        "color_jitter": {"enabled": bool(arguments.jitter)},
    }
    tree = {"dataset_manifest": [arguments.data], "dataset_cache": cache}
    if arguments.crop or arguments.jitter:
        tree["augmentation"] = {"image": image}
    config = kind.Config.model_validate(tree)
    info = kind.load_info(config)
    config, _ = kind.derive(config, info)
    order = SampleOrder(info.datasets, OrderOptions.of(config, 42))
    first, workers = arguments.first // arguments.batch, arguments.workers
    plan = LoaderPlan(arguments.batch, first=first, num_workers=workers, prefetch_factor=4)
    return iter(build_loader(plan, order, kind.reader(config, info), stack, empty_batch))


def batches_before(arguments: argparse.Namespace) -> Iterator[Any]:
    """Micro-batches of the loader of an old checkout, which replays consumed samples."""
    config_module, facts_module, loader_module = (
        importlib.import_module(f"{OLD_PACKAGE}.{name}") for name in ("config", "facts", "loader")
    )
    manifest = str(Path(arguments.data, "shards", "manifest.jsonl"))
    config = config_module.DataConfig(dataset_manifest=[manifest], num_workers=arguments.workers)
    info = facts_module.read_facts(config)
    config = facts_module.derive_data(config, info)
    batch = arguments.batch
    plan = loader_module.LoaderPlan(batch, skip_batches=arguments.first // batch)
    return iter(loader_module.build_loader(config, info, stack, plan))


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds to the first micro-batch, and samples/s; runs in its own process."""
    is_old = (Path(os.environ["PYTHONPATH"]) / "vlatool/loading/facts.py").is_file()
    batches = batches_before if is_old else batches_now
    started = time.perf_counter()
    loader = batches(arguments)
    next(loader)
    opened = time.perf_counter() - started
    warm = 4 * max(arguments.workers, 1)
    list(islice(loader, warm))
    started = time.perf_counter()
    for _ in islice(loader, arguments.steps):
        pass
    rate = arguments.steps * arguments.batch / (time.perf_counter() - started)
    made = (arguments.steps + warm + 1) * arguments.batch
    return {"opened": opened, "rate": rate, "samples": made}


def child(
    arguments: argparse.Namespace,
    checkout: Path = HERE,
    env: Mapping[str, str] | None = None,
    **changes: Any,
) -> dict[str, float]:
    """Result of `measure` with the code of a checkout."""
    values = {**vars(arguments), **changes}
    words = [
        f"--{key}={values[key]}" for key in ("workers", "batch", "steps", "first") if key in values
    ]
    for flag in ("by-sample", "crop", "jitter"):
        words += [f"--{flag}"] if values[flag.replace("-", "_")] else []
    done = subprocess.run(
        [sys.executable, __file__, values["data"], "--child", *words],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(checkout / "src"), **(env or {})},
    )
    return json.loads(done.stdout)


def median_and_range(values: Sequence[float], digits: int = 0) -> str:
    """Median and range."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def in_turn(arguments: argparse.Namespace, runs: Mapping[str, Callable[[], Any]]) -> None:
    """Prints the rates of some measurements in turn, and the last by the first."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(arguments.runs + 1):
        for name, run in runs.items():
            rate = run()["rate"]
            if number:  # the first run warms caches
                rates[name].append(rate)
    print(f"samples/s, {arguments.workers} loader processes, batches of {arguments.batch}")
    for name, values in rates.items():
        print(f"{median_and_range(values)}: {name}")
    if len(rates) > 1:
        before, *_, now = (statistics.median(values) for values in rates.values())
        print(f"{now / before:.3f} x", flush=True)


def local(arguments: argparse.Namespace) -> None:
    """Prints rates of the checkouts or of the data in turn, then times to the first micro-batch."""
    if arguments.against:
        names = (arguments.data, arguments.against)
        in_turn(arguments, {name: partial(child, arguments, data=name) for name in names})
        return
    checkouts = [*([arguments.before.resolve()] if arguments.before else []), HERE]
    in_turn(arguments, {str(tree): partial(child, arguments, tree) for tree in checkouts})
    for position in (0, FAR):
        seconds = [
            1000 * child(arguments, first=position, workers=0, steps=1)["opened"]
            for _ in range(arguments.runs)
        ]
        print(f"{median_and_range(seconds)} ms to the first micro-batch at position {position}")


def remote(arguments: argparse.Namespace) -> None:
    """Compares the same data on disk and in S3 with delayed responses."""
    sys.path[:0] = [str(HERE), str(HERE / "src")]
    from tests.builders.s3_runs import upload
    from tests.builders.s3_server import faulty_proxy, s3_server
    from vlatool.storage.remote_path import RemotePath

    with s3_server() as server, faulty_proxy(server.endpoint) as proxy:
        os.environ.update(server.env)
        if arguments.against:
            bucket = RemotePath(f"s3://{server.bucket()}")
            pair = [(arguments.data, bucket / "data"), (arguments.against, bucket / "other")]
            locations = [str(upload(Path(folder), place)) for folder, place in pair]
            proxy.faults.delay_s = arguments.delay_ms / 1000
            far = {name: partial(child, arguments, env=proxy.env, data=name) for name in locations}
            in_turn(arguments, far)
            return
        target = RemotePath(f"s3://{server.bucket()}/data")
        upload(Path(arguments.data), target)
        near = child(arguments)
        for delay_ms in (0, arguments.delay_ms):
            proxy.faults.clear()
            proxy.faults.delay_s = delay_ms / 1000
            far = child(arguments, env=proxy.env, data=str(target))
            count = len(proxy.faults.requests)
            print(
                f"{delay_ms} ms per request: {far['rate']:.0f} samples/s, "
                f"{far['rate'] / near['rate']:.0%} of {near['rate']:.0f} on disk; "
                f"{count / far['samples'] * 1e6:.0f} requests per million samples; "
                f"opened in {1000 * far['opened']:.0f} ms"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--against", help="data that are read in turn with DATA")
    parser.add_argument("--remote", action="store_true")
    parser.add_argument("--by-sample", action="store_true")
    parser.add_argument("--crop", action="store_true", help="random 224 x 224 crop")
    parser.add_argument("--jitter", action="store_true", help="color jitter, as published")
    parser.add_argument("--delay-ms", type=int, default=20)
    parser.add_argument("--child", action="store_true", help="for internal use")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments)))
    else:
        print(describe())
        (remote if arguments.remote else local)(arguments)
