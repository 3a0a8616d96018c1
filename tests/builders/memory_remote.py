"""Storage in the memory of this process: a minimal implementation of a scheme."""

import hashlib
import io
import time
from collections.abc import Sequence
from typing import ClassVar

from vlatool.storage.remote import (
    Body,
    ConditionFailed,
    ListPage,
    LocationForm,
    ObjectInfo,
    RangeNotSatisfiable,
    Upload,
)
from vlatool.storage.retry import RetryAdvice, network_retry_advice


class MemoryRemote:
    """Objects of a root such as `memory://x`; each root has its own objects."""

    form = LocationForm("memory://name/key")
    settings = ()
    can_list = True
    stores: ClassVar[dict[str, dict[str, tuple[bytes, ObjectInfo]]]] = {}

    def __init__(self, root: str) -> None:
        self._root = root
        self.objects = self.stores.setdefault(root, {})

    def head(self, key: str) -> ObjectInfo:
        return self._object(key)[1]

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> ListPage:
        keys = [key for key in sorted(self.objects) if key.startswith(below)]
        if not delimiter:
            return ListPage([(key, self.objects[key][1]) for key in keys if key > token][:at_most])
        folders = {below + key[len(below) :].partition("/")[0] + "/" for key in keys}
        files = [key for key in keys if "/" not in key[len(below) :]]
        entries = [(key, self.objects[key][1]) for key in files]
        return ListPage(entries, sorted(folders - {f"{key}/" for key in files}))

    def get(self, key: str, start: int, stop: int, etag: str) -> Body:
        data, info = self._object(key)
        first = max(0, len(data) + start) if start < 0 else start
        if etag not in ("", info.etag):
            raise ConditionFailed
        if first >= len(data):
            raise RangeNotSatisfiable
        file = io.BytesIO(data[first : len(data) if start < 0 else stop])
        return Body(info, first, file.read, file.close, time.time())

    def put(self, key: str, data: bytes, etag: str | None = None) -> str:
        current = self.objects[key][1].etag if key in self.objects else ""
        if etag not in (None, current):
            raise ConditionFailed
        digest = hashlib.sha256(data).hexdigest()
        self.objects[key] = (data, ObjectInfo(len(data), time.time(), digest))
        return digest

    def multipart(self, key: str) -> Upload:
        return Parts(self, key)

    def unfinished(self, below: str) -> Sequence[tuple[str, Upload]]:
        del below
        return ()

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        for key in keys:
            self.objects.pop(key, None)
        return ()

    def retry_advice(self, error: Exception) -> RetryAdvice | None:
        return network_retry_advice(error)

    def map_error(self, error: Exception, location: str) -> Exception:
        del location
        return error

    def _object(self, key: str) -> tuple[bytes, ObjectInfo]:
        if key not in self.objects:
            raise FileNotFoundError(2, "no such object", f"{self._root}/{key}")
        return self.objects[key]


class Parts:
    """Object that is written in parts."""

    def __init__(self, memory: MemoryRemote, key: str) -> None:
        self._memory, self._key = memory, key
        self._parts: dict[int, bytes] = {}

    def send(self, number: int, data: bytes) -> str:
        self._parts[number] = data
        return str(number)

    def complete(self, parts: Sequence[str]) -> None:
        self._memory.put(self._key, b"".join(self._parts[int(part)] for part in parts))

    def abort(self) -> None:
        self._parts.clear()
