"""A forwarding proxy, which alone knows the names below `.test`, and servers with TLS."""

import base64
import datetime
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOST = "localhost.test"  # has no address outside the proxy, and no bucket for moto
_DAYS = datetime.timedelta(days=2)


@dataclass
class ForwardProxy:
    """Running proxy."""

    url: str = ""  # its URL, without credentials
    login: str = ""  # `user:password` that it asks for; empty for none
    status: int = 0  # status of its answers, instead of a connection; 0 for connections
    # First line of each request that it forwarded or refused.
    requests: list[str] = field(default_factory=list)

    def answer(self, headers: dict[str, str]) -> int:
        """Status of the answer to a request; 0: it is forwarded."""
        expected = base64.b64encode(self.login.encode()).decode()
        if self.login and headers.get("proxy-authorization") != f"Basic {expected}":
            return 407
        return self.status


@contextmanager
def forward_proxy(login: str = "", status: int = 0) -> Iterator[ForwardProxy]:
    """Runs a proxy for CONNECT and for requests of http."""
    proxy = ForwardProxy(login=login, status=status)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if not (first := self.rfile.readline().decode("latin-1").strip()):
                return
            headers: dict[str, str] = {}
            while line := self.rfile.readline().decode("latin-1").strip():
                name, _, text = line.partition(":")
                headers[name.lower()] = text.strip()
            proxy.requests.append(first)
            with suppress(OSError):
                if refusal := proxy.answer(headers):
                    self.wfile.write(f"HTTP/1.1 {refusal} No\r\nContent-Length: 0\r\n\r\n".encode())
                    return
                method, target, _ = first.split(" ")
                self._forward(method, target, headers)

        def _forward(self, method: str, target: str, headers: dict[str, str]) -> None:
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            host = "127.0.0.1" if (url.hostname or "").endswith(".test") else url.hostname
            with socket.create_connection((host, url.port or 80)) as server:
                if method == "CONNECT":
                    self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                else:
                    path = url._replace(scheme="", netloc="").geturl()
                    lines = [f"{name}: {text}" for name, text in headers.items()]
                    lines = [f"{method} {path} HTTP/1.1", *lines, "Connection: close", "", ""]
                    server.sendall("\r\n".join(lines).encode("latin-1"))
                _relay(self.connection, server)

    with _served(Handler) as port:
        proxy.url = f"http://127.0.0.1:{port}"
        yield proxy


@contextmanager
def with_tls(url: str, folder: Path, host: str = HOST) -> Iterator[tuple[str, Path]]:
    """Serves the server of a URL with TLS; yields its URL at `host`, and the authority's file."""
    authority, chain = certificates(folder, host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    address = ("127.0.0.1", urlsplit(url).port)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), ExitStack() as stack:
                client = stack.enter_context(context.wrap_socket(self.request, server_side=True))
                _relay(client, stack.enter_context(socket.create_connection(address)))

    with _served(Handler) as port:
        yield f"https://{host}:{port}", authority


def certificates(folder: Path, host: str = HOST) -> tuple[Path, Path]:
    """Files of a private authority, and of the key and certificate that it gave to a host."""
    root, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    (folder / "authority.pem").write_bytes(_certificate("authority", root, root))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "server.pem").write_bytes(private + _certificate(host, key, root))
    return folder / "authority.pem", folder / "server.pem"


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    subject, issuer = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
        for text in (name, "authority")
    )
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAYS)
        .not_valid_after(now + _DAYS)
        .add_extension(x509.BasicConstraints(ca=key is signer, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    )
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _relay(left: socket.socket, right: socket.socket) -> None:
    """Copies bytes in both directions until one side ends."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(65536):
                target.sendall(block)
        for end in (source, target):
            with suppress(OSError):
                socket.socket.shutdown(end, socket.SHUT_RDWR)

    thread = threading.Thread(target=copy, args=(left, right), daemon=True)
    thread.start()
    copy(right, left)
    thread.join()


@contextmanager
def _served(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
