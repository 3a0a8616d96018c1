"""Delay of a good client of a policy server while bad clients send what is no observation.

python benchmarks/serving_hostile.py [--bad 60] [--requests 200] [--side 224] [--forms deep,lists]

The bad clients share one process; each sends its message, waits for the reply and connects again.
Those of `unfinished` send all but the last bytes of a message and wait. The policy is that of
`serving.py`. The good client asks every 50 ms.
"""

import argparse
import asyncio
import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import msgpack
import numpy as np
from serving import serve
from websockets.asyncio.client import connect

import vlatool

_PERIOD_S = 0.05
_WARM_UP = 10


def _lists(size: int) -> bytes:
    """Lists of lists of empty lists, as large as a size."""
    inner = max(60, size // 65_535)
    outer = size // (inner + 3)
    return b"\xdc" + outer.to_bytes(2) + (b"\xdc" + inner.to_bytes(2) + b"\x90" * inner) * outer


def _repeated(size: int, part: bytes) -> bytes:
    """A map whose entry `x` is many of a part, as a list."""
    count = max(1, size // len(part))
    return b"\x81\xa1x\xdd" + count.to_bytes(4) + part * count


def _short_lists(size: int) -> bytes:
    """Lists of 1,000 lists, each of 16 empty ones."""
    return _repeated(size, b"\xdc" + (1000).to_bytes(2) + (b"\xdc\x00\x10" + b"\x90" * 16) * 1000)


# Name to the message of about this size.
FORMS: Mapping[str, Callable[[int], bytes]] = {
    "lists": _lists,
    "short lists": _short_lists,
    "deep": lambda size: b"\xdc\xff\xff" * min(511, size // 3),
    "same keys": lambda size: _repeated(size, b"\xde\x03\xe8" + b"\xa1a\xc0" * 1000),
    "arrays": lambda size: _repeated(
        size,
        msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "|u1", b"shape": [0]}),
    ),
    "names": lambda size: msgpack.packb({f"observation/front{n}": 0 for n in range(250)}),
    "unfinished": lambda size: bytes(size),
}


async def _attack(url: str, form: str, size: int, sent: Any) -> None:
    data = FORMS[form](size)
    while True:
        sent.value += 1
        with suppress(Exception):  # bad clients go on, whatever the server does
            async with connect(url, compression=None, max_size=None, proxy=None) as client:
                await client.recv()
                if form == "unfinished":
                    head = b"\x82\xff" + len(data).to_bytes(8) + bytes(4)
                    client.transport.write(head + data[:-10])
                    await client.wait_closed()
                else:
                    await client.send(data)
                    await client.recv()


def _bad_clients(url: str, form: str, size: int, count: int, sent: Any) -> None:
    async def run() -> None:
        await asyncio.gather(*(_attack(url, form, size, sent) for _ in range(count)))

    asyncio.run(run())


def _delays(url: str, side: int, requests: int) -> np.ndarray:
    """Round trips of a good client, in ms."""
    image = np.zeros((side, side, 3), np.uint8)
    seen = {"front": image, "wrist": image, "pose": np.zeros(9), "instruction": "pick the cube"}
    rows: list[float] = []
    with vlatool.connect(url, timeout=20) as policy:
        for _ in range(requests + _WARM_UP):
            started = time.perf_counter()
            policy.act(seen)
            seconds = time.perf_counter() - started
            rows.append(1000 * seconds)
            time.sleep(max(0.0, _PERIOD_S - seconds))
    return np.array(rows[_WARM_UP:])


def _memory_mb(process: int, key: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1000


def measure(options: Any, form: str, size: int) -> str:
    """Row of the table for a form; an empty one is quiet."""
    context = multiprocessing.get_context("fork")
    address, sent = context.Queue(), context.Value("q", 0)
    server = context.Process(target=serve, args=(options, 1, address), daemon=True)
    server.start()
    url = address.get()
    assert urlsplit(url).port
    assert server.pid is not None
    before = _memory_mb(server.pid, "VmRSS")
    words = (url, form, size, options.bad, sent)
    bad = context.Process(target=_bad_clients, args=words, daemon=True)
    if form:
        bad.start()
        time.sleep(3)
    started, count = time.perf_counter(), sent.value
    try:
        rows = _delays(url, options.side, options.requests)
        figures = " | ".join(f"{value:.1f}" for value in np.percentile(rows, [50, 99, 100]))
    except vlatool.VlatoolError as error:
        figures = f"{error.code} | - | -"
    rate = (sent.value - count) / (time.perf_counter() - started)
    peak = _memory_mb(server.pid, "VmHWM") - before
    for process in (bad, server):
        if process.pid is not None:
            process.terminate()
    return f"| {form or 'none'} | {size:,} | {rate:.0f} | {figures} | {peak:.0f} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bad", type=int, default=60, help="bad clients")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--side", type=int, default=224, help="of the two images, in pixels")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--sizes", default="400000,29000000", help="bytes of a message")
    chosen = parser.parse_args()
    options = SimpleNamespace(**vars(chosen), model_ms=5.0)
    print("| bad messages | bytes | per second | p50 ms | p99 ms | max ms | peak MB |")
    print("|---|---|---|---|---|---|---|")
    print(measure(options, "", 0), flush=True)
    for form in chosen.forms.split(","):
        for size in map(int, chosen.sizes.split(",")):
            print(measure(options, form, size), flush=True)


if __name__ == "__main__":
    main()
