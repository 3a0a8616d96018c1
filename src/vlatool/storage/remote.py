"""What a storage behind a network offers. A scheme says it; requests are tried again here."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

from vlatool.errors import StorageError
from vlatool.plugins import SCHEMES
from vlatool.storage.retry import RetryAdvice, retrying

_SETTINGS = ("AWS_", "HF_", "VLATOOL_")

T = TypeVar("T")


class Address(NamedTuple):
    """Where an object is.

    Attributes:
        place: Scheme and what it has for a root, such as `s3://bucket`.
        key: Name below it; empty for the root.
    """

    root: str
    key: str

    def __str__(self) -> str:
        return f"{self.root}/{self.key}"

    @property
    def prefix(self) -> str:
        """What the keys below start with."""
        return f"{self.key}/" if self.key else ""

    def joined(self, path: str) -> "Address":
        """The address of what is below."""
        return Address(self.root, "/".join(part for part in (self.key, path) if part))


@dataclass(frozen=True)
class ObjectInfo:
    """What a listing or an answer says of an object; only `is_dir` counts for a prefix.

    Attributes:
        size: Length in bytes.
        modified: Seconds since 1970, by the server's clock.
        etag: Changes with the content; as the server writes it, empty where it does not.
        is_dir: Nothing has this key, but there are keys below it.
    """

    size: int = 0
    modified: float = 0.0
    etag: str = ""
    is_dir: bool = False


class ListPage(NamedTuple):
    """Part of a listing.

    Attributes:
        objects: Full keys, in order, with their facts.
        prefixes: What a delimiter made of several keys, each with the delimiter at its end.
        token: Leads to the next page; empty on the last.
    """

    objects: Sequence[tuple[str, ObjectInfo]]
    prefixes: Sequence[str] = ()
    token: str = ""


@dataclass(frozen=True)
class Body:
    """The bytes of an answer, on their way.

    Attributes:
        facts: Of the whole object.
        start: Position in it of the first byte.
        read: Yields up to so many bytes; nothing at the end.
        close: Ends the answer.
        date: When the server answered, seconds since 1970 by its own clock; 0 where it is silent.
    """

    info: ObjectInfo
    start: int
    read: Callable[[int], bytes]
    close: Callable[[], None]
    date: float = 0.0


class ConditionFailed(Exception):
    """The object is not, or no longer, what a conditional request asked for."""


class RangeNotSatisfiable(Exception):
    """A range begins at or behind the end of the object."""


class Remote(Protocol):
    """Objects below one root. Each call is one attempt, and raises whatever its library raises.

    `trouble` and `translated` say what that means. Other processes make their own.

    Attributes:
        lists: Whether `page` works; otherwise anything without an object may be a folder.
    """

    can_list: bool

    def head(self, key: str) -> ObjectInfo:
        """The facts of an object; translated to FileNotFoundError where there is none."""
        ...

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> ListPage:
        """Keys that start with `below`; what follows it up to the delimiter is one entry."""
        ...

    def get(self, key: str, start: int, stop: int, etag: str) -> Body:
        """Bytes `start` to `stop`, fewer where the object ends.

        A negative start asks for so many bytes before the end. With an `etag`, only of that
        version: raises ConditionFailed. Raises RangeNotSatisfiable where there are no such bytes.
        """
        ...

    def retry_advice(self, error: Exception) -> RetryAdvice | None:
        """What an error means for another attempt; None if one is pointless."""
        ...

    def map_error(self, error: Exception, where: str) -> Exception:
        """Our error for one that attempts cannot mend; others as they are."""
        ...


class Upload(Protocol):
    """An object that is sent in parts and appears when `complete` returns."""

    def send(self, number: int, data: bytes) -> str:
        """Sends a part, numbered from 1; returns what `complete` wants to know of it."""
        ...

    def complete(self, parts: Sequence[str]) -> None:
        """Makes the object visible."""
        ...

    def abort(self) -> None:
        """Drops the parts."""
        ...


class WritableRemote(Remote, Protocol):
    """A remote that takes objects."""

    def put(self, key: str, data: bytes, etag: str | None = None) -> str:
        """Writes a whole object, returns its etag.

        Only over the version `etag`, or where nothing is for an empty one: raises ConditionFailed.
        """
        ...

    def multipart(self, key: str) -> Upload:
        """Begins an upload."""
        ...

    def unfinished(self, below: str) -> Sequence[tuple[str, Upload]]:
        """Keys that start with `below`, with uploads that were begun and not ended."""
        ...

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        """Removes up to 1000 objects, absent ones too; returns those that could not be."""
        ...


def connect(place: str) -> Any:
    """The remote of a place, one per process and environment."""
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS)))
    return _connected(place, os.getpid(), settings)


@lru_cache(maxsize=16)
def _connected(place: str, _pid: int, _settings: tuple[tuple[str, str], ...]) -> Any:
    """Connections must not be shared with a forked child, hence the process id."""
    make_remote: Callable[[str], Any] = SCHEMES.get(place.partition("://")[0])
    return make_remote(place)


def call(
    address: Address,
    operation: Callable[[WritableRemote], T],
    *,
    retry_timeout_s: float | None = None,
) -> T:
    """What `operation` returns when given the remote, tried until it succeeds.

    Raises:
        FileNotFoundError: The object does not exist.
        ConditionFailed: A conditional request found something else.
        StorageError: The storage does not answer or refuses, or can only be read.
        EnvironmentProblem: There are no credentials, or a package is missing.
    """
    remote: WritableRemote = connect(address.root)
    try:
        return retrying(
            lambda: operation(remote),
            str(address),
            classify=remote.retry_advice,
            retry_timeout_s=retry_timeout_s,
        )
    except AttributeError as error:
        if error.obj is not remote:
            raise
        raise StorageError(  # it has the reading half of the protocol alone
            f"{address}: this place can only be read",
            hint="write to a local folder or a bucket",
            code="storage.read_only",
            details={"path": str(address)},
        ) from None
    except Exception as error:
        ours = remote.map_error(error, str(address))
        if ours is error:
            raise
        raise ours from error


def is_listable(address: Address) -> bool:
    """Whether folders can be told from nothing: whether the place lists what it has."""
    return bool(connect(address.root).can_list)


def find_object(address: Address) -> ObjectInfo | None:
    """The facts of an object or a prefix with keys below it; None if neither is known of."""
    if address.key:
        try:
            return call(address, lambda remote: remote.head(address.key))
        except FileNotFoundError:
            pass
    if not is_listable(address):
        return None
    first = call(address, lambda remote: remote.list_page(address.prefix, "", "", 1))
    is_there = bool(first.objects or first.prefixes) or not address.key
    return ObjectInfo(is_dir=True) if is_there else None
