"""Access to a server: its address, the key of its clients, and TLS."""

import errno
import hmac
import ipaddress
import socket
import ssl
from pathlib import Path

from vlatool.credentials import hide
from vlatool.errors import UsageError
from vlatool.serving.client import KEY_SCHEME, is_usable_key
from vlatool.storage.byte_ranges import read_file


def bound_socket(host: str, port: int) -> socket.socket:
    """Socket of an address; it rejects connections until it listens."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"the host {host!r} is unknown: {error}",
            hint="use 127.0.0.1 for clients on this machine, 0.0.0.0 for clients on others",
            code="usage.bad_value",
            details={"host": host},
        ) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _address_error(host, port, error) from error
    return bound


def listen(bound: socket.socket) -> None:
    try:
        bound.listen()
    except OSError as error:
        host, port = bound.getsockname()[:2]
        raise _address_error(host, port, error) from error


def _address_error(host: str, port: int, error: OSError) -> UsageError:
    hints = {
        errno.EADDRINUSE: "stop the program that uses it, or choose another --port; 0 takes any",
        errno.EACCES: "choose a --port of at least 1024",
        errno.EADDRNOTAVAIL: "choose a --host of this machine, such as 0.0.0.0",
    }
    return UsageError(
        f"cannot listen at {host} port {port}: {error.strerror}",
        hint=hints.get(error.errno or 0, "choose another --host or --port"),
        code="usage.bad_value",
        details={"host": host, "port": port},
    )


def url_of(bound: socket.socket, *, has_tls: bool) -> str:
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'wss' if has_tls else 'ws'}://{shown}:{port}"


def read_key(key_file: str | None, host: str) -> str | None:
    """Key that clients must send; None if they need none."""
    if key_file is None:
        if _is_own_address(host):
            return None
        raise UsageError(
            f"a server at {host} needs a key: other machines can reach it",
            hint="write a long random key into a file and give it with --key-file",
            code="usage.bad_value",
            details={"host": host},
        )
    key = _text_of(key_file, "--key-file").strip()
    if not is_usable_key(key):
        raise UsageError.at(
            key_file,
            "must hold one line of printable ASCII characters",
            hint="write a long random key into it",
            code="usage.bad_value",
        )
    hide(key)
    return key


def has_key(header: str | None, key: str) -> bool:
    """True if the header `Authorization` of a request has the key."""
    return hmac.compare_digest((header or "").encode(), f"{KEY_SCHEME}{key}".encode())


def tls_context(certificate: str | None, private_key: str | None) -> ssl.SSLContext | None:
    """TLS of a server; None without a certificate."""
    if certificate is None:
        if private_key is None:
            return None
        raise UsageError(
            "--private-key needs --certificate",
            hint="add --certificate FILE, or leave --private-key out",
            code="usage.bad_value",
        )
    for path, option in ((certificate, "--certificate"), (private_key, "--private-key")):
        if path is not None:
            _text_of(path, option)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # A password would be asked for on the terminal.
        context.load_cert_chain(certificate, private_key, password="")
    except (OSError, ValueError) as error:
        raise UsageError.at(
            certificate,
            f"this is not a certificate with its private key: {error}",
            hint="give the chain in PEM form, and its key, unencrypted, with --private-key",
            code="usage.bad_value",
        ) from error
    return context


def _text_of(path: str, option: str) -> str:
    try:
        return read_file(Path(path)).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{option} {path} cannot be read: {error}",
            hint="give the path of a text file on this machine",
            code="usage.missing_file",
            details={"path": path},
        ) from error


def _is_own_address(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
