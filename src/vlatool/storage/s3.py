"""Requests to S3: one client per process, every request retried, every error one of ours."""

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from vlatool.errors import StorageError
from vlatool.storage.retry import retrying
from vlatool.storage.s3_errors import s3_trouble, translated
from vlatool.storage.steps import step

_CONNECTIONS = 64  # more than the threads that ever read or write at once
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_DELETED_AT_ONCE = 1000  # S3 API, DeleteObjects

T = TypeVar("T")


class Address(NamedTuple):
    """A bucket and a key; an empty key is the bucket itself."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def place(self) -> dict[str, str]:
        """As the API names it."""
        return {"Bucket": self.bucket, "Key": self.key}


@dataclass(frozen=True)
class Facts:
    """What a listing or an answer says of an object; only `is_dir` counts for a prefix.

    Attributes:
        size: Length in bytes.
        modified: Seconds since 1970, by the server's clock.
        etag: Changes with the content; quoted, as the server writes it.
        is_dir: Nothing has this key, but there are keys below it.
    """

    size: int = 0
    modified: float = 0.0
    etag: str = ""
    is_dir: bool = False


class Page(NamedTuple):
    """Part of a listing: full keys of the objects with their facts, and prefixes (ending in /)."""

    objects: Sequence[tuple[str, Facts]]
    prefixes: Sequence[str]


def client() -> Any:
    """The boto3 client of this process; endpoint, region and credentials as AWS tools find them."""
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _client(os.getpid(), settings)


@lru_cache(maxsize=4)
def _client(_pid: int, _settings: tuple[tuple[str, str], ...]) -> Any:
    """A client; connections must not be shared with a forked child, hence the process id."""
    session: Any = importlib.import_module("boto3.session")
    config: Any = importlib.import_module("botocore.config")
    return session.Session().client(
        "s3",
        config=config.Config(
            max_pool_connections=_CONNECTIONS,
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 2},
        ),
    )


def call(where: object, operation: Callable[[Any], T], *, patience_s: float | None = None) -> T:
    """What `operation` returns when given the client, tried until it succeeds.

    Raises:
        FileNotFoundError: The object does not exist.
        ConditionFailed: A conditional request found something else.
        StorageError: The storage does not answer, refuses, or has no such bucket.
        EnvironmentProblem: There are no credentials.
    """

    def attempt() -> T:
        return operation(client())

    try:
        return retrying(attempt, str(where), judge=s3_trouble, patience_s=patience_s)
    except Exception as error:
        ours = translated(error, str(where))
        if ours is error:
            raise
        raise ours from error


def look(address: Address) -> Facts | None:
    """The facts of an object or a prefix with keys below it; None if there is neither."""
    if address.key:
        try:
            answer = call(address, lambda s3: s3.head_object(Bucket=address[0], Key=address[1]))
            return facts(answer, int(answer["ContentLength"]))
        except FileNotFoundError:
            pass
    prefix = f"{address.key}/" if address.key else ""
    request = {"Bucket": address.bucket, "Prefix": prefix, "MaxKeys": 1}
    answer = call(address, lambda s3: s3.list_objects_v2(**request))
    is_there = bool(answer.get("Contents")) or not prefix
    return Facts(is_dir=True) if is_there else None


def facts(answer: Mapping[str, Any], size: int) -> Facts:
    """The facts in an answer."""
    return Facts(size, answer["LastModified"].timestamp(), str(answer["ETag"]))


def pages(address: Address, *, below: str, delimiter: str = "") -> Iterator[Page]:
    """The listing of the keys that start with `below`, in order.

    Every page is retried on its own; an error ends the iteration, so a listing is never short.
    """
    request: dict[str, Any] = {"Bucket": address.bucket, "Prefix": below, "Delimiter": delimiter}
    while True:
        answer = call(address, lambda s3: s3.list_objects_v2(**request))
        objects = [
            (str(item["Key"]), facts(item, int(item["Size"])))
            for item in answer.get("Contents", ())
        ]
        prefixes = [str(item["Prefix"]) for item in answer.get("CommonPrefixes", ())]
        yield Page(objects, prefixes)
        if not answer.get("IsTruncated"):
            return
        request["ContinuationToken"] = answer["NextContinuationToken"]


def put(address: Address, data: bytes, **conditions: str) -> Mapping[str, Any]:
    """Writes a whole object in one request; returns S3's answer."""
    request = {**address.place, "Body": data, **conditions}
    with step("write", address):
        return call(address, lambda s3: s3.put_object(**request))


def delete(address: Address, *, patience_s: float | None = None) -> None:
    """Removes an object; one that is not there is fine."""
    with step("remove", address):
        call(address, lambda s3: s3.delete_object(**address.place), patience_s=patience_s)


def delete_below(address: Address) -> None:
    """Removes every object below a prefix."""
    below = f"{address.key}/" if address.key else ""
    keys = [key for page in pages(address, below=below) for key, _ in page.objects]
    for start in range(0, len(keys), _DELETED_AT_ONCE):
        _delete_batch(address, keys[start : start + _DELETED_AT_ONCE])


def _delete_batch(address: Address, keys: Sequence[str]) -> None:
    request = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
    with step("remove", address):
        answer = call(address, lambda s3: s3.delete_objects(Bucket=address.bucket, Delete=request))
    # The request as a whole succeeds when single keys fail; those are tried one by one.
    for failed in answer.get("Errors", ()):
        key = str(failed.get("Key", ""))
        if not key:
            raise StorageError(f"{address}: objects cannot be removed", code="storage.refused")
        delete(Address(address.bucket, key))


def abort_uploads(address: Address) -> None:
    """Removes the parts of unfinished uploads at and below a key."""
    request: dict[str, Any] = {"Bucket": address.bucket, "Prefix": address.key}
    while True:
        answer = call(address, lambda s3: s3.list_multipart_uploads(**request))
        for upload in answer.get("Uploads", ()):
            key = str(upload["Key"])
            if key == address.key or key.startswith(f"{address.key}/") or not address.key:
                abort_upload(Address(address.bucket, key), str(upload["UploadId"]))
        if not answer.get("IsTruncated"):
            return
        request["KeyMarker"] = answer["NextKeyMarker"]
        request["UploadIdMarker"] = answer["NextUploadIdMarker"]


def abort_upload(address: Address, upload: str, *, patience_s: float | None = None) -> None:
    """Removes the parts of an unfinished upload; one that is gone is fine."""
    request = {**address.place, "UploadId": upload}
    with suppress(FileNotFoundError):
        call(address, lambda s3: s3.abort_multipart_upload(**request), patience_s=patience_s)
