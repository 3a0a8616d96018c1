"""Delay of a good client of a policy server while bad clients send what is no observation.

python benchmarks/serving_hostile.py [--bad 60] [--requests 200] [--side 224] [--forms deep,lists]
    [--tls]

The bad clients share one process; each sends its message, waits for the reply and connects again.
Those of `unfinished` send all but the last bytes of a message and wait; those of the floods send
frames of this kind without a pause; those of `aborted` leave amid the handshake. The policy is that
of `serving.py`. The good client asks every 50 ms.
"""

import argparse
import asyncio
import multiprocessing
import os
import ssl
import sys
import tempfile
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
from websockets.protocol import State

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


# Frames of a few bytes, sent without a pause.
FLOODS: Mapping[str, bytes] = {
    "pings": b"\x89\x80" + bytes(4),
    "pongs": b"\x8a\x80" + bytes(4),
    "empty fragments": b"\x00\x80" + bytes(4),
    "bytes": b"\x00\x81" + bytes(5),
}
_HEAD = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


async def _flood(url: str, form: str, context: ssl.SSLContext | None) -> None:
    """Sends frames until the server closes the connection."""
    async with connect(url, compression=None, proxy=None, ssl=context) as client:
        await client.recv()
        if FLOODS[form][0] == 0:
            client.transport.write(b"\x02\x80" + bytes(4))  # the start of the message
        while client.state is State.OPEN:
            client.transport.write(FLOODS[form] * 10_000)
            await asyncio.sleep(0.01 if client.transport.get_write_buffer_size() < 1e6 else 0.1)


async def _abort(url: str) -> None:
    """Connects and leaves amid the handshake."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"\x16\x03\x01\x02\x00\x01" if parts.scheme == "wss" else _HEAD)
    await writer.drain()
    writer.transport.abort()


async def _attack(url: str, form: str, size: int, sent: Any) -> None:
    data = FORMS[form](size) if form in FORMS else b""
    tls = _unchecked() if url.startswith("wss") else None
    while True:
        sent.value += 1
        with suppress(Exception):  # bad clients go on, whatever the server does
            if form == "aborted":
                await _abort(url)
                continue
            if form in FLOODS:
                await _flood(url, form, tls)
                continue
            async with connect(url, compression=None, max_size=None, proxy=None, ssl=tls) as client:
                await client.recv()
                if form == "unfinished":
                    head = b"\x82\xff" + len(data).to_bytes(8) + bytes(4)
                    client.transport.write(head + data[:-10])
                    await client.wait_closed()
                else:
                    await client.send(data)
                    await client.recv()


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _bad_clients(url: str, form: str, size: int, count: int, sent: Any) -> None:
    async def run() -> None:
        await asyncio.gather(*(_attack(url, form, size, sent) for _ in range(count)))

    asyncio.run(run())


def _delays(url: str, authority: str | None, side: int, requests: int) -> np.ndarray:
    """Round trips of a good client, in ms."""
    image = np.zeros((side, side, 3), np.uint8)
    seen = {"front": image, "wrist": image, "pose": np.zeros(9), "instruction": "pick the cube"}
    rows: list[float] = []
    with vlatool.connect(url, timeout=20, certificate=authority) as policy:
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


def _serve(options: Any, address: Any, log: str) -> None:
    """Serves as `serving.py`, with stderr in a file."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), sys.stderr.fileno())
    serve(options, 1, address)


def measure(options: Any, form: str, size: int) -> str:
    """Row of the table for a form; an empty one is quiet."""
    context = multiprocessing.get_context("fork")
    address, sent = context.Queue(), context.Value("q", 0)
    descriptor, log = tempfile.mkstemp()
    os.close(descriptor)
    server = context.Process(target=_serve, args=(options, address, log), daemon=True)
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
        rows = _delays(url, options.authority, options.side, options.requests)
        figures = " | ".join(f"{value:.1f}" for value in np.percentile(rows, [50, 99, 100]))
    except vlatool.VlatoolError as error:
        figures = f"{error.code} | - | -"
    rate = (sent.value - count) / (time.perf_counter() - started)
    peak = _memory_mb(server.pid, "VmHWM") - before
    logged = os.path.getsize(log) / 1000
    os.unlink(log)
    for process in (bad, server):
        if process.pid is not None:
            process.terminate()
    return f"| {form or 'none'} | {size:,} | {rate:.0f} | {figures} | {peak:.0f} | {logged:.0f} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bad", type=int, default=60, help="bad clients")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--side", type=int, default=224, help="of the two images, in pixels")
    parser.add_argument("--forms", default=",".join([*FORMS, *FLOODS, "aborted"]))
    parser.add_argument("--sizes", default="400000,29000000", help="bytes of a message")
    parser.add_argument("--tls", action="store_true")
    chosen = parser.parse_args()
    options = SimpleNamespace(**vars(chosen), model_ms=5.0, chain=None, authority=None)
    if chosen.tls:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from tests.builders.forward_proxy import certificates

        folder = tempfile.TemporaryDirectory()
        options.authority, options.chain = map(str, certificates(Path(folder.name), "localhost"))
    print("| bad messages | bytes | per second | p50 ms | p99 ms | max ms | peak MB | log kB |")
    print("|---|---|---|---|---|---|---|---|")
    print(measure(options, "", 0), flush=True)
    for form in chosen.forms.split(","):
        for size in map(int, chosen.sizes.split(",")) if form in FORMS else (0,):
            print(measure(options, form, size), flush=True)


if __name__ == "__main__":
    main()
