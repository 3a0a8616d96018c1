"""Buckets: a real S3 server, and a stand-in for Google Cloud Storage."""

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from tests.builders.errors import fails
from tests.builders.gcs_server import GcsServer, gcs_server
from tests.builders.s3_server import Proxy, S3Server, faulty_proxy, without_credentials
from tests.builders.web_server import response, serving
from vlatool.config.includes import read_file
from vlatool.config.presets import display_path
from vlatool.errors import DataError, StorageError, UsageError
from vlatool.jobs.record import output_lock
from vlatool.storage.atomic import (
    atomic_folder,
    open_atomic,
    remove_file,
    remove_partials,
    remove_tree,
    write_bytes,
    write_json,
    write_text,
)
from vlatool.storage.byte_ranges import (
    ByteRange,
    open_byte_range,
    read_byte_range,
    read_byte_ranges,
)
from vlatool.storage.gcs import GoogleBucket
from vlatool.storage.lock import remote_lock
from vlatool.storage.remote_path import RemotePath
from vlatool.storage.retry import SPEED_VARIABLE
from vlatool.storage.tree import file_names, files_below, walk
from vlatool.storage.uri import location

MIB = 1024 * 1024
BIG = np.random.default_rng(0).bytes(12 * MIB)


class Cloud(NamedTuple):
    server: S3Server | GcsServer
    endpoint_variable: str
    root: str  # of an empty bucket

    @property
    def bucket(self) -> str:
        return self.root.partition("://")[2]


def sizes(path: RemotePath) -> list[tuple[str, int]]:
    return [(file.name, file.bytes) for file in files_below(path)]


@pytest.fixture(params=["s3", "gs"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    """Server of buckets, which this process and its child processes are set up to use."""
    if request.param == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        yield Cloud(request.getfixturevalue("s3"), "AWS_ENDPOINT_URL", f"s3://{bucket}")
        return
    with gcs_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        yield Cloud(server, "STORAGE_EMULATOR_HOST", f"gs://{server.bucket()}")


@pytest.fixture
def root(cloud: Cloud) -> RemotePath:
    """Folder in an empty bucket."""
    return RemotePath(f"{cloud.root}/data")


@pytest.fixture
def proxy(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Proxy with faults, through which the buckets are used."""
    with faulty_proxy(cloud.server.endpoint) as running:
        monkeypatch.setenv(cloud.endpoint_variable, running.endpoint)
        yield running


@pytest.fixture
def short_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the timeout of retries to a second."""
    monkeypatch.setenv("VLATOOL_STORAGE_PATIENCE_S", "1")


def names(paths: Iterable[Path]) -> list[str]:
    return sorted(str(path).partition("/data/")[2] for path in paths)


def fill_and_fail(path: Path, error: Exception) -> None:
    with atomic_folder(path) as folder:
        (folder / "new").touch()
        raise error


class TestReading:
    def test_any_position_of_an_object_can_be_read_until_it_changes(self, root: RemotePath) -> None:
        write_bytes(root / "file", BIG)
        assert (root / "file").read_bytes() == BIG
        assert (root / "file").stat().st_size == len(BIG)
        assert abs((root / "file").stat().st_mtime - time.time()) < 60
        random = np.random.default_rng(1)

        with (root / "file").open("rb") as file:
            for start, length in random.integers(0, [len(BIG), MIB], (40, 2)).tolist():
                file.seek(start)
                assert file.read(length) == BIG[start : start + length]
            file.seek(-5, os.SEEK_END)
            assert (file.tell(), file.read()) == (len(BIG) - 5, BIG[-5:])
            file.seek(3 * MIB)
            assert file.read() == BIG[3 * MIB :]
            file.seek(0)
            file.read(10)
            write_bytes(root / "file", BIG[::-1])
            with pytest.raises(StorageError) as caught:
                file.read()
        assert caught.value.code == "storage.changed"

    def test_one_member_of_a_large_zip_does_not_cost_the_archive(
        self, root: RemotePath, proxy: Proxy
    ) -> None:
        with open_atomic(root / "file.zip") as file, zipfile.ZipFile(file, "w") as archive:
            for number in range(12):
                archive.writestr(f"{number}.bin", BIG[number * MIB : (number + 1) * MIB])
        proxy.faults.clear()

        with (
            (root / "file.zip").open("rb") as source,
            zipfile.ZipFile(source) as stored,
            stored.open("9.bin") as member,
        ):
            assert member.read(1000) == BIG[9 * MIB : 9 * MIB + 1000]

        assert sum(request.sent for request in proxy.faults.requests) < 6 * MIB

    def test_byte_ranges_take_one_request_each_and_sequential_reading_few(
        self, root: RemotePath, proxy: Proxy
    ) -> None:
        write_bytes(root / "file", BIG)
        spans = [(5, 10), (len(BIG) - 3, len(BIG) + 9), (MIB, 2 * MIB), (len(BIG) + 1, 2**40)]
        proxy.faults.clear()
        contents = list(read_byte_ranges(ByteRange(root / "file", *span) for span in spans))
        assert contents == [BIG[start:stop] for start, stop in spans]
        assert len(proxy.faults.requests) == len(spans)

        proxy.faults.clear()
        with open_byte_range(ByteRange(root / "file", MIB, 6 * MIB)) as file:
            assert b"".join(iter(lambda: file.read(300_000), b"")) == BIG[MIB : 6 * MIB]
        assert sum(request.sent for request in proxy.faults.requests) == 5 * MIB

        proxy.faults.clear()
        with (root / "file").open("rb") as file:
            assert b"".join(iter(lambda: file.read(100_000), b"")) == BIG
        assert len(proxy.faults.requests) <= 10

        assert read_byte_range(ByteRange(root / "file", 7, len(BIG))) == BIG[7:]
        with pytest.raises(FileNotFoundError):
            read_byte_range(ByteRange(root / "missing", 0, 1))


class TestListing:
    @pytest.fixture(autouse=True)
    def files(self, root: RemotePath) -> None:
        for name in ("a.tar", "b/c.tar", "b/d/e.json", "b/d/.f.7.partial", "g/meta/info.json"):
            write_text(root / name, name)
        write_text(root.parent / "data2/x", "another folder whose name has the same prefix")

    def test_listings_have_sizes_and_take_one_request_each(
        self, root: RemotePath, cloud: Cloud, proxy: Proxy
    ) -> None:
        found_sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
        assert sum(found_sizes) == sum(len(name) for name in names(root.rglob("*")) if "." in name)
        assert sizes(root / "b") == [("c.tar", 7), ("d/.f.7.partial", 16), ("d/e.json", 10)]
        assert sizes(root / "a.tar") == [("", 5)]
        assert len(proxy.faults.requests) == 4
        assert sizes(root / "missing") == sizes(root / "missing.tar") == []
        assert file_names(root / "b") == {"c.tar"}
        assert file_names(root / "missing") == frozenset()

        for key in ("data//x", "data/b//y", "data/empty/"):
            cloud.server.put(cloud.bucket, key, b"")
        proxy.faults.clear()
        levels = {folder.name: (sorted(folders), files) for folder, folders, files in walk(root)}
        assert levels == {
            "data": (["b", "empty", "g"], ["a.tar"]),
            "b": (["d"], ["c.tar"]),
            "d": ([], [".f.7.partial", "e.json"]),
            "empty": ([], []),
            "g": (["meta"], []),
            "meta": ([], ["info.json"]),
        }
        assert len(proxy.faults.requests) == 1

        visited: list[str] = []
        for folder, folders, files in walk(root):
            visited += [f"{folder.name}:{name}" for name in files]
            if "d" in folders:
                folders.remove("d")
        assert visited == ["data:a.tar", "b:c.tar", "meta:info.json"]

    @pytest.mark.slow
    def test_listing_of_several_pages_is_complete_or_an_error(
        self, root: RemotePath, cloud: Cloud, proxy: Proxy, short_timeout: None
    ) -> None:
        def put(number: int) -> None:
            cloud.server.put(cloud.bucket, f"data/many/{number:04d}", b"x")

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(put, range(1010)))

        assert len(list((root / "many").iterdir())) == 1010
        listing = (root / "many").rglob("*")
        next(listing)
        proxy.faults.fail_every = 1
        with pytest.raises(StorageError):
            list(listing)
        proxy.faults.clear()
        remove_tree(root / "many")
        assert not (root / "many").exists()


class TestWriting:
    def test_parts_of_a_killed_run_are_removed(self, root: RemotePath, cloud: Cloud) -> None:
        for key in ("data/a", "data/b/c", "data/d&<", "data2"):
            cloud.server.start_upload(cloud.bucket, key)

        remove_partials(root)

        if isinstance(cloud.server, S3Server):  # elsewhere they are not listed, and expire
            assert cloud.server.unfinished(cloud.bucket) == ["data2"]

    def test_server_that_cannot_list_uploads_is_tolerated(
        self, s3_bucket: str, s3_proxy: Proxy, caplog: pytest.LogCaptureFixture
    ) -> None:
        s3_proxy.faults.status, s3_proxy.faults.fail_next = 403, 1

        remove_partials(location(f"s3://{s3_bucket}/data"))

        assert "unfinished uploads" in caplog.text

    def test_folder_is_replaced_at_the_end_and_kept_by_an_error(self, root: RemotePath) -> None:
        write_text(root / "out/old", "x")
        with pytest.raises(DataError):
            fill_and_fail(root / "out", DataError("broken"))
        with atomic_folder(root / "out") as folder:
            (folder / "below").mkdir()
            (folder / "below/big").write_bytes(BIG)
            (folder / "marker").write_text("complete")
            assert names((root / "out").rglob("*")) == ["out/old"]

        assert names((root / "out").rglob("*")) == ["out/below", "out/below/big", "out/marker"]
        assert (root / "out/below/big").read_bytes() == BIG


class TestFaults:
    @pytest.mark.parametrize("status", [429, 503])
    def test_retry_after_of_a_busy_server_is_respected(
        self, root: RemotePath, proxy: Proxy, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(SPEED_VARIABLE, "20")
        faults = proxy.faults
        faults.status, faults.retry_after_s, faults.fail_next = status, 10, 2
        started = time.monotonic()

        write_bytes(root / "file", b"x")

        assert time.monotonic() - started >= 0.5
        assert (root / "file").read_bytes() == b"x"

    def test_cut_bodies_resume_at_the_byte_reached(self, root: RemotePath, proxy: Proxy) -> None:
        write_bytes(root / "file", BIG)
        proxy.faults.clear()
        proxy.faults.cut_after = MIB

        assert (root / "file").read_bytes() == BIG
        assert sum(request.sent for request in proxy.faults.requests) < 1.2 * len(BIG)
        with (root / "file").open("rb") as file:
            assert file.read() == BIG

    def test_lost_response_to_the_last_request_of_an_upload(
        self, root: RemotePath, proxy: Proxy
    ) -> None:
        with open_atomic(root / "file") as file:
            file.write(BIG)
            proxy.faults.only, proxy.faults.lose_answers = ("POST",), 1

        assert (root / "file").read_bytes() == BIG

    def test_missing_bucket_is_reported_immediately(self, cloud: Cloud) -> None:
        path = location(f"{cloud.root}-that-is-missing/data")

        for act in (path.exists, (path / "x").read_bytes, lambda: write_bytes(path / "x", b"")):
            with fails("storage.refused"):
                act()

    @pytest.mark.parametrize(
        ("is_anonymous", "code", "exit_code"),
        [(False, "storage.forbidden", 5), (True, "environment.credentials", 6)],
    )
    def test_denied_access_and_missing_credentials_are_reported_immediately(
        self,
        s3_bucket: str,
        s3_proxy: Proxy,
        request: pytest.FixtureRequest,
        is_anonymous: bool,
        code: str,
        exit_code: int,
    ) -> None:
        if is_anonymous:
            request.getfixturevalue("anonymous")
        s3_proxy.faults.status, s3_proxy.faults.fail_every = 403, 1

        with fails(code, exit_code) as caught:
            location(f"s3://{s3_bucket}/file").read_bytes()

        assert ("AWS_ACCESS_KEY_ID" in caught.value.hint) == is_anonymous
        assert len(s3_proxy.faults.requests) == 1

    @pytest.fixture
    def anonymous(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Removes all credentials."""
        variables = without_credentials(os.environ)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    def test_public_bucket_is_read_without_credentials(
        self, s3: S3Server, s3_bucket: str, anonymous: None
    ) -> None:
        public = {"Bucket": s3_bucket, "ACL": "public-read"}
        s3.client().put_bucket_acl(**public)
        s3.client().put_object(**public, Key="file", Body=b"x")

        root = location(f"s3://{s3_bucket}")
        assert (root / "file").read_bytes() == b"x"
        assert [path.name for path in root.iterdir()] == ["file"]


LOCK_SPEED = "10"  # a live owner that a busy machine stops for 7 s keeps its lock


class TestLock:
    def test_second_run_fails_with_the_command_of_the_first_until_that_ends(
        self, root: RemotePath, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(SPEED_VARIABLE, LOCK_SPEED)
        with suppress(DataError), output_lock(root, "vlatool first"):
            with pytest.raises(UsageError) as caught, output_lock(root, "vlatool second"):
                pytest.fail("both runs hold the lock")
            content = (root / ".vlatool/lock").read_text()
            raise DataError("broken")

        assert (caught.value.code, caught.value.exit_code) == ("usage.output_in_use", 2)
        assert "vlatool first" in caught.value.message
        assert str(root) in caught.value.message
        assert os.uname().nodename not in content
        with output_lock(root, "second"):
            pass
        assert not (root / ".vlatool/lock").exists()

    def test_only_one_of_many_acquires_the_lock(
        self, root: RemotePath, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(SPEED_VARIABLE, LOCK_SPEED)
        lock, gate, ended = root / "lock", threading.Barrier(4), threading.Semaphore(0)

        def run(number: int) -> bool:
            gate.wait()
            try:
                with remote_lock(lock, f"run {number}"):
                    return all(ended.acquire(timeout=20) for _ in range(3))
            except UsageError:
                ended.release()
                return False

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(run, range(4))) == 1

    def test_lock_that_is_renewed_never_gets_stale_and_that_of_a_killed_run_does(
        self, root: RemotePath, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(SPEED_VARIABLE, "4")
        with (
            remote_lock(root, "first", renewed_every_s=1),
            pytest.raises(UsageError),
            remote_lock(root, "x", stale_after_s=40),
        ):
            pytest.fail("a live lock was taken over")

        write_json(root, {"owner": "x", "command": "first", "started": "now"})
        started = time.monotonic()
        with remote_lock(root, "second", stale_after_s=9):
            assert "second" in root.read_text()
        assert time.monotonic() - started > 0.5, "the lock may be renewed until then"

    def test_lost_responses_do_not_block_the_own_output(
        self, root: RemotePath, proxy: Proxy
    ) -> None:
        proxy.faults.only, proxy.faults.lose_answers = ("PUT",), 2

        with output_lock(root, "first"):
            pass

        assert not (root / ".vlatool/lock").exists()

    def test_end_of_a_run_waits_seconds_for_a_storage_that_is_away(
        self,
        root: RemotePath,
        proxy: Proxy,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv("VLATOOL_STORAGE_CLOCK_SPEED", "60")
        with output_lock(root, "first"):
            proxy.faults.down_for(1e6)

        assert "retried for 10 s" in caplog.text

    def test_run_that_lost_its_lock_fails_in_the_end(self, root: RemotePath) -> None:
        def lose_lock() -> None:
            with remote_lock(root, "first", renewed_every_s=0.1):
                write_bytes(root, b"{}")
                time.sleep(0.6)

        with fails("storage.lock_lost"):
            lose_lock()

        assert root.read_bytes() == b"{}", "the lock of the other run is kept"


FORKED = """
import os, sys
from vlatool.storage.remote import connect
from vlatool.storage.uri import location
path = location(sys.argv[1])
client = lambda: connect(path.address.root)
first = client()
assert path.read_bytes() == b"x"
child = os.fork()
if child == 0:
    os._exit(client() is first or path.read_bytes() != b"x")
_, status = os.waitpid(child, 0)
sys.exit(status != 0 or client() is not first)
"""


class TestProcesses:
    def test_each_process_has_one_client(self, root: RemotePath) -> None:
        write_bytes(root / "file", b"x")

        # In a separate process: this one has many threads and must not be forked.
        subprocess.run([sys.executable, "-c", FORKED, str(root / "file")], check=True)


class TestReaders:
    def test_config_file_and_what_it_includes(self, root: RemotePath, tmp_path: Path) -> None:
        write_text(root / "run.yaml", "<<: !include parts/base.yaml\nb: 2\n")
        write_text(root / "parts/base.yaml", "<<: !include ../format.yaml\nc: 3\n")
        write_text(root / "format.yaml", "a: 1\n")
        (tmp_path / "local.yaml").write_text(f"!include {root / 'run.yaml'}\n")

        for file in (root / "run.yaml", tmp_path / "local.yaml"):
            tree = read_file(str(file), display=display_path).value
            assert {key: node.origin for key, node in tree.items()} == {
                "a": f"{root}/format.yaml:1",
                "b": f"{root}/run.yaml:2",
                "c": f"{root}/parts/base.yaml:2",
            }


class TestGoogleCredentials:
    @pytest.fixture
    def server(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GcsServer]:
        """A server with a file `x` in the bucket `b`, on a machine without credentials."""
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        with gcs_server() as server:
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
            server.buckets["b"] = {}
            server.put("b", "x", b"content")
            yield server

    @pytest.fixture
    def account(
        self, server: GcsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> GcsServer:
        """The server, with a service account; it refuses requests without a token."""
        server.token = "not given yet"
        file = server.service_account(tmp_path / "account.json")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        return server

    def test_a_public_bucket_needs_none(self, server: GcsServer) -> None:
        assert location("gs://b/x").read_bytes() == b"content"

    def test_a_bucket_that_needs_some_says_how_to_log_in(self, server: GcsServer) -> None:
        server.token = "secret"
        with fails("environment.credentials", 6) as caught:
            location("gs://b/x").read_bytes()
        assert "gcloud auth application-default login" in caught.value.hint

    def test_one_token_of_a_service_account_serves_many_requests(self, account: GcsServer) -> None:
        write_bytes(location("gs://b/y"), BIG)
        assert [path.name for path in location("gs://b").iterdir()] == ["x", "y"]
        assert location("gs://b/y").read_bytes() == BIG
        assert account.tokens_given == 1

    def test_a_token_that_is_withdrawn_is_replaced(self, account: GcsServer) -> None:
        assert location("gs://b/x").read_bytes() == b"content"
        account.token = "another"
        assert location("gs://b/x").read_bytes() == b"content"
        assert account.tokens_given == 2

    def test_parallel_requests_survive_a_token_that_is_withdrawn(self, account: GcsServer) -> None:
        path = location("gs://b/x")
        assert path.read_bytes() == b"content"
        account.token = "another"
        with ThreadPoolExecutor(8) as pool:
            assert {*pool.map(lambda _: path.read_bytes(), range(16))} == {b"content"}

    def test_a_stranger_whom_the_library_refuses_is_asked_for_the_machine(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        exceptions = pytest.importorskip("google.auth.exceptions")
        bucket = GoogleBucket("gs://b")
        monkeypatch.setattr(bucket, "_finds_machine_credentials", lambda: True)
        assert bucket.retry_advice(exceptions.InvalidOperation("anonymous")) is not None

    def test_a_machine_of_google_cloud_gets_a_token_when_it_is_refused(
        self, server: GcsServer
    ) -> None:
        token = {"access_token": "of the machine", "expires_in": 3600, "token_type": "Bearer"}
        account = {"email": "robot@lab", "scopes": [], "aliases": ["default"]}

        def answer(first: str) -> Iterator[bytes]:
            content = json.dumps(token if "/token" in first else account)
            if "project" in first or "universe" in first:
                content = "googleapis.com"
            kind = "application/json" if content[0] == "{" else "text/plain"
            headers = {"Metadata-Flavor": "Google", "Content-Type": kind}
            yield response("200 OK", headers, content.encode())

        code = "from vlatool.storage.remote import connect; bucket = connect('gs://b')\n"
        code += "print(bucket._credentials.token, bucket._finds_machine_credentials())\n"
        code += "bucket._credentials.refresh(bucket._request); print(bucket._credentials.token)"
        with serving(answer) as endpoint:
            host = endpoint.removeprefix("http://")
            environment = {**os.environ, "STORAGE_EMULATOR_HOST": ""}
            environment |= {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host}
            done = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True
            )
        assert done.stdout == "None True\nof the machine\n", done.stderr

    def test_a_file_that_holds_no_account_is_named_without_its_content(
        self, account: GcsServer, tmp_path: Path
    ) -> None:
        (tmp_path / "account.json").write_text('{"type": "secret"}')
        with fails("environment.credentials", 6) as caught:
            location("gs://b/x").read_bytes()
        assert "secret" not in caught.value.message


def test_the_emulator_that_others_use_is_read_and_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket="b")
    server.start()
    try:
        port = server._api._httpd.server_address[1]
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        root = location("gs://b/some folder")
        write_bytes(root / "a/x?#.bin", BIG[:MIB])
        assert (root / "a/x?#.bin").read_bytes() == BIG[:MIB]
        assert read_byte_range(ByteRange(root / "a/x?#.bin", 7, 100)) == BIG[7:100]
        assert [path.name for path in root.rglob("*")] == ["a", "x?#.bin"]
        remove_file(root / "a/x?#.bin")
        assert not root.exists()
    finally:
        server.stop()
