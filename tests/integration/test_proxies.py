"""All schemes through forwarding proxies, and with the certificates of a private authority."""

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders.forward_proxy import HOST, ForwardProxy, forward_proxy, with_tls
from tests.builders.lerobot import lerobot_dataset
from tests.builders.s3_server import S3Server
from tests.builders.web_server import TOKEN, WebServer, web_server
from vlatool.cli import app
from vlatool.errors import VlatoolError
from vlatool.storage import retry
from vlatool.storage.atomic import write_bytes
from vlatool.storage.uri import location
from vlatool.workflows.upload import UploadConfig, upload

SCHEMES = ["s3", "gs", "https", "hf"]
CONTENT = b"content" * 1000
LOGIN, TYPED = "robot:open sesame@!", "robot:open%20sesame%40!"
BUNDLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy and no certificates of this machine, no cache, and few retries."""
    names = [name for name in os.environ if name.lower().endswith("_proxy")]
    for name in (*names, *BUNDLES, "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "aws").write_text("[default]\ns3 =\n    addressing_style = path\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "5")
    monkeypatch.setenv("VLATOOL_STORAGE_CLOCK_SPEED", "20")
    monkeypatch.setattr(retry, "_answered", set[str]())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[WebServer]:
    folder = tmp_path / "site/lab/set"
    folder.mkdir(parents=True)
    (folder / "file.bin").write_bytes(CONTENT)
    with web_server(tmp_path / "site") as server:
        yield server


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def served(
    scheme: str,
    site: WebServer,
    s3: S3Server,
    s3_bucket: str,
    gs_root: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[str, Path]]:
    """Location of a file that only a proxy can reach, by TLS, and the file of the authority."""
    s3.put(s3_bucket, "file.bin", CONTENT)
    write_bytes(location(f"{gs_root}/file.bin"), CONTENT)
    variables = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST", "hf": "HF_ENDPOINT"}
    variable = variables.get(scheme, "")
    url = os.environ[variable] if scheme in ("s3", "gs") else site.endpoint
    with with_tls(url, tmp_path) as (endpoint, authority):
        if variable:
            monkeypatch.setenv(variable, endpoint)
        files = {
            "s3": f"s3://{s3_bucket}",
            "gs": gs_root,
            "https": f"{endpoint}/lab/set",
            "hf": "hf://datasets/lab/set",
        }
        yield f"{files[scheme]}/file.bin", authority


def proxied(monkeypatch: pytest.MonkeyPatch, proxy: ForwardProxy, login: str = "") -> None:
    url = proxy.url.replace("://", f"://{login}@") if login else proxy.url
    monkeypatch.setenv("HTTPS_PROXY", url)
    monkeypatch.setenv("HTTP_PROXY", url)


@pytest.mark.parametrize("login", ["", LOGIN])
def test_file_is_read_through_a_proxy_from_a_private_authority(
    served: tuple[str, Path], login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, authority = served
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    with forward_proxy(login) as proxy:
        proxied(monkeypatch, proxy, TYPED if login else "")

        assert location(text).read_bytes() == CONTENT

    assert all(line.startswith(f"CONNECT {HOST}:") for line in proxy.requests)
    assert len(proxy.requests) <= 4, "connections are kept"


@pytest.mark.parametrize("variable", BUNDLES[:-1])  # the last one is that of the other tests
def test_certificates_of_every_variable_are_accepted(
    served: tuple[str, Path], variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, authority = served
    monkeypatch.setenv(variable, str(authority))
    with forward_proxy() as proxy:
        proxied(monkeypatch, proxy)

        assert location(text).read_bytes() == CONTENT


def failure(text: str) -> tuple[int, dict[str, Any], str]:
    """Exit code and error of a command, and all that it printed."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = app.run(["verify", text, "--json"])
    printed = stdout.getvalue()
    return code, json.loads(printed)["error"], printed + stderr.getvalue()


def test_unknown_authority_and_a_proxy_that_does_not_answer_are_errors_with_the_variables(
    served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with forward_proxy() as proxy:
        proxied(monkeypatch, proxy, TYPED)
        code, error, _ = failure(served[0])
    assert (code, error["code"]) == (5, "storage.refused")
    assert "certificate of the server is not accepted" in error["message"]
    assert "SSL_CERT_FILE" in error["hint"]

    code, error, printed = failure(served[0])
    assert (code, error["code"]) == (5, "storage.unreachable")
    assert "refuses connections" in error["message"]
    assert "HTTPS_PROXY" in error["hint"]
    assert "sesame" not in printed


@pytest.mark.parametrize(
    ("status", "login", "typed", "code", "message"),
    [
        (403, "", "", "storage.refused", "refuses the connection (403)"),
        (0, LOGIN, "", "storage.refused", "asks for a user name and password (407)"),
        (0, "robot:other", TYPED, "storage.refused", "does not accept the user name"),
        (503, LOGIN, TYPED, "storage.unreachable", "answers 503"),
    ],
)
def test_proxy_that_refuses_is_an_error(
    status: int,
    login: str,
    typed: str,
    code: str,
    message: str,
    served: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with forward_proxy(login, status) as proxy:
        proxied(monkeypatch, proxy, typed)
        exit_code, error, printed = failure(served[0])

    assert (exit_code, error["code"]) == (5, code)
    assert "the proxy " in error["message"]
    assert message in error["message"]
    assert "sesame" not in printed


def test_http_is_read_through_a_proxy_unless_no_proxy_names_its_host(
    site: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forward_proxy(LOGIN) as proxy:
        proxied(monkeypatch, proxy, TYPED)
        text = f"{site.endpoint}/lab/set/file.bin"
        named = text.replace("127.0.0.1", HOST)
        assert location(named).read_bytes() == CONTENT
        assert {line.split()[1] for line in proxy.requests} == {named}

        proxy.requests.clear()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert location(text).read_bytes() == CONTENT
        assert not proxy.requests

        monkeypatch.delenv("NO_PROXY")
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        assert "user name" in failure(text)[1]["message"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("HTTPS_PROXY", "socks5://robot:sesame@localhost:1"),
        ("HTTPS_PROXY", "http://robot:sesame/@localhost:1"),
        ("HTTPS_PROXY", "http://robot:sesame#@localhost:1"),
        ("REQUESTS_CA_BUNDLE", "/no/such/file"),
    ],
)
def test_unusable_variable_is_named_without_its_password(
    variable: str, value: str, served: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    code, error, printed = failure(served[0])

    assert (code, error["code"]) == (2, "usage.bad_value")
    assert error["message"].startswith(variable)
    assert "sesame" not in printed


@pytest.mark.parametrize("scheme", ["hf"])
def test_upload_uses_the_proxy_and_the_certificates(
    served: tuple[str, Path],
    site: WebServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    data = lerobot_dataset(tmp_path / "data", lengths=(4,))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(served[1]))
    site.faults.scheme = "https"
    with forward_proxy(LOGIN) as proxy:
        proxied(monkeypatch, proxy, TYPED)

        upload(UploadConfig(folder=str(data), location="hf://datasets/lab/pick"))

    hub.close_session()  # its client keeps the proxy
    assert site.written.commits


def test_doctor_shows_what_is_in_force_without_passwords(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_bucket: str
) -> None:
    assert s3_bucket
    monkeypatch.setenv("HF_ENDPOINT", f"https://{HOST}")
    monkeypatch.setenv("NO_PROXY", ".corp")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    stdout = io.StringIO()
    with forward_proxy(status=403) as proxy, contextlib.redirect_stdout(stdout):
        proxied(monkeypatch, proxy, TYPED)
        app.run(["doctor", "--json"])

    checks = {row["name"]: row for row in json.loads(stdout.getvalue())["checks"]}
    shown = checks["proxies"]["message"]
    assert f"HTTPS_PROXY={proxy.url} (with a password)" in shown
    assert f"NO_PROXY=.corp, SSL_CERT_FILE={tmp_path}" in shown
    assert "refuses the connection (403)" in checks["hub"]["message"]
    assert "sesame" not in stdout.getvalue()


def test_hosts_that_have_answered_through_a_proxy_are_retried(
    site: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with with_tls(site.endpoint, tmp_path) as (endpoint, authority), forward_proxy() as proxy:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        proxied(monkeypatch, proxy)
        path = location(f"{endpoint}/lab/set/file.bin")
        assert path.read_bytes() == CONTENT
        proxy.status = 502
        site.faults.cut_after = 1  # ends the connection that is kept
        with pytest.raises(VlatoolError) as caught:
            path.read_bytes()

    assert caught.value.code == "storage.unreachable"
    assert caught.value.details["attempts"] > 1
