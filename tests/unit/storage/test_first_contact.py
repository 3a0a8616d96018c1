import multiprocessing
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing

import pytest

from vlatool.errors import StorageError
from vlatool.storage import routes
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.routes import UnreachableHost, reach


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Server at a port that no test before it in this process has talked to."""
    monkeypatch.setattr(routes, "_CONTACTS", type(routes._CONTACTS)())
    with closing(socket.create_server(("127.0.0.1", 0), backlog=1)) as listening:
        yield listening


def url_of(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


def connections_until_one_waits(listening: socket.socket) -> list[socket.socket]:
    """Connections to a server that accepts none: as many as its backlog takes, and one more."""
    waiting: list[socket.socket] = []
    connected = True
    while connected:
        waiting.append(socket.socket())
        waiting[-1].setblocking(False)
        waiting[-1].connect_ex(listening.getsockname())
        connected = bool(select.select([], [waiting[-1]], [], 0.5)[1])
    return waiting


def test_host_that_has_answered_is_retried(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "0.1")
    url = url_of(listener)
    reach(url)
    listener.close()

    with pytest.raises(StorageError) as caught:
        RemotePath(f"{url}/file.bin").read_bytes()

    assert caught.value.details["attempts"] > 1


def test_host_that_never_answers_is_given_up(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "ANSWER_TIMEOUT_S", 0.3)
    waiting = connections_until_one_waits(listener)
    started = time.monotonic()

    with pytest.raises(UnreachableHost, match=r"does not answer"):
        reach(url_of(listener))

    assert time.monotonic() - started < 2
    for connection in waiting:
        connection.close()


def test_invalid_location_is_left_to_the_request_and_no_name_is_unreachable() -> None:
    for url in ("http://[", "http://a:b/", "nothing", "http://a:99999/"):
        reach(url)
    with pytest.raises(UnreachableHost, match=r"name"):
        reach(f"http://{'a' * 70}.invalid/")


def test_worker_process_expects_an_answer() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        pool.submit(reach, "http://nohost.invalid").result()
