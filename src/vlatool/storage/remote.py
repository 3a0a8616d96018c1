"""Protocol of remote storage, implemented per scheme, and requests with retries."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from vlatool.errors import StorageError, VlatoolError
from vlatool.plugins import SCHEMES
from vlatool.storage.background import in_parallel
from vlatool.storage.retry import RetryAdvice, retrying

_DELETED_AT_ONCE = 16
_OWN_SETTINGS = "VLATOOL_"  # environment variables that all schemes read

T = TypeVar("T")


class Address(NamedTuple):
    root: str  # scheme and root, such as `s3://bucket`
    key: str  # name below the root; empty for the root itself

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" if self.key else self.root

    @property
    def prefix(self) -> str:
        """Prefix of the keys below."""
        return f"{self.key}/" if self.key else ""

    def joined(self, path: str) -> "Address":
        """Address of a path below this one."""
        return Address(self.root, "/".join(part for part in (self.key, path) if part))


@dataclass(frozen=True)
class LocationForm:
    """Form of the locations of a scheme; patterns match from the part after `scheme://` on."""

    example: str  # shown for a location that does not have the form
    pattern: re.Pattern[str] = re.compile(r"[^/]+")  # matches a complete location
    num_root_segments: int = 1  # number of segments that belong to the root
    # matches a location with credentials, which would get into logs and records
    secret: re.Pattern[str] = re.compile(r"[^/]*@")
    canonical: Callable[[str], str] = str  # function that writes out a short form
    # matches locations that can only be read, of a scheme that has others
    read_only: re.Pattern[str] = re.compile(r"(?!)")
    # version that a root names; empty if there is none
    version: Callable[[str], str] = lambda root: root.partition("@")[2]


@dataclass(frozen=True)
class ObjectInfo:
    """Information on an object, from a listing or a response; a prefix only has `is_dir`."""

    size: int = 0  # size in bytes
    modified: float = 0.0  # time of modification in seconds since 1970, by the clock of the server
    etag: str = ""  # ETag, which changes with the content; empty if the server sends none
    is_dir: bool = False  # True for a prefix: no object has this key, but there are keys below it
    # digest of the content that the server vouches for, such as `sha256:HEX`, `md5:HEX` or `git-
    # sha1:HEX` (of a git blob); empty if it has none
    digest: str = ""
    # False if the server sends no size, and the end of a body may be a cut
    has_known_size: bool = True


class ListPage(NamedTuple):
    objects: Sequence[tuple[str, ObjectInfo]]  # full keys, in order, with their information
    prefixes: Sequence[str] = ()  # common prefixes of keys up to the delimiter, which is included
    token: str = ""  # token of the next page; empty on the last page


@dataclass(frozen=True)
class Body:
    """Body of a response, read as a stream."""

    info: ObjectInfo  # information on the object
    start: int  # position of the first byte in the object
    read: Callable[[int], bytes]  # returns the next bytes, N at most; empty at the end
    close: Callable[[], None]  # closes the response
    # time of the response in seconds since 1970, by the clock of the server; 0 if unknown
    date: float = 0.0
    is_range: bool = True  # False if the server ignored the range and sends the whole object


class ConditionFailed(Exception):
    """Failed condition of a request: the object has another version, or exists already."""


class RangeNotSatisfiable(Exception):
    """Request of a range that starts at or after the end of the object (HTTP 416)."""


class Remote(Protocol):
    """Objects below one root. Each call is one attempt and raises the errors of its library.

    `retry_advice` and `map_error` classify these errors. Each process has its own instance.

    Attributes:
        form: Form of its locations.
        settings: Prefixes of the environment variables that its library reads.
        can_list: True if `list_page` works. If not, any key without an object may be a folder.
    """

    form: ClassVar[LocationForm]
    settings: ClassVar[tuple[str, ...]]
    can_list: bool

    def __init__(self, root: str) -> None: ...

    def head(self, key: str) -> ObjectInfo:
        """Information on an object; `map_error` gives FileNotFoundError if there is none."""
        ...

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> ListPage:
        """Keys that start with `below`; keys that are equal up to the delimiter are one entry."""
        ...

    def get(self, key: str, start: int, stop: int, etag: str) -> Body:
        """Requests bytes `start` to `stop`, fewer at the end of the object.

        A negative `start` counts from the end. Raises ConditionFailed if `etag` is not empty and
        the object has another version, RangeNotSatisfiable if the range has no bytes.
        """
        ...

    def retry_advice(self, error: Exception) -> RetryAdvice | None:
        """Advice on retrying after an error; None if a retry is useless."""
        ...

    def map_error(self, error: Exception, location: str) -> Exception:
        """Converts an error that retries cannot solve to one of vlatool; returns others as is."""
        ...


class Upload(Protocol):
    """Upload of an object in parts; the object is visible when `complete` returns."""

    def send(self, number: int, data: bytes) -> str:
        """Uploads a part, numbered from 1; returns its ETag for `complete`."""
        ...

    def complete(self, parts: Sequence[str]) -> None:
        """Completes the upload; the object is visible afterwards."""
        ...

    def abort(self) -> None:
        """Removes the parts."""
        ...


class WritableRemote(Remote, Protocol):
    """Remote storage that can be written."""

    def put(self, key: str, data: bytes, etag: str | None = None) -> str:
        """Writes an object; returns its ETag.

        With `etag`, raises ConditionFailed if the object has another version; with an empty
        `etag`, if the object exists.
        """
        ...

    def multipart(self, key: str) -> Upload:
        """Starts an upload in parts."""
        ...

    def unfinished(self, below: str) -> Sequence[tuple[str, Upload]]:
        """Unfinished uploads of keys that start with `below`, with their keys."""
        ...

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        """Removes up to 1000 objects, if they exist; returns keys that could not be removed."""
        ...


def remote_class(scheme: str) -> type[Remote]:
    """Class of the remote storage of a scheme."""
    return SCHEMES.get(scheme)


def connect(root: str) -> Any:
    """Remote storage of a root, one instance per process and environment."""
    names = (_OWN_SETTINGS, *remote_class(root.partition("://")[0]).settings)
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(names)))
    return _connected(root, os.getpid(), settings)


@lru_cache(maxsize=16)
def _connected(root: str, _pid: int, _settings: tuple[tuple[str, str], ...]) -> Any:
    """Remote storage of a root. A forked child, with another process id, must not share it."""
    return remote_class(root.partition("://")[0])(root)


def forget_connections() -> None:
    """Makes the next request connect anew: with the credentials that are there then."""
    _connected.cache_clear()


def is_writable(location: object) -> bool:
    """True if objects of a location can be written."""
    scheme, _, rest = str(location).partition("://")
    kind = remote_class(scheme)
    return hasattr(kind, "put") and not kind.form.read_only.match(rest)


def read_only_error(where: object) -> StorageError:
    """Error for writing to a location that can only be read."""
    return StorageError.at(
        where,
        "this location is read-only",
        hint="write to a local folder, s3://, gs:// or az://",
        code="storage.write",
    )


def call(
    address: Address,
    operation: Callable[[WritableRemote], T],
    *,
    retry_timeout_s: float | None = None,
) -> T:
    """Calls `operation` with the remote storage of an address, with retries."""
    remote: WritableRemote = connect(address.root)

    def advise(error: Exception) -> RetryAdvice | None:
        is_answer = isinstance(error, (ConditionFailed, RangeNotSatisfiable, VlatoolError))
        return None if is_answer else remote.retry_advice(error)

    try:
        return retrying(
            lambda: operation(remote),
            str(address),
            classify=advise,
            retry_timeout_s=retry_timeout_s,
            host=address.root,
        )
    except (ConditionFailed, RangeNotSatisfiable, VlatoolError):
        raise
    except Exception as error:
        is_attribute = isinstance(error, AttributeError) and error.obj is remote
        if is_attribute and getattr(error, "name", "") in vars(WritableRemote):
            raise read_only_error(address) from None  # it is no `WritableRemote`
        mapped = remote.map_error(error, str(address))
        if mapped is error:
            raise
        raise mapped from error


def delete_each(remote: Any, keys: Sequence[str], delete: Callable[[str], object]) -> Sequence[str]:
    """Removes objects one by one; returns keys whose request may be repeated."""
    failed: list[str] = []

    def remove(key: str) -> None:
        try:
            delete(key)
        except Exception as error:
            if isinstance(remote.map_error(error, key), FileNotFoundError):
                return
            if len(keys) == 1 or remote.retry_advice(error) is None:
                raise
            failed.append(key)

    for _ in in_parallel(remove, keys, _DELETED_AT_ONCE):
        pass
    return failed


def is_listable(address: Address) -> bool:
    """True if the storage can list keys; if not, a folder looks as if it did not exist."""
    return bool(connect(address.root).can_list)


def find_object(address: Address) -> ObjectInfo | None:
    """Information on an object, or on a prefix with keys below it; None if there is neither."""
    if address.key:
        try:
            return call(address, lambda remote: remote.head(address.key))
        except FileNotFoundError:
            pass
    if not is_listable(address):
        return None
    first = call(address, lambda remote: remote.list_page(address.prefix, "", "", 1))
    is_folder = bool(first.objects or first.prefixes) or not address.key
    return ObjectInfo(is_dir=True) if is_folder else None
