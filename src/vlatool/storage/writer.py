"""Atomic writing of remote objects; parts are uploaded in the background."""

import io
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from vlatool.errors import EnvironmentProblem, StorageError
from vlatool.storage.background import in_background, in_parallel
from vlatool.storage.crash_points import crash_point
from vlatool.storage.listing import pages
from vlatool.storage.remote import Address, ConditionFailed, Upload, call, find_object

PART_SIZE = 8 * 1024 * 1024
_LATE_PART_SIZE = 64 * 1024 * 1024
_DELETED_AT_ONCE = 1000  # S3 API, DeleteObjects
# S3 allows 10,000 parts: equal parts, which some servers require, up to 40 GB; then up to 360 GB.
_EARLY_PARTS = 5000
_IN_FLIGHT = 4
_ABORT_TIMEOUT_S = 5.0  # the next run removes parts that remain
_FOLDER_THREADS = 4
_RACES = 5  # of processes that write one object

_kept: dict[str, bool] = {}  # roots to whether their storage keeps the conditions of a put
# Objects that this process has replaced, with their ETags: the next replacement is one request.
_replaced: dict[Address, str] = {}


class RemoteWriter(io.BufferedIOBase):
    """File for writing that becomes an object when `commit` returns.

    Full parts are uploaded on threads while the caller writes; at most four at a time, so memory
    stays below five parts. Not seekable.
    """

    def __init__(self, address: Address) -> None:
        self.name = str(address)
        self._address = address
        self._buffer = bytearray()
        self._size = 0
        self._upload: Upload | None = None
        self._parts: list[Future[str]] = []

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        """Number of bytes written so far."""
        return self._size

    def write(self, data: Any, /) -> int:
        """Writes `data`; uploads full parts."""
        view = memoryview(data).cast("B")
        self._buffer += view
        self._size += len(view)
        while len(self._buffer) >= self._part_size():
            size = self._part_size()
            part = bytes(memoryview(self._buffer)[:size])
            del self._buffer[:size]
            self._send(part)
        return len(view)

    def commit(self) -> None:
        """Completes the upload; the object is visible afterwards."""
        upload = self._upload
        if upload is None:
            put(self._address, bytes(self._buffer))
            return
        if self._buffer:
            self._send(bytes(self._buffer))
            self._buffer.clear()
        parts = [part.result() for part in self._parts]
        try:
            with crash_point("rename", self._address):
                call(self._address, lambda _: upload.complete(parts))
        except FileNotFoundError:
            # The upload is unknown: an earlier attempt succeeded and its response was lost.
            info = find_object(self._address)
            if info is None or info.size != self._size:
                raise StorageError.at(
                    self._address,
                    "the upload disappeared before it was complete",
                    hint="run the same command again",
                    code="storage.write",
                ) from None
        self._upload = None

    def abort(self) -> None:
        """Removes the uploaded parts; no object is created."""
        if self._upload is not None:
            wait(self._parts, timeout=_ABORT_TIMEOUT_S)  # a part that arrives later would remain
            with suppress(StorageError, EnvironmentProblem):
                _abort(self._address, self._upload, retry_timeout_s=_ABORT_TIMEOUT_S)
        self._upload = None
        self._buffer.clear()

    def _part_size(self) -> int:
        return PART_SIZE if len(self._parts) < _EARLY_PARTS else _LATE_PART_SIZE

    def _send(self, data: bytes) -> None:
        if self._upload is None:
            with crash_point("create", self._address):
                self._upload = call(
                    self._address, lambda remote: remote.multipart(self._address.key)
                )
        upload = self._upload
        number = len(self._parts) + 1
        self._parts.append(
            in_background(lambda: call(self._address, lambda _: upload.send(number, data)))
        )
        if len(self._parts) >= _IN_FLIGHT:
            self._parts[-_IN_FLIGHT].result()


def put(address: Address, data: bytes, etag: str | None = None) -> str:
    """Writes an object in one request; returns its ETag.

    Without `etag`, what is there is replaced, on condition that it is still the same: the request
    of an attempt that timed out may reach the server late, and must not replace a newer object.
    """
    with crash_point("write", address):
        if etag is not None or _kept.get(address.root) is False:
            return _put(address, data, etag)
        version = _replaced.get(address, "")
        for _ in range(_RACES):
            try:
                written = _put(address, data, version)
                if address.root not in _kept:  # one probe: the object is there now
                    _kept[address.root] = _refuses(address, data)
                if version:
                    _replaced[address] = written
                return written
            except FileNotFoundError:
                if not version:
                    raise
            except ConditionFailed:
                _kept[address.root] = True
            except StorageError as error:
                if error.code != "storage.unsupported":
                    raise
                _kept[address.root] = False
                return _put(address, data, None)
            version = _version(address)
        raise StorageError.at(
            address,
            "other processes write this object again and again",
            hint="find out which, stop them, and run the same command again",
            code="storage.write",
        )


def _version(address: Address) -> str:
    """ETag of an object; empty if there is none."""
    try:
        return call(address, lambda remote: remote.head(address.key)).etag
    except FileNotFoundError:
        return ""


def _refuses(address: Address, data: bytes) -> bool:
    """True if the storage does not write an object on condition that there is none."""
    try:
        _put(address, data, "")
    except ConditionFailed:
        return True
    return False


def _put(address: Address, data: bytes, etag: str | None) -> str:
    return call(address, lambda remote: remote.put(address.key, data, etag))


def delete(address: Address, *, retry_timeout_s: float | None = None) -> None:
    """Removes an object, if it exists."""
    with crash_point("remove", address):
        call(address, lambda remote: remote.delete([address.key]), retry_timeout_s=retry_timeout_s)


def delete_below(address: Address) -> None:
    """Removes all objects below a prefix."""
    keys = [key for page in pages(address) for key, _ in page.objects]
    for start in range(0, len(keys), _DELETED_AT_ONCE):
        _delete_batch(address, keys[start : start + _DELETED_AT_ONCE])


def _delete_batch(address: Address, keys: Sequence[str]) -> None:
    with crash_point("remove", address):
        failed = call(address, lambda remote: remote.delete(keys))
    for key in failed:
        if not key:
            raise StorageError(f"{address}: objects cannot be removed", code="storage.refused")
        delete(Address(address.root, key))


def abort_uploads(address: Address, spared: Callable[[], Sequence[str]] = tuple) -> None:
    """Removes the parts of unfinished uploads at and below a key, except below the relative
    prefixes that `spared` returns.
    """
    uploads = call(address, lambda remote: list(remote.unfinished(address.key)))
    if not uploads:
        return
    others = tuple(f"{address.prefix}{prefix}" for prefix in spared())
    for key, upload in uploads:
        is_below = key == address.key or key.startswith(address.prefix)
        if is_below and not key.startswith(others):
            _abort(Address(address.root, key), upload)


def _abort(address: Address, upload: Upload, *, retry_timeout_s: float | None = None) -> None:
    """Removes the parts of an unfinished upload, if it exists."""
    with suppress(FileNotFoundError):
        call(address, lambda _: upload.abort(), retry_timeout_s=retry_timeout_s)


@contextmanager
def open_upload(address: Address) -> Generator[IO[bytes]]:
    """Opens an object for writing; it is created if the block ends normally, else not."""
    upload = RemoteWriter(address)
    try:
        yield cast(IO[bytes], upload)
        upload.commit()
    except BaseException:
        upload.abort()
        raise


def upload_folder(folder: Path, address: Address) -> None:
    """Replaces the objects below a key by the files of a local folder.

    The file that was written last, which marks the folder as complete, appears last.
    """
    files = [file for file in folder.rglob("*") if file.is_file()]
    files.sort(key=lambda file: (file.stat().st_mtime_ns, file))
    delete_below(address)

    def upload(file: Path) -> None:
        below = address.joined(file.relative_to(folder).as_posix())
        with file.open("rb") as source, open_upload(below) as target:
            while block := source.read(PART_SIZE):
                target.write(block)

    for _ in in_parallel(upload, files[:-1], _FOLDER_THREADS):
        pass
    for file in files[-1:]:
        upload(file)
