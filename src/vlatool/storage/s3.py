"""Buckets: requests to S3 through one client per process."""

import importlib
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

from vlatool.storage.remote import Body, Facts, NothingThere, Page, Upload
from vlatool.storage.retry import Trouble
from vlatool.storage.s3_errors import error_code, no_credentials, s3_trouble, translated

_CONNECTIONS = 64  # more than the threads that ever read or write at once
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60


class Bucket:
    """The objects of a bucket; endpoint, region and credentials as AWS tools find them."""

    lists = True

    def __init__(self, place: str) -> None:
        self.name = place.partition("://")[2]

    @cached_property
    def _session(self) -> Any:
        module: Any = importlib.import_module("boto3.session")
        return module.Session()

    @cached_property
    def is_anonymous(self) -> bool:
        """Whether there are no credentials: requests are not signed, which public buckets allow."""
        return self._session.get_credentials() is None

    @cached_property
    def client(self) -> Any:
        """The boto3 client."""
        config: Any = importlib.import_module("botocore.config")
        botocore: Any = importlib.import_module("botocore")
        unsigned = {"signature_version": botocore.UNSIGNED} if self.is_anonymous else {}
        return self._session.client(
            "s3",
            config=config.Config(
                max_pool_connections=_CONNECTIONS,
                connect_timeout=_CONNECT_TIMEOUT_S,
                read_timeout=_READ_TIMEOUT_S,
                retries={"mode": "standard", "total_max_attempts": 2},
                **unsigned,
            ),
        )

    def trouble(self, error: Exception) -> Trouble | None:
        """What an error means for another attempt."""
        return s3_trouble(error)

    def translated(self, error: Exception, where: str) -> Exception:
        """Our error for one of the client library."""
        ours = translated(error, where)
        if getattr(ours, "code", "") == "storage.forbidden" and self.is_anonymous:
            return no_credentials(where, "no AWS credentials, and the bucket is not public")
        return ours

    def look(self, key: str) -> Facts:
        """HeadObject."""
        answer = self.client.head_object(Bucket=self.name, Key=key)
        return _facts(answer, int(answer["ContentLength"]))

    def page(self, below: str, delimiter: str, token: str, at_most: int) -> Page:
        """ListObjectsV2."""
        request = {"Bucket": self.name, "Prefix": below, "Delimiter": delimiter}
        if token:
            request["ContinuationToken"] = token
        answer = self.client.list_objects_v2(**request, MaxKeys=at_most)
        return Page(
            [
                (str(one["Key"]), _facts(one, int(one["Size"])))
                for one in answer.get("Contents", ())
            ],
            [str(one["Prefix"]) for one in answer.get("CommonPrefixes", ())],
            str(answer["NextContinuationToken"]) if answer.get("IsTruncated") else "",
        )

    def get(self, key: str, start: int, stop: int, etag: str) -> Body:
        """GetObject of a range."""
        span = str(start) if start < 0 else f"{start}-{stop - 1}"
        request = {**self._place(key), "Range": f"bytes={span}"}
        if etag:
            request["IfMatch"] = etag
        try:
            answer = self.client.get_object(**request)
        except Exception as error:
            if error_code(error) != "InvalidRange":
                raise
            raise NothingThere from error
        if start < 0 and not answer.get("ContentLength"):
            raise NothingThere  # some servers answer so where others refuse the range
        return _body(answer)

    def put(self, key: str, data: bytes, etag: str | None = None) -> str:
        """PutObject."""
        condition = {} if etag is None else {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        answer = self.client.put_object(**self._place(key), Body=data, **condition)
        return str(answer["ETag"])

    def multipart(self, key: str) -> Upload:
        """CreateMultipartUpload."""
        answer = self.client.create_multipart_upload(**self._place(key))
        return _Multipart(self.client, {**self._place(key), "UploadId": str(answer["UploadId"])})

    def unfinished(self, below: str) -> Sequence[tuple[str, Upload]]:
        """ListMultipartUploads."""
        found: list[tuple[str, Upload]] = []
        request: dict[str, Any] = {"Bucket": self.name, "Prefix": below}
        while True:
            answer = self.client.list_multipart_uploads(**request)
            for one in answer.get("Uploads", ()):
                key = str(one["Key"])
                upload = {**self._place(key), "UploadId": str(one["UploadId"])}
                found.append((key, _Multipart(self.client, upload)))
            if not answer.get("IsTruncated"):
                return found
            request["KeyMarker"] = answer["NextKeyMarker"]
            request["UploadIdMarker"] = answer["NextUploadIdMarker"]

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        """DeleteObjects."""
        if len(keys) == 1:
            self.client.delete_object(**self._place(keys[0]))
            return ()
        request = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        answer = self.client.delete_objects(Bucket=self.name, Delete=request)
        # The request as a whole succeeds when single keys fail.
        return [str(failed.get("Key", "")) for failed in answer.get("Errors", ())]

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self.name, "Key": key}


class _Multipart:
    """A multipart upload that was begun."""

    def __init__(self, client: Any, request: dict[str, str]) -> None:
        self._client = client
        self._request = request

    def send(self, number: int, data: bytes) -> str:
        """UploadPart."""
        answer = self._client.upload_part(**self._request, PartNumber=number, Body=data)
        return str(answer["ETag"])

    def complete(self, parts: Sequence[str]) -> None:
        """CompleteMultipartUpload."""
        numbered = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(parts, start=1)]
        self._client.complete_multipart_upload(**self._request, MultipartUpload={"Parts": numbered})

    def abort(self) -> None:
        """AbortMultipartUpload."""
        self._client.abort_multipart_upload(**self._request)


def _facts(answer: Mapping[str, Any], size: int) -> Facts:
    return Facts(size, answer["LastModified"].timestamp(), str(answer["ETag"]))


def _body(answer: Any) -> Body:
    span, _, total = str(answer.get("ContentRange", "")).removeprefix("bytes ").partition("/")
    first = span.partition("-")[0]
    size = int(total) if total.isdigit() else int(answer["ContentLength"])
    date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return Body(
        _facts(answer, size),
        int(first) if first.isdigit() else 0,
        answer["Body"].read,
        answer["Body"].close,
        parsedate_to_datetime(date).timestamp() if date else 0.0,
    )
