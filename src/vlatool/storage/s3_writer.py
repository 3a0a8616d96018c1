"""Objects that appear in S3 when complete: multipart uploads beside the writer."""

import io
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from vlatool.errors import EnvironmentProblem, StorageError
from vlatool.storage import s3
from vlatool.storage.background import in_background
from vlatool.storage.steps import step

PART_SIZE = 8 * 1024 * 1024
_LATE_PART_SIZE = 64 * 1024 * 1024
# S3 takes 10,000 parts: equal parts up to 40 GB, which some servers insist on, then up to 360 GB.
_EARLY_PARTS = 5000
_IN_FLIGHT = 4
_ABORT_PATIENCE_S = 5.0  # what stays behind is removed by the next run
_FOLDER_THREADS = 4


class S3Upload(io.BufferedIOBase):
    """A file for writing whose bytes appear as an object when `commit` returns, else not at all.

    Full parts are sent on threads while the caller goes on writing; at most four wait at a time,
    so memory stays below five parts. Not seekable.
    """

    def __init__(self, address: s3.Address) -> None:
        self.name = str(address)
        self._address = address
        self._buffer = bytearray()
        self._size = 0
        self._upload = ""
        self._parts: list[Future[str]] = []

    def writable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size

    def write(self, data: Any, /) -> int:
        """Takes all of `data`; sends parts that are full.

        Raises:
            StorageError: An earlier part could not be sent.
        """
        view = memoryview(data).cast("B")
        self._buffer += view
        self._size += len(view)
        while len(self._buffer) >= self._part_size():
            size = self._part_size()
            part = bytes(memoryview(self._buffer)[:size])
            del self._buffer[:size]
            self._send(part)
        return len(view)

    def prepare(self) -> None:
        """Sends what is left of a large object, so that `commit` takes one short request."""
        if self._upload and self._buffer:
            part = bytes(self._buffer)
            self._buffer.clear()
            self._send(part)
        for part in self._parts:
            part.result()

    def commit(self) -> None:
        """Makes the object visible."""
        if not self._upload:
            s3.put(self._address, bytes(self._buffer))
            return
        self.prepare()
        numbered = enumerate(self._parts, start=1)
        parts = [{"PartNumber": number, "ETag": part.result()} for number, part in numbered]
        request = {**self._request(), "MultipartUpload": {"Parts": parts}}
        try:
            with step("rename", self._address):
                s3.call(self._address, lambda client: client.complete_multipart_upload(**request))
        except FileNotFoundError:
            # The upload is unknown: an attempt before this one was done and its answer got lost.
            found = s3.look(self._address)
            if found is None or found.size != self._size:
                raise StorageError(
                    f"{self._address}: the upload disappeared before it was complete",
                    hint="run the same command again",
                    code="storage.write",
                    details={"path": str(self._address)},
                ) from None
        self._upload = ""

    def abort(self) -> None:
        """Drops what was sent; nothing appears."""
        if self._upload:
            wait(self._parts, timeout=_ABORT_PATIENCE_S)  # a part that comes later would stay
            with suppress(StorageError, EnvironmentProblem):
                s3.abort_upload(self._address, self._upload, patience_s=_ABORT_PATIENCE_S)
        self._upload = ""
        self._buffer.clear()

    def _part_size(self) -> int:
        return PART_SIZE if len(self._parts) < _EARLY_PARTS else _LATE_PART_SIZE

    def _request(self) -> dict[str, Any]:
        return {**self._address.place, "UploadId": self._upload}

    def _send(self, data: bytes) -> None:
        if not self._upload:
            place = self._address.place
            with step("create", self._address):
                answer = s3.call(self._address, lambda api: api.create_multipart_upload(**place))
            self._upload = str(answer["UploadId"])
        request = {**self._request(), "PartNumber": len(self._parts) + 1, "Body": data}

        def send() -> str:
            answer = s3.call(self._address, lambda api: api.upload_part(**request))
            return str(answer["ETag"])

        self._parts.append(in_background(send))
        if len(self._parts) >= _IN_FLIGHT:
            self._parts[-_IN_FLIGHT].result()


@contextmanager
def uploading(address: s3.Address) -> Generator[IO[bytes]]:
    """A file for writing; the object appears when the block ends normally, else not at all."""
    upload = S3Upload(address)
    try:
        yield cast(IO[bytes], upload)
        upload.commit()
    except BaseException:
        upload.abort()
        raise


def upload_folder(folder: Path, address: s3.Address) -> None:
    """Replaces what is below a key by the files of a local folder.

    Large files are sent first without becoming visible. Then all appear in the order in which
    they were written: what marks a folder as complete, and is written last, appears last.
    """
    files = sorted(
        (file for file in folder.rglob("*") if file.is_file()),
        key=lambda file: (file.stat().st_mtime_ns, file),
    )
    uploads: dict[Path, S3Upload] = {}
    large = [file for file in files if file.stat().st_size >= PART_SIZE]
    try:
        for file in large:
            uploads[file] = S3Upload(_below(address, folder, file))
        with ThreadPoolExecutor(_FOLDER_THREADS) as pool:
            list(pool.map(_send_large, uploads.keys(), uploads.values()))
        s3.delete_below(address)
        for file in files:
            if file in uploads:
                uploads[file].commit()
            else:
                s3.put(_below(address, folder, file), file.read_bytes())
    except BaseException:
        for upload in uploads.values():
            upload.abort()
        raise


def _send_large(file: Path, upload: S3Upload) -> None:
    with file.open("rb") as source:
        while piece := source.read(PART_SIZE):
            upload.write(piece)
    upload.prepare()


def _below(address: s3.Address, folder: Path, file: Path) -> s3.Address:
    return s3.Address(address.bucket, f"{address.key}/{file.relative_to(folder).as_posix()}")
