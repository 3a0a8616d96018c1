"""Way to a web server: the proxy of a URL, and the certificates that are accepted.

The variables are those of urllib and the AWS tools. Passwords of proxies are in no message.
"""

import importlib
import os
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from vlatool.errors import UsageError

# Files or folders of certificates that are accepted besides those of OpenSSL, which reads
# SSL_CERT_FILE and SSL_CERT_DIR.
_BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CERTIFICATES = (*_BUNDLES, "SSL_CERT_FILE", "SSL_CERT_DIR")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_VARIABLES = (*_CERTIFICATES, *_PROXIES, *map(str.upper, _PROXIES))


@dataclass(frozen=True)
class Proxy:
    """Proxy server."""

    url: str  # URL without credentials
    login: str = field(default="", repr=False)  # `user:password`; empty without credentials

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.url).netloc

    def __str__(self) -> str:
        return f"{self.url} (with a password)" if self.login else self.url


class Route(NamedTuple):
    """Way to a server."""

    proxy: Proxy | None  # proxy on the way; None: no proxy
    # TLS context that accepts the certificates of the system and of all bundles that are named;
    # None without TLS
    certificates: ssl.SSLContext | None


def route(url: str) -> Route:
    """Way to the server of a URL, by the environment."""
    parts = urlsplit(url)
    return _route(parts.scheme, parts.netloc, _environment())


def route_settings() -> Mapping[str, str]:
    """Proxies and certificates that the environment names, without credentials."""
    proxies = getproxies()
    named = {name: text for name in ("http", "https", "all") if (text := proxies.get(name))}
    shown = {f"{name.upper()}_PROXY": str(_parsed(text, name)) for name, text in named.items()}
    shown |= {"NO_PROXY": proxies["no"]} if proxies.get("no") else {}
    return shown | {name: os.environ[name] for name in _CERTIFICATES if os.environ.get(name)}


def _environment() -> tuple[str | None, ...]:
    return tuple(map(os.environ.get, _VARIABLES))


@lru_cache(maxsize=1024)
def _route(scheme: str, host: str, environment: tuple[str | None, ...]) -> Route:
    proxies = getproxies()
    name = scheme if proxies.get(scheme) else "all"
    text = proxies.get(name)
    proxy = _parsed(text, name) if text and not proxy_bypass(host) else None
    has_tls = scheme == "https" or (proxy is not None and proxy.url.startswith("https:"))
    return Route(proxy, _certificates(environment) if has_tls else None)


def _parsed(text: str, name: str) -> Proxy:
    """Proxy of a variable, whose text may contain a password."""
    with suppress(ValueError):
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        has_rest = parts.path.strip("/") or parts.query or parts.fragment
        if parts.scheme in ("http", "https") and parts.hostname and not has_rest:
            host = parts.netloc.rpartition("@")[2].removesuffix(f":{parts.port}")
            login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
            return Proxy(f"{parts.scheme}://{host}:{port}", login if parts.username else "")
    raise UsageError(
        f"{name.upper()}_PROXY: not the URL of an HTTP proxy",
        hint="write http://host:port or http://user:password@host:port, with %40 for @, %3A for :"
        " and so on in the password",
        code="usage.bad_environment",
    )


@lru_cache(maxsize=4)
def _certificates(_environment: tuple[str | None, ...]) -> ssl.SSLContext:
    """TLS context for the certificates of the system and of the environment."""
    module: Any = importlib.import_module("urllib3.util.ssl_")
    context: ssl.SSLContext = module.create_urllib3_context()
    context.load_default_certs()
    for name in _BUNDLES:
        if not (path := os.environ.get(name)):
            continue
        try:
            is_folder = os.path.isdir(path)
            context.load_verify_locations(**{"capath" if is_folder else "cafile": path})
        except OSError as error:  # ssl.SSLError is one
            raise UsageError(
                f"{name}={path}: no certificates can be read ({type(error).__name__})",
                hint="give a file of certificates in PEM format, or unset the variable",
                code="usage.bad_environment",
            ) from error
    return context
