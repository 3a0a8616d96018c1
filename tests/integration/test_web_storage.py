"""Paths on web servers and a hub; both run on a thread and inject faults."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.web_server import COMMIT, TOKEN, WebServer, web_server
from vlatool.errors import DataError, EnvironmentProblem, StorageError, UsageError
from vlatool.storage import http, retry
from vlatool.storage.atomic import remove_file, write_bytes
from vlatool.storage.byte_ranges import ByteRange, read_byte_range
from vlatool.storage.remote import is_writable
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.uri import location, pinned, version_of

BIG = np.random.default_rng(0).bytes(3 * 2**20)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    (tmp_path / "site/some folder").mkdir(parents=True)
    (tmp_path / "site/big.bin").write_bytes(BIG)
    (tmp_path / "site/some folder/small.json").write_text('{"a": 1}')
    (tmp_path / "site/empty.bin").touch()
    with web_server(tmp_path / "site") as running:
        monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "3")
        yield running


@pytest.fixture
def big(server: WebServer) -> RemotePath:
    return RemotePath(f"{server.endpoint}/big.bin")


class TestWeb:
    def test_missing_file_does_not_exist_and_folders_are_neither_listed_nor_written(
        self, server: WebServer
    ) -> None:
        missing = location(f"{server.endpoint}/missing.json")
        assert not missing.is_file()
        with pytest.raises(FileNotFoundError):
            missing.read_bytes()
        with fails("storage.unsupported"):
            list(location(server.endpoint).iterdir())
        for write in (lambda: write_bytes(missing, b"x"), lambda: remove_file(missing)):
            with fails("storage.write", 5):
                write()

    @pytest.mark.parametrize(
        "faults",
        [
            {"fail_next": 2},
            {"fail_next": 1, "status": 429, "retry_after_s": 1},
            {"cut_after": 2**20},
            {"no_head": True},
            {"no_ranges": True},
            {"no_ranges": True, "no_length": True},
        ],
        ids=str,
    )
    def test_temporary_failures_are_survived(
        self, server: WebServer, big: RemotePath, faults: dict[str, int]
    ) -> None:
        vars(server.faults).update(faults)

        assert big.stat().st_size == len(BIG)
        assert big.read_bytes() == BIG
        assert read_byte_range(ByteRange(big, 1000, 2000)) == BIG[1000:2000]

    def test_stalled_response_is_requested_again(
        self, server: WebServer, big: RemotePath, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(retry, "READ_TIMEOUT_S", 0.5)
        server.faults.stall_next = 1
        started = time.monotonic()

        assert big.read_bytes() == BIG
        assert time.monotonic() - started < 5

    def test_large_file_without_ranges_is_an_error(
        self, server: WebServer, big: RemotePath, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http, "LARGEST_WHOLE", 2**20)
        server.faults.no_ranges = True

        with fails("storage.unsupported"):
            read_byte_range(ByteRange(big, 2**20, 2**20 + 5))

    @pytest.mark.parametrize(
        ("faults", "code", "exit_code"),
        [
            ({"longer_by": 1000}, "storage.changed", 5),
            ({"page": True}, "data.broken", 3),
            ({"status": 403, "fail_next": 9}, "storage.forbidden", 5),
        ],
    )
    def test_answer_that_is_not_the_file_is_an_error(
        self, server: WebServer, big: RemotePath, faults: dict[str, int], code: str, exit_code: int
    ) -> None:
        vars(server.faults).update(faults)

        with fails(code, exit_code):
            big.read_bytes()

    def test_changed_file_is_read_again_from_its_start(
        self, server: WebServer, big: RemotePath
    ) -> None:
        with big.open("rb") as file:
            file.read(10)
            server.faults.version = 2
            with pytest.raises(StorageError) as caught:
                file.read()

        assert caught.value.code == "storage.changed"
        assert big.read_bytes() == BIG


@pytest.fixture
def hub(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WebServer:
    """Hub with one data set."""
    files = tmp_path / "site/lab/blocks"
    (files / "meta").mkdir(parents=True)
    (files / "big.bin").write_bytes(BIG)
    (files / "meta/info.json").write_text("{}")
    (files / "meta-old").write_text("beside")
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    return server


class TestHub:
    root = RemotePath("hf://datasets/lab/blocks")

    @pytest.mark.parametrize(
        ("text", "error", "code"),
        [
            ("hf://datasets/lab/blocks@gone/x", DataError, "data.no_source"),
            ("hf://models/lab/missing/x", EnvironmentProblem, "environment.credentials"),
        ],
    )
    def test_missing_revision_or_repository_is_reported(
        self, hub: WebServer, text: str, error: type[Exception], code: str
    ) -> None:
        assert hub.endpoint
        with pytest.raises(error) as caught:
            location(text).read_bytes()

        assert getattr(caught.value, "code", "") == code

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("https://user:secret@host/x", "usage.secret"),
            ("https://host/x?token=secret", "usage.secret"),
            ("s3://a:secret@b/x", "usage.secret"),
            ("hf://datasets/lab", "usage.bad_value"),
            ("hf://buckets/a", "usage.bad_value"),
            ("hf://lab", "usage.bad_value"),
            ("hf://./blocks", "usage.bad_value"),
        ],
    )
    def test_incomplete_location_is_an_error_as_are_credentials_which_are_not_shown(
        self, text: str, code: str
    ) -> None:
        with pytest.raises(UsageError) as caught:
            location(text)

        assert caught.value.code == code
        assert "secret" not in f"{caught.value.message} {caught.value.hint}"

    def test_revision_is_pinned_to_the_commit_and_a_name_without_a_kind_is_a_model(
        self, hub: WebServer
    ) -> None:
        path = pinned(location("hf://datasets/lab/blocks/meta/info.json"))
        assert str(path) == f"hf://datasets/lab/blocks@{COMMIT}/meta/info.json"
        assert path.read_text() == "{}"
        assert pinned(path) == path

        path = location("hf://lab/blocks@main/meta/info.json")
        assert hub.endpoint
        assert str(path) == "hf://models/lab/blocks@main/meta/info.json"
        assert path.read_text() == "{}"

    def test_bucket_is_read_and_pinned_by_the_etag_of_each_file(self, hub: WebServer) -> None:
        path = pinned(location("hf://buckets/lab/blocks/big.bin"))
        assert (hub.endpoint, str(path)) != ("", "hf://models/buckets/lab/blocks/big.bin")
        assert path.read_bytes() == BIG
        assert version_of(path) == "ETag of each file"
        assert sorted(file.name for file in path.parent.iterdir()) == [
            "big.bin",
            "meta",
            "meta-old",
        ]
        assert is_writable(path)

    def test_space_is_read_at_a_commit_and_not_written(self, hub: WebServer) -> None:
        path = pinned(location("hf://spaces/lab/blocks/meta/info.json"))
        assert (hub.endpoint, path.read_text()) != ("", "")
        assert version_of(path) == COMMIT
        with fails("storage.write", 5):
            write_bytes(path, b"x")

    def test_private_repository_needs_a_token(
        self, hub: WebServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        path = RemotePath("hf://datasets/lab/blocks/meta/info.json")
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
        with web_server(hub.folder, needs_token=True) as private:
            monkeypatch.setenv("HF_ENDPOINT", private.endpoint)
            with pytest.raises(EnvironmentProblem) as caught:
                path.read_text()
            monkeypatch.setenv("HF_TOKEN", TOKEN)
            assert path.read_text() == "{}"

        assert (caught.value.code, caught.value.exit_code) == ("environment.credentials", 6)
        assert "HF_TOKEN" in caught.value.hint
