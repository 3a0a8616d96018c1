"""A real S3 server for tests, in a process of its own, and a proxy that makes it misbehave."""

import contextlib
import http.client
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_SERVER = """
import logging, sys
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_CODES = {403: "AccessDenied", 429: "TooManyRequests", 501: "NotImplemented", 503: "SlowDown"}
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "host", "expect"}


def without_credentials(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of `env` with nowhere to find credentials."""
    kept = {name: value for name, value in env.items() if not name.startswith("AWS_")}
    nowhere = {
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    endpoint = {name: value for name, value in env.items() if name == "AWS_ENDPOINT_URL"}
    return {**kept, **nowhere, **endpoint}


@dataclass
class S3Server:
    """A running server."""

    endpoint: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to use it; add it to `os.environ`."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self) -> Any:
        """A plain client, to look at the truth behind our own code."""
        return self._client

    @cached_property
    def _client(self) -> Any:
        import boto3.session
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"bucket-{os.getpid()}-{next(self._numbers)}"
        self.client().create_bucket(Bucket=name)
        return name


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server in a process of its own; it ends with the block, or with this process."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the server did not start"
        try:
            yield S3Server(f"http://127.0.0.1:{port}")
        finally:
            process.kill()


@dataclass(frozen=True)
class Request:
    """A request that went through the proxy, and the bytes that were sent back."""

    method: str
    path: str
    range: str
    status: int
    sent: int


@dataclass
class Faults:
    """How the proxy misbehaves; `clear` makes it behave again.

    Attributes:
        fail_every: Every such request is answered with `status` instead of being passed on.
        status: 500; 503 or 429 for a server that is busy; 403 for one that refuses.
        retry_after_s: Seconds in a Retry-After header of those answers.
        fail_next: So many requests from now on are answered with `status`.
        delay_s: Before each request.
        cut_after: Bodies end, with the connection, after so many bytes.
        cuts: How many bodies are cut; -1 for all.
        down_until: Connections are closed without an answer until then, by `time.monotonic`.
        down_after: The same for good, once so many requests were answered.
        lose_answers: Requests are passed on, but the answers to so many of them are not.
        only: What the faults are restricted to: methods, or all if it is empty.
    """

    fail_every: int = 0
    fail_next: int = 0
    status: int = 500
    retry_after_s: int = 0
    delay_s: float = 0.0
    cut_after: int = 0
    cuts: int = -1
    down_until: float = 0.0
    down_after: int = 0
    lose_answers: int = 0
    only: tuple[str, ...] = ()
    requests: list[Request] = field(default_factory=list)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """Behaves, and forgets what was asked."""
        fresh = Faults()
        with self._lock:
            for name in vars(fresh):
                if name != "_lock":
                    setattr(self, name, getattr(fresh, name))

    def down_for(self, seconds: float) -> None:
        """Is not there for a while."""
        self.down_until = time.monotonic() + seconds

    def is_down(self) -> bool:
        """Whether connections are closed."""
        is_late = bool(self.down_after) and len(self.requests) >= self.down_after
        return is_late or time.monotonic() < self.down_until

    def fails_now(self) -> bool:
        """Whether the next request is to fail."""
        with self._lock:
            self._count += 1
            if self.fail_next > 0:
                self.fail_next -= 1
                return True
            return bool(self.fail_every) and self._count % self.fail_every == 0

    def loses_now(self) -> bool:
        """Whether the next answer is to be lost."""
        with self._lock:
            self.lose_answers -= 1
            return self.lose_answers >= 0

    def cuts_now(self, length: int) -> bool:
        """Whether a body of this length is to be cut."""
        with self._lock:
            if not self.cut_after or length <= self.cut_after or self.cuts == 0:
                return False
            self.cuts -= 1
            return True


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    endpoint: str
    faults: Faults

    @property
    def env(self) -> dict[str, str]:
        """What a process needs to use it."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy before a server, on threads of this process; other processes can use it too."""
    faults = Faults()
    host = urlsplit(upstream).netloc

    class Handler(_Handler):
        pass

    Handler.faults, Handler.upstream = faults, host
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Proxy(f"http://127.0.0.1:{server.server_port}", faults)
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the receipt of its headers
    faults: Faults
    upstream: str

    def handle_any(self) -> None:
        faults = self.faults
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        applies = not faults.only or self.command in faults.only
        if faults.delay_s and applies:
            time.sleep(faults.delay_s)
        if faults.is_down():
            self._hang_up()
        elif applies and faults.fails_now():
            self._fail()
        else:
            self._forward(body, applies=applies)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 - http.server's

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's
        del format, args

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.flush()

    def _record(self, status: int, sent: int) -> None:
        asked = self.headers.get("Range", "")
        path = self.path.partition("?X-Amz")[0].partition("?AWSAccessKeyId")[0]  # signed addresses
        self.faults.requests.append(Request(self.command, path, asked, status, sent))

    def _fail(self) -> None:
        self._record(self.faults.status, 0)
        code = _CODES.get(self.faults.status, "InternalError")
        content = f"<Error><Code>{code}</Code><Message>test</Message></Error>".encode()
        self.send_response(self.faults.status)
        if self.faults.retry_after_s:
            self.send_header("Retry-After", str(self.faults.retry_after_s))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _forward(self, body: bytes, *, applies: bool) -> None:
        upstream = http.client.HTTPConnection(self.upstream, timeout=30)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_HEADERS}
        try:
            upstream.request(self.command, self.path, body, {**headers, "Host": self.upstream})
            answer = upstream.getresponse()
            content = answer.read()
        finally:
            upstream.close()
        if applies and self.command != "GET" and self.faults.loses_now():
            self._record(answer.status, 0)
            self._hang_up()
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in (*_HOP_HEADERS, "content-length", "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
        self.send_header("Content-Length", str(length or 0))
        if self.command == "HEAD":
            self._record(answer.status, 0)
            self.end_headers()
            return
        self.end_headers()
        cut = self.command == "GET" and applies and self.faults.cuts_now(len(content))
        sent = content[: self.faults.cut_after] if cut else content
        self._record(answer.status, len(sent))
        with contextlib.suppress(OSError):
            self.wfile.write(sent)
        if cut:
            self._hang_up()
