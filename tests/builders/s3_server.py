"""A real S3 server for tests, in a separate process, and a proxy that injects faults."""

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
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.builders.web_server import Server

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
_CODES = {
    400: "ExpiredToken",
    403: "AccessDenied",
    429: "TooManyRequests",
    501: "NotImplemented",
    503: "SlowDown",
}
_HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "host", "expect"}


def without_credentials(env: Mapping[str, str]) -> dict[str, str]:
    """Environment variables `env` without any source of AWS credentials."""
    other = {name: value for name, value in env.items() if not name.startswith("AWS_")}
    no_sources = {
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    endpoint = {name: value for name, value in env.items() if name == "AWS_ENDPOINT_URL"}
    return {**other, **no_sources, **endpoint}


@dataclass
class S3Server:
    """A running server."""

    endpoint: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def env(self) -> dict[str, str]:
        """Environment variables with which a process uses the server."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self) -> Any:
        """Client of boto3, independent of the code under test."""
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
        """Creates an empty bucket; returns its name."""
        name = f"bucket-{os.getpid()}-{next(self._numbers)}"
        self.client().create_bucket(Bucket=name)
        return name

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self.client().put_object(Bucket=bucket, Key=key, Body=data)

    def start_upload(self, bucket: str, key: str) -> None:
        self.client().create_multipart_upload(Bucket=bucket, Key=key)

    def unfinished(self, bucket: str) -> list[str]:
        """Keys of unfinished uploads."""
        uploads = self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ())
        return sorted(upload["Key"] for upload in uploads)


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Runs a server in a separate process until the block, or this process, ends."""
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
    """Request through the proxy, with the number of bytes in the response."""

    method: str
    path: str
    range: str
    status: int
    sent: int


@dataclass
class Faults:
    """Faults that the proxy injects; `clear` ends them."""

    fail_every: int = 0  # every N-th request gets `status` instead of being forwarded
    fail_next: int = 0  # the next N requests get `status`
    status: int = 500  # 500; 503 or 429 for a busy server; 403 for denied access
    retry_after_s: int = 0  # seconds in the Retry-After header of these responses
    delay_s: float = 0.0  # seconds before each request
    cut_after: int = 0  # bodies and connections end after N bytes
    cuts: int = -1  # number of bodies that are cut; -1 for all
    down_until: float = 0.0  # connections are closed without a response until this `time.monotonic`
    down_after: int = 0  # connections are closed without a response after N requests
    lose_answers: int = 0  # the next N requests are forwarded, but their responses are not
    only: tuple[str, ...] = ()  # methods with faults; empty for all
    requests: list[Request] = field(default_factory=list)
    _count: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """Ends all faults and forgets the requests."""
        fresh = Faults()
        with self._lock:
            for name in vars(fresh):
                if name != "_lock":
                    setattr(self, name, getattr(fresh, name))

    def down_for(self, seconds: float) -> None:
        """Closes connections for some seconds."""
        self.down_until = time.monotonic() + seconds

    def is_down(self) -> bool:
        """True if connections are closed."""
        is_late = bool(self.down_after) and len(self.requests) >= self.down_after
        return is_late or time.monotonic() < self.down_until

    def fails_now(self) -> bool:
        """True if the next request fails."""
        with self._lock:
            self._count += 1
            if self.fail_next > 0:
                self.fail_next -= 1
                return True
            return bool(self.fail_every) and self._count % self.fail_every == 0

    def loses_now(self) -> bool:
        """True if the next response is lost."""
        with self._lock:
            self.lose_answers -= 1
            return self.lose_answers >= 0

    def cuts_now(self, length: int) -> bool:
        """True if a body of this length is cut."""
        with self._lock:
            if not self.cut_after or length <= self.cut_after or self.cuts == 0:
                return False
            self.cuts -= 1
            return True


@dataclass(frozen=True)
class Proxy:
    """Running proxy."""

    endpoint: str
    faults: Faults

    @property
    def env(self) -> dict[str, str]:
        """Environment variables with which a process uses the proxy."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[Proxy]:
    """Runs a proxy for a server on threads of this process; other processes can use it too."""
    faults = Faults()
    host = urlsplit(upstream).netloc

    class Handler(_Handler):
        pass

    Handler.faults, Handler.upstream = faults, host
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield Proxy(f"http://127.0.0.1:{server.server_port}", faults)
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the acknowledgement of its headers
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
        span = self.headers.get("Range", "")
        path = self.path.partition("?X-Amz")[0].partition("?AWSAccessKeyId")[0]  # signed URLs
        self.faults.requests.append(Request(self.command, path, span, status, sent))

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
