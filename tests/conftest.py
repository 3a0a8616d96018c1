"""One thread per process: tiny tensors are slower on several, and bits depend on their number."""

import gc
import getpass
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Generator, Iterator
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

from tests.builders.forks import LIGHT, Forks, forks
from tests.builders.s3_server import Proxy, S3Server, faulty_proxy, s3_server
from tests.builders.shared import shared_folder

_MEMORY = Path("/dev/shm")
_MOST_BYTES = 6 * 2**30  # of temporary files: thrice what was seen


def pytest_configure(config: pytest.Config) -> None:
    """Sets up this process before torch is imported, and every process that a test starts."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if "TMPDIR" not in os.environ:
        _use_memory()
    # Servers of tests are on this machine, whatever proxy it uses for others.
    os.environ["no_proxy"] = "127.0.0.1,localhost"
    # A shell may ignore SIGINT for background jobs, and child processes inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Loader workers are forked from a process with their imports, which take a second.
    multiprocessing.set_forkserver_preload(["vlatool.loading.loader", "vlatool.tokens.encode"])


def _use_memory() -> None:
    """Puts temporary files in memory, where syncing costs nothing, until this process ends."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _MOST_BYTES:
        return
    compiled = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", compiled)  # later sessions use it again
    folder = tempfile.mkdtemp(prefix="vlatool-", dir=_MEMORY)
    tempfile.tempdir = os.environ["TMPDIR"] = folder
    # After multiprocessing has removed its own folder in it, at -100
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=-200)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spares the garbage collector the modules and the tests, which stay to the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process waits for the last of them."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def light() -> Iterator[Forks]:
    """Commands in forks of a process that has imported what commands without torch need."""
    with forks(LIGHT) as started:
        yield started


@pytest.fixture(scope="session")
def warm() -> Iterator[Forks]:
    """Commands in forks of a process that has imported what training needs."""
    with forks() as started:
        yield started


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """S3 server that other processes can use too; see its `env`."""
    with s3_server() as server:
        yield server


@pytest.fixture
def s3_bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Name of an empty bucket; this process and its child processes are set up to use it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return s3.bucket()


@pytest.fixture
def s3_proxy(s3: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Proxy with faults, through which `s3_bucket` is used."""
    assert s3_bucket
    with faulty_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def gs_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Root of an empty bucket of Google Cloud Storage."""
    from tests.builders.gcs_server import gcs_server

    with gcs_server() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
        yield f"gs://{server.bucket()}"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Parent folder of the shards of four small episodes, which tests only read."""
    from tests.builders.training import world_shards  # imports much, which few tests need

    with shared_folder(tmp_path_factory, "world", world_shards) as folder:
        yield folder / "data"


@pytest.fixture(scope="session")
def trained_policy(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of six steps on `data` with a checkpoint at three, which tests only read."""
    from tests.builders.training import tiny_config
    from vlatool.workflows.train import train

    def make(folder: Path) -> None:
        train(tiny_config(data, folder / "policy", save_every_n_steps=3))

    with shared_folder(tmp_path_factory, "policy", make) as folder:
        yield folder / "policy"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Root of a scheme that only this test has."""
    from tests.builders.memory_remote import MemoryRemote
    from vlatool.plugins import SCHEMES

    builtins = SCHEMES._builtins  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setitem(builtins, "memory", MemoryRemote)
    yield f"memory://{tmp_path.name}"
    MemoryRemote.stores.clear()
