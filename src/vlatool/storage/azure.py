"""Containers of Azure Blob Storage by azure-storage-blob, which checks the MD5 of what it moves."""

import importlib
import io
import os
import re
import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from vlatool.errors import missing_package
from vlatool.storage import remote, retry, web

_VARIABLE = "AZURE_STORAGE_CONNECTION_STRING"
_ACCOUNT = re.compile(r"(?:^|;)AccountName=([^;]+)")
_MAX_EMPTY_PAGES = 1000
_LOGIN_HINT = (
    f"set {_VARIABLE}, or AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN; or `az login`, with the"
    " package azure-identity"
)


class Container:
    """Blobs of a container; an emulator is named by AZURE_STORAGE_CONNECTION_STRING."""

    form = remote.LocationForm(
        "az://account/container/key", re.compile(r"[^/]+/[^/]+(/|$)"), num_root_segments=2
    )
    settings = ("AZURE_",)
    can_list = True

    def __init__(self, root: str) -> None:
        self._account, self._name = root.partition("://")[2].split("/")
        try:
            self._blob: Any = importlib.import_module("azure.storage.blob")
            self._transport: Any = importlib.import_module("azure.core.pipeline.transport")
        except ImportError as error:
            raise missing_package("azure-storage-blob") from error

    @cached_property
    def _credential(self) -> Any:
        """Key, signature or identity; None for public containers.

        The account that AZURE_STORAGE_ACCOUNT names is the only one that gets key or signature.
        """
        text = os.environ.get("AZURE_STORAGE_KEY") or os.environ.get("AZURE_STORAGE_SAS_TOKEN")
        if text and os.environ.get("AZURE_STORAGE_ACCOUNT", self._account) == self._account:
            return text
        try:
            identity: Any = importlib.import_module("azure.identity")
        except ImportError:
            return None
        return identity.DefaultAzureCredential()

    @cached_property
    def _container(self) -> Any:
        url = f"https://{self._account}.blob.core.windows.net"
        transport = self._transport.RequestsTransport(
            session=web.with_certificates(url),
            session_owner=False,
            connection_timeout=retry.CONNECT_TIMEOUT_S,
            read_timeout=retry.READ_TIMEOUT_S,
        )
        options = {"transport": transport, "retry_total": 0}
        text = os.environ.get(_VARIABLE, "")
        match = _ACCOUNT.search(text)
        kind = self._blob.BlobServiceClient
        if match and match[1] == self._account:
            service = kind.from_connection_string(text, **options)
        else:
            service = kind(url, self._credential, **options)
        return service.get_container_client(self._name)

    def head(self, key: str) -> remote.ObjectInfo:
        return _info(self._container.get_blob_client(key).get_blob_properties())

    def list_page(self, below: str, delimiter: str, token: str, at_most: int) -> remote.ListPage:
        options = {"name_starts_with": below, "results_per_page": at_most}
        if delimiter:
            listing = self._container.walk_blobs(delimiter=delimiter, **options)
        else:
            listing = self._container.list_blobs(**options)
        pages = listing.by_page(token or None)
        objects: list[tuple[str, remote.ObjectInfo]] = []
        prefixes: list[str] = []
        for page in islice(pages, _MAX_EMPTY_PAGES):
            for item in page:
                if isinstance(item, self._blob.BlobPrefix):
                    prefixes.append(str(item.name))
                else:
                    objects.append((str(item.name), _info(item)))
            if objects or prefixes:
                break
        return remote.ListPage(objects, prefixes, pages.continuation_token or "")

    def get(self, key: str, start: int, stop: int, etag: str) -> remote.Body:
        blob = self._container.get_blob_client(key)
        if start < 0:  # Azure has no ranges from the end
            info = _info(blob.get_blob_properties())
            start, stop = max(0, info.size + start), info.size
            etag = etag or info.etag
            if not info.size:
                raise remote.RangeNotSatisfiable
        options: Mapping[str, Any] = self._condition(etag) if etag else {}
        try:
            answer = blob.download_blob(start, stop - start, validate_content=True, **options)
        except Exception as error:
            if web.answer_of(error).status == 416:
                raise remote.RangeNotSatisfiable from error
            raise
        span = web.RANGE.fullmatch(answer.properties.content_range or "")
        if span is None:  # an empty blob
            raise remote.RangeNotSatisfiable
        file = io.BytesIO(answer.readall())
        date = web.date_seconds(answer._response.response.headers.get("Date", ""))
        info = _info(answer.properties, int(span[3]))
        return remote.Body(info, start, file.read, file.close, date)

    def put(self, key: str, data: bytes, etag: str | None = None) -> str:
        options: Mapping[str, Any] = self._condition(etag) if etag else {}
        answer = self._container.get_blob_client(key).upload_blob(
            data, overwrite=etag != "", validate_content=True, **options
        )
        return str(answer["etag"])

    def multipart(self, key: str) -> remote.Upload:
        return _Blocks(self._container.get_blob_client(key), self._blob.BlobBlock)

    def unfinished(self, below: str) -> Sequence[tuple[str, remote.Upload]]:
        """Returns none: the server removes blocks that are not committed after a week."""
        del below
        return ()

    def delete(self, keys: Sequence[str]) -> Sequence[str]:
        return remote.delete_each(self, keys, lambda key: self._container.delete_blob(key))

    def retry_advice(self, error: Exception) -> retry.RetryAdvice | None:
        """Advice on retrying after an error; None if a retry is useless."""
        return web.retry_advice(error)

    def map_error(self, error: Exception, location: str) -> Exception:
        answer = web.answer_of(error)
        if answer.status:
            is_stranger = self._credential is None and not os.environ.get(_VARIABLE)
            return web.bucket_error(location, answer, _LOGIN_HINT, is_stranger=is_stranger)
        return web.map_error(error, location)

    def _condition(self, etag: str) -> Mapping[str, Any]:
        conditions: Any = importlib.import_module("azure.core").MatchConditions
        return {"etag": etag, "match_condition": conditions.IfNotModified}


class _Blocks:
    """Upload of a blob in blocks, which the server forgets after a week."""

    def __init__(self, blob: Any, kind: Any) -> None:
        self._blob = blob
        self._kind = kind
        self._name = secrets.token_hex(8)

    def send(self, number: int, data: bytes) -> str:
        name = b64encode(f"{self._name}{number:06d}".encode()).decode()
        self._blob.stage_block(name, data, validate_content=True)
        return name

    def complete(self, parts: Sequence[str]) -> None:
        self._blob.commit_block_list([self._kind(part) for part in parts])

    def abort(self) -> None: ...


def _info(properties: Any, size: int | None = None) -> remote.ObjectInfo:
    md5 = properties.content_settings.content_md5
    return remote.ObjectInfo(
        properties.size if size is None else size,
        properties.last_modified.timestamp(),
        # Listings leave the quotes out.
        f'"{properties.etag.strip(chr(34))}"',
        digest=f"md5:{bytes(md5).hex()}" if md5 else "",
    )
